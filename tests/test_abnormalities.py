import pytest

from rrg_utils.data import lesions
from rrg_utils.data.abnormalities import (
    ABNORMALITIES,
    CLASSES,
    NOTHING_TO_SEE,
    OBSERVATION_OF,
    REGION_OF,
    abnormality,
    check,
    coverage,
    present,
)
from rrg_utils.data.anatomy import REGIONS
from rrg_utils.data.mesh import NAMES, NORMAL, parse_mesh
from rrg_utils.data.reports import load_indiana
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS


def named(text):
    return abnormality(parse_mesh(text))


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        ("Cardiomegaly/mild", "cardiomegaly"),
        ("Cardiac Shadow/enlarged/severe", "cardiomegaly"),
        ("Cardiac Shadow/obscured", None),
        ("Costophrenic Angle/left/blunted", "blunted costophrenic angle"),
        ("Costophrenic Angle/left", None),
        ("Opacity/lung/base/left", "opacity"),
        ("Opacity/abdomen", None),
        ("Density/breast", None),
        ("Nodule/thoracic vertebrae", None),
        ("Calcinosis/aorta", "calcified aorta"),
        ("Calcinosis/lung/hilum/lymph nodes", "calcified lymph node"),
        ("Calcinosis/lung/hilum", "calcified lymph node"),  # names hilum and lung: the earlier class takes it
        ("Calcinosis/lung/base/left", "granuloma"),
        ("Calcinosis/shoulder", None),
        ("Lung/hyperdistention", "hyperinflation"),
        ("Lung/hypoinflation", "hypoinflation"),
        ("Lung", None),
        ("Diaphragm/flattened", "hyperinflation"),
        ("Diaphragm/right/elevated", "elevated diaphragm"),
        ("Aorta/tortuous", "tortuous aorta"),
        ("Fractures, Bone/ribs/left", "rib fracture"),
        ("Fractures, Bone/clavicle", None),
        ("Thickening/pleura/apex", "pleural thickening"),
        ("Thickening/bronchi", None),
        ("Catheters, Indwelling/right", "catheter"),
        ("Catheters, Indwelling/abdomen", None),
        ("Implanted Medical Device/aortic valve", "valve"),
        ("Implanted Medical Device/left", "pacemaker"),
        ("Implanted Medical Device/humerus", None),
        ("normal", None),
        ("No Indexing", None),
        ("Something New/lung", None),
    ],
)
def test_class_of_an_annotation(annotation, name):
    assert named(annotation) == name


def test_an_annotation_belongs_to_the_first_class_that_covers_it(reports):
    for finding in {finding for report in reports for finding in report.mesh}:
        covering = [entry.name for entry in CLASSES if entry.covers(finding)]
        assert abnormality(finding) == (covering[0] if covering else None)


@pytest.mark.parametrize("entry", CLASSES, ids=lambda entry: f"{entry.name} {entry.names[0]}")
def test_every_entry_is_needed(entry, reports):
    """Each row of the table is the one that names some annotation of the cohort: none is dead, none shadowed."""
    findings = {finding for report in reports for finding in report.mesh}
    assert any(next((e for e in CLASSES if e.covers(finding)), None) is entry for finding in findings)


def test_tables_agree_with_each_other():
    archive = {name for table in NAMES.values() for name in table}
    assert {name for entry in CLASSES for name in entry.names} <= archive
    assert len(ABNORMALITIES) == len(set(ABNORMALITIES)) == 37
    assert set(OBSERVATION_OF.values()) - {None} <= set(OBSERVATIONS)
    assert {region for regions in REGION_OF.values() for region in regions} <= set(REGIONS)
    by_name = {}
    for entry in CLASSES:  # rows of one class say the same
        assert by_name.setdefault(entry.name, (entry.region, entry.observation)) == (entry.region, entry.observation)
    assert set(lesions.DRAWINGS) | set(lesions.BENDS) == set(ABNORMALITIES)  # every class is drawn


def test_every_class_occurs(annotations):
    assert all(annotations[name] for name in ABNORMALITIES)


def test_most_annotations_are_drawn():
    """Counted with repetition: 95 % of the annotations that name something visible."""
    findings = [finding for report in load_indiana() for finding in report.mesh]
    counts = coverage(findings)
    assert sum(counts.values()) == len(findings) == 8298
    assert counts["drawn"] == sum(abnormality(finding) is not None for finding in findings)
    assert counts["nothing to see"] == sum(finding.name in NOTHING_TO_SEE for finding in findings)
    assert 0.94 < counts["drawn"] / (len(findings) - counts["nothing to see"]) < 0.96


def test_present_lists_classes_once_in_order():
    findings = map(parse_mesh, ("Pneumonia", "Opacity/lung/left", "Cardiomegaly", "Density/lung/right", "normal"))
    assert present(findings) == ("cardiomegaly", "pneumonia", "opacity")
    assert present([NORMAL]) == present([]) == ()


def test_check_refuses_unknown_names():
    check(ABNORMALITIES)
    with pytest.raises(RRGError, match=r"'cardiomegalia'.*cardiomegaly"):
        check(["nodule", "cardiomegalia"])
