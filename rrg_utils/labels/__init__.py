"""Labels and facts of report text, by rules."""

from rrg_utils.labels.facts import Fact, fact_counts, facts, finding_spans
from rrg_utils.labels.labeller import OBSERVATIONS, label_report

__all__ = ["OBSERVATIONS", "Fact", "fact_counts", "facts", "finding_spans", "label_report"]
