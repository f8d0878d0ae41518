"""Scores as functions of summed per-report counts, so that resampling reports costs one matrix product.

A corpus score such as BLEU is no mean of report scores, but it is a function of sums over reports. Resampling the rows
of those counts and scoring the new sums is the exact bootstrap of the corpus score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rrg_utils.errors import RRGError

_CHUNK = 1000  # resamples per matrix product: bounds memory at 1000 x reports


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """Score of a minus score of b, its paired bootstrap interval, and a two-sided paired permutation p."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Statistic:
    """A corpus score and what it is made from.

    counts: (reports, k) float array of sufficient statistics, one row per report.
    score: maps summed counts (..., k) to scores (...); NaN where the sums leave the score undefined.
    """

    counts: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts, dtype=np.float64)
        if counts.ndim != 2 or not len(counts):
            raise RRGError(f"counts must be a (reports, k) array with at least one report, got shape {counts.shape}")
        if not np.isfinite(counts).all():
            raise RRGError("counts hold NaN or infinity: check the losses or texts they were made from")
        object.__setattr__(self, "counts", counts)

    @property
    def n(self) -> int:
        """Number of reports."""
        return len(self.counts)

    @property
    def value(self) -> float:
        """The score of all reports together."""
        return float(self.score(self.counts.sum(axis=0)))

    def bootstrap(self, n: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
        """Percentile interval over `n` resamples of the reports; undefined resamples are left out."""
        sums = _resampled(self.counts, n, seed)
        return Interval(*_percentiles(self.score(sums), level))


def paired_difference(
    a: Statistic, b: Statistic, n: int = 1000, permutations: int = 10_000, seed: int = 0, level: float = 0.95
) -> Difference:
    """Compare two systems on the same reports in the same order: `a` minus `b`.

    Interval: percentiles over `n` resamples, the same reports drawn for both. p: the two outputs of a report are
    swapped with probability one half, p = (k + 1) / (permutations + 1) with k the permutations at least as far from
    zero.
    """
    if a.counts.shape != b.counts.shape:
        raise RRGError(
            f"paired statistics differ in shape ({a.counts.shape} and {b.counts.shape}): score the same reports"
        )
    value = a.value - b.value
    drawn = a.score(_resampled(a.counts, n, seed)) - b.score(_resampled(b.counts, n, seed))
    rng = np.random.default_rng(seed)
    total_a, total_b, swing = a.counts.sum(axis=0), b.counts.sum(axis=0), b.counts - a.counts
    extreme = 0
    for size in _chunks(permutations):
        moved = rng.integers(0, 2, size=(size, a.n)).astype(np.float64) @ swing
        # a relative tolerance, because a permutation that restores the observed split must count as equal to it
        far = np.abs(a.score(total_a + moved) - b.score(total_b - moved)) >= abs(value) * (1 - 1e-9) - 1e-12
        extreme += int(np.count_nonzero(far))
    return Difference(value, *_percentiles(drawn, level), (extreme + 1) / (permutations + 1))


def token_loss(sums: Sequence[float], counts: Sequence[int]) -> Statistic:
    """Mean loss per token: `sums` of token losses and token `counts`, one of each per report."""
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if sums.ndim != 1 or sums.shape != counts.shape:
        raise RRGError(f"sums and counts must be two lists of one length, got shapes {sums.shape} and {counts.shape}")
    if (counts < 0).any() or not counts.any():
        raise RRGError("counts must be numbers of tokens, not negative and not all zero")
    return Statistic(np.stack([sums, counts], axis=1), ratio)


def ratio(sums: np.ndarray) -> np.ndarray:
    """sums[..., 0] / sums[..., 1]: a mean over whatever the second column counts; 0/0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def mean(values: Sequence[float]) -> Statistic:
    """The mean of one value per report."""
    values = np.asarray(values, dtype=np.float64)
    return Statistic(np.stack([values, np.ones_like(values)], axis=1), ratio)


def _chunks(total: int) -> list[int]:
    if total < 1:
        raise RRGError(f"the number of resamples must be at least 1, got {total}")
    return [min(_CHUNK, total - start) for start in range(0, total, _CHUNK)]


def _resampled(counts: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, k) sums of `n` resamples with replacement; the draws depend on `seed` and the number of reports only."""
    rng = np.random.default_rng(seed)
    share = np.full(len(counts), 1 / len(counts))
    return np.concatenate([rng.multinomial(len(counts), share, size=size) @ counts for size in _chunks(n)])


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise RRGError(f"level must lie between 0 and 1, got {level}")
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
