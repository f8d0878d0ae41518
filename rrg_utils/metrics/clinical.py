"""Clinical agreement of two texts: F1 over CheXpert observations and over facts, both from our rule labels.

Name it `F1-rule` in a table: it is neither CheXbert F1 nor RadGraph F1.

0/0 (an observation positive in neither side, a report with nothing to find) is left out of a mean, as scikit-learn
does with `zero_division=nan`; a score with nothing to count at all is NaN.
"""

from collections.abc import Sequence

import numpy as np

from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS, fact_counts, label_report
from rrg_utils.metrics.statistics import Statistic, ratio
from rrg_utils.metrics.text import check_pairs

TOP_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
_SETS = {"14": OBSERVATIONS, "5": TOP_FIVE}
_AVERAGES = ("micro", "macro", "example")
_POLICIES = ("positive", "negative", "ignore")


def clinical_f1(
    hypotheses: Sequence[str],
    references: Sequence[str],
    average: str = "micro",
    observations: str = "14",
    uncertain: str = "positive",
) -> Statistic:
    """F1 of positive observations.

    average: "micro" (all decisions together), "macro" (mean over observations), "example" (mean over reports).
    observations: "14" or "5" (`TOP_FIVE`).
    uncertain: -1 counts as "positive" or "negative", or the decision is left out where either side is -1 ("ignore").
    """
    check_pairs(hypotheses, references)
    _check("average", average, _AVERAGES)
    _check("observations", observations, tuple(_SETS))
    _check("uncertain", uncertain, _POLICIES)
    names = _SETS[observations]
    # absent and not mentioned are both "not positive": F1 does not tell them apart
    hyp, ref = (
        np.array([[label_report(text)[name] or 0 for name in names] for text in texts])
        for texts in (hypotheses, references)
    )
    known = np.ones_like(hyp, dtype=bool)
    if uncertain == "ignore":
        known = (hyp != -1) & (ref != -1)
    hyp, ref = ((side != 0) if uncertain == "positive" else (side == 1) for side in (hyp, ref))
    counts = np.stack([hyp & ref & known, hyp & ~ref & known, ~hyp & ref & known], axis=-1).astype(np.float64)
    if average == "micro":
        return Statistic(counts.sum(axis=1), f1)
    if average == "macro":
        return Statistic(counts.reshape(len(counts), -1), macro_f1)
    scores = f1(counts.sum(axis=1))
    return Statistic(np.stack([np.nan_to_num(scores), ~np.isnan(scores)], axis=1), ratio)


def fact_f1(hypotheses: Sequence[str], references: Sequence[str], level: str = "finding") -> Statistic:
    """Micro F1 of facts at level "finding" (finding and polarity) or "full" (anatomy, side and severity too)."""
    check_pairs(hypotheses, references)
    rows = [fact_counts(hyp, ref, level) for hyp, ref in zip(hypotheses, references, strict=True)]
    return Statistic(np.array(rows), f1)


def f1(sums: np.ndarray) -> np.ndarray:
    """F1 from (..., 3) sums of true positives, false positives, false negatives; 0/0 is NaN."""
    tp, fp, fn = sums[..., 0], sums[..., 1], sums[..., 2]
    with np.errstate(invalid="ignore"):
        return 2 * tp / (2 * tp + fp + fn)


def macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean of `f1` over classes, from (..., 3 * classes) sums; classes with 0/0 are left out."""
    scores = f1(sums.reshape(*sums.shape[:-1], -1, 3))
    defined = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(defined, scores, 0).sum(axis=-1) / defined.sum(axis=-1)


def _check(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RRGError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
