"""How a report becomes the tokens that a score counts: what papers leave out, and what moves a score most.

A `Convention` is a set of switches; `PRESETS` names three of them:

- "plain": lower case; a word is a run of letters and digits with inner hyphens, points, slashes and apostrophes kept
  ("well-expanded", "2.5"); every other mark is a token of its own, the full stop too. Nothing is cut off.
- "r2gen_iu" and "r2gen_mimic": what R2Gen (zhjohnchan/R2Gen, modules/tokenizers.py) does to a reference before it is
  scored: its cleaner, then at most 59 or 99 words. Its limits of 60 and 100 ids count the one that opens a text, and
  decoding drops that one again. `r2gen_vocabulary` gives the words whose others R2Gen turns into <unk>.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from rrg_utils.errors import RRGError

_PUNCT = re.compile(r"\w+(?:[-.'/]\w+)*|[^\w\s]")
# R2Gen's character class [.,?;*!%^&_+():-\[\]{}]: its ":-\[" is a range, so capitals and <=>?@ are in it too
_DELETED = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")
_QUOTES = re.compile(r"[\"'/\\]")
UNKNOWN = "<unk>"


def r2gen_clean(text: str, corpus: Literal["iu", "mimic"] = "iu") -> str:
    """R2Gen's cleaner, with what it does by accident.

    "1. " goes wherever it stands (also from "a ratio of 1. Clear"), a decimal loses its point ("2.5 cm" becomes
    "25 cm"), a sentence of marks alone stays as an empty one (" .  . "), and marks deleted at a sentence's edge leave a
    second space there: ROUGE-L counts it as a word where the text is scored as it is (R2GenGPT), not where R2Gen's
    vocabulary has split and joined it again (the presets here). All letters come out in lower case.
    """
    if corpus == "mimic":
        text = text.replace("\n", " ")
        for run in ("__", "  ", ".."):
            while run in text:
                text = text.replace(run, run[0])
    else:
        for _ in range(3):
            text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in range(2, 6):
            text = text.replace(f"{before}{number}. ", ". ")
    pieces = text.strip().lower().split(". ")
    return " . ".join(_DELETED.sub("", _QUOTES.sub("", piece).strip()) for piece in pieces) + " ."


def r2gen_vocabulary(training_reports: Iterable[str], corpus: Literal["iu", "mimic"] = "iu") -> frozenset[str]:
    """Words that occur at least 3 (IU) or 10 (MIMIC) times in the cleaned training reports; R2Gen knows no others."""
    count = Counter(word for text in training_reports for word in r2gen_clean(text, corpus).split())
    return frozenset(word for word, times in count.items() if times >= {"iu": 3, "mimic": 10}[corpus])


@dataclass(frozen=True)
class Convention:
    """The switches. Calling it gives the tokens of a text, joined by single spaces where the tokeniser makes them.

    cleaner: "none", or R2Gen's for "r2gen_iu" or "r2gen_mimic" reports (which lower-cases whatever `lower` says).
    tokeniser: "punct" (see the module) or "space", which leaves the text as it is: the scorers split it at spaces.
    full_stops: False drops the tokens that are full stops.
    max_words: how many words are kept, None for all.
    vocabulary: other words become <unk>; None for no vocabulary.
    """

    name: str
    cleaner: Literal["none", "r2gen_iu", "r2gen_mimic"] = "none"
    lower: bool = True
    tokeniser: Literal["punct", "space"] = "punct"
    full_stops: bool = True
    max_words: int | None = None
    vocabulary: frozenset[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for option, allowed in (("cleaner", ("none", "r2gen_iu", "r2gen_mimic")), ("tokeniser", ("punct", "space"))):
            if getattr(self, option) not in allowed:
                raise RRGError(f"{option} must be one of {', '.join(allowed)}, got {getattr(self, option)!r}")
        if self.max_words is not None and self.max_words < 1:
            raise RRGError(f"max_words must be at least 1 or None, got {self.max_words}")
        if not re.fullmatch(r"\w+", self.name):
            raise RRGError(f"a convention's name goes into signatures: use letters, digits and _, not {self.name!r}")

    def __call__(self, text: str) -> str:
        if self.cleaner != "none":
            # R2Gen writes its full stop even after nothing; an empty report stays one of no tokens here
            text = r2gen_clean(text, self.cleaner.removeprefix("r2gen_")) if text.strip() else ""
        if self.lower:
            text = text.lower()
        if self.tokeniser == "punct":
            text = " ".join(_PUNCT.findall(text))
        if self.full_stops and self.max_words is None and self.vocabulary is None:
            return text
        words = [word for word in text.split() if self.full_stops or word != "."][: self.max_words]
        if self.vocabulary is not None:
            words = [word if word in self.vocabulary else UNKNOWN for word in words]
        return " ".join(words)

    def with_(self, name: str, **switches) -> "Convention":
        """The same with other switches, under another name."""
        return replace(self, name=name, **switches)

    @property
    def signature(self) -> str:
        """For example "preset:plain|clean:none|case:lc|tok:punct|stops:yes|max:no|vocab:no"."""
        case = "lc" if self.lower or self.cleaner != "none" else "mixed"
        limit = self.max_words or "no"
        words = "no" if self.vocabulary is None else len(self.vocabulary)
        stops = "yes" if self.full_stops else "no"
        return (
            f"preset:{self.name}|clean:{self.cleaner}|case:{case}|tok:{self.tokeniser}|"
            f"stops:{stops}|max:{limit}|vocab:{words}"
        )


PRESETS = {
    preset.name: preset
    for preset in (
        Convention("plain"),
        Convention("r2gen_iu", cleaner="r2gen_iu", tokeniser="space", max_words=59),
        Convention("r2gen_mimic", cleaner="r2gen_mimic", tokeniser="space", max_words=99),
    )
}


def convention(preset: str | Convention) -> Convention:
    """A preset by its name; a `Convention` is returned as it is."""
    if isinstance(preset, Convention):
        return preset
    if preset not in PRESETS:
        raise RRGError(f"preset must be one of {', '.join(PRESETS)} or a Convention, got {preset!r}")
    return PRESETS[preset]
