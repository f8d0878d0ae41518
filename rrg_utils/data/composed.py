"""Reports for studies that nobody had: a normal report of the training split with sentences of others put in.

A synthetic study (`rrg_utils.data.synthetic`) has findings but no text. Its composed report starts as a real normal
report; for every finding, the sentences that deny it or call its place normal are replaced by one real sentence which
the training split wrote about the same finding, on the same side and in the same place where there is one. So the words
are those of radiologists, every finding is balanced, and each depends on the film. The method is ours. Composed reports
teach a model to read; no claim about real narratives is tested on them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.annotation import MENTIONED
from rrg_utils.data.mesh import NORMAL, Finding
from rrg_utils.data.reports import Report, clean, sentences
from rrg_utils.data.synthetic import caption, first_of_each
from rrg_utils.labels.mentions import mentions

# What it must not mention: a sentence about several classes would bring findings that the study does not have.
_OF_OTHERS = {
    name: set().union(*(known for other, known in MENTIONED.items() if other != name)) - set(MENTIONED[name])
    for name in ABNORMALITIES
}
# Patterns where mentions do not tell a class alone.
_PATTERN = {
    "calcified lymph node": r"node|hil",
    "valve": r"valv",
    "pacemaker": r"pace|icd|defib|generator|lead",
    "rib fracture": r"\brib",
}

# Mentions that cannot stand beside a class: sentences with one of them make room for it.
_HEART = {"normal heart", "normal cardiomediastinum", "cardiomegaly"}
_LUNGS = {"clear lungs", "opacity", "infiltrate", "airspace disease", "consolidation", "nodule", "mass", "pneumonia"}
_PLEURA = {"pleural effusion", "pneumothorax", "normal pleura"}
_MEDIASTINUM = {"normal mediastinum", "normal cardiomediastinum", "normal aorta"}
_VOLUME = {"clear lungs", "normal lung volumes"}
_CONTRADICTED: dict[str, set[str]] = dict.fromkeys(ABNORMALITIES, _LUNGS) | {
    "cardiomegaly": _HEART,
    "edema": _LUNGS | {"normal vasculature", "edema"},
    "pleural effusion": _PLEURA,
    "pneumothorax": _PLEURA,
    "blunted costophrenic angle": _PLEURA,
    "pleural thickening": _PLEURA,
    "tortuous aorta": _MEDIASTINUM,
    "calcified aorta": _MEDIASTINUM,
    "calcified lymph node": _MEDIASTINUM,
    "hiatal hernia": _MEDIASTINUM,
    "wide mediastinum": _MEDIASTINUM,
    "hilar enlargement": _MEDIASTINUM,
    "scoliosis": {"normal bones"},
    "kyphosis": {"normal bones"},
    "osteopenia": {"normal bones"},
    "vertebral deformity": {"normal bones", "fracture"},
    "degenerative spine": {"normal bones"},
    "rib fracture": {"normal bones", "fracture"},
    "hyperinflation": _VOLUME,
    "hypoinflation": _VOLUME,
    "elevated diaphragm": set(),
    "catheter": set(),
    "tube": set(),
    "surgical hardware": set(),
    "foreign body": set(),
    "valve": _HEART,
    "pacemaker": _HEART,
}

_OTHER_SIDE = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class _Sentence:
    """A real sentence about one finding, or its mirror image."""

    text: str
    finding: Finding

    def mirrored(self) -> "_Sentence":
        text = re.sub(r"\b(left|right)\b", lambda m: _OTHER_SIDE[m[0].lower()], self.text, flags=re.IGNORECASE)
        return _Sentence(text, replace(self.finding, side=_OTHER_SIDE[self.finding.side]))


class Composer:
    """Writes reports for findings in the sentences of the training reports it is made from."""

    def __init__(self, train: Sequence[Report]):
        self.normal: list[list[tuple[str, set[str]]]] = []  # per normal report: sentences with what they mention
        self.bank: dict[str, list[_Sentence]] = {name: [] for name in ABNORMALITIES}
        for report in train:
            drawn = first_of_each(report)
            parts = []
            for text in sentences(clean(report.findings)):
                found = mentions(text)
                parts.append((text, {m.finding for m in found}))
                claimed = {m.finding for m in found if m.polarity != "absent"}
                for name, finding in drawn.items():
                    if _is_about(name, text, claimed) and not _names_only(_OTHER_SIDE.get(finding.side), text):
                        self.bank[name].append(_Sentence(text, finding))
            if report.mesh == (NORMAL,) and len(parts) > 2:
                self.normal.append(parts)
        for known in self.bank.values():
            known += [sentence.mirrored() for sentence in known if sentence.finding.side in _OTHER_SIDE]

    def compose(self, report: Report, rng: np.random.Generator, whole: bool = True) -> str:
        """A report text for the drawn findings of `report`, whose own text is not read; another one at each call.

        Without `whole` it holds only the sentences about findings, where there are any.
        """
        drawn = first_of_each(report)
        text = list(self.normal[rng.integers(len(self.normal))]) if whole or not drawn else []
        for name in rng.permutation(list(drawn)):
            new = (self._sentence(name, drawn[name], rng), set())  # mentions nothing: a later finding leaves it in
            room = [i for i, (_, found) in enumerate(text) if found & _CONTRADICTED[name]]
            if room:
                text[room[0]] = new
                text = [part for i, part in enumerate(text) if i not in room[1:]]
            else:
                text.append(new)
        return " ".join(part for part, _ in text)

    def _sentence(self, name: str, finding: Finding, rng: np.random.Generator) -> str:
        """One of the sentences that fit a finding best; a sentence of `caption` where the training split has none."""
        known = self.bank[name]
        if not known:
            return caption(Report("", "", "", "", "", (finding,), ()))
        fit = np.array([_fit(sentence.finding, finding) for sentence in known])
        best = np.flatnonzero(fit == fit.max())
        return known[best[rng.integers(len(best))]].text


def _is_about(name: str, text: str, claimed: set[str]) -> bool:
    """Whether a sentence that claims these mentions speaks of a class, and of no other one."""
    return (
        bool(claimed & set(MENTIONED[name]))
        and not claimed & _OF_OTHERS[name]
        and (name not in _PATTERN or re.search(_PATTERN[name], text, re.IGNORECASE) is not None)
    )


def _names_only(side: str | None, text: str) -> bool:
    """Whether a text names this side and not the other one."""
    return {side} == {word.lower() for word in re.findall(r"\b(?:left|right)\b", text, re.IGNORECASE)}


def _fit(known: Finding, wanted: Finding) -> float:
    """Agreement of two findings of one class: the side above the place, the place above the grade."""
    return (
        4 * (known.side == wanted.side)
        + 2 * (set(known.anatomy) == set(wanted.anatomy))
        + (known.severity == wanted.severity)
        + 0.5 * (set(known.qualifiers) == set(wanted.qualifiers))
    )
