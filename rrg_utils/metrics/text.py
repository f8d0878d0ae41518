"""BLEU, ROUGE-L, CIDEr and METEOR by pycocoevalcap, on tokens made one way.

Tokens ("plain"): the text in lower case; a word is a run of letters and digits, with inner hyphens, points, slashes
and apostrophes kept ("well-expanded", "2.5"); every other mark is a token of its own, the full stop too. The scorers
see the tokens joined by single spaces. Nothing is cut off and there is no vocabulary, so there is no <unk>.

An empty text counts as a text of no tokens: BLEU and CIDEr give it nothing, and ROUGE-L is 0 against any text and 1
against another empty one, which is pycocoevalcap's own result.
"""

import re
import shutil
from collections.abc import Sequence

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from rrg_utils.errors import RRGError
from rrg_utils.metrics.statistics import Statistic, mean

_TOKEN = re.compile(r"\w+(?:[-.'/]\w+)*|[^\w\s]")


def tokenise(text: str) -> str:
    """The "plain" tokens of `text`, joined by single spaces."""
    return " ".join(_TOKEN.findall(text.lower()))


def check_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    """RRGError unless both are lists of strings of the same length, at least one."""
    for name, texts in (("hypotheses", hypotheses), ("references", references)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise RRGError(f"{name} must be a list of strings, one per report, got {type(texts).__name__}")
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise RRGError(f"{name}[{i}] must be a string, got {type(text).__name__}: use '' for an empty report")
    if len(hypotheses) != len(references):
        raise RRGError(
            f"{len(hypotheses)} hypotheses but {len(references)} references: give one reference per hypothesis"
        )
    if not hypotheses:
        raise RRGError("hypotheses is empty: nothing to score")


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Statistic, Statistic, Statistic, Statistic]:
    """Corpus BLEU-1 to BLEU-4 (closest reference length, one reference)."""
    check_pairs(hypotheses, references)
    rows = []
    for hyp, ref in zip(hypotheses, references, strict=True):
        cooked = cook_test(tokenise(hyp), cook_refs([tokenise(ref)]))
        rows.append([*cooked["correct"], *cooked["guess"], cooked["testlen"], cooked["reflen"][0]])
    counts = np.array(rows)
    return tuple(Statistic(counts, _Bleu(order)) for order in (1, 2, 3, 4))


class _Bleu:
    """BLEU of one order from summed (correct 1..4, guessed 1..4, hypothesis length, reference length)."""

    def __init__(self, order: int) -> None:
        self.order = order

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        small, tiny = 1e-9, 1e-15  # pycocoevalcap's own guards against division by zero
        precision = (sums[..., : self.order] + tiny) / (sums[..., 4 : 4 + self.order] + small)
        length_ratio = (sums[..., 8] + tiny) / (sums[..., 9] + small)
        brevity = np.exp(np.minimum(0.0, 1 - 1 / length_ratio))
        return precision.prod(axis=-1) ** (1 / self.order) * brevity


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """ROUGE-L as in COCO: F with beta 1.2 of the longest common subsequence, mean over reports."""
    check_pairs(hypotheses, references)
    scorer = Rouge()
    pairs = zip(hypotheses, references, strict=True)
    return mean([scorer.calc_score([tokenise(hyp)], [tokenise(ref)]) for hyp, ref in pairs])


def cider(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """pycocoevalcap's "CIDEr", mean over reports; document frequencies come from `references`.

    It clips counts and penalises length with sigma 6, the parts that set CIDEr-D apart in the paper, and is on the
    scale 0 to 10. Document frequencies stay those of all references when reports are resampled. One report alone
    scores 0 (log 1).
    """
    check_pairs(hypotheses, references)
    gts = {i: [tokenise(ref)] for i, ref in enumerate(references)}
    if not any(ref[0] for ref in gts.values()):  # the scorer fails on references without a single token
        return mean([0.0] * len(references))
    _, scores = Cider().compute_score(gts, {i: [tokenise(hyp)] for i, hyp in enumerate(hypotheses)})
    return mean(scores)


def meteor(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """METEOR 1.5 of the corpus by the jar inside pycocoevalcap; RRGError where there is no Java.

    The score is made inside the jar, so it comes without statistics to resample.
    """
    check_pairs(hypotheses, references)
    if shutil.which("java") is None:
        raise RRGError("METEOR needs Java: install a Java runtime, or leave METEOR out")
    from pycocoevalcap.meteor.meteor import Meteor

    gts = {i: [tokenise(ref)] for i, ref in enumerate(references)}
    try:
        score, _ = Meteor().compute_score(gts, {i: [tokenise(hyp)] for i, hyp in enumerate(hypotheses)})
    except (ValueError, BrokenPipeError) as error:  # the jar died and its answer is empty
        raise RRGError("METEOR's jar gave no score: check that `java -version` works, or leave METEOR out") from error
    return float(score)
