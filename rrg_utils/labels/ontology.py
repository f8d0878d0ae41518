"""The topics of a report: what is told under each, where on the film it is looked for, and how it is denied.

LLaVA-TA (section 3 of the paper) orders its topics disease > organ > special and maps each to one or more anatomical
regions, merged into one mask ("pleural effusion: lungs + diaphragm"). Five of them are known to us and neither the list
nor the table: the topics, their regions and the sentences below are ours.

A topic gathers `findings` of `rrg_utils.labels.mentions`, which also say whether they are asserted or denied; `words`
adds what those rules do not name ("the trachea is midline"). Where words of several topics fit at one place, the topic
that stands first here takes them.
"""

from dataclasses import dataclass

LEVELS = ("disease", "organ", "special")  # the priority


@dataclass(frozen=True)
class Topic:
    """One topic. `regions` are keys of `rrg_utils.data.anatomy.REGIONS`; none means the whole film.

    findings: the findings of `rrg_utils.labels.mentions` that it gathers. words: a pattern for more of them.
    observations: the CheXpert observations, and classes: the `ABNORMALITIES`, that are told under it when present.
    negative: the standard sentence when there is nothing to see.
    """

    name: str
    regions: tuple[str, ...]
    findings: tuple[str, ...]
    negative: str
    observations: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    words: str = ""

    @property
    def level(self) -> str:
        """disease, organ or special."""
        return self.name.partition("-")[0]


_LUNGS, _PLEURAL = ("lungs",), ("lungs", "diaphragm")
_MIDDLE, _SPINE, _FRAME = ("mediastinum",), ("vertebrae",), ("ribs", "vertebrae")

