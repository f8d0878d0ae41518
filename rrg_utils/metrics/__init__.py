"""Scores of generated reports, with intervals and paired tests."""

from rrg_utils.metrics.clinical import clinical_f1, fact_f1
from rrg_utils.metrics.evaluation import Score, Scores, evaluate
from rrg_utils.metrics.statistics import Difference, Interval, Statistic, mean, paired_difference, token_loss
from rrg_utils.metrics.text import bleu, cider, meteor, rouge_l, tokenise

__all__ = [
    "Difference",
    "Interval",
    "Score",
    "Scores",
    "Statistic",
    "bleu",
    "cider",
    "clinical_f1",
    "evaluate",
    "fact_f1",
    "mean",
    "meteor",
    "paired_difference",
    "rouge_l",
    "token_loss",
    "tokenise",
]
