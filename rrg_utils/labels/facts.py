"""Facts of a report: what is found, where, on which side, how severe, and whether it is asserted, denied or hedged.

These facts are our own, by rules (`mentions`); they are not RadGraph entities, and fact F1 is not RadGraph F1.
"""

from typing import NamedTuple

from rrg_utils.errors import RRGError
from rrg_utils.labels.mentions import mentions

LEVELS = ("finding", "full")


class Fact(NamedTuple):
    """One fact; a statement of normality is a fact of its own ("clear lungs", present).

    `side` is left, right, bilateral or None; `severity` mild, moderate, severe or None; `polarity` present, absent or
    uncertain.
    """

    finding: str
    anatomy: str
    side: str | None
    severity: str | None
    polarity: str


def facts(text: str) -> frozenset[Fact]:
    """The facts of `text`; none for an empty text. Raises RRGError if `text` is not a string."""
    return frozenset(Fact(m.finding, m.anatomy, m.side, m.severity, m.polarity) for m in mentions(text))


def fact_counts(hypothesis: str, reference: str, level: str = "finding") -> tuple[int, int, int]:
    """Facts in both texts, only in the hypothesis, only in the reference: (tp, fp, fn).

    At level "finding" two facts are equal if finding and polarity are, at "full" if every field is.
    """
    if level not in LEVELS:
        raise RRGError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    hyp, ref = facts(hypothesis), facts(reference)
    if level == "finding":
        hyp, ref = ({(fact.finding, fact.polarity) for fact in side} for side in (hyp, ref))
    return len(hyp & ref), len(hyp - ref), len(ref - hyp)


def finding_spans(text: str) -> list[tuple[int, int]]:
    """Character spans (start, end) of `text` that carry findings, disjoint and in order.

    A span covers a mention, its side, severity and place, the structure of a statement ("heart size" in "heart size is
    normal"), or the cue that denies or hedges it: the words whose tokens are finding-bearing.
    """
    spans = sorted(span for m in mentions(text) for span in ((m.start, m.end), *m.modifiers))
    merged: list[tuple[int, int]] = []
    for start, end in spans:
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
