"""Composed reports: real sentences, about the study's findings and no others, on the right side."""

import re

import numpy as np
import pytest

from rrg_utils.data import ABNORMALITIES, abnormality, indiana
from rrg_utils.data.composed import Composer
from rrg_utils.data.mesh import parse_mesh
from rrg_utils.data.reports import Report, clean, sentences
from rrg_utils.data.synthetic import balanced_studies
from rrg_utils.labels import label_report


@pytest.fixture(scope="module")
def composer():
    return Composer(indiana().train)


@pytest.fixture(scope="module")
def composed(composer):
    rng = np.random.default_rng(0)
    return [(study, composer.compose(study, rng)) for study in balanced_studies(indiana().train, 800, seed=5)]


def study(*annotations):
    return Report("X", "", "", "", "", tuple(parse_mesh(text) for text in annotations), ())


def test_every_class_has_real_sentences(composer):
    assert set(composer.bank) == set(ABNORMALITIES)
    assert all(len(known) >= 5 for known in composer.bank.values())
    assert len(composer.normal) > 500


def test_every_sentence_is_one_of_the_training_split_or_its_mirror(composed):
    real = {text for report in indiana().train for text in sentences(clean(report.findings))}
    sides = re.compile(r"\b(left|right)\b", re.IGNORECASE)
    unsided = {sides.sub("SIDE", text).lower() for text in real}
    whole = re.sub(r"\s+", " ", " ".join(sorted(unsided)))
    for _, text in composed[:200]:
        for sentence in sentences(text):
            assert re.sub(r"\s+", " ", sides.sub("SIDE", sentence).lower()) in whole


def test_the_same_numbers_give_the_same_text(composer):
    one = study("Cardiomegaly/mild")
    texts = [composer.compose(one, np.random.default_rng(3)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len({composer.compose(one, np.random.default_rng(seed)) for seed in range(20)}) > 10


def test_short_reports_hold_sentences_about_findings_only(composer):
    rng = np.random.default_rng(2)
    studies = [study("Cardiomegaly/mild", "Pleural Effusion/left/small"), study("normal")]
    sentences_ = [len(sentences(composer.compose(one, rng, whole=False))) for one in studies]
    assert sentences_[0] == 2
    assert sentences_[1] > 2, "a normal report has nothing else to say"


def test_a_study_without_findings_gets_a_normal_report(composed):
    normal = [text for report, text in composed if not report.mesh]
    assert len(normal) > 100
    assert np.mean([label_report(text)["No Finding"] == 1 for text in normal]) > 0.9


@pytest.mark.parametrize(
    ("annotation", "observation"),
    [
        ("Cardiomegaly/mild", "Cardiomegaly"),
        ("Pleural Effusion/left/small", "Pleural Effusion"),
        ("Pulmonary Atelectasis/base/left", "Atelectasis"),
        ("Pneumothorax/right", "Pneumothorax"),
        ("Opacity/lung/upper lobe/right", "Lung Opacity"),
        ("Pulmonary Edema", "Edema"),
        ("Catheters, Indwelling/right", "Support Devices"),
    ],
)
def test_a_finding_is_said_and_nothing_denies_it(composer, annotation, observation):
    rng = np.random.default_rng(1)
    texts = [composer.compose(study(annotation), rng) for _ in range(60)]
    said = [label_report(text)[observation] in (1, -1) for text in texts]
    assert np.mean(said) > 0.85


def test_no_sentence_names_only_the_other_side(composer):
    for known in composer.bank.values():
        for sentence in known:
            named = set(re.findall(r"\b(?:left|right)\b", sentence.text.lower()))
            if named and sentence.finding.side in ("left", "right"):
                assert sentence.finding.side in named


def test_classes_of_a_sentence_are_drawn_from_its_annotation(composer):
    for name, known in composer.bank.items():
        assert all(abnormality(sentence.finding) == name for sentence in known)
