"""Reports taken apart: hand-written cases from real phrasing, properties on any text, and the ontology itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.anatomy import REGIONS
from rrg_utils.errors import RRGError
from rrg_utils.labels import (
    OBSERVATIONS,
    TOPICS,
    TopicSentence,
    clean_report,
    decompose,
    label_report,
    rejoin,
    topics_of,
)
from rrg_utils.labels.labeller import ASSERTS, DENIES
from rrg_utils.labels.mentions import FINDINGS, PAIRS
from rrg_utils.labels.ontology import LEVELS, NORMAL, TOPIC_OF
from rrg_utils.metrics import fidelity

P, A = "present", "absent"

# text -> (topic, sentence, polarity), in order
CASES = [
    # compound denials become standard negatives
    (
        "No pneumothorax or pleural effusion.",
        ("disease-pneumothorax", "Pneumothorax is absent.", A),
        ("disease-pleural effusion", "Pleural effusion is absent.", A),
    ),
    (
        "The lungs are clear of focal airspace disease, pneumothorax, or pleural effusion.",
        ("organ-lungs", "The lungs are clear.", A),
        ("disease-consolidation", "Airspace disease is absent.", A),
        ("disease-pneumothorax", "Pneumothorax is absent.", A),
        ("disease-pleural effusion", "Pleural effusion is absent.", A),
    ),
    (
        "No focal consolidation. No airspace disease.",
        ("disease-consolidation", "Consolidation and airspace disease are absent.", A),
    ),
    ("No nodules or masses.", ("disease-lung lesion", "Nodule and mass are absent.", A)),
    ("There is no acute infiltrate.", ("disease-consolidation", "Infiltrate is absent.", A)),
    # what is normal keeps its words if it is of one topic
    ("The heart is normal in size.", ("organ-heart", "The heart is normal in size.", A)),
    (
        "Heart size and mediastinal contours are within normal limits.",
        ("organ-heart", "Heart size is normal.", A),
        ("organ-mediastinum", "Mediastinal contours are normal.", A),
    ),
    ("No acute bony abnormality.", ("organ-bones", "No acute bony abnormality.", A)),
    ("The trachea is midline.", ("organ-airway", "The trachea is midline.", A)),
    ("Lungs demonstrate no acute findings.", ("organ-lungs", "Lungs demonstrate no acute findings.", A)),
    (
        "No acute cardiopulmonary abnormality.",
        ("special-acute abnormality", "Acute abnormality is absent.", A),
    ),
    # comparisons go
    ("Stable cardiomegaly.", ("disease-cardiomegaly", "Cardiomegaly.", P)),
    (
        "The heart remains mildly enlarged compared to the prior study.",
        ("disease-cardiomegaly", "The heart is mildly enlarged.", P),
    ),
    ("Large hiatal hernia, increased from prior exam.", ("disease-hiatal hernia", "Large hiatal hernia.", P)),
    ("Right pleural effusion is unchanged.", ("disease-pleural effusion", "Right pleural effusion is present.", P)),
    (
        "No significant interval change in left basilar atelectasis.",
        ("disease-atelectasis", "Left basilar atelectasis.", P),
    ),
    (
        "There is redemonstration without significant interval change of mild subsegmental atelectasis.",
        ("disease-atelectasis", "There is mild subsegmental atelectasis.", P),
    ),
    (
        "Stable enlargement of the cardiac silhouette, stable mediastinal contours.",
        ("disease-cardiomegaly", "Enlargement of the cardiac silhouette.", P),
    ),
    ("The cardiomediastinal silhouette is stable in appearance.",),
    ("The heart and lungs have ___ in the interval.",),
    ("Thoracic spine.",),
    ("Calcified hilar lymph ___ are stable.", ("disease-granuloma", "Calcified hilar lymph ___ are present.", P)),
    (
        "Mediastinum is shifted to the left as compared to the previous examination.",
        ("organ-mediastinum", "Mediastinum is shifted to the left.", P),
    ),
    # speculation goes, what is seen stays
    ("Possible right lower lobe pneumonia.",),
    ("Pneumonia cannot be excluded.",),
    (
        "There is a left basilar opacity, which may represent atelectasis or pneumonia.",
        ("disease-lung opacity", "There is a left basilar opacity.", P),
    ),
    (
        "There is minimal opacity in the left lung base, ___ representing atelectasis.",
        ("disease-lung opacity", "There is minimal opacity in the left lung base.", P),
    ),
    (
        "There is ___ deformity of T12 and L1.",
        ("disease-vertebral deformity", "There is ___ deformity of T12 and L1.", P),
    ),
    ("Questionable nodule in the right apex. Correlate clinically.",),
    # advice and technique go
    (
        "In the left lower lobe there is airspace disease consistent with pneumonia.",
        ("disease-consolidation", "In the left lower lobe there is airspace disease.", P),
        ("disease-pneumonia", "Pneumonia.", P),
    ),
    ("Calcified granuloma, recommend follow-up.", ("disease-granuloma", "Calcified granuloma.", P)),
    ("PA and lateral views of the chest were obtained.",),
    # compound findings
    (
        "There is mild cardiomegaly and a small left pleural effusion.",
        ("disease-cardiomegaly", "There is mild cardiomegaly.", P),
        ("disease-pleural effusion", "A small left pleural effusion.", P),
    ),
    (
        "Stable cardiomegaly without pulmonary edema.",
        ("disease-cardiomegaly", "Cardiomegaly.", P),
        ("disease-edema", "Edema is absent.", A),
    ),
    (
        "The thoracic aorta is tortuous and calcified.",
        ("disease-aortic disease", "The thoracic aorta is tortuous and calcified.", P),
    ),
    # several sentences on one topic
    (
        "Scattered calcified granulomas. No pneumothorax. There are calcified hilar lymph ___.",
        ("disease-granuloma", "Scattered calcified granulomas; There are calcified hilar lymph ___.", P),
        ("disease-pneumothorax", "Pneumothorax is absent.", A),
    ),
    (
        "There is a right apical nodule. No mass.",
        ("disease-lung lesion", "There is a right apical nodule; mass is absent.", P),
    ),
    ("Lungs are clear. The lungs are clear bilaterally.", ("organ-lungs", "Lungs are clear.", A)),
    # nothing
    ("",),
    (" \n",),
    ("2 images.",),
    ("___ are normal.",),
]


@pytest.mark.parametrize(("text", "expected"), [(case[0], case[1:]) for case in CASES])
def test_sentence(text: str, expected: tuple):
    assert decompose(text) == list(map(TopicSentence._make, expected))


@pytest.mark.parametrize("text", [None, 3, b"No pneumothorax.", ["No pneumothorax."]])
def test_not_a_string(text):
    for function in (decompose, clean_report):
        with pytest.raises(RRGError, match="must be a string"):
            function(text)


def test_clean_report_is_the_rejoined_decomposition():
    text = "Stable cardiomegaly. No pneumothorax or effusion. Correlate clinically."
    assert clean_report(text) == "Cardiomegaly. Pneumothorax is absent. Pleural effusion is absent."
    assert clean_report("") == ""


# --- properties -------------------------------------------------------------------------------------------------------

_PHRASES = [case[0] for case in CASES] + [
    "no",
    "without",
    "and",
    ",",
    ";",
    "may represent",
    "unchanged",
    "since the prior exam",
    "small left",
    "effusion",
    "heart",
    "the lungs are",
    "normal",
    "is",
    "calcified",
    "infiltrate",
    "bones",
    "new",
    ".",
    "1.",
]
reports = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(_PHRASES), max_size=12).map(" ".join))


def keys(topics):
    return [(topic.topic, topic.polarity) for topic in topics]


@settings(max_examples=150, deadline=None)
@given(reports)
def test_any_text(text: str):
    topics = decompose(text)
    assert len({topic.topic for topic in topics}) == len(topics)
    for topic in topics:
        assert topic.topic in TOPICS
        assert topic.polarity in (P, A)
        assert topic.sentence.strip(" .")
        assert topic.sentence.endswith(".")
        assert "\n" not in topic.sentence
    assert keys(decompose(rejoin(topics))) == keys(topics)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(_PHRASES), max_size=12).map(" ".join))
def test_nothing_is_invented(text: str):
    """What is labelled present in the cleaned text is not labelled absent, or left out, in the text."""
    before, after = label_report(text), label_report(clean_report(text))
    for name in OBSERVATIONS[:-1]:
        if after[name] == 1 and before[name] != 1:
            raise AssertionError((name, before[name], clean_report(text)))


# --- the ontology -----------------------------------------------------------------------------------------------------


def test_every_class_observation_and_finding_has_one_topic():
    def told_once(field):
        names = [name for topic in TOPICS.values() for name in getattr(topic, field)]
        assert len(names) == len(set(names))
        return set(names)

    assert told_once("observations") == set(OBSERVATIONS) - {"No Finding"}
    assert told_once("classes") == set(ABNORMALITIES)
    named = {name for name, _, _ in FINDINGS if name} | {name for name, _ in PAIRS.values()}
    assert told_once("findings") == named
    assert set(NORMAL) == {name for name in named if name in DENIES or name.startswith(("normal", "clear"))}


def test_levels_and_regions():
    levels = [topic.level for topic in TOPICS.values()]
    assert levels == sorted(levels, key=LEVELS.index)
    assert set(levels) == set(LEVELS)
    assert all(set(topic.regions) <= set(REGIONS) for topic in TOPICS.values())
    assert set().union(*(topic.regions for topic in TOPICS.values())) == set(REGIONS)
    assert TOPICS["disease-pleural effusion"].regions == ("lungs", "diaphragm")  # printed in the paper


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
def test_standard_negative_is_read_as_its_topic(topic):
    assert decompose(topic.negative) == [(topic.name, topic.negative, A)]


@pytest.mark.parametrize("finding", TOPIC_OF)
def test_every_finding_can_be_written(finding: str):
    """Denied in a list it comes out in the standard form, asserted in a list in a sentence of its own."""
    from rrg_utils.labels.topics import _anew, _denial, _sentence, _Told, _told

    if finding in NORMAL:
        assert keys(decompose(NORMAL[finding])) == [(TOPIC_OF[finding], A)]
        return
    sentence = _sentence(_denial([finding]))
    assert decompose(sentence) == [(TOPIC_OF[finding], sentence, A)]
    told = _told(sentence)[0]
    part = _anew(_Told(told.topic, finding, P, told.mention))
    assert keys(decompose(part.text + ".")) == [(TOPIC_OF[finding], P)]


@pytest.mark.parametrize("observation", OBSERVATIONS[:-1])
def test_observations_agree_with_the_labeller(observation: str):
    """A topic's standard negative denies, and never asserts, the observations that are told under it."""
    topic = next(topic for topic in TOPICS.values() if observation in topic.observations)
    assert any(observation in ASSERTS[finding] for finding in topic.findings if finding in ASSERTS)
    assert label_report(topic.negative)[observation] in (0, None)


