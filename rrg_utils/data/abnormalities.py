"""Abnormality classes: which MeSH annotation means which visible abnormality, and where it is looked for.

The annotation of a report is a list of `Finding`s. A class gathers the annotations that look alike on a film, whatever
word the indexer chose. Annotations that no class covers ("No Indexing", a shoulder, ...) are not drawn: what the text
says of them cannot be seen in the picture.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from rrg_utils.data.mesh import Finding
from rrg_utils.errors import RRGError


@dataclass(frozen=True)
class Abnormality:
    """One class. An annotation belongs to it when its name is in `names` and, if given, it has one of the words.

    `needs`: at least one of these words among anatomy, severity and qualifiers; `bars`: none of these. `observation`:
    the CheXpert observation it counts as, if any. `region`: the regions of `rrg_utils.data.anatomy.REGIONS` it lies in.
    """

    name: str
    names: tuple[str, ...]
    region: tuple[str, ...]
    observation: str | None = None
    needs: tuple[str, ...] = ()
    bars: tuple[str, ...] = ()

    def covers(self, finding: Finding) -> bool:
        """Whether this class covers the annotation."""
        words = {*finding.anatomy, finding.severity, *finding.qualifiers}
        return (
            finding.name in self.names
            and (not self.needs or bool(words & set(self.needs)))
            and not words & set(self.bars)
        )


_VERTEBRAE = ("thoracic vertebrae", "lumbar vertebrae", "cervical vertebrae", "spine")
_OUTSIDE_CHEST = ("abdomen", "shoulder", "humerus", "breast", "clavicle", "neck", *_VERTEBRAE)

# Order matters: the first class that covers an annotation takes it.
CLASSES = (
    Abnormality("cardiomegaly", ("Cardiomegaly", "Heart Failure", "Pericardial Effusion"), ("heart",), "Cardiomegaly"),
    Abnormality(
        "cardiomegaly",
        ("Cardiac Shadow", "Heart", "Heart Atria", "Heart Ventricles"),
        ("heart",),
        "Cardiomegaly",
        needs=("enlarged", "borderline"),
    ),
    Abnormality(
        "wide mediastinum",
        ("Mediastinum",),
        ("mediastinum",),
        "Enlarged Cardiomediastinum",
        needs=("prominent", "enlarged"),
    ),
    Abnormality(
        "hilar enlargement",
        ("Lung", "Pulmonary Artery", "Lymph Nodes"),
        ("mediastinum", "lungs"),
        needs=("prominent", "enlarged"),
        bars=("interstitial",),
    ),
    Abnormality("hilar enlargement", ("Hypertension, Pulmonary", "Sarcoidosis"), ("mediastinum", "lungs")),
    Abnormality(
        "pleural effusion", ("Pleural Effusion", "Hydropneumothorax"), ("lungs", "diaphragm"), "Pleural Effusion"
    ),
    Abnormality(
        "blunted costophrenic angle",
        ("Costophrenic Angle", "Sulcus", "Pleura"),
        ("lungs", "diaphragm"),
        needs=("blunted", "obscured"),
    ),
    Abnormality("edema", ("Pulmonary Edema", "Pulmonary Congestion"), ("lungs",), "Edema"),
    Abnormality("consolidation", ("Consolidation", "Airspace Disease", "Infiltrate"), ("lungs",), "Consolidation"),
    Abnormality("pneumonia", ("Pneumonia",), ("lungs",), "Pneumonia"),
    Abnormality("atelectasis", ("Pulmonary Atelectasis", "Volume Loss"), ("lungs",), "Atelectasis"),
    Abnormality("opacity", ("Opacity", "Density"), ("lungs",), "Lung Opacity", bars=_OUTSIDE_CHEST),
    Abnormality("pneumothorax", ("Pneumothorax",), ("lungs",), "Pneumothorax"),
    Abnormality("nodule", ("Nodule",), ("lungs",), "Lung Lesion", bars=_OUTSIDE_CHEST),
    Abnormality("mass", ("Mass",), ("lungs",), "Lung Lesion", bars=_OUTSIDE_CHEST),
    Abnormality("calcified aorta", ("Atherosclerosis",), ("mediastinum",)),
    Abnormality(
        "calcified aorta", ("Calcinosis",), ("mediastinum",), needs=("aorta", "aorta, thoracic", "blood vessels")
    ),
    Abnormality(
        "calcified lymph node",
        ("Calcinosis",),
        ("mediastinum",),
        needs=("lymph nodes", "hilum", "mediastinum", "paratracheal"),
    ),
    Abnormality("granuloma", ("Calcified Granuloma", "Granuloma", "Granulomatous Disease"), ("lungs",)),
    Abnormality("granuloma", ("Calcinosis",), ("lungs",), needs=("lung",)),
    Abnormality("emphysema", ("Emphysema", "Pulmonary Emphysema", "Bullous Emphysema", "Blister"), ("lungs",)),
    Abnormality(
        "hyperinflation", ("Lung, Hyperlucent", "Pulmonary Disease, Chronic Obstructive"), ("lungs", "diaphragm")
    ),
    Abnormality("hyperinflation", ("Lung",), ("lungs", "diaphragm"), needs=("hyperdistention",)),
    Abnormality("hyperinflation", ("Diaphragm",), ("lungs", "diaphragm"), needs=("flattened",)),
    Abnormality("hypoinflation", ("Lung",), ("lungs", "diaphragm"), needs=("hypoinflation",)),
    Abnormality("elevated diaphragm", ("Diaphragmatic Eventration",), ("diaphragm",)),
    Abnormality("elevated diaphragm", ("Diaphragm",), ("diaphragm",), needs=("elevated",)),
    Abnormality(
        "tortuous aorta",
        ("Aorta", "Aorta, Thoracic"),
        ("mediastinum",),
        "Enlarged Cardiomediastinum",
        needs=("tortuous", "prominent", "enlarged", "dilated", "ectatic"),
    ),
    Abnormality("tortuous aorta", ("Aortic Aneurysm",), ("mediastinum",), "Enlarged Cardiomediastinum"),
    Abnormality("scoliosis", ("Scoliosis",), ("vertebrae",)),
    Abnormality("kyphosis", ("Kyphosis",), ("vertebrae",)),
    Abnormality("vertebral deformity", ("Deformity", "Fractures, Bone"), ("vertebrae",), needs=_VERTEBRAE),
    Abnormality(
        "degenerative spine",
        ("Spondylosis", "Osteophyte", "Arthritis", "Hyperostosis, Diffuse Idiopathic Skeletal"),
        ("vertebrae",),
        bars=("shoulder", "humerus", "clavicle"),
    ),
    Abnormality(
        "degenerative spine",
        ("Thoracic Vertebrae", "Lumbar Vertebrae", "Cervical Vertebrae", "Spine", "Bone and Bones"),
        ("vertebrae",),
        needs=("degenerative",),
    ),
    Abnormality("osteopenia", ("Bone Diseases, Metabolic", "Osteoporosis"), ("vertebrae", "ribs")),
    Abnormality("rib fracture", ("Fractures, Bone", "Deformity"), ("ribs",), "Fracture", needs=("ribs",)),
    Abnormality("scar", ("Cicatrix",), ("lungs",)),
    Abnormality(
        "interstitial markings",
        (
            "Markings",
            "Lung Diseases, Interstitial",
            "Pulmonary Fibrosis",
            "Fibrosis",
            "Bronchiectasis",
            "Cystic Fibrosis",
            "Bronchitis",
            "Bronchiolitis",
        ),
        ("lungs",),
    ),
    Abnormality("interstitial markings", ("Lung",), ("lungs",), needs=("interstitial",)),
    Abnormality("pleural thickening", ("Thickening",), ("lungs",), "Pleural Other", needs=("pleura",)),
    Abnormality("hiatal hernia", ("Hernia, Hiatal",), ("mediastinum",)),
    Abnormality("catheter", ("Catheters, Indwelling",), ("mediastinum",), "Support Devices", bars=("abdomen",)),
    Abnormality("tube", ("Tube, Inserted",), ("mediastinum",), "Support Devices"),
    Abnormality(
        "surgical hardware",
        ("Surgical Instruments", "Sutures", "Stents", "Spinal Fusion"),
        ("mediastinum", "abdomen", "vertebrae"),
        "Support Devices",
        bars=("shoulder", "humerus", "breast", "clavicle", "neck"),
    ),
    Abnormality("foreign body", ("Foreign Bodies",), ("lungs", "ribs", "abdomen")),
    Abnormality(
        "valve",
        ("Implanted Medical Device",),
        ("heart",),
        "Support Devices",
        needs=("aortic valve", "mitral valve", "heart valves"),
    ),
    Abnormality(
        "pacemaker", ("Implanted Medical Device", "Medical Device"), ("heart",), "Support Devices", bars=_OUTSIDE_CHEST
    ),
)

# The names of the classes, in the order above: the columns of every label matrix.
ABNORMALITIES: tuple[str, ...] = tuple(dict.fromkeys(entry.name for entry in CLASSES))
OBSERVATION_OF: dict[str, str | None] = {entry.name: entry.observation for entry in CLASSES}
REGION_OF: dict[str, tuple[str, ...]] = {entry.name: entry.region for entry in CLASSES}


def abnormality(finding: Finding) -> str | None:
    """The class of an annotation, or None where nothing of it is drawn."""
    return next((entry.name for entry in CLASSES if entry.covers(finding)), None)


def present(findings: Iterable[Finding]) -> tuple[str, ...]:
    """The classes that an annotation names, each once, in the order of `ABNORMALITIES`."""
    found = {abnormality(finding) for finding in findings}
    return tuple(name for name in ABNORMALITIES if name in found)


# Annotations that name nothing on the film, and why the others that no class covers are not drawn.
NOTHING_TO_SEE = ("normal", "No Indexing", "Technical Quality of Image Unsatisfactory")
_REASONS = (
    ("outside the chest", lambda f: bool({*f.anatomy, *f.qualifiers} & set(_OUTSIDE_CHEST)) or f.name in _ELSEWHERE),
    ("obscured, not abnormal", lambda f: "obscured" in f.qualifiers),
    ("rare: fewer than 20 in the archive, or of many kinds", lambda _: True),
)
_ELSEWHERE = ("Shoulder", "Humerus", "Abdomen", "Cholelithiasis", "Mastectomy", "Breast Implants", "Nipple Shadow")


def coverage(findings: Iterable[Finding]) -> dict[str, int]:
    """How many annotations are drawn, name nothing to see, or are not drawn, by reason.

    "drawn" over all but "nothing to see" is the share of what names something visible.
    """
    counts = {"drawn": 0, "nothing to see": 0} | {f"not drawn: {reason}": 0 for reason, _ in _REASONS}
    for finding in findings:
        if abnormality(finding):
            counts["drawn"] += 1
        elif finding.name in NOTHING_TO_SEE:
            counts["nothing to see"] += 1
        else:
            counts[f"not drawn: {next(reason for reason, holds in _REASONS if holds(finding))}"] += 1
    return counts


def check(names: Iterable[str]) -> None:
    """Refuse a name that is not a class."""
    for name in names:
        if name not in ABNORMALITIES:
            raise RRGError(f"unknown abnormality {name!r}; known are: {', '.join(ABNORMALITIES)}")
