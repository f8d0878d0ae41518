"""Trivial baselines, and the image-dependence tests on systems whose dependence is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.labels import label_report
from rrg_utils.metrics import rouge_l
from rrg_utils.metrics.baselines import (
    baseline_outputs,
    bleu4,
    constant_report,
    derangement,
    nearest_neighbours,
    random_reports,
    shuffled,
    templates,
)
from rrg_utils.metrics.dependence import image_dependence, substitutes

TRAIN = ["Lungs are clear.", "Left effusion.", "Lungs are clear. No effusion.", "Cardiomegaly.", ""]
VAL = ["Lungs are clear. No effusion.", "The lungs are clear. No effusion."]


def test_constant_is_the_best_on_validation():
    chosen = constant_report(TRAIN, VAL)
    assert chosen == "Lungs are clear. No effusion."
    assert all(bleu4([chosen] * 2, VAL).value >= bleu4([text] * 2, VAL).value for text in TRAIN)
    assert constant_report(TRAIN, ["Cardiomegaly."] * 2, score=rouge_l) == "Cardiomegaly."
    assert constant_report(TRAIN, VAL, candidates=1, seed=3) in TRAIN


def test_random_reports_come_from_training_and_depend_on_the_seed_only():
    drawn = random_reports(TRAIN, 50, seed=1)
    assert set(drawn) <= set(TRAIN)
    assert drawn == random_reports(TRAIN, 50, seed=1) != random_reports(TRAIN, 50, seed=2)


def test_nearest_neighbour():
    known = np.random.default_rng(0).normal(size=(5, 2))
    assert nearest_neighbours(known, TRAIN, known[[2, 0, 3]]) == [TRAIN[2], TRAIN[0], TRAIN[3]]
    # a feature that never varies, and the scale of one, change nothing
    scaled = np.hstack([known * [1, 1000], np.full((5, 1), 7.0)])
    assert nearest_neighbours(scaled, TRAIN, scaled[[1, 4]]) == [TRAIN[1], TRAIN[4]]


@given(st.integers(2, 60), st.integers(0, 99))
def test_nobody_keeps_their_own_image(n: int, seed: int):
    order = derangement(n, seed)
    assert sorted(order) == list(range(n))
    assert (order != np.arange(n)).all()


def test_shuffled_outputs_are_the_same_outputs():
    outputs = [str(i) for i in range(20)]
    assert sorted(shuffled(outputs)) == sorted(outputs)
    assert all(a != b for a, b in zip(outputs, shuffled(outputs), strict=True))


def test_template_says_the_annotation(study):
    (text, normal) = templates([study("Pleural Effusion/left", "Cardiomegaly/mild"), study("normal")])
    assert label_report(text)["Pleural Effusion"] == label_report(text)["Cardiomegaly"] == 1
    assert label_report(normal)["No Finding"] == 1


def test_all_baselines_have_a_report_for_every_study(study):
    studies = [study("Cardiomegaly"), study("normal"), study("Scoliosis")]
    features = np.random.default_rng(0).normal(size=(5, 4))
    out = baseline_outputs(TRAIN, VAL, studies, features, features[:3])
    assert list(out) == [
        "constant",
        "random training report",
        "nearest neighbour",
        "nearest neighbour, shuffled",
        "template (oracle)",
    ]
    assert all(len(texts) == 3 for texts in out.values())
    assert out["nearest neighbour"] == TRAIN[:3]
    assert "nearest neighbour" not in baseline_outputs(TRAIN, VAL, studies)


FILMS = np.stack([np.full((4, 4), 20 * (1 + i % 3), np.uint8) for i in range(30)])
TEXTS = [("Cardiomegaly.", "Left effusion.", "Pneumothorax.")[i % 3] for i in range(30)]


def reader(films):
    """A system that reads the grey value."""
    return [{20: TEXTS[0], 40: TEXTS[1], 60: TEXTS[2]}.get(int(film.mean()), "Lungs are clear.") for film in films]


def test_a_system_that_reads_its_film_is_worse_without_it():
    def loss(films):
        wrong = [text != said for text, said in zip(TEXTS, reader(films), strict=True)]
        return np.array(wrong) * 3.0 + 1, [2] * len(films)

    found = image_dependence(FILMS, TEXTS, reader, loss, {"ROUGE-L": rouge_l}, resamples=200, permutations=199)
    assert list(found) == ["swapped", "black", "noise"]
    for result in found.values():
        assert result.worth["ROUGE-L"].low > 0
        assert result.worth["loss"].low > 0
        assert result.worth["loss"].p == 1 / 200
    assert found["black"].unchanged.value == 0
    assert 0 < found["swapped"].unchanged.value < 1  # another film of the same kind


def test_a_blind_system_is_found_out():
    found = image_dependence(FILMS, TEXTS, lambda films: ["Cardiomegaly."] * len(films), resamples=50, permutations=50)
    for result in found.values():
        assert result.worth["clinical F1"].value == 0
        assert result.worth["clinical F1"].p == 1
        assert result.unchanged.value == 1


def test_loss_alone_is_enough():
    found = image_dependence(
        FILMS, TEXTS, loss=lambda films: (films.mean((1, 2)), [1] * 30), resamples=9, permutations=9
    )
    assert found["black"].unchanged is None
    assert found["black"].worth["loss"].value == pytest.approx(-FILMS.mean())


@pytest.mark.parametrize("films", [FILMS, FILMS / 255.0], ids=["uint8", "float"])
def test_substitutes_keep_shape_type_and_range(films):
    for name, shown in substitutes(films).items():
        assert shown.shape == films.shape
        assert shown.dtype == films.dtype
        assert (shown == films).mean() < 0.5, name
    noise = substitutes(np.random.default_rng(0).integers(60, 120, (20, 16, 16)).astype(np.uint8))["noise"]
    assert noise.mean() == pytest.approx(90, abs=2)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: constant_report([], VAL), "train is empty"),
        (lambda: constant_report([""], VAL), "candidate"),
        (lambda: constant_report("text", VAL), "one string"),
        (lambda: random_reports([None], 2), r"train\[0\] must be a string"),
        (lambda: random_reports(TRAIN, 0), "at least 1"),
        (lambda: nearest_neighbours(np.ones((4, 2)), TRAIN, np.ones((1, 2))), "features"),
        (lambda: nearest_neighbours(np.full((5, 2), np.nan), TRAIN, np.ones((1, 2))), "NaN"),
        (lambda: shuffled(["a"]), "at least 2"),
        (lambda: baseline_outputs(TRAIN, VAL, [], np.ones((5, 1))), "or neither"),
        (lambda: image_dependence(FILMS, TEXTS), "generate, its loss"),
        (lambda: image_dependence(FILMS[:2], TEXTS, reader), "2 images but 30"),
        (lambda: image_dependence(FILMS, TEXTS, lambda films: ["a"]), "1 hypotheses but 30"),
        (lambda: image_dependence(FILMS, TEXTS, loss=lambda films: ([1.0], [1])), "1 values for 30"),
        (lambda: substitutes(np.ones((3, 3))), "shape"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()
