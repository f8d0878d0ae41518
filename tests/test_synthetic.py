import re
from collections import Counter

import pytest

from rrg_utils.data.abnormalities import ABNORMALITIES, OBSERVATION_OF, REGION_OF, abnormality, present
from rrg_utils.data.datasets import indiana
from rrg_utils.data.mesh import NORMAL
from rrg_utils.data.synthetic import balanced_studies, caption
from rrg_utils.labels import label_report

COUNT = 1500


@pytest.fixture(scope="module")
def train():
    return indiana().train


@pytest.fixture(scope="module")
def studies(train):
    return balanced_studies(train, COUNT)


# --- annotations ------------------------------------------------------------------------------------------------------


def test_classes_are_balanced(studies):
    counts = Counter(name for report in studies for name in present(report.mesh))
    mean = sum(counts.values()) / len(ABNORMALITIES)
    assert all(mean / 1.5 < counts[name] < mean * 1.5 for name in ABNORMALITIES)


def test_some_studies_are_normal_and_some_are_not(studies):
    sizes = Counter(len(report.mesh) for report in studies)
    assert set(sizes) == set(range(6))
    assert 0.15 < sizes[0] / COUNT < 0.3


def test_findings_are_drawn_once_and_do_not_contradict_each_other(studies):
    for report in studies:
        names = [abnormality(finding) for finding in report.mesh]
        assert None not in names
        assert len(names) == len(set(names))
        for pair in ("hyper hypo", "emphysema hypo", "hyper elevated"):
            assert not all(any(name.startswith(word) for name in names) for word in pair.split()), names


def test_only_the_training_split_is_used(train, studies):
    def mirrored(text):
        return "/".join({"left": "right", "right": "left"}.get(part, part) for part in text.split("/"))

    known = {str(finding) for report in train for finding in report.mesh}
    used = {str(finding) for report in studies for finding in report.mesh}
    assert used <= known | {mirrored(text) for text in known}
    held_out = indiana().val + indiana().test
    foreign = {str(f) for report in held_out for f in report.mesh} - known - {mirrored(text) for text in known}
    assert len(foreign) > 50  # the test below can fail
    assert not used & foreign
    assert not any(report.findings or report.impression or report.images for report in studies)


def test_sides_tell_nothing(studies):
    sides = Counter(f.side for report in studies for f in report.mesh if not {"middle lobe", "lingula"} & {*f.anatomy})
    assert sides["left"] == pytest.approx(sides["right"], rel=0.15)


def test_lobes_of_one_side_are_not_mirrored(train, studies):
    known = {finding for report in train for finding in report.mesh}
    single = {f for report in studies for f in report.mesh if {"middle lobe", "lingula", "retrocardiac"} & {*f.anatomy}}
    assert len(single) > 10
    assert single <= known


def test_more_studies_begin_with_the_fewer(train, studies):
    assert balanced_studies(train, 200) == studies[:200]
    other = balanced_studies(train, 200, seed=1)
    assert not {report.id for report in other} & {report.id for report in studies}
    assert [report.mesh for report in other] != [report.mesh for report in studies[:200]]
    assert len({report.id for report in studies}) == COUNT


# --- captions ---------------------------------------------------------------------------------------------------------

KEY = {
    "cardiomegaly": r"heart is .*enlarged|cardiomegaly",
    "pleural effusion": "effusion",
    "blunted costophrenic angle": "blunting",
    "edema": "edema|congestion",
    "consolidation": "airspace disease",
    "pneumonia": "pneumonia",
    "atelectasis": "atelectasis",
    "opacity": "opacity",
    "pneumothorax": "pneumothorax",
    "wide mediastinum": "widened",
    "hilar enlargement": "hilar",
    "kyphosis": "kyphosis",
    "vertebral deformity": "wedge",
    "osteopenia": "osteopenic",
    "foreign body": "foreign body",
    "nodule": "nodule",
    "mass": "mass",
    "calcified aorta": "calcified|calcification",
    "calcified lymph node": "lymph node",
    "granuloma": "granuloma",
    "emphysema": "emphysem",
    "hyperinflation": "hyperinflated|hyperexpanded",
    "hypoinflation": "low lung volumes|hypoinflated",
    "elevated diaphragm": "elevation",
    "tortuous aorta": "tortuous",
    "scoliosis": "scoliosis",
    "degenerative spine": "degenerative",
    "rib fracture": "rib",
    "scar": "scarring",
    "interstitial markings": "markings",
    "pleural thickening": "thickening",
    "hiatal hernia": "hernia",
    "catheter": "catheter",
    "tube": "tube",
    "surgical hardware": "clips|sutures",
    "valve": "valve",
    "pacemaker": "pacemaker",
}


