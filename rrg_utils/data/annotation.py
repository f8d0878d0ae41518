"""What the expert annotation of a report says, in the words of the labeller and of the facts: a reference without text.

The annotation covers FINDINGS and IMPRESSION, names only what is there, and is what the films are rendered from. It
lets a text be judged by what its film shows instead of by what another text happened to mention.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rrg_utils.data.abnormalities import ABNORMALITIES, abnormality
from rrg_utils.data.mesh import Finding
from rrg_utils.data.reports import Report
from rrg_utils.errors import RRGError
from rrg_utils.labels.facts import facts
from rrg_utils.labels.mentions import ABSENT

# Observation -> names of annotations that encode it; a name with "/" needs that word too. No annotation encodes
# "No Finding" as CheXpert means it.
_CODES = {
    "Enlarged Cardiomediastinum": ("Mediastinum/enlarged", "Mediastinum/prominent"),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged", "Cardiac Shadow/borderline"),
    "Lung Opacity": ("Opacity", "Infiltrate", "Airspace Disease", "Density/lung", "Density/base"),
    "Lung Lesion": ("Nodule", "Mass", "Opacity/round", "Density/round"),  # a "nodular opacity" is a round one here
    "Edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "Consolidation": ("Consolidation",),
    "Pneumonia": ("Pneumonia",),
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax"),
    "Pleural Effusion": ("Pleural Effusion", "Hydropneumothorax"),
    "Pleural Other": ("Thickening/pleura", "Calcinosis/pleura", "Cicatrix/pleura"),
    "Fracture": ("Fractures, Bone",),
    "Support Devices": (
        "Catheters, Indwelling",
        "Implanted Medical Device",
        "Medical Device",
        "Surgical Instruments",
        "Sutures",
        "Tube, Inserted",
        "Stents",
        "Breast Implants",
        "Spinal Fusion",
    ),
}
ENCODED = tuple(_CODES)  # the observations that an annotation can encode

# What a text mentions, in the labeller's words, when it speaks of each class.
MENTIONED: dict[str, tuple[str, ...]] = {name: (name,) for name in ABNORMALITIES} | {
    "cardiomegaly": ("cardiomegaly", "enlarged cardiomediastinum", "heart failure"),
    "wide mediastinum": ("widened mediastinum",),
    "hilar enlargement": ("hilar enlargement", "lymphadenopathy"),
    "pleural effusion": ("pleural effusion", "hydropneumothorax"),
    "edema": ("edema", "vascular congestion"),
    "consolidation": ("consolidation", "airspace disease", "infiltrate"),
    "pneumonia": ("pneumonia", "infiltrate", "airspace disease", "consolidation"),
    "atelectasis": ("atelectasis", "volume loss"),
    "opacity": ("opacity", "nodular opacity"),
    "nodule": ("nodule", "nodular opacity"),
    "calcified lymph node": ("calcified granuloma",),
    "granuloma": ("calcified granuloma",),
    "hypoinflation": ("low lung volumes",),
    "tortuous aorta": ("tortuous aorta", "aortic aneurysm"),
    "degenerative spine": ("degenerative change",),
    "rib fracture": ("fracture",),
    "interstitial markings": ("interstitial opacity",),
    "surgical hardware": ("surgical clips", "sternotomy"),
    "valve": ("implant",),
    "pacemaker": ("pacemaker", "implant"),
}
# A text is coarser than the annotation at times: a calcified node and a granuloma of the lung read alike, and so do the
# implants and enlarged nodes. Where several classes share a mention, the first one takes it: infiltrate and airspace
# disease count as consolidation, a nodular opacity as an opacity.
_COARSER = {"calcified lymph node": "granuloma"}
_TELLS_NOTHING = ("implant", "lymphadenopathy")
_CLASS: dict[str, str] = {
    mention: _COARSER.get(name, name)
    for name in reversed(ABNORMALITIES)
    for mention in MENTIONED[name]
    if mention not in _TELLS_NOTHING
}
VISIBLE = tuple(
    name for name in ABNORMALITIES if name in _CLASS.values()
)  # the classes that both a text and a film can show
_PLACES = ("upper lobe", "middle lobe", "lower lobe", "lingula", "apex", "base")
_SEVERITY = {"borderline": "mild", "small": "mild", "large": "severe"}


def annotated_observations(report: Report) -> dict[str, bool]:
    """Which of the `ENCODED` observations the annotation encodes. RRGError if nobody indexed the report."""
    if any(finding.name == "No Indexing" for finding in report.mesh):
        raise RRGError(f"{report.id} was not indexed: its annotation says nothing")
    return {name: any(_is(code, f) for code in codes for f in report.mesh) for name, codes in _CODES.items()}


def _is(code: str, finding: Finding) -> bool:
    name, _, word = code.partition("/")
    return finding.name == name and (not word or word in finding.anatomy + finding.qualifiers)


class Shown(NamedTuple):
    """A finding on a film: its class, one of `VISIBLE`, and what is said of it (None: nothing)."""

    name: str
    place: str | None
    side: str | None
    severity: str | None


def film_facts(report: Report) -> frozenset[Shown]:
    """The `VISIBLE` findings of the annotation: what the film of this report shows."""
    drawn = ((_COARSER.get(name, name), f) for f in report.mesh if (name := abnormality(f)))
    return frozenset(
        Shown(name, _place(finding.anatomy), finding.side, _severity(finding))
        for name, finding in drawn
        if name in VISIBLE
    )


def asserted_facts(text: str) -> frozenset[Shown]:
    """The `VISIBLE` findings that a text asserts (present or uncertain), in the same words as `film_facts`."""
    return frozenset(
        Shown(_CLASS[fact.finding], _place([fact.anatomy]), fact.side, fact.severity)
        for fact in facts(text)
        if fact.finding in _CLASS
        and fact.polarity != ABSENT
        and (fact.finding != "fracture" or fact.anatomy == "rib")  # other bones' fractures are not drawn
    )


def _place(anatomy: Sequence[str]) -> str | None:
    return next((place for place in _PLACES if place in anatomy), None)


def _severity(finding: Finding) -> str | None:
    graded = finding.severity or next((q for q in finding.qualifiers if q in _SEVERITY), None)
    return _SEVERITY.get(graded, graded)
