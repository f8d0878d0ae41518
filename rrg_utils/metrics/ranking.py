"""Is a right answer near the top of the list? Scores of retrieval."""

from collections.abc import Sequence

import numpy as np

from rrg_utils.errors import RRGError
from rrg_utils.metrics.grounding import mean_of_defined
from rrg_utils.metrics.statistics import Statistic


def accuracy_at(scores: Sequence[np.ndarray], right: Sequence[np.ndarray], k: int) -> Statistic:
    """Acc@k: the share of queries with at least one right answer among the k that score highest.

    One pair of arrays (answers,) per query: scores, and which answers are right (bool). Of equal scores the earlier
    answer comes first. A query without any right answer is left out. RRGError for shapes that do not fit.
    """
    if k < 1:
        raise RRGError(f"k is {k}: give at least 1")
    if len(scores) != len(right) or not len(scores):
        raise RRGError(
            f"{len(scores)} queries with scores but {len(right)} with right answers: give both, for one at least"
        )
    rows = []
    for score, mask in zip(scores, right, strict=True):
        score, mask = np.asarray(score, dtype=np.float64), np.asarray(mask)
        if score.ndim != 1 or score.shape != mask.shape or mask.dtype != bool:
            raise RRGError(f"expected (answers,) scores and bools, got {score.shape} and {mask.dtype} {mask.shape}")
        top = np.argsort(-score, kind="stable")[:k]
        rows.append(float(mask[top].any()) if mask.any() else float("nan"))
    return mean_of_defined(rows)
