"""One planted change per report, of a known kind: which metrics notice the ones that matter to a patient?

An error is a function of (text, generator) that returns the changed text, or None where the report offers no place for
it. Serious ones change what is said about the patient (`SERIOUS`); harmless ones change only how it is said.
"""

import re
from collections.abc import Callable

import numpy as np

from rrg_utils.data.reports import sentences
from rrg_utils.labels import facts, label_report
from rrg_utils.labels.mentions import PRESENT

Error = Callable[[str, np.random.Generator], str | None]


def flip_side(text: str, rng: np.random.Generator) -> str | None:
    """One "left" becomes "right", or the other way round."""
    return _swap_one(text, rng, {"left": "right", "right": "left"})


def change_severity(text: str, rng: np.random.Generator) -> str | None:
    """One word of degree becomes its opposite: mild and severe, small and large, minimal and marked."""
    pairs = {"mild": "severe", "mildly": "severely", "small": "large", "minimal": "marked", "minimally": "markedly"}
    return _swap_one(text, rng, pairs | {new: old for old, new in pairs.items()})


# "no effusion" asserts it without its "no"; "is normal" and "there is a nodule" turn round with a "not" and a "no".
_NEGATIONS = (
    (re.compile(r"\bno (?:evidence of (?:an? )?)?(?!longer|change|significant change|interval)", re.I), ""),
    (
        re.compile(r"\b(is|are) (?=(?:grossly |within )?(?:normal|clear|unremarkable|enlarged|tortuous))", re.I),
        r"\1 not ",
    ),
    (re.compile(r"\bthere (is|are) (?:an? )?(?!no\b)", re.I), r"there \1 no "),
)


def negate(text: str, rng: np.random.Generator) -> str | None:
    """One statement becomes its opposite, by taking a "no" away or adding one."""
    found = []
    pieces = sentences(text)
    for i, piece in enumerate(pieces):
        for pattern, new in _NEGATIONS:
            turned, count = pattern.subn(new, piece, count=1)
            if count and facts(turned) != facts(piece):
                found.append(_join([*pieces[:i], turned[:1].upper() + turned[1:], *pieces[i + 1 :]]))
                break
    return _one(found, rng)


def drop_finding(text: str, rng: np.random.Generator) -> str | None:
    """A sentence that asserts an abnormal finding goes."""
    pieces = sentences(text)
    told = [i for i, piece in enumerate(pieces) if any(_abnormal(fact) for fact in facts(piece))]
    return _one([_join(pieces[:i] + pieces[i + 1 :]) for i in told if len(pieces) > 1], rng)


_ADDED = (
    "There is a small left pleural effusion.",
    "There is a small right apical pneumothorax.",
    "There is a nodule in the right upper lobe.",
    "There is consolidation in the left lower lobe.",
    "The heart is enlarged.",
    "There is an acute fracture of a left rib.",
)


def add_finding(text: str, rng: np.random.Generator) -> str | None:
    """A sentence about an abnormal finding that the report does not assert comes in, at any place."""
    asserted = {fact.finding for fact in facts(text) if _abnormal(fact)}
    new = [sentence for sentence in _ADDED if not {fact.finding for fact in facts(sentence)} & asserted]
    if not new or not text.strip():
        return None
    pieces = sentences(text)
    place = int(rng.integers(len(pieces) + 1))
    return _join([*pieces[:place], str(rng.choice(new)), *pieces[place:]])


def reorder(text: str, rng: np.random.Generator) -> str | None:
    """The same sentences in another order."""
    pieces = [piece if piece[-1] in ".?!" else f"{piece}." for piece in sentences(text)]
    if len(set(pieces)) < 2:
        return None
    while (order := [pieces[i] for i in rng.permutation(len(pieces))]) == pieces:
        pass
    return _join(order)


_PARAPHRASES = tuple(
    (re.compile(rf"\b{old}\b", re.I), new)
    for old, new in (
        (
            r"the heart is normal in size|(?:the )?heart size is (?:within )?normal(?: limits)?",
            "the heart is not enlarged",
        ),
        (r"(?:the )?lungs are clear", "there is no focal airspace opacity"),
        (r"(?:there is )?no pleural effusion or pneumothorax", "neither pneumothorax nor pleural effusion is seen"),
        (r"(?:there is )?no pneumothorax or pleural effusion", "neither pleural effusion nor pneumothorax is seen"),
        (r"(?:there is )?no pneumothorax", "pneumothorax is absent"),
        (r"(?:there is )?no pleural effusion", "pleural effusion is absent"),
        (r"(?:there is )?no focal consolidation", "focal consolidation is not seen"),
        (r"the heart is mildly enlarged", "there is mild cardiomegaly"),
        (r"there is mild cardiomegaly", "the heart is mildly enlarged"),
        (r"unremarkable", "within normal limits"),
        (r"within normal limits", "unremarkable"),
    )
)


def paraphrase(text: str, rng: np.random.Generator) -> str | None:
    """One stock phrase in other words; the 14 observations stay as they were."""
    found = []
    pieces = sentences(text)
    for i, piece in enumerate(pieces):
        for pattern, new in _PARAPHRASES:
            said, count = pattern.subn(new, piece, count=1)
            if count:
                changed = _join([*pieces[:i], said[:1].upper() + said[1:], *pieces[i + 1 :]])
                if label_report(changed) == label_report(text):
                    found.append(changed)
                break
    return _one(found, rng)


ERRORS: dict[str, Error] = {
    "flip the side": flip_side,
    "negate": negate,
    "drop a finding": drop_finding,
    "add a finding": add_finding,
    "change the severity": change_severity,
    "reorder sentences": reorder,
    "paraphrase": paraphrase,
}
SERIOUS = ("flip the side", "negate", "drop a finding", "add a finding", "change the severity")
HARMLESS = ("reorder sentences", "paraphrase")


def _abnormal(fact) -> bool:
    return fact.polarity == PRESENT and not fact.finding.startswith(("normal", "clear"))


def _swap_one(text: str, rng: np.random.Generator, words: dict[str, str]) -> str | None:
    found = []
    for match in re.finditer(rf"\b(?:{'|'.join(words)})\b", text, re.I):
        new = words[match.group().lower()]
        new = new.capitalize() if match.group()[0].isupper() else new
        found.append(text[: match.start()] + new + text[match.end() :])
    return _one(found, rng)


def _one(texts: list[str], rng: np.random.Generator) -> str | None:
    return texts[int(rng.integers(len(texts)))] if texts else None


def _join(pieces: list[str]) -> str:
    return " ".join(pieces)