_DISEASES = (
    Topic(
        "disease-pneumothorax",
        _LUNGS,
        ("pneumothorax", "hydropneumothorax"),
        "Pneumothorax is absent.",
        ("Pneumothorax",),
        ("pneumothorax",),
    ),
    Topic(
        "disease-pleural effusion",
        _PLEURAL,
        ("pleural effusion",),
        "Pleural effusion is absent.",
        ("Pleural Effusion",),
        ("pleural effusion",),
    ),
    Topic("disease-pneumonia", _LUNGS, ("pneumonia",), "Pneumonia is absent.", ("Pneumonia",), ("pneumonia",)),
    Topic(
        "disease-consolidation",
        _LUNGS,
        ("consolidation", "airspace disease", "infiltrate"),
        "Consolidation is absent.",
        ("Consolidation",),
        ("consolidation",),
    ),
    Topic(
        "disease-edema",
        ("lungs", "heart"),
        ("edema", "vascular congestion", "heart failure"),
        "Edema is absent.",
        ("Edema",),
        ("edema",),
    ),
    Topic(
        "disease-atelectasis",
        _LUNGS,
        ("atelectasis", "volume loss"),
        "Atelectasis is absent.",
        ("Atelectasis",),
        ("atelectasis",),
    ),
    Topic(
        "disease-lung lesion",
        _LUNGS,
        ("nodule", "mass", "nodular opacity", "cavity"),
        "Nodule is absent.",
        ("Lung Lesion",),
        ("nodule", "mass"),
    ),
    Topic("disease-lung opacity", _LUNGS, ("opacity",), "Opacity is absent.", ("Lung Opacity",), ("opacity",)),
    Topic(
        "disease-granuloma",
        ("lungs", "mediastinum"),
        ("calcified granuloma",),
        "Calcified granuloma is absent.",
        classes=("granuloma", "calcified lymph node"),
        words=r"calcified(?: \w+){0,5} lymph|calcified(?: \w+){0,2} (?:hil\w+|suprahil\w+)",
    ),
    Topic("disease-scar", _LUNGS, ("scar",), "Scar is absent.", classes=("scar",)),
    Topic(
        "disease-interstitial disease",
        _LUNGS,
        ("interstitial opacity", "bronchiectasis"),
        "Interstitial opacity is absent.",
        classes=("interstitial markings",),
        words=r"bronchovascular crowding|crowding of(?: \w+){0,3} (?:markings|vascul\w+|vessels)",
    ),
    Topic("disease-emphysema", _LUNGS, ("emphysema",), "Emphysema is absent.", classes=("emphysema",)),
    Topic(
        "disease-hyperinflation",
        _PLEURAL,
        ("hyperinflation",),
        "Hyperinflation is absent.",
        classes=("hyperinflation",),
    ),
    Topic(
        "disease-hypoinflation",
        _PLEURAL,
        ("low lung volumes",),
        "Low lung volumes are absent.",
        classes=("hypoinflation",),
        words=r"low volume lungs|lung volumes(?: \w+){0,2} decreased|decreased(?: \w+)? lung volumes|low lung lines",
    ),
    Topic(
        "disease-pleural thickening",
        _LUNGS,
        ("pleural thickening",),
        "Pleural thickening is absent.",
        ("Pleural Other",),
        ("pleural thickening",),
    ),
    Topic(
        "disease-blunted costophrenic angle",
        _PLEURAL,
        ("blunted costophrenic angle",),
        "Blunted costophrenic angle is absent.",
        classes=("blunted costophrenic angle",),
        words=r"(?:costophrenic|cp) (?:angles?|sulc\w+|___)(?: \w+){0,2} blunted",
    ),
    Topic(
        "disease-cardiomegaly",
        ("heart",),
        ("cardiomegaly",),
        "Cardiomegaly is absent.",
        ("Cardiomegaly",),
        ("cardiomegaly",),
    ),
    Topic(
        "disease-wide mediastinum",
        ("mediastinum", "heart"),
        ("widened mediastinum", "enlarged cardiomediastinum", "mediastinal shift"),
        "Widened mediastinum is absent.",
        ("Enlarged Cardiomediastinum",),
        ("wide mediastinum",),
    ),
    Topic(
        "disease-hilar enlargement",
        ("mediastinum", "lungs"),
        ("hilar enlargement", "lymphadenopathy", "pulmonary hypertension"),
        "Hilar enlargement is absent.",
        classes=("hilar enlargement",),
        words=r"enlarged(?: \w+){0,2} pulmonary arter\w+",
    ),
    Topic(
        "disease-aortic disease",
        _MIDDLE,
        ("tortuous aorta", "calcified aorta", "aortic aneurysm"),
        "Tortuous aorta is absent.",
        classes=("tortuous aorta", "calcified aorta"),
        words=r"(?:aortic|vascular|arch)(?: \w+)? calcifications?|tortuos\w+|tortuous|ectasia",
    ),
    Topic("disease-hiatal hernia", _MIDDLE, ("hiatal hernia",), "Hiatal hernia is absent.", classes=("hiatal hernia",)),
    Topic("disease-pneumomediastinum", _MIDDLE, ("pneumomediastinum",), "Pneumomediastinum is absent."),
    Topic(
        "disease-elevated diaphragm",
        ("diaphragm",),
        ("elevated diaphragm",),
        "Elevated diaphragm is absent.",
        classes=("elevated diaphragm",),
    ),
    Topic("disease-free air", ("diaphragm", "abdomen"), ("free air",), "Free air is absent."),
    Topic(
        "disease-fracture",
        _FRAME,
        ("fracture", "dislocation"),
        "Fracture is absent.",
        ("Fracture",),
        ("rib fracture",),
        words=r"rib(?: \w+)? deformit\w+|deformit\w+(?: \w+){0,6} ribs?|deformed(?: \w+)? ribs?",
    ),
    Topic(
        "disease-vertebral deformity",
        _SPINE,
        ("vertebral deformity",),
        "Compression deformity is absent.",
        classes=("vertebral deformity",),
        words=r"deformit\w+(?: [\w-]+){0,5} (?:[tl]\d+|vertebra\w*|spine)|vertebral(?: \w+){0,2} deformit\w+",
    ),
    Topic(
        "disease-degenerative spine",
        _SPINE,
        ("degenerative change",),
        "Degenerative change is absent.",
        classes=("degenerative spine",),
    ),
    Topic(
        "disease-spinal curvature",
        _SPINE,
        ("scoliosis", "kyphosis"),
        "Spinal curvature is absent.",
        classes=("scoliosis", "kyphosis"),
    ),
    Topic("disease-osteopenia", _FRAME, ("osteopenia",), "Osteopenia is absent.", classes=("osteopenia",)),
    Topic("disease-bone lesion", _FRAME, ("bone lesion",), "Bony lesion is absent."),
    Topic(
        "disease-soft tissue change",
        (),
        ("subcutaneous emphysema", "soft tissue edema"),
        "Subcutaneous emphysema is absent.",
    ),
)
_ORGANS = (
    Topic(
        "organ-lungs",
        _LUNGS,
        ("clear lungs", "normal lung volumes"),
        "The lungs are clear.",
        words=r"lungs?|pulmonary parenchyma",
    ),
    Topic(
        "organ-pleura",
        _PLEURAL,
        ("normal pleura",),
        "The pleural spaces are clear.",
        words=r"pleural? (?:spaces?|surfaces?)|pleura",
    ),
    Topic(
        "organ-heart",
        ("heart",),
        ("normal heart", "pericardial effusion"),
        "Heart size is normal.",
        words=r"heart|cardiac (?:silhouette|size|contours?|shadow)",
    ),
    Topic(
        "organ-mediastinum",
        ("mediastinum", "heart"),
        ("normal mediastinum", "normal cardiomediastinum"),
        "Mediastinal contours are normal.",
        words=r"cardio\W?mediastin\w+|cardiopulmonary silhouettes?|mediastin\w+|hil(?:ar|a|um)",
    ),
    Topic(
        "organ-vasculature",
        ("lungs", "mediastinum"),
        ("normal vasculature",),
        "Pulmonary vasculature is normal.",
        words=r"pulmonary (?:vascul\w+|vessels|___)",
    ),
    Topic("organ-aorta", _MIDDLE, ("normal aorta",), "The aorta is normal.", words=r"aort\w+"),
    Topic("organ-airway", _MIDDLE, (), "The trachea is midline.", words=r"trachea\w*|airways?|bronchi"),
    Topic("organ-diaphragm", ("diaphragm",), (), "The diaphragm is normal.", words=r"(?:hemi\W?)?diaphragms?"),
    Topic(
        "organ-bones",
        _FRAME,
        ("normal bones",),
        "Acute bone abnormality is absent.",
        words=r"oss[eo]+us|bony|bones?|skelet\w+|vertebral?|spine|ribs?|clavicles?|sternum|shoulders?|disc spaces?",
    ),
    Topic("organ-soft tissues", (), (), "The soft tissues are normal.", words=r"soft tissues?"),
    Topic(
        "organ-abdomen",
        ("abdomen",),
        (),
        "The abdomen is normal.",
        words=r"abdom\w+|bowel|colon|stomach|cholecystectomy|upper quadrants?",
    ),
)
_SPECIALS = (
    Topic(
        "special-devices",
        (),
        ("pacemaker", "catheter", "tube", "sternotomy", "surgical clips", "implant"),
        "Support devices are absent.",
        ("Support Devices",),
        ("catheter", "tube", "surgical hardware", "valve", "pacemaker"),
        words=r"(?:support|monitoring|medical) (?:devices?|artifacts?)|occluder|neurostimulator|"
        r"post\W?(?:surgical|operative) changes?",
    ),
    Topic("special-foreign body", (), ("foreign body",), "Foreign body is absent.", classes=("foreign body",)),
    Topic("special-acute abnormality", (), ("acute abnormality",), "Acute abnormality is absent."),
)

TOPICS: dict[str, Topic] = {topic.name: topic for topic in (*_DISEASES, *_ORGANS, *_SPECIALS)}
TOPIC_OF: dict[str, str] = {finding: topic.name for topic in TOPICS.values() for finding in topic.findings}

# Findings of `mentions` that state normality, with the sentence that is written where the report's own words cannot be
# kept ("heart size and mediastinal contours are normal" is of two topics).
NORMAL = {
    "clear lungs": "The lungs are clear.",
    "normal lung volumes": "Lung volumes are normal.",
    "normal pleura": "The pleural spaces are clear.",
    "normal heart": "Heart size is normal.",
    "normal mediastinum": "Mediastinal contours are normal.",
    "normal cardiomediastinum": "The cardiomediastinal silhouette is normal.",
    "normal vasculature": "Pulmonary vasculature is normal.",
    "normal aorta": "The aorta is normal.",
    "normal bones": "The bones are normal.",
}