# --- fidelity ---------------------------------------------------------------------------------------------------------


def test_fidelity_counts_what_is_lost():
    texts = ["Cardiomegaly. Pneumothorax is absent.", "Possible pneumonia. Pneumothorax is absent.", "Stable."]
    found = fidelity(texts, resamples=20)
    assert found.kept == {"present": (1, 1), "absent": (2, 2), "uncertain": (0, 1)}
    assert (found.added, found.empty, found.n, found.topics) == (0, 1, 3, 1.0)
    assert list(found.scores) == ["BLEU-1", "BLEU-4", "ROUGE-L", "fact F1"]
    assert found.scores["fact F1"].value == pytest.approx(6 / 7)  # 3 kept, 0 added, 1 lost
    whole = fidelity(texts[:1], resamples=20)
    assert all(score.value == pytest.approx(1) for score in whole.scores.values())


def test_fidelity_of_another_decomposer():
    inventor = fidelity(["No effusion."], lambda text: decompose("No effusion. Pneumonia."), resamples=20)
    assert inventor.added == 1
    with pytest.raises(RRGError):
        fidelity([])


# --- the truth's topics -----------------------------------------------------------------------------------------------


def test_topics_of_text_and_labels_agree():
    text = "Small left pleural effusion. The heart is enlarged. No pneumothorax."
    assert topics_of(text) == ("disease-pleural effusion", "disease-cardiomegaly")
    assert topics_of(label_report(text)) == topics_of(text)
    assert topics_of(text, A) == ("disease-pneumothorax",)
    assert topics_of(label_report(text), A) == topics_of(text, A)
    assert topics_of(text, None) == ("disease-pneumothorax", *topics_of(text))


def test_topics_of_an_annotated_report():
    from rrg_utils.data.mesh import parse_mesh
    from rrg_utils.data.reports import Report

    mesh = tuple(map(parse_mesh, ("Pleural Effusion/left/small", "Scoliosis/mild", "Catheters, Indwelling")))
    report = Report("x", "", "", "", "", mesh, ())
    assert topics_of(report) == ("disease-pleural effusion", "disease-spinal curvature")
    assert topics_of(report, A) == ()


@pytest.mark.parametrize("source", [None, 3, {"Flu": 1}])
def test_topics_of_bad_input(source):
    with pytest.raises(RRGError, match=r"Flu|takes a text"):
        topics_of(source)
    with pytest.raises(RRGError, match="polarity"):
        topics_of("", "maybe")
