"""Scores of generated reports, with intervals, paired tests, trivial baselines and tests of image dependence."""

from rrg_utils.metrics.clinical import (
    CE_PRESETS,
    ce_abn,
    ce_organ,
    clinical_f1,
    clinical_grid,
    clinical_score,
    fact_f1,
    film_fact_f1,
)
from rrg_utils.metrics.conventions import PRESETS, Convention, r2gen_clean, r2gen_vocabulary
from rrg_utils.metrics.evaluation import Score, Scores, evaluate
from rrg_utils.metrics.fidelity import Fidelity, fidelity
from rrg_utils.metrics.grounding import mask_iou
from rrg_utils.metrics.ranking import accuracy_at
from rrg_utils.metrics.statistics import (
    Comparison,
    Difference,
    Interval,
    Seeds,
    Statistic,
    compare,
    effect_size,
    holm,
    mean,
    next_seed,
    over_seeds,
    paired_difference,
    token_loss,
)
from rrg_utils.metrics.text import bleu, cider, meteor, rouge_l, tokenise

__all__ = [
    "CE_PRESETS",
    "PRESETS",
    "Comparison",
    "Convention",
    "Difference",
    "Fidelity",
    "Interval",
    "Score",
    "Scores",
    "Seeds",
    "Statistic",
    "accuracy_at",
    "bleu",
    "ce_abn",
    "ce_organ",
    "cider",
    "clinical_f1",
    "clinical_grid",
    "clinical_score",
    "compare",
    "effect_size",
    "evaluate",
    "fact_f1",
    "fidelity",
    "film_fact_f1",
    "holm",
    "mask_iou",
    "mean",
    "meteor",
    "next_seed",
    "over_seeds",
    "paired_difference",
    "r2gen_clean",
    "r2gen_vocabulary",
    "rouge_l",
    "token_loss",
    "tokenise",
]
