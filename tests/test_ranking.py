"""Acc@k against a plain loop, and at its edges."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.metrics import accuracy_at, ce_abn, ce_organ, mask_iou


@given(seed=st.integers(0, 999), k=st.integers(1, 9))
def test_it_is_the_share_of_lists_with_a_hit(seed, k):
    rng = np.random.default_rng(seed)
    scores, right = rng.permutation(35).reshape(5, 7), rng.random((5, 7)) < 0.2
    right[:, 0] |= ~right.any(1)
    hits = [any(right[q, i] for i in sorted(range(7), key=lambda i: -scores[q, i])[:k]) for q in range(5)]
    assert accuracy_at(scores, right, k).value == pytest.approx(np.mean(hits))


def test_queries_without_an_answer_are_left_out():
    scores = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    none, second = np.array([False, False]), np.array([False, True])
    assert accuracy_at(scores, [none, second], 1).value == 1
    assert math.isnan(accuracy_at(scores, [none, none], 1).value)


@pytest.mark.parametrize(
    ("scores", "right", "k", "message"),
    [
        ([np.ones(2)], [np.ones(2, bool)], 0, "at least 1"),
        ([], [], 1, "at least"),
        ([np.ones(2)], [np.ones(3, bool)], 1, "expected"),
        ([np.ones(2)], [np.ones(2)], 1, "expected"),
    ],
)
def test_bad_lists_are_refused(scores, right, k, message):
    with pytest.raises(RRGError, match=message):
        accuracy_at(scores, right, k)


def test_mask_iou_by_counting():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert math.isnan(mask_iou(a, b))
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(4 / 12)
    assert mask_iou(a, a) == 1


def test_ce_abn_counts_classes_and_ce_organ_counts_regions():
    said, true = ["There is a pleural effusion."], ["There is atelectasis in the left base. The heart is enlarged."]
    assert ce_abn(said, true).value == 0
    assert ce_organ(said, true).value == pytest.approx(2 / 3)  # the lungs are right, the heart is missed
    assert ce_abn(true, true).value == ce_organ(true, true).value == 1
    assert ce_abn(["No pleural effusion."], ["No pneumothorax."]).counts.tolist() == [[0, 0, 0]]
