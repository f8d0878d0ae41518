"""BLEU, ROUGE-L, CIDEr and METEOR by pycocoevalcap, on tokens made by a convention (`rrg_utils.metrics.conventions`).

Each score is a `Statistic`: per-report counts that sum to exactly the corpus score of pycocoevalcap, so that resampling
reports needs no second scoring.

An empty text counts as a text of no tokens: BLEU, CIDEr and METEOR give it nothing, and ROUGE-L is 0 against any text
and 1 against another empty one, which is pycocoevalcap's own result.
"""

import shutil
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from pycocoevalcap.bleu.bleu_scorer import precook
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from rrg_utils.errors import RRGError
from rrg_utils.metrics.conventions import Convention, convention
from rrg_utils.metrics.statistics import Statistic, mean

Preset = str | Convention
_LINES = 50  # reports sent to METEOR's jar at once: its answers, 100 bytes each, must fit into the pipe


def tokenise(text: str) -> str:
    """The "plain" tokens of `text`, joined by single spaces."""
    return convention("plain")(text)


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


def _tokens(hypotheses: Sequence[str], references: Sequence[str], preset: Preset) -> tuple[list[str], list[str]]:
    check_pairs(hypotheses, references)
    to_tokens = convention(preset)
    return [to_tokens(text) for text in hypotheses], [to_tokens(text) for text in references]


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], preset: Preset = "plain"
) -> tuple[Statistic, Statistic, Statistic, Statistic]:
    """Corpus BLEU-1 to BLEU-4 (closest reference length, one reference)."""
    pairs = zip(*_tokens(hypotheses, references, preset), strict=True)
    counts = np.array([_bleu_counts(hyp, ref) for hyp, ref in pairs], dtype=np.float64)
    return tuple(Statistic(counts, _Bleu(order)) for order in (1, 2, 3, 4))


_ngrams = lru_cache(maxsize=4096)(lambda tokens: precook(tokens, 4, True))  # (length, n-gram -> count), read only


def _bleu_counts(hyp: str, ref: str) -> list[int]:
    """(n-grams of orders 1 to 4 found in the reference; n-grams of the hypothesis; both lengths), ten numbers."""
    (length, found), (wanted_length, wanted) = _ngrams(hyp), _ngrams(ref)
    correct = [0, 0, 0, 0]
    for ngram, count in found.items():
        if ngram in wanted:
            correct[len(ngram) - 1] += min(count, wanted[ngram])
    return [*correct, *(max(0, length - order) for order in range(4)), length, wanted_length]


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


def rouge_l(hypotheses: Sequence[str], references: Sequence[str], preset: Preset = "plain") -> Statistic:
    """ROUGE-L as in COCO: F with beta 1.2 of the longest common subsequence, mean over reports."""
    return mean([_rouge(hyp, ref) for hyp, ref in zip(*_tokens(hypotheses, references, preset), strict=True)])


def _rouge(hyp: str, ref: str) -> float:
    """COCO's F from the length of the longest common subsequence; equal to `Rouge.calc_score`, but fast.

    Its dynamic programme in pure Python takes minutes for two texts of 10,000 words. This one keeps a row of it as the
    bits of one integer (Hyyrö 2004): a step per word of the hypothesis.
    """
    hyp_words, ref_words = hyp.split(" "), ref.split(" ")
    places: dict[str, int] = {}
    for place, word in enumerate(ref_words):
        places[word] = places.get(word, 0) | (1 << place)
    full = (1 << len(ref_words)) - 1
    row = full
    for word in hyp_words:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    common = len(ref_words) - row.bit_count()
    if not common:
        return 0.0
    precision, recall, beta2 = common / len(hyp_words), common / len(ref_words), Rouge().beta ** 2
    return (1 + beta2) * precision * recall / (recall + beta2 * precision)


