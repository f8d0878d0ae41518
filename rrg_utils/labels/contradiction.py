"""Do two sentences contradict each other? By rule, from the findings that each asserts and denies.

Two texts contradict each other about a finding, or one of the 14 observations, that one of them asserts (also where it
hedges) and the other denies; and about a structure that one calls normal while the other asserts a finding of it. Sides
and places are not compared: "no left effusion" contradicts "right effusion" here, which is too strict.
"""

from functools import lru_cache

from rrg_utils.labels.labeller import ASSERTS, DENIES
from rrg_utils.labels.mentions import ABSENT, FINDINGS, PAIRS, PRESENT, mentions

_STRUCTURE = {finding: structure for finding, structure, _ in FINDINGS} | dict(PAIRS.values())
# Statements of normality, and the structure of which they deny that anything is wrong.
NORMAL = {name: structure for name, structure in PAIRS.values() if name.startswith(("normal ", "clear "))}


@lru_cache(maxsize=65536)
def stance(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a text asserts and what it denies: findings, observations, and structures ("any finding: heart")."""
    asserted, denied = set(), set()
    for mention in mentions(text):
        if mention.finding in NORMAL:
            if mention.polarity == PRESENT:
                denied |= {*DENIES.get(mention.finding, ()), _any(NORMAL[mention.finding])}
            continue
        side = denied if mention.polarity == ABSENT else asserted
        side |= {mention.finding, *ASSERTS.get(mention.finding, ())}
        if mention.polarity != ABSENT:
            side.add(_any(_STRUCTURE[mention.finding]))
    return frozenset(asserted), frozenset(denied)


def contradictions(one: str, other: str) -> set[str]:
    """What one text asserts and the other denies; empty if they can stand side by side."""
    (a, not_a), (b, not_b) = stance(one), stance(other)
    return set((a & not_b) | (b & not_a))


def _any(structure: str) -> str:
    return f"any finding: {structure}"
