"""The 14 CheXpert observations of a report, by rules (`mentions`).

A score made from these labels is named `F1-rule`, never "CheXbert F1": the rules are our own and agree with neither the
CheXpert labeler nor CheXbert in every sentence. Conventions:

- "lungs are clear" and "normal lungs" deny Lung Opacity and nothing else; "normal cardiomediastinal silhouette" denies
  Enlarged Cardiomediastinum and Cardiomegaly; "pleural spaces are clear" denies Pleural Effusion.
- "mild" and "borderline cardiomegaly" are present; "upper limits of normal" is absent.
- "likely" and "probable" are hedges: uncertain. "no new", "no large", "no definite" deny the finding.
- Over a report present beats uncertain beats absent.
- No Finding is 1 when no observation but Support Devices is present or uncertain, else None. A report whose only
  finding is none of the 13 (scoliosis, a granuloma) is therefore "No Finding", as in CheXpert.
- An empty text says nothing, so all 14 are None, No Finding too.
"""

from rrg_utils.labels.mentions import ABSENT, PRESENT, check_text, mentions

OBSERVATIONS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
    "No Finding",
)

# finding -> observations it asserts with its own polarity
ASSERTS = {
    "widened mediastinum": ("Enlarged Cardiomediastinum",),
    "enlarged cardiomediastinum": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    "cardiomegaly": ("Cardiomegaly",),
    "opacity": ("Lung Opacity",),
    "infiltrate": ("Lung Opacity",),
    "airspace disease": ("Lung Opacity",),
    "interstitial opacity": ("Lung Opacity",),
    "nodular opacity": ("Lung Lesion", "Lung Opacity"),
    "nodule": ("Lung Lesion",),
    "mass": ("Lung Lesion",),
    "edema": ("Edema",),
    "vascular congestion": ("Edema",),
    "heart failure": ("Edema",),
    "consolidation": ("Consolidation",),
    "pneumonia": ("Pneumonia",),
    "atelectasis": ("Atelectasis",),
    "pneumothorax": ("Pneumothorax",),
    "hydropneumothorax": ("Pneumothorax", "Pleural Effusion"),
    "pleural effusion": ("Pleural Effusion",),
    "pleural thickening": ("Pleural Other",),
    "fracture": ("Fracture",),
    "pacemaker": ("Support Devices",),
    "catheter": ("Support Devices",),
    "tube": ("Support Devices",),
    "sternotomy": ("Support Devices",),
    "surgical clips": ("Support Devices",),
    "implant": ("Support Devices",),
}
# statement of normality -> observations it denies
DENIES = {
    "normal heart": ("Cardiomegaly",),
    "normal mediastinum": ("Enlarged Cardiomediastinum",),
    "normal cardiomediastinum": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    "clear lungs": ("Lung Opacity",),
    "normal pleura": ("Pleural Effusion",),
}
_RANK = {None: 0, 0: 1, -1: 2, 1: 3}


def label_report(text: str) -> dict[str, int | None]:
    """Labels of the 14 `OBSERVATIONS`: 1 present, 0 absent, -1 uncertain, None not mentioned (see the module).

    Raises RRGError if `text` is not a string.
    """
    labels: dict[str, int | None] = dict.fromkeys(OBSERVATIONS)
    for mention in mentions(text):
        value = {PRESENT: 1, ABSENT: 0}.get(mention.polarity, -1)
        for name in ASSERTS.get(mention.finding, ()):
            labels[name] = max(labels[name], value, key=_RANK.__getitem__)
        if mention.polarity == PRESENT:
            for name in DENIES.get(mention.finding, ()):
                labels[name] = max(labels[name], 0, key=_RANK.__getitem__)
    if check_text(text).strip():
        abnormal = any(labels[name] in (1, -1) for name in OBSERVATIONS[:12])
        labels["No Finding"] = None if abnormal else 1
    return labels