@pytest.fixture(scope="module")
def captions(studies):
    return [(report, caption(report)) for report in studies]


def sentences(text):
    return re.split(r"(?<=\.) ", text)


def test_captions_say_every_class(captions):
    assert set(KEY) == set(ABNORMALITIES)
    for report, text in captions:
        assert "{" not in text
        assert "  " not in text
        assert all(sentence.endswith(".") for sentence in sentences(text))
        assert len(sentences(text)) == (len(report.mesh) or 2)
        for name in present(report.mesh):
            said = [s for s in sentences(text) if re.search(KEY[name], s) and not s.startswith(("no ", "there is no "))]
            assert said, (name, text)


def test_captions_keep_the_order_of_the_classes(captions):
    for report, text in captions:
        names = present(report.mesh)
        assert all(re.search(KEY[name], s) for name, s in zip(names, sentences(text), strict=False)), text


def test_only_normal_studies_are_called_normal(captions):
    for report, text in captions:
        assert bool(report.mesh) != ("the lungs are clear" in text)


def test_normal_studies_get_normal_captions(train):
    report = next(report for report in train if report.mesh == (NORMAL,))
    labels = label_report(caption(report))
    assert labels.pop("No Finding") == 1
    assert set(labels.values()) <= {0, None}


# The labeller reads text as radiologists mean it: "airspace disease" is an opacity (not surely a consolidation),
# "concerning for pneumonia" is uncertain, a tortuous aorta is no enlarged mediastinum, a deformity no fracture.
ACCEPTED = {"Consolidation": {"Consolidation", "Lung Opacity"}}


def test_labels_of_captions_agree_with_the_classes(captions):
    said = Counter()
    agreed = Counter()
    for report, text in captions:
        labels = label_report(text)
        wanted = {OBSERVATION_OF[name] for name in present(report.mesh)} - {None}
        for name in present(report.mesh):
            if (observation := OBSERVATION_OF[name]) and name != "tortuous aorta":
                said[name] += 1
                agreed[name] += any(labels[each] in (1, -1) for each in ACCEPTED.get(observation, {observation}))
        # Nothing present is denied, and nothing is claimed that was not drawn.
        assert not {name for name in wanted if labels[name] == 0}
        claimed = {name for name, value in labels.items() if value == 1} - {"No Finding"}
        if {"consolidation", "pneumonia", "interstitial markings"} & {*present(report.mesh)}:
            claimed -= {"Lung Opacity"}
        assert claimed <= wanted, (claimed, text)
    assert sum(agreed.values()) / sum(said.values()) > 0.95
    assert {name for name in said if agreed[name] < 0.95 * said[name]} <= {"rib fracture"}


# Classes whose every wording names the side.
SIDED = [
    name
    for name in ABNORMALITIES
    if REGION_OF[name][0] in ("lungs", "diaphragm", "ribs")
    and name not in ("edema", "emphysema", "hyperinflation", "hypoinflation", "interstitial markings")
]


@pytest.mark.parametrize("name", SIDED)
def test_captions_name_the_right_side(annotations, study, name):
    words = {"left": "left", "right": "right", "bilateral": r"bilateral|bilaterally|lung bases|lung apices"}
    sided = [finding for finding in annotations[name] if finding.side and "lingula" not in finding.anatomy]
    assert sided
    for finding in sided[:40]:
        text = caption(study(finding))
        assert re.search(rf"\b({words[finding.side]})\b", text), (finding, text)
        assert not [s for s in ("left", "right") if s != finding.side and re.search(rf"\b{s}\b", text)]


def test_captions_name_place_and_grade(study):
    assert "right upper lobe" in caption(study("Nodule/lung/upper lobe/right"))
    assert re.search("lung bases|bilateral basilar", caption(study("Pulmonary Atelectasis/lung/base/bilateral")))
    assert "mild" in caption(study("Cardiomegaly/mild"))
    assert "lingula" in caption(study("Opacity/lung/lingula/left"))