def cider(hypotheses: Sequence[str], references: Sequence[str], preset: Preset = "plain") -> Statistic:
    """pycocoevalcap's "CIDEr", mean over reports; document frequencies come from `references`.

    It clips counts and penalises length with sigma 6, the parts that set CIDEr-D apart in the paper, and is on the
    scale 0 to 10. Document frequencies stay those of all references when reports are resampled. One report alone
    scores 0 (log 1).
    """
    hyps, refs = _tokens(hypotheses, references, preset)
    if not any(ref.strip() for ref in refs):  # the scorer fails on references without a single token
        return mean([0.0] * len(refs))
    _, scores = Cider().compute_score({i: [ref] for i, ref in enumerate(refs)}, {i: [h] for i, h in enumerate(hyps)})
    return mean(scores)


def java_missing() -> str:
    """Why METEOR cannot run here; "" if it can."""
    if shutil.which("java") is None:
        return "METEOR needs Java: install a Java runtime, or leave METEOR out"
    return ""


def meteor(hypotheses: Sequence[str], references: Sequence[str], preset: Preset = "plain") -> Statistic:
    """METEOR 1.5 of the corpus; the jar inside pycocoevalcap aligns the texts. RRGError where there is no Java.

    The jar makes 23 counts per report (lengths, matches, chunks) and scores their sum; so does the statistic.
    """
    hyps, refs = _tokens(hypotheses, references, preset)
    if reason := java_missing():
        raise RRGError(reason)
    # a line per report whose parts "|||" separates: neither may come from the text
    one_line = [[" ".join(text.replace("|||", " ").split()) for text in side] for side in (refs, hyps)]
    lines = [f"SCORE ||| {ref} ||| {hyp}\n".encode() for ref, hyp in zip(*one_line, strict=True)]
    counts = []
    try:
        jar = _meteor_jar().meteor_p
        for start in range(0, len(lines), _LINES):
            jar.stdin.writelines(lines[start : start + _LINES])
            jar.stdin.flush()
            for _ in lines[start : start + _LINES]:
                counts.append([float(number) for number in jar.stdout.readline().split()])
        counts = np.array(counts)
        whole = (counts[:, 20] == 1) & (counts[:, 21:] == counts[:, :2]).all(axis=1)
        counts[whole, 20] = 0  # a perfect match in one piece is not fragmented: the jar adds no chunk for it
        return Statistic(counts, _meteor)
    except BaseException as error:
        _meteor_jar.cache_clear()  # interrupted, it still holds answers, which the next texts would be given
        if not isinstance(error, ValueError | OSError | IndexError):  # the jar died and its answers are empty
            raise
        raise RRGError("METEOR's jar gave no score: check that `java -version` works, or leave METEOR out") from error


@lru_cache(maxsize=1)
def _meteor_jar():
    """The running jar: it loads its paraphrases for seconds, once per process, and ends with it."""
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _meteor(sums: np.ndarray) -> np.ndarray:
    """METEOR 1.5 from its summed counts, with the jar's parameters for English (Denkowski and Lavie 2014, "rank").

    Columns: words and function words of both sides (4); content and function matches of both sides for each of the
    matchers exact, stem, synonym and paraphrase (16); chunks and matched words of both sides (3).
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    weights = np.array([1.0, 0.6, 0.8, 0.6])  # of the matchers
    words, function = sums[..., :2], sums[..., 2:4]
    matches = np.einsum("...ms,m->...s", sums[..., 4:20].reshape(*sums.shape[:-1], 4, 4), weights)
    total = delta * (words - function) + (1 - delta) * function
    found = delta * matches[..., :2] + (1 - delta) * matches[..., 2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.moveaxis(np.where(total > 0, found / total, 0), -1, 0)
        mean_of_both = precision * recall / (alpha * precision + (1 - alpha) * recall)
        fragmentation = sums[..., 20] / (sums[..., 21:].sum(axis=-1) / 2)
        score = mean_of_both * (1 - gamma * fragmentation**beta)
    return np.where((precision > 0) & (recall > 0), score, 0.0)
