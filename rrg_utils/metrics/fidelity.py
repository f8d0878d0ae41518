"""How much of a report survives being taken apart into topics and joined again (LLaVA-TA, section 3).

The paper compares the joined text with the original: BLEU-1 58.7, BLEU-4 38.0, ROUGE-L 60.8, RadGraph F1 67.2 on
MIMIC-CXR. RadGraph's weights are not at hand, so facts by rule stand in its place: they are not its entities, and their
F1 must not be read beside it as if they were.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rrg_utils.data.reports import XXXX_POLICY
from rrg_utils.labels.facts import facts
from rrg_utils.labels.topics import TopicSentence, decompose, rejoin
from rrg_utils.metrics.evaluation import Score, evaluate
from rrg_utils.metrics.text import check_pairs

SCORES = ("BLEU-1", "BLEU-4", "ROUGE-L", "fact F1")


@dataclass(frozen=True)
class Fidelity:
    """What a decomposition keeps, over a set of reports.

    `scores`: the joined text against the original, by name. `kept`: of the distinct findings told as present, absent or
    uncertain, (kept, all); the decomposition means to lose the uncertain ones. `added`: findings that the joined text
    tells and the original does not. `topics`: mean number per report. `empty`: reports of which nothing is left.
    """

    scores: dict[str, Score]
    kept: dict[str, tuple[int, int]]
    added: int
    topics: float
    empty: int
    n: int


def fidelity(
    texts: Sequence[str],
    decomposer: Callable[[str], list[TopicSentence]] = decompose,
    xxxx_policy: str = XXXX_POLICY,
    resamples: int = 1000,
    seed: int = 0,
) -> Fidelity:
    """The fidelity of `decomposer` on `texts`, with 95 % bootstrap intervals over reports.

    xxxx_policy: what was done with the XXXX marks of the texts, for the signature. RRGError if there is no text.
    """
    check_pairs(texts, texts)
    topics = [decomposer(text) for text in texts]
    joined = [rejoin(sentences) for sentences in topics]
    scores = evaluate(joined, texts, xxxx_policy, meteor_score=False, resamples=resamples, seed=seed)
    kept = {"present": [0, 0], "absent": [0, 0], "uncertain": [0, 0]}
    added = 0
    for text, after in zip(texts, joined, strict=True):
        told, left = ({(fact.finding, fact.polarity) for fact in facts(t)} for t in (text, after))
        for finding, polarity in told:
            kept[polarity][0] += (finding, polarity) in left
            kept[polarity][1] += 1
        added += len(left - told)
    return Fidelity(
        {name: scores[name] for name in SCORES},
        {polarity: (left, told) for polarity, (left, told) in kept.items()},
        added,
        sum(map(len, topics)) / len(texts),
        sum(not sentences for sentences in topics),
        len(texts),
    )
