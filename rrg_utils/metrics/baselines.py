"""The trivial report writers that belong in every table: what a score is worth shows only beside them.

None of them looks at the image of the study, but for the nearest neighbour, which cannot write a new sentence. The
template is the other end: the annotation said in English, an oracle that no system on our films can see beyond.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import caption
from rrg_utils.errors import RRGError
from rrg_utils.metrics.statistics import Statistic
from rrg_utils.metrics.text import bleu

Scorer = Callable[[Sequence[str], Sequence[str]], Statistic]


def bleu4(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """BLEU-4 on plain tokens, what `constant_report` is chosen by unless told otherwise."""
    return bleu(hypotheses, references)[3]


def constant_report(
    train: Sequence[str], val: Sequence[str], score: Scorer = bleu4, candidates: int = 270, seed: int = 0
) -> str:
    """The training report that scores best when it is the output for every validation study.

    `candidates` distinct training reports are drawn by `seed`; the first of equal ones wins. Test reports play no part.
    """
    _texts("train", train)
    _texts("val", val)
    pool = list(dict.fromkeys(text for text in train if text.strip()))
    if candidates < 1 or not pool:
        raise RRGError("constant_report needs at least one candidate that is not empty")
    drawn = np.random.default_rng([21, seed]).permutation(len(pool))[:candidates]
    scores = [np.nan_to_num(score([pool[i]] * len(val), val).value, nan=-np.inf) for i in drawn]
    return pool[drawn[int(np.argmax(scores))]]


def random_reports(train: Sequence[str], n: int, seed: int = 0) -> list[str]:
    """For each of `n` studies a training report drawn at random, with replacement."""
    _texts("train", train)
    if n < 1:
        raise RRGError(f"n must be at least 1, got {n}")
    return [train[i] for i in np.random.default_rng([22, seed]).integers(len(train), size=n)]


def nearest_neighbours(train_features: np.ndarray, train: Sequence[str], features: np.ndarray) -> list[str]:
    """For each study the report of the training study whose image features are nearest by cosine.

    train_features (M, d) belong to `train` (M texts), features (N, d) to the studies. Columns are standardised by the
    training features first; of equally near ones the first is taken.
    """
    _texts("train", train)
    known, asked = (np.asarray(part, dtype=np.float64) for part in (train_features, features))
    if known.ndim != 2 or asked.ndim != 2 or known.shape[1] != asked.shape[1] or len(known) != len(train):
        raise RRGError(
            f"features must be (M, d) for the {len(train)} training reports and (N, d), got {known.shape} and "
            f"{asked.shape}"
        )
    if not (np.isfinite(known).all() and np.isfinite(asked).all()):
        raise RRGError("features hold NaN or infinity")
    center, spread = known.mean(axis=0), known.std(axis=0)
    known, asked = ((part - center) / np.where(spread > 0, spread, 1) for part in (known, asked))
    known, asked = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (known, asked))
    return [train[i] for i in (asked @ known.T).argmax(axis=1)]


def templates(reports: Sequence[Report]) -> list[str]:
    """The oracle: each annotation as text (`caption`), in words that no radiologist of the collection used."""
    return [caption(report) for report in reports]


def shuffled(outputs: Sequence[str], seed: int = 0) -> list[str]:
    """The same outputs, each for another study than the one it was written for (`derangement`)."""
    _texts("outputs", outputs)
    return [outputs[i] for i in derangement(len(outputs), seed)]


def derangement(n: int, seed: int = 0) -> np.ndarray:
    """A random order (n,) in which nothing keeps its place: one cycle through all, drawn by Sattolo's algorithm."""
    if n < 2:
        raise RRGError(f"{n} study cannot be given another one's image: at least 2 are needed")
    rng, order = np.random.default_rng([23, seed]), np.arange(n)
    for i in range(n - 1, 0, -1):
        j = int(rng.integers(i))
        order[i], order[j] = order[j], order[i]
    return order


def baseline_outputs(
    train: Sequence[str],
    val: Sequence[str],
    reports: Sequence[Report],
    train_features: np.ndarray | None = None,
    features: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, list[str]]:
    """All baselines for the studies of `reports`, by name; the nearest neighbour where features are given."""
    if (train_features is None) != (features is None):
        raise RRGError("give features of the training images and of the studies' images, or neither")
    out = {
        "constant": [constant_report(train, val, seed=seed)] * len(reports),
        "random training report": random_reports(train, len(reports), seed),
    }
    if features is not None:
        out["nearest neighbour"] = nearest_neighbours(train_features, train, features)
        out["nearest neighbour, shuffled"] = shuffled(out["nearest neighbour"], seed)
    out["template (oracle)"] = templates(reports)
    return out


def _texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise RRGError(f"{name} must be a list of strings, got one string")
    if not len(texts):
        raise RRGError(f"{name} is empty")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise RRGError(f"{name}[{i}] must be a string, got {type(text).__name__}")
