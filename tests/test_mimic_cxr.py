"""A tree in the layout of MIMIC-CXR-JPG, of invented patients, films and reports."""

import logging
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from radiographs import MimicStudy, film, write_mimic

from rrg_utils.data.datasets import load_dataset
from rrg_utils.data.mimic_cxr import sections
from rrg_utils.data.radiographs import check
from rrg_utils.errors import RRGError

SIZE = 48
STUDIES = [
    MimicStudy(90000001, 900011, "train", {"aa": "LATERAL", "ab": "AP", "ac": "PA"}),
    MimicStudy(
        90000001, 900012, "train", {"ba": "AP"}, "FINAL REPORT\nFINDINGS: Mild ___ edema.\nIMPRESSION: Edema.\n"
    ),
    MimicStudy(90000002, 900021, "train", {"ca": "LATERAL"}),  # no frontal film
    MimicStudy(90000002, 900022, "train", {"da": "PA"}, "FINAL REPORT\nIMPRESSION: No change.\n"),  # no findings
    MimicStudy(91000003, 900031, "validate", {"ea": "AP"}),
    MimicStudy(91000004, 900041, "test", {"fb": "PA", "fa": "PA", "fc": ""}),
]


@pytest.fixture
def root(tmp_path):
    return write_mimic(tmp_path / "mimic", STUDIES)


def path(root, subject, study, name):
    return root / "files" / f"p{str(subject)[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg"


# --- studies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reports", ["", "mimic-cxr-reports"])
def test_studies(tmp_path, reports):
    root = write_mimic(tmp_path, STUDIES, reports)
    data = load_dataset("mimic_cxr", "train", SIZE, root=root)
    assert [study.id for study in data] == ["s900011", "s900012"], "with a frontal film and with FINDINGS"
    one, two = data
    assert (one.text, one.report.impression, one.view) == ("The lungs are clear.", "Normal.", "frontal")
    assert (two.text, two.report.impression) == ("Mild ___ edema.", "Edema.")
    assert one.report.images == ("ac", "ab"), "its frontal films, PA first"
    assert data.exams[0].path == path(root, 90000001, 900011, "ac")
    assert np.abs(one.image * 255 - film(900011 + 2)).mean() < 12, "a JPEG of random noise"
    assert one.image.dtype == np.float32
    assert one.report.mesh == ()
    assert one.labels is None
    assert data.labels is None
    assert data.images.shape == (2, SIZE, SIZE)
    assert data.texts == [one.text, two.text]


def test_the_official_splits(root):
    assert [study.id for study in load_dataset("mimic_cxr", "val", SIZE, root=root)] == ["s900031"]
    test = load_dataset("mimic_cxr", "test", SIZE, root=root)
    assert [study.id for study in test] == ["s900041"]
    assert test[0].report.images == ("fa", "fb")
    assert len(load_dataset("mimic_cxr", "train", SIZE, limit=1, root=root)) == 1


def test_observations_are_those_of_the_table(root, caplog):
    data = load_dataset("mimic_cxr", "train", SIZE, root=root)
    assert data.observations.index.tolist() == ["s900011", "s900012"]
    assert data.observations.iloc[0].to_dict() == pytest.approx(
        {"Atelectasis": 1, "Cardiomegaly": -1, "No Finding": np.nan}, nan_ok=True
    )
    data.exams[0].path.write_bytes(b"")
    rest = data.readable()
    assert rest.observations.index.tolist() == ["s900012"]
    assert "1 studies left out" in caplog.text


def test_no_warning_names_a_patient(root, caplog):
    path(root, 90000001, 900012, "ba").unlink()
    (root / "files" / "p90" / "p90000001" / "s900011.txt").write_bytes(b"\xff\xfe\x00")
    with caplog.at_level(logging.DEBUG, logger="rrg"), pytest.raises(RRGError, match="2 lack some") as error:
        load_dataset("mimic_cxr", "train", SIZE, root=root)
    assert not re.search(r"[ps]9\d+", caplog.text + str(error.value).replace(str(root), ""))
    write_mimic(root, STUDIES)
    path(root, 90000001, 900012, "ba").write_bytes(b"")
    load_dataset("mimic_cxr", "train", SIZE, root=root).readable()
    assert "1 studies left out, their films cannot be read" in caplog.text
    assert not re.search(r"[ps]9\d+", caplog.text)


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_patient_in_two_splits_is_refused(tmp_path):
    root = write_mimic(tmp_path, [*STUDIES, MimicStudy(90000001, 900099, "test", {"za": "PA"})])
    with pytest.raises(RRGError, match=r"split.csv.gz: 1 patients are in more than one split"):
        load_dataset("mimic_cxr", "train", SIZE, root=root)
    assert f"{root}/mimic-cxr-2.0.0-split.csv.gz: patient p90000001 is in more than one split" in (
        check("mimic_cxr", root).problems
    )


@pytest.mark.parametrize("table", ["split", "metadata", "chexpert"])
def test_missing_and_damaged_tables(root, table):
    name = root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    data = name.read_bytes()
    for content, message in (
        (data[:40], "cannot read the table"),
        (b"", "cannot read"),
        (None, "is missing.*physionet"),
    ):
        name.write_bytes(content) if content is not None else name.unlink()
        for use in (load_dataset, lambda *_, root, **__: check("mimic_cxr", root)):
            with pytest.raises(RRGError, match=message) as error:
                use("mimic_cxr", "train", SIZE, root=root)
            assert str(name) in str(error.value)
            assert "\n" not in str(error.value)
    pd.DataFrame({"dicom_id": ["aa"]}).to_csv(root / f"mimic-cxr-2.0.0-{table}.csv", index=False)
    with pytest.raises(RRGError, match=f"{table}.csv: column 's.*_id' is missing"):
        load_dataset("mimic_cxr", "train", SIZE, root=root)


