"""Labels, facts and topics of report text, by rules."""

from rrg_utils.labels.facts import Fact, fact_counts, facts, finding_spans
from rrg_utils.labels.labeller import OBSERVATIONS, label_report
from rrg_utils.labels.ontology import TOPICS, Topic
from rrg_utils.labels.topics import TopicSentence, clean_report, decompose, rejoin, topics_of

__all__ = [
    "OBSERVATIONS",
    "TOPICS",
    "Fact",
    "Topic",
    "TopicSentence",
    "clean_report",
    "decompose",
    "fact_counts",
    "facts",
    "finding_spans",
    "label_report",
    "rejoin",
    "topics_of",
]
