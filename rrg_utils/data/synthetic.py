"""Studies that nobody had: annotations drawn with balanced findings, for pre-training, and captions made from them.

Rendering is unlimited while 2,069 training reports are few and most findings rare in them. A synthetic study combines
annotations of the training split only, so nothing of a validation or test report enters.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rrg_utils.data.abnormalities import ABNORMALITIES, abnormality
from rrg_utils.data.mesh import Finding
from rrg_utils.data.reports import Report

# Share of studies with 0, 1, 2, ... findings: ours. About as many as reports name, or more of them on each film, from
# which an encoder learns faster what small findings look like.
AS_REPORTED = (0.22, 0.3, 0.22, 0.14, 0.08, 0.04)
CROWDED = (0.08, 0.12, 0.16, 0.2, 0.18, 0.14, 0.12)
# Findings that contradict each other in one patient.
_EXCLUSIVE = (
    {"hyperinflation", "hypoinflation"},
    {"emphysema", "hypoinflation"},
    {"elevated diaphragm", "hyperinflation"},
)


def balanced_studies(
    train: Sequence[Report], count: int, seed: int = 0, findings: Sequence[float] = AS_REPORTED
) -> list[Report]:
    """`count` reports without text whose annotations draw every class of `ABNORMALITIES` equally often, but
    for those that exclude another: of two in one study the later in the alphabet is left out, mostly hypoinflation.

    Within a class, an annotation is drawn as often as the training split has it; a left- or right-sided one is
    mirrored half of the time, so that a side never tells the finding. `findings`: see `AS_REPORTED`.
    """
    pool: dict[str, list[Finding]] = {name: [] for name in ABNORMALITIES}
    for report in train:
        for finding in report.mesh:
            name = abnormality(finding)
            if name:
                pool[name].append(finding)
    names = [name for name in ABNORMALITIES if pool[name]]
    rng = np.random.default_rng([11, seed])
    out = []
    for number in range(count):
        wanted = list(rng.choice(names, size=rng.choice(len(findings), p=findings), replace=False))
        for pair in _EXCLUSIVE:
            if pair <= set(wanted):
                wanted.remove(max(pair))
        chosen = tuple(_mirrored(pool[name][rng.integers(len(pool[name]))], rng) for name in wanted)
        out.append(Report(f"SYN{seed}-{number}", "", "", "", "", chosen, ()))
    return out


def _mirrored(finding: Finding, rng: np.random.Generator) -> Finding:
    other = {"left": "right", "right": "left"}.get(finding.side)
    single = {"middle lobe", "lingula", "retrocardiac"} & set(finding.anatomy)
    return replace(finding, side=other) if other and not single and rng.random() < 0.5 else finding


# --- captions ---------------------------------------------------------------------------------------------------------

# How a report names each class: wording ours, in the manner of the reports.
_PHRASES = {
    "cardiomegaly": "the heart is {grade}enlarged.",
    "wide mediastinum": "the mediastinum is {grade}widened.",
    "hilar enlargement": "there is {grade}{side}hilar enlargement.",
    "pleural effusion": "there is a {grade}{side}pleural effusion.",
    "blunted costophrenic angle": "there is blunting of the {side}costophrenic angle.",
    "edema": "there is {grade}pulmonary edema.",
    "consolidation": "there is {grade}airspace disease in the {place}.",
    "pneumonia": "there is airspace opacity in the {place}, concerning for pneumonia.",
    "atelectasis": "there is {grade}atelectasis in the {place}.",
    "opacity": "there is {grade}opacity in the {place}.",
    "pneumothorax": "there is a {grade}{side}pneumothorax.",
    "nodule": "there is a nodule in the {place}.",
    "mass": "there is a mass in the {place}.",
    "calcified aorta": "the aorta is calcified.",
    "calcified lymph node": "there are calcified {side}lymph nodes.",
    "granuloma": "there is a calcified granuloma in the {place}.",
    "emphysema": "there are emphysematous changes.",
    "hyperinflation": "the lungs are {grade}hyperinflated.",
    "hypoinflation": "low lung volumes.",
    "elevated diaphragm": "there is elevation of the {side}hemidiaphragm.",
    "tortuous aorta": "the aorta is {grade}tortuous.",
    "scoliosis": "there is {grade}scoliosis of the thoracic spine.",
    "kyphosis": "there is {grade}kyphosis of the thoracic spine.",
    "vertebral deformity": "there is a {grade}wedge deformity of a vertebral body.",
    "osteopenia": "the bones are {grade}osteopenic.",
    "degenerative spine": "there are {grade}degenerative changes of the thoracic spine.",
    "rib fracture": "there is a {side}rib fracture.",
    "scar": "there is scarring in the {place}.",
    "interstitial markings": "there are prominent interstitial markings.",
    "pleural thickening": "there is {side}pleural thickening.",
    "hiatal hernia": "there is a {grade}hiatal hernia.",
    "catheter": "there is a {side}central venous catheter.",
    "tube": "there is a tube in place.",
    "surgical hardware": "there are surgical clips.",
    "foreign body": "there is a {side}metallic foreign body.",
    "valve": "there is a prosthetic heart valve.",
    "pacemaker": "there is a {side}pacemaker.",
}
_NOTHING = "the heart is normal in size. the lungs are clear."
_SITES = ("upper lobe", "middle lobe", "lower lobe", "lingula", "base", "apex")


def caption(report: Report) -> str:
    """A short description of a study's drawn findings, made from the annotation alone.

    One sentence per class in the order of `ABNORMALITIES`, always in the same words: the annotation, said in English.
    """
    drawn = first_of_each(report)
    return " ".join(_say(name, drawn[name]) for name in ABNORMALITIES if name in drawn) or _NOTHING


def first_of_each(report: Report) -> dict[str, Finding]:
    """The drawn classes of a report's annotation, each with the first finding that names it."""
    drawn: dict[str, Finding] = {}
    for finding in report.mesh:
        name = abnormality(finding)
        if name:
            drawn.setdefault(name, finding)
    return drawn


def _say(name: str, finding: Finding) -> str:
    grade = finding.severity or next((q for q in finding.qualifiers if q in ("small", "large")), None)
    side = finding.side
    site = next((a for a in _SITES if a in finding.anatomy), None)
    if side == "bilateral":
        place = {"base": "lung bases", "apex": "lung apices"}.get(site, "lungs bilaterally")
    elif site == "lingula":
        place = "lingula"
    else:
        noun = {"base": "lung base", "apex": "lung apex"}.get(site, site or "lung")
        place = f"{side} {noun}" if side else noun
    return _PHRASES[name].format(grade=f"{grade} " if grade else "", side=f"{side} " if side else "", place=place)