@pytest.mark.parametrize("word", ["yes", "1,0", "--"])
def test_a_label_that_is_no_number_is_named_by_its_place(root, word):
    """By file, line and column; not by its patient, since `load` may end in a notebook."""
    name = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    table = pd.read_csv(name, dtype=str)
    table.loc[2, "Cardiomegaly"] = word
    table.to_csv(name, index=False)
    with pytest.raises(RRGError) as caught:
        load_dataset("mimic_cxr", "train", SIZE, root=root)
    line = f"{name}: line 4, column 'Cardiomegaly' is no number: labels are 1, 0, -1 or empty"
    assert str(caught.value) == line
    assert check("mimic_cxr", root).problems == [line]


def test_tables_that_contradict_each_other(root):
    name = root / "mimic-cxr-2.0.0-metadata.csv.gz"
    pd.read_csv(name, dtype=str).iloc[1:].to_csv(name, index=False)
    with pytest.raises(RRGError, match="1 images of the split table are not in it"):
        load_dataset("mimic_cxr", "train", SIZE, root=root)
    assert any("1 images of the split table" in line for line in check("mimic_cxr", root).problems)


def test_an_unknown_split(tmp_path):
    root = write_mimic(tmp_path, [*STUDIES, replace(STUDIES[0], subject=92000001, study=1, split="dev")])
    with pytest.raises(RRGError, match="unknown split 'dev'; known are: train, validate, test"):
        load_dataset("mimic_cxr", "train", SIZE, root=root)


@pytest.mark.parametrize("make", [False, True])
def test_no_tree(tmp_path, make):
    if make:
        (tmp_path / "x").mkdir()
    for use in (lambda: load_dataset("mimic_cxr", root=tmp_path / "x"), lambda: check("mimic_cxr", tmp_path / "x")):
        with pytest.raises(RRGError, match=f"{tmp_path / 'x'}: .*MIMIC-CXR-JPG with the reports"):
            use()
    with pytest.raises(RRGError, match="needs root=FOLDER"):
        load_dataset("mimic_cxr")


def test_check(root):
    found = check("mimic_cxr", root)
    assert found.problems == []
    assert found.counts == {
        "images of train": 6,
        "images of val": 1,
        "images of test": 3,
        "studies": 6,
        "patients": 4,
        "frontal images": 7,
        "studies without CheXpert labels": 0,
        "reports": 6,
        "reports with FINDINGS": 5,
        "images found": 10,
        "images decoded": 10,
    }
    assert len(found.images) == 10


def test_check_goes_on_after_every_bad_file(root):
    missing, cut = path(root, 90000001, 900011, "aa"), path(root, 91000004, 900041, "fa")
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:-400])
    reports = root / "files" / "p90" / "p90000002"
    (reports / "s900021.txt").unlink()
    (reports / "s900022.txt").write_bytes(b"\xff\xfe\x00")
    problems = check("mimic_cxr", root).problems
    assert f"{missing}: missing" in problems
    assert f"{reports / 's900021.txt'}: missing" in problems
    assert [line for line in problems if line.startswith(f"{cut}: damaged picture")]
    assert [line for line in problems if line.startswith(f"{reports / 's900022.txt'}: cannot read the report")]
    assert len(problems) == 4


# --- sections ---------------------------------------------------------------------------------------------------------

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old with cough // pneumonia?

 TECHNIQUE:  Two views: upright.

 COMPARISON:  None.

 FINDINGS:

 Heart size is normal.  Note: the lungs
 are clear at 2:15.

 IMPRESSION:

 1. No acute disease.
 2. Right PICC, at 2:15.

 NOTIFICATION:  Told by phone.
"""


def test_sections():
    assert sections(REPORT) == {
        "findings": "Heart size is normal. Note: the lungs are clear at 2:15.",
        "impression": "1. No acute disease. 2. Right PICC, at 2:15.",
        "comparison": "None.",
        "indication": "___ year old with cough // pneumonia?",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Findings: Clear.\nImpression: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("FINDINGS AND IMPRESSION: Clear.", {"findings": "Clear."}),
        ("FINDINGS : Clear.\nCONCLUSION: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("FINDINGS: One.\nADDENDUM: x\nFINDINGS: Two.", {"findings": "One. Two."}),
        ("HISTORY: Cough.\nREASON FOR EXAM: Fever.", {"indication": "Cough. Fever."}),
        ("FINDINGS:\n\nIMPRESSION: Normal.", {"impression": "Normal."}),
        ("FINDINGS: \r\n Clear.\r\n IMPRESSION: \r\n Normal.\r\n", {"findings": "Clear.", "impression": "Normal."}),
        ("The findings: clear lungs.", {}),
        ("Heart is normal.", {}),
        ("", {}),
    ],
)
def test_sections_of_other_forms(text, expected):
    assert {name: part for name, part in sections(text).items() if part} == expected


@given(
    st.dictionaries(st.sampled_from(["FINDINGS", "IMPRESSION", "COMPARISON"]), st.from_regex(r"[a-z0-9.]+( [a-z.]+)*"))
)
def test_what_is_written_under_a_heading_is_read_there(parts):
    parts = {name: " ".join(text.split()) for name, text in parts.items()}
    text = "FINAL REPORT\n" + "\n".join(f" {name}: \n\n {part}\n" for name, part in parts.items())
    assert {name.upper(): part for name, part in sections(text).items() if part} == parts


@given(st.text())
def test_any_text_has_sections(text):
    assert set(sections(text)) == {"findings", "impression", "comparison", "indication"}
