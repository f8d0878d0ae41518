"""Rules on short sentences, invariances, and agreement with the expert annotation of the real reports."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.data.reports import load_indiana
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS, label_report

SENTENCES = [
    # denial
    ("No pneumothorax.", "Pneumothorax", 0),
    ("No focal consolidation, pneumothorax, or large pleural effusion.", "Consolidation", 0),
    ("No focal consolidation, pneumothorax, or large pleural effusion.", "Pleural Effusion", 0),
    ("There is no evidence of pulmonary edema.", "Edema", 0),
    ("Negative for pneumothorax or pleural effusion.", "Pleural Effusion", 0),
    ("The lungs are free of any focal infiltrates.", "Lung Opacity", 0),
    ("The lungs are clear of focal airspace disease, pneumothorax, or pleural effusion.", "Pneumothorax", 0),
    ("Stable cardiomegaly without pulmonary edema.", "Edema", 0),
    ("Stable cardiomegaly without pulmonary edema.", "Cardiomegaly", 1),
    ("No XXXX of pleural effusions.", "Pleural Effusion", 0),
    ("No pneumothorax or pleural effusion is seen.", "Pneumothorax", 0),
    ("Pleural effusion is not seen.", "Pleural Effusion", 0),
    ("Pneumothorax is absent.", "Pneumothorax", 0),
    ("The left effusion has resolved.", "Pleural Effusion", 0),
    ("Consolidation and atelectasis have resolved.", "Atelectasis", 0),
    ("The central line has been removed.", "Support Devices", 0),
    ("The heart is not significantly enlarged.", "Cardiomegaly", 0),
    ("There is no mediastinal widening.", "Enlarged Cardiomediastinum", 0),
    ("There is no focal air space opacity to suggest a pneumonia.", "Pneumonia", 0),
    ("There is no focal air space opacity to suggest a pneumonia.", "Lung Opacity", 0),
    ("No acute rib fracture.", "Fracture", 0),
    ("No nodules or masses.", "Lung Lesion", 0),
    ("No pleural effusion, pneumothorax or interval airspace consolidation.", "Pneumothorax", 0),
    # what looks like denial
    ("No change in the small right pleural effusion.", "Pleural Effusion", 1),
    ("No significant interval change in left basilar atelectasis.", "Atelectasis", 1),
    ("No increase in the pulmonary edema.", "Edema", 1),
    ("Pneumonia cannot be excluded.", "Pneumonia", -1),
    ("Pneumothorax is not excluded.", "Pneumothorax", -1),
    ("Cannot exclude a small effusion.", "Pleural Effusion", -1),
    # where the reach ends
    ("No pneumothorax, but there is a small effusion.", "Pleural Effusion", 1),
    ("No effusion; mild cardiomegaly.", "Cardiomegaly", 1),
    ("No pneumothorax, however, consolidation persists.", "Consolidation", 1),
    ("Although there is no effusion, the heart is enlarged.", "Cardiomegaly", 1),
    ("No pneumothorax. Consolidation in the left base.", "Consolidation", 1),
    ("No effusion, the heart is enlarged.", "Cardiomegaly", 1),
    ("No effusion, stable cardiomegaly.", "Cardiomegaly", 1),
    ("Pneumothorax is present, effusion is not seen.", "Pneumothorax", 1),
    # hedges
    ("Possible right lower lobe pneumonia.", "Pneumonia", -1),
    ("Opacity may represent atelectasis versus pneumonia.", "Atelectasis", -1),
    ("Opacity may represent atelectasis versus pneumonia.", "Pneumonia", -1),
    ("Opacity may represent atelectasis versus pneumonia.", "Lung Opacity", 1),
    ("Findings are concerning for pneumonia.", "Pneumonia", -1),
    ("Suspected rib fracture.", "Fracture", -1),
    ("Left basilar atelectasis or infiltrate.", "Atelectasis", -1),
    ("Probable small effusion.", "Pleural Effusion", -1),
    # neither
    ("History of pneumonia.", "Pneumonia", None),
    ("Bony overlap could obscure a small pulmonary nodule.", "Lung Lesion", None),
    ("The bone density is normal.", "Lung Opacity", None),
    ("Stable cardiomediastinal silhouette.", "Cardiomegaly", None),
    ("Pericardial effusion.", "Pleural Effusion", None),
    # structures
    ("Heart size is normal.", "Cardiomegaly", 0),
    ("Normal heart size and mediastinal contours.", "Enlarged Cardiomediastinum", 0),
    ("The heart, pulmonary XXXX and mediastinum are within normal limits.", "Cardiomegaly", 0),
    ("Heart size and mediastinal contours are within normal limits.", "Cardiomegaly", 0),
    ("The cardiomediastinal silhouette is normal.", "Cardiomegaly", 0),
    ("The cardiomediastinal silhouette is normal.", "Enlarged Cardiomediastinum", 0),
    ("The heart size is upper limits of normal.", "Cardiomegaly", 0),
    ("Lungs are clear.", "Lung Opacity", 0),
    ("Lungs are clear.", "Consolidation", None),
    ("Lungs are hyperexpanded but clear.", "Lung Opacity", 0),
    ("The heart is mildly enlarged with normal mediastinal contours.", "Cardiomegaly", 1),
    ("The heart is mildly enlarged with normal mediastinal contours.", "Enlarged Cardiomediastinum", 0),
    ("Borderline enlarged heart.", "Cardiomegaly", 1),
    ("Borderline cardiomegaly.", "Cardiomegaly", 1),
    ("Enlargement of the cardiac silhouette.", "Cardiomegaly", 1),
    ("Heart size remains slightly large.", "Cardiomegaly", 1),
    ("The mediastinum is widened.", "Enlarged Cardiomediastinum", 1),
    ("Pulmonary vascular engorgement appears within limits of normal.", "Edema", 0),
    ("Pleural spaces are clear.", "Pleural Effusion", 0),
    # vocabulary
    ("Left-sided pacemaker with leads in the right ventricle.", "Support Devices", 1),
    ("Right PICC line with tip in the SVC.", "Support Devices", 1),
    ("Biapical pleural thickening.", "Pleural Other", 1),
    ("Nodular opacity in the right upper lobe.", "Lung Lesion", 1),
    ("Left hydropneumothorax.", "Pleural Effusion", 1),
]


@pytest.mark.parametrize(("text", "observation", "value"), SENTENCES)
def test_sentence(text: str, observation: str, value: int | None):
    assert label_report(text)[observation] == value


@pytest.mark.parametrize(("text", "observation", "value"), SENTENCES)
def test_case_and_white_space_change_nothing(text: str, observation: str, value: int | None):
    expected = label_report(text)
    assert label_report(text.upper()) == expected
    assert label_report("\n  " + text.replace(" ", " \n\t ") + " ") == expected


def test_present_beats_uncertain_beats_absent():
    assert label_report("No effusion. Possible effusion.")["Pleural Effusion"] == -1
    assert label_report("Possible effusion. No effusion.")["Pleural Effusion"] == -1
    assert label_report("No effusion. Left effusion. Possible effusion.")["Pleural Effusion"] == 1


def test_no_finding():
    assert label_report("Heart size is normal. Lungs are clear.")["No Finding"] == 1
    assert label_report("Normal chest with a pacemaker.")["No Finding"] == 1
    assert label_report("Possible pneumonia.")["No Finding"] is None
    assert label_report("Small effusion.")["No Finding"] is None


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_text_says_nothing(text: str):
    assert label_report(text) == dict.fromkeys(OBSERVATIONS)


@pytest.mark.parametrize("text", [None, 3, ["No effusion."]])
def test_not_a_string(text):
    with pytest.raises(RRGError, match="must be a string"):
        label_report(text)


NAMED = {
    "pneumothorax": "Pneumothorax",
    "consolidation": "Consolidation",
    "pleural effusion": "Pleural Effusion",
    "pulmonary edema": "Edema",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
    "infiltrate": "Lung Opacity",
}


@given(st.lists(st.sampled_from(sorted(NAMED)), min_size=1, max_size=5, unique=True))
def test_no_flips_a_whole_list(names: list[str]):
    plain = label_report(", ".join(names[:-1]) + (", and " if names[1:] else "") + names[-1] + ".")
    denied = label_report("No " + ", ".join(names[:-1]) + (", or " if names[1:] else "") + names[-1] + ".")
    assert {plain[NAMED[name]] for name in names} == {1}
    assert {denied[NAMED[name]] for name in names} == {0}


@given(st.text(max_size=200))
def test_any_text_has_labels(text: str):
    labels = label_report(text)
    assert tuple(labels) == OBSERVATIONS
    assert set(labels.values()) <= {1, 0, -1, None}


# Annotation name -> observation, where the annotation encodes one; the rest of the 1,719 strings encode none of them.
ENCODED = {
    "cardiomegaly": "Cardiomegaly",
    "cardiac shadow": "Cardiomegaly",
    "pulmonary edema": "Edema",
    "pulmonary congestion": "Edema",
    "heart failure": "Edema",
    "pulmonary atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "consolidation": "Consolidation",
    "opacity": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "airspace disease": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "fractures, bone": "Fracture",
    "catheters, indwelling": "Support Devices",
    "implanted medical device": "Support Devices",
    "surgical instruments": "Support Devices",
    "tube, inserted": "Support Devices",
}


@pytest.fixture(scope="module")
def annotated() -> list[tuple[str, set[str]]]:
    """Findings and impression of every indexed report, with the observations that its annotation encodes."""
    reports = []
    for report in load_indiana():
        names = {finding.name.lower() for finding in report.mesh}
        text = f"{report.findings}\n\n{report.impression}"
        if text.strip() and names != {"no indexing"}:
            reports.append((text, {ENCODED[name] for name in names if name in ENCODED}))
    assert len(reports) > 3800
    return reports


def test_agreement_with_annotation_and_speed(annotated):
    start = time.process_time()
    labels = [label_report(text) for text, _ in annotated]
    assert (
        len(annotated) / (time.process_time() - start) > 500
    )  # about 1,500 on one free core; half of 1,000 for a busy one

    floors = {"Cardiomegaly": 0.93, "Atelectasis": 0.85, "Pleural Effusion": 0.85, "Pneumothorax": 0.8, "Edema": 0.75}
    floors |= {"Lung Opacity": 0.8, "Consolidation": 0.75, "Fracture": 0.78, "Support Devices": 0.75}
    for name, floor in floors.items():
        said = [label[name] in (1, -1) for label in labels]
        coded = [name in names for _, names in annotated]
        both = sum(s and c for s, c in zip(said, coded, strict=True))
        assert 2 * both / (sum(said) + sum(coded)) > floor, name
