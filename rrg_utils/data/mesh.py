"""Expert annotations of the Open-i reports, such as "Opacity/lung/upper lobe/right/mild", as structured findings.

The archive holds 8,298 of them, 1,719 distinct. The first part is the name, a MeSH or RadLex term; each further part
says where, on which side, how severe, or of what kind. The tables below hold every part that occurs there; other parts,
which a user's own annotations may have, become qualifiers.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rrg_utils.errors import RRGError

Side = Literal["left", "right", "bilateral"]


def _table(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(";"))


SIDES = ("left", "right", "bilateral")

SEVERITIES = ("borderline", "mild", "moderate", "severe")  # ascending

ANATOMY = {
    "lung": _table(
        "lung; base; apex; upper lobe; middle lobe; lower lobe; lingula; azygos lobe; pulmonary alveoli; bronchi"
    ),
    "centre": _table(
        "hilum; mediastinum; lymph nodes; paratracheal; trachea; trachea, carina; esophagus; blood vessels;"
        "pulmonary artery"
    ),
    "heart": _table(
        "heart; heart atria; heart ventricles; aortic valve; mitral valve; coronary vessels; retrocardiac;"
        "supracardiac; aorta; aorta, thoracic"
    ),
    "pleura": _table("pleura; pleural sinus; costophrenic angle; cardiophrenic angle; sulcus; diaphragm"),
    "bone": _table(
        "spine; cervical vertebrae; thoracic vertebrae; lumbar vertebrae; ribs; sternum; clavicle; shoulder; humerus"
    ),
    "body": _table("thorax; abdomen; neck; breast; breast implants; adipose tissue"),
}

QUALIFIERS = {
    "size": _table("small; large; enlarged"),
    "number": _table("multiple; multilobar"),
    "extent": _table("focal; diffuse; scattered; patchy"),
    "shape": _table("round; irregular; streaky; tortuous; flattened; blunted"),
    "pattern": _table("interstitial; bronchovascular; reticular"),
    "position": _table("anterior; posterior; elevated"),
    "inflation": _table("hypoinflation; hyperdistention"),
    "appearance": _table("prominent; obscured; abnormal"),
    "course": _table("acute; chronic; healed; degenerative"),
}

NAMES = {
    "not a finding": _table("normal; No Indexing; Technical Quality of Image Unsatisfactory"),
    "lung": _table(
        "Lung; Lung, Hyperlucent; Opacity; Density; Lucency; Markings; Airspace Disease; Infiltrate; Consolidation;"
        "Pneumonia; Pulmonary Atelectasis; Volume Loss; Cicatrix; Nodule; Mass; Granuloma; Calcified Granuloma;"
        "Granulomatous Disease; Calcinosis; Cavitation; Cysts; Blister; Emphysema; Pulmonary Emphysema;"
        "Bullous Emphysema; Pulmonary Disease, Chronic Obstructive; Pulmonary Congestion; Pulmonary Edema;"
        "Pulmonary Fibrosis; Fibrosis; Cystic Fibrosis; Lung Diseases, Interstitial; Bronchiectasis;"
        "Bronchitis; Bronchiolitis; Sarcoidosis;"
        "Tuberculosis; Pneumonectomy"
    ),
    "pleura and diaphragm": _table(
        "Pleura; Pleural Effusion; Pneumothorax; Hydropneumothorax; Hemothorax; Hemopneumothorax; Costophrenic Angle;"
        "Sulcus; Thickening; Diaphragm; Diaphragmatic Eventration; Hernia, Diaphragmatic; Pneumoperitoneum"
    ),
    "heart and vessels": _table(
        "Heart; Heart Atria; Heart Ventricles; Cardiac Shadow; Cardiomegaly; Heart Failure; Pericardial Effusion;"
        "Epicardial Fat; Aorta; Aorta, Thoracic; Aortic Aneurysm; Atherosclerosis; Pulmonary Artery;"
        "Hypertension, Pulmonary; Blood Vessels; Hypovolemia"
    ),
    "mediastinum": _table(
        "Mediastinum; Mediastinal Emphysema; Shift; Trachea; Trachea, Carina; Lymph Nodes; Hernia, Hiatal;"
        "Colonic Interposition"
    ),
    "bone": _table(
        "Spine; Cervical Vertebrae; Thoracic Vertebrae; Lumbar Vertebrae; Scoliosis; Kyphosis; Spondylosis; Osteophyte;"
        "Hyperostosis, Diffuse Idiopathic Skeletal; Arthritis; Fractures, Bone; Dislocations; Deformity; Sclerosis;"
        "Osteoporosis; Bone Diseases, Metabolic; Expansile Bone Lesions; Bone and Bones; Ribs; Shoulder; Humerus;"
        "Funnel Chest; Pectus Carinatum; Spinal Fusion"
    ),
    "device": _table(
        "Catheters, Indwelling; Tube, Inserted; Implanted Medical Device; Medical Device; Surgical Instruments;"
        "Sutures; Stents; Foreign Bodies; Contrast Media; Breast Implants"
    ),
    "body": _table(
        "Thorax; Abdomen; Adipose Tissue; Subcutaneous Emphysema; Nipple Shadow; Mastectomy; Cholelithiasis"
    ),
}

_ANATOMY = frozenset(part for table in ANATOMY.values() for part in table)
_NAMES = {name.lower(): name for table in NAMES.values() for name in table}


@dataclass(frozen=True)
class Finding:
    """One annotation. `anatomy` runs from the larger place to the smaller, as annotated: ("lung", "upper lobe")."""

    name: str
    anatomy: tuple[str, ...] = ()
    side: Side | None = None
    severity: str | None = None  # one of SEVERITIES
    qualifiers: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The annotation again: name/anatomy/side/qualifiers/severity, the usual order of the archive."""
        optional = (self.side, *self.qualifiers, self.severity)
        return "/".join((self.name, *self.anatomy, *(part for part in optional if part is not None)))


NORMAL = Finding("normal")


@lru_cache(maxsize=4096)
def _parse(text: str) -> Finding:
    name, *parts = (" ".join(part.split()) for part in text.split("/"))
    if not name or not all(parts):
        raise RRGError(f"annotation {text!r}: a part is empty; expected text such as 'Opacity/lung/upper lobe/right'")
    parts = [part.lower() for part in parts]
    side = next((part for part in parts if part in SIDES), None)
    severity = next((part for part in reversed(parts) if part in SEVERITIES), None)
    # A second side or severity (none occurs in the archive) stays as a qualifier. That the first side and the last
    # severity are taken is what makes parse_mesh(str(finding)) == finding hold even then.
    rest = list(parts)
    if side:
        rest.remove(side)
    if severity:
        del rest[len(rest) - 1 - rest[::-1].index(severity)]
    return Finding(
        name=_NAMES.get(name.lower(), name),
        anatomy=tuple(part for part in rest if part in _ANATOMY),
        side=side,
        severity=severity,
        qualifiers=tuple(part for part in rest if part not in _ANATOMY),
    )


def parse_mesh(text: str) -> Finding:
    """Parse one annotation; every "/"-separated part lands in exactly one field.

    Spaces at the ends of parts and stray capitals ("Thoracic vertebrae", "Fractures, Bone/Thoracic Vertebrae") are
    normalised; parts in no table become qualifiers. Raises RRGError for empty text, an empty part, or a non-string.
    """
    if not isinstance(text, str):
        raise RRGError(f"annotation {text!r}: expected text such as 'Opacity/lung/upper lobe/right'")
    return _parse(text)
