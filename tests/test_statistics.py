"""Intervals and permutation tests on per-report counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.metrics import (
    Statistic,
    compare,
    effect_size,
    holm,
    mean,
    over_seeds,
    paired_difference,
    token_loss,
)


def test_token_loss_weights_tokens_not_reports():
    loss = token_loss([10.0, 1.0], [10, 2])
    assert loss.value == pytest.approx(11 / 12)
    assert loss.n == 2


def test_bootstrap_equals_drawing_reports_one_by_one():
    rng = np.random.default_rng(3)
    values = rng.normal(size=40)
    low, high = mean(values).bootstrap(n=20_000, seed=1)
    drawn = values[rng.integers(0, 40, size=(20_000, 40))].mean(axis=1)
    assert (low, high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_bootstrap_covers_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        low, high = mean(rng.exponential(size=60)).bootstrap(n=400, seed=trial)
        hits += low <= 1.0 <= high
    assert 0.88 < hits / 300 < 0.98


def test_seed_decides_the_interval():
    values = mean(np.random.default_rng(0).normal(size=50))
    assert values.bootstrap(seed=4) == values.bootstrap(seed=4)
    assert values.bootstrap(seed=4) != values.bootstrap(seed=5)


def test_constant_values_have_no_width():
    assert mean([0.25] * 10).bootstrap() == pytest.approx((0.25, 0.25))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=30), st.integers(0, 99))
def test_difference_changes_sign_when_systems_swap(pairs: list[tuple[float, float]], seed: int):
    a, b = (mean([pair[i] for pair in pairs]) for i in (0, 1))
    there = paired_difference(a, b, n=200, permutations=200, seed=seed)
    back = paired_difference(b, a, n=200, permutations=200, seed=seed)
    assert there.value == -back.value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)
    assert there.p == back.p
    assert there.p >= 1 / 201


def test_equal_systems_cannot_differ():
    same = mean(np.random.default_rng(0).normal(size=30))
    assert paired_difference(same, same, permutations=500) == pytest.approx((0.0, 0.0, 0.0, 1.0))


def test_clear_difference_has_the_smallest_p():
    base = np.random.default_rng(0).normal(size=50)
    difference = paired_difference(mean(base + 1), mean(base), permutations=999)
    assert difference.value == pytest.approx(1)
    assert difference.p == 1 / 1000
    assert difference.low > 0


def test_p_is_uniform_under_the_null():
    rng = np.random.default_rng(7)
    ps = [
        paired_difference(mean(rng.normal(size=25)), mean(rng.normal(size=25)), n=10, permutations=199).p
        for _ in range(300)
    ]
    assert abs(np.mean(np.array(ps) <= 0.1) - 0.1) < 0.06


def test_exact_p_of_a_tiny_sample():
    # three reports, all +1: of the 8 swaps two are as far from zero, so p tends to 1/4
    difference = paired_difference(mean([1.0, 1.0, 1.0]), mean([0.0, 0.0, 0.0]), permutations=20_000)
    assert difference.p == pytest.approx(0.25, abs=0.015)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_properties(ps, random):
    corrected = holm(ps)
    assert all(p <= c <= 1 and c <= min(1, p * len(ps)) for p, c in zip(ps, corrected, strict=True))
    order = list(range(len(ps)))
    random.shuffle(order)
    assert holm([ps[i] for i in order]) == pytest.approx([corrected[i] for i in order])


def test_effect_size_of_a_mean_is_cohens_d():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, size=40), rng.normal(size=40)
    expected = (a - b).mean() / (a - b).std(ddof=1)
    assert effect_size(mean(a), mean(b)) == pytest.approx(expected)
    assert effect_size(mean(b), mean(a)) == pytest.approx(-expected)
    assert effect_size(mean(a), mean(a)) == 0
    assert effect_size(mean([1.0, 1.0]), mean([0.5, 0.5])) == np.inf
    assert np.isnan(effect_size(mean([1.0]), mean([0.0])))


def test_compare_corrects_for_the_number_of_systems():
    rng = np.random.default_rng(1)
    base = rng.normal(size=60)
    systems = {"base": mean(base), "same": mean(base + rng.normal(0, 0.1, 60)), "better": mean(base + 1)}
    table = compare(systems, "base", n=100, permutations=999)
    assert list(table) == ["same", "better"]
    assert table["better"].difference.p == 1 / 1000
    assert table["better"].p_holm == 2 / 1000
    assert all(row.p_holm >= row.difference.p for row in table.values())


def test_seeds():
    three = over_seeds([0.1, 0.2, 0.3])
    assert (three.mean, three.sd, three.n) == pytest.approx((0.2, 0.1, 3))
    assert three.high - three.mean == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)  # t, 2 degrees of freedom
    one = over_seeds([0.4])
    assert one.mean == 0.4
    assert np.isnan([one.sd, one.low, one.high]).all()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: token_loss([1.0], [1, 2]), "one length"),
        (lambda: token_loss([1.0], [0]), "tokens"),
        (lambda: token_loss([float("nan")], [1]), "NaN"),
        (lambda: mean([]), "at least one report"),
        (lambda: mean([1.0]).bootstrap(n=0), "at least 1"),
        (lambda: mean([1.0]).bootstrap(level=95), "between 0 and 1"),
        (lambda: paired_difference(mean([1.0]), mean([1.0, 2.0])), "same reports"),
        (lambda: effect_size(mean([1.0]), mean([1.0, 2.0])), "same reports"),
        (lambda: holm([0.5, 1.5]), "between 0 and 1"),
        (lambda: compare({"a": mean([1.0])}, "b"), "needs 'b'"),
        (lambda: over_seeds([]), "at least one"),
        (lambda: over_seeds([float("nan")]), "finite"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()


def test_undefined_everywhere_is_nan():
    nothing = Statistic(np.zeros((3, 2)), lambda sums: np.full(sums.shape[:-1], np.nan))
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.bootstrap(n=10)).all()
