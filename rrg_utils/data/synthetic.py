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

_COUNTS = (0.22, 0.3, 0.22, 0.14, 0.08, 0.04)  # share of studies with 0, 1, 2, ... findings: ours
# Findings that contradict each other in one patient.
_EXCLUSIVE = (
    {"hyperinflation", "hypoinflation"},
    {"emphysema", "hypoinflation"},
    {"elevated diaphragm", "hyperinflation"},
)


def balanced_studies(train: Sequence[Report], count: int, seed: int = 0) -> list[Report]:
    """`count` reports without text whose annotations draw every class of `ABNORMALITIES` equally often.

    Within a class, an annotation is drawn as often as the training split has it; a left- or right-sided one is
    mirrored half of the time, so that a side never tells the finding.
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
        wanted = list(rng.choice(names, size=rng.choice(len(_COUNTS), p=_COUNTS), replace=False))
        for pair in _EXCLUSIVE:
            if pair <= set(wanted):
                wanted.remove(max(pair))
        findings = tuple(_mirrored(pool[name][rng.integers(len(pool[name]))], rng) for name in wanted)
        out.append(Report(f"SYN{seed}-{number}", "", "", "", "", findings, ()))
    return out


def _mirrored(finding: Finding, rng: np.random.Generator) -> Finding:
    other = {"left": "right", "right": "left"}.get(finding.side)
    single = {"middle lobe", "lingula", "retrocardiac"} & set(finding.anatomy)
    return replace(finding, side=other) if other and not single and rng.random() < 0.5 else finding


# --- captions ---------------------------------------------------------------------------------------------------------

# How a radiologist names each class, as (subject, verb form of presence): wording ours, in the manner of the reports.
_PHRASES = {
    "cardiomegaly": ("the heart is {grade}enlarged.", "{grade}cardiomegaly."),
    "pleural effusion": ("there is a {grade}{side}pleural effusion.", "{grade}{side}pleural effusion."),
    "blunted costophrenic angle": ("there is blunting of the {side}costophrenic angle.",),
    "edema": ("there is {grade}pulmonary edema.", "pulmonary vascular congestion."),
    "consolidation": ("there is {grade}airspace disease in the {place}.", "{side}{site}airspace disease."),
    "pneumonia": ("there is airspace opacity in the {place}, concerning for pneumonia.",),
    "atelectasis": ("there is {grade}atelectasis in the {place}.", "{side}{site}atelectasis."),
    "opacity": ("there is {grade}opacity in the {place}.", "{side}{site}opacity."),
    "pneumothorax": ("there is a {grade}{side}pneumothorax.", "{side}pneumothorax."),
    "nodule": ("there is a nodule in the {place}.", "{side}{site}nodule."),
    "mass": ("there is a mass in the {place}.",),
    "calcified aorta": ("the aorta is calcified.", "atherosclerotic calcification of the aorta."),
    "calcified lymph node": ("there are calcified {side}lymph nodes.", "calcified {side}lymph nodes."),
    "granuloma": ("there is a calcified granuloma in the {place}.", "{side}{site}calcified granuloma."),
    "emphysema": ("there are emphysematous changes.", "emphysema."),
    "hyperinflation": ("the lungs are {grade}hyperinflated.", "the lungs are hyperexpanded."),
    "hypoinflation": ("low lung volumes.", "the lungs are hypoinflated."),
    "elevated diaphragm": ("there is elevation of the {side}hemidiaphragm.",),
    "tortuous aorta": ("the aorta is {grade}tortuous.", "tortuous aorta."),
    "scoliosis": ("there is {grade}scoliosis of the thoracic spine.",),
    "degenerative spine": ("there are {grade}degenerative changes of the thoracic spine.",),
    "rib fracture": ("there is a {side}rib fracture.", "{side}rib deformities."),
    "scar": ("there is scarring in the {place}.", "{side}{site}scarring."),
    "interstitial markings": ("there are prominent interstitial markings.", "increased bronchovascular markings."),
    "pleural thickening": ("there is {side}pleural thickening.",),
    "hiatal hernia": ("there is a {grade}hiatal hernia.",),
    "catheter": ("there is a {side}central venous catheter.", "{side}catheter with tip in the superior vena cava."),
    "tube": ("there is a tube in place.", "tube in place."),
    "surgical hardware": ("there are surgical clips.", "sternotomy sutures are present."),
    "valve": ("there is a prosthetic heart valve.",),
    "pacemaker": ("there is a {side}pacemaker.", "cardiac pacemaker in place."),
}
# Statements of normality, each with the classes that would make it false.
_NORMAL = (
    (("the heart is normal in size.", "heart size is normal.", "heart size within normal limits."), ("cardiomegaly",)),
    (
        ("no pleural effusion.", "there is no pleural effusion."),
        ("pleural effusion", "blunted costophrenic angle"),
    ),
    (("no pneumothorax.", "there is no pneumothorax."), ("pneumothorax",)),
    (
        ("the lungs are clear.", "no focal airspace disease.", "no focal consolidation."),
        ("consolidation", "pneumonia", "opacity", "atelectasis", "nodule", "mass", "edema", "granuloma", "scar",
         "interstitial markings", "emphysema"),
    ),
    (
        ("the mediastinum is unremarkable.", "the mediastinal contour is normal."),
        ("tortuous aorta", "hiatal hernia", "calcified lymph node", "calcified aorta"),
    ),
    (("the visualized bony structures are unremarkable.",), ("rib fracture", "scoliosis", "degenerative spine")),
)  # fmt: skip


def caption(report: Report, seed: int = 0) -> str:
    """A short description of a study's drawn findings, and of what is normal, in random order and wording.

    Made from the annotation alone: what LLaVA-style alignment (stage 1) learns to say of a picture.
    """
    rng = np.random.default_rng([13, seed, *report.id.encode()])
    drawn = {}
    for finding in report.mesh:
        name = abnormality(finding)
        if name:
            drawn.setdefault(name, finding)
    said = [_say(name, finding, rng) for name, finding in drawn.items()]
    for wordings, spoilers in _NORMAL:
        if not drawn.keys() & set(spoilers):
            said.append(str(rng.choice(wordings)))
    # At most five sentences: all findings, then some of what is normal.
    normal = said[len(drawn) :]
    keep = said[: len(drawn)] + [normal[i] for i in rng.permutation(len(normal))[: max(0, 5 - len(drawn))]]
    return " ".join(keep[i] for i in rng.permutation(len(keep)))


def _say(name: str, finding: Finding, rng: np.random.Generator) -> str:
    grade = finding.severity or next((q for q in finding.qualifiers if q in ("small", "large")), None)
    side = finding.side
    site = next(
        (a for a in ("upper lobe", "middle lobe", "lower lobe", "lingula", "base", "apex") if a in finding.anatomy),
        None,
    )
    adjective = {"base": "basilar", "apex": "apical", "lingula": "lingular"}.get(site, site)
    if side == "bilateral":
        place = {"base": "lung bases", "apex": "lung apices"}.get(site, "lungs bilaterally")
    elif site == "lingula":
        place = "lingula"
    else:
        noun = {"base": "lung base", "apex": "lung apex"}.get(site, site or "lung")
        place = f"{side} {noun}" if side else noun
    text = str(rng.choice(_PHRASES[name])).format(
        grade=f"{grade} " if grade else "",
        side=f"{side} " if side else "",
        site=f"{adjective} " if adjective else "",
        place=place,
    )
    return text
