"""Scores as functions of summed per-report counts, so that resampling reports costs one matrix product.

A corpus score such as BLEU is no mean of report scores, but it is a function of sums over reports. Resampling the rows
of those counts and scoring the new sums is the exact bootstrap of the corpus score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student_t

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


class Comparison(NamedTuple):
    """A system against the baseline of its table."""

    difference: Difference
    effect_size: float
    p_holm: float


def compare(
    systems: Mapping[str, Statistic], baseline: str, n: int = 1000, permutations: int = 10_000, seed: int = 0
) -> dict[str, Comparison]:
    """Every other system minus `baseline`, with p corrected for the number of comparisons (Holm)."""
    if baseline not in systems or len(systems) < 2:
        raise RRGError(f"compare needs {baseline!r} and another system, got: {', '.join(systems) or 'nothing'}")
    base = systems[baseline]
    others = {name: s for name, s in systems.items() if name != baseline}
    found = {name: paired_difference(s, base, n, permutations, seed) for name, s in others.items()}
    corrected = holm([difference.p for difference in found.values()])
    return {
        name: Comparison(difference, effect_size(others[name], base), p)
        for (name, difference), p in zip(found.items(), corrected, strict=True)
    }


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p values of one table, corrected for being many, in the given order."""
    ps = np.asarray(ps, dtype=np.float64)
    if ps.ndim != 1 or not ((ps >= 0) & (ps <= 1)).all():
        raise RRGError("p values must be a list of numbers between 0 and 1")
    order = np.argsort(ps, kind="stable")
    stepped = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)) if len(ps) else ps
    corrected = np.empty_like(ps)
    corrected[order] = np.minimum(1.0, stepped)
    return [float(p) for p in corrected]


def effect_size(a: Statistic, b: Statistic) -> float:
    """Cohen's d of the paired difference: its mean over its standard deviation between reports.

    A corpus score has no value per report; what a report adds to the difference is its jackknife pseudo-value, which is
    the report's own difference where the score is a mean. 0 if no report differs, NaN for a single report.
    """
    if a.counts.shape != b.counts.shape:
        raise RRGError(
            f"paired statistics differ in shape ({a.counts.shape} and {b.counts.shape}): score the same reports"
        )
    n = a.n
    if n < 2:
        return float("nan")
    whole = a.value - b.value
    without = a.score(a.counts.sum(axis=0) - a.counts) - b.score(b.counts.sum(axis=0) - b.counts)
    pseudo = n * whole - (n - 1) * without
    pseudo = pseudo[~np.isnan(pseudo)]
    if len(pseudo) < 2:
        return float("nan")
    spread = float(pseudo.std(ddof=1))
    if spread <= 1e-9 * max(1.0, abs(whole)):  # rounding only: the same difference in every report
        return 0.0 if abs(whole) < 1e-12 else float(np.copysign(np.inf, whole))
    return float(pseudo.mean()) / spread


class Seeds(NamedTuple):
    """A score over training seeds: mean, standard deviation and Student's t interval of the mean."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def over_seeds(values: Sequence[float], level: float = 0.95) -> Seeds:
    """Aggregate one value per training seed. One seed has no spread: sd and interval are NaN then.

    This is the spread between trainings; the bootstrap is the spread between test reports. Neither holds the other.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise RRGError("values must be a list of finite numbers, one per seed, at least one")
    if not 0 < level < 1:
        raise RRGError(f"level must lie between 0 and 1, got {level}")
    n, center = len(values), float(values.mean())
    if n == 1:
        return Seeds(center, float("nan"), float("nan"), float("nan"), 1)
    sd = float(values.std(ddof=1))
    half = float(student_t.ppf((1 + level) / 2, n - 1)) * sd / n**0.5
    return Seeds(center, sd, center - half, center + half, n)


def next_seed(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where the value of one more training seed is expected: Student's prediction interval, NaN for a single value.

    It is sqrt(n + 1) times as wide as the interval of the mean, since the new value has a spread of its own.
    """
    across = over_seeds(values, level)
    half = (across.high - across.mean) * (across.n + 1) ** 0.5
    return across.mean - half, across.mean + half


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
