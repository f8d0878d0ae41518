"""Grounding scores by hand and at their edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.metrics.grounding import dice, energy_inside, grounding, pointing_game


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1))
def test_dice_follows_from_the_iou_of_masks(a, b):
    a, b = (np.array([(bits >> i) & 1 for i in range(16)], bool).reshape(4, 4) for bits in (a, b))
    union = (a | b).sum()
    if union:
        iou = (a & b).sum() / union
        assert dice(a, b) == pytest.approx(2 * iou / (1 + iou))
    else:
        assert math.isnan(dice(a, b))


def square():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 2:4] = True
    return mask


def test_a_map_on_the_mask_scores_one_and_one_beside_it_zero():
    mask = square()
    assert pointing_game(mask.astype(float), mask) == energy_inside(mask.astype(float), mask) == 1
    assert pointing_game((~mask).astype(float), mask) == energy_inside((~mask).astype(float), mask) == 0


def test_a_flat_map_scores_the_area_of_the_mask():
    mask = square()
    assert pointing_game(np.ones((8, 8)), mask) == energy_inside(np.full((8, 8), 0.3), mask) == pytest.approx(4 / 64)


@given(st.floats(0.1, 100))
def test_scale_does_not_matter(scale):
    heat, mask = np.arange(64.0).reshape(8, 8), square()
    assert energy_inside(scale * heat, mask) == pytest.approx(energy_inside(heat, mask))
    assert pointing_game(scale * heat, mask) == pointing_game(heat, mask)


def test_energy_by_hand():
    assert energy_inside(np.array([[1.0, 3.0], [0.0, 4.0]]), np.array([[True, True], [False, False]])) == 0.5


def test_films_without_a_lesion_are_left_out_and_a_dark_map_scores_zero():
    mask, empty = square(), np.zeros((8, 8), bool)
    scores = grounding([mask * 1.0, mask * 1.0, np.zeros((8, 8))], [mask, empty, mask])
    assert scores["energy inside"].value == 0.5
    assert scores["pointing game"].value == pytest.approx((1 + 4 / 64) / 2)
    assert scores["chance"].value == pytest.approx(4 / 64)
    assert math.isnan(grounding([np.ones((8, 8))], [empty])["pointing game"].value)


def test_a_rendered_lesion_is_found_by_its_own_counterfactual(renderer, study):
    report = study("Pleural Effusion/left/large")
    film, without = renderer.render(report), renderer.render(report, without=["pleural effusion"])
    lesion = film.lesions[0]
    change = np.abs(film.image - without.image)
    scores = grounding([change], [lesion.mask])
    assert scores["pointing game"].value == 1
    assert scores["energy inside"].value > 3 * scores["chance"].value
    rows, columns = np.nonzero(lesion.mask)
    assert lesion.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: dice(np.ones((2, 2)), np.ones((2, 2), bool)), "boolean"),
        (lambda: pointing_game(np.ones((2, 2)), np.ones((3, 3), bool)), "resize"),
        (lambda: energy_inside(-np.ones((2, 2)), np.ones((2, 2), bool)), "positive part"),
        (lambda: energy_inside(np.full((2, 2), np.nan), np.ones((2, 2), bool)), "NaN"),
        (lambda: grounding([], []), "at least one"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()
