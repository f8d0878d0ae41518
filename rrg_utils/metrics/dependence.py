"""Does a system use its image? The same system is asked again with another patient's film, a black one and noise.

A system that reads its film must do worse without it, and write other words. One that writes the same either way, or
scores the same, is a language model with a camera attached; no score of its reports shows that, these tests do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rrg_utils.errors import RRGError
from rrg_utils.metrics.baselines import derangement
from rrg_utils.metrics.clinical import clinical_f1
from rrg_utils.metrics.statistics import Difference, Statistic, mean, paired_difference, token_loss
from rrg_utils.metrics.text import check_pairs

Generate = Callable[[np.ndarray], Sequence[str]]
Loss = Callable[[np.ndarray], tuple[Sequence[float], Sequence[int]]]
Scorer = Callable[[Sequence[str], Sequence[str]], Statistic]


def substitutes(images: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """What is shown instead of films (N, H, W, ...): "swapped" (another study's), "black" (0) and "noise".

    Noise is independent from pixel to pixel, with the mean and spread of all films, within the range of their type.
    """
    images = np.asarray(images)
    if images.ndim < 3:
        raise RRGError(f"images must be (N, H, W) or (N, H, W, C), got shape {images.shape}")
    rng = np.random.default_rng([24, seed])
    noise = rng.standard_normal(images.shape, dtype=np.float32) * float(images.std()) + float(images.mean())
    if np.issubdtype(images.dtype, np.integer):
        limits = np.iinfo(images.dtype)
        noise = np.clip(np.round(noise), limits.min, limits.max)
    else:
        noise = np.clip(noise, images.min(), images.max())
    return {
        "swapped": images[derangement(len(images), seed)],
        "black": np.zeros_like(images),
        "noise": noise.astype(images.dtype),
    }


@dataclass(frozen=True)
class Dependence:
    """What one substitute did. `worth`: how much better the real film is, a score's gain or a loss's fall, so that
    up is better in both; `unchanged`: share of reports that stay the same to the letter (None without `generate`)."""

    worth: dict[str, Difference]
    unchanged: Statistic | None


def image_dependence(
    images: np.ndarray,
    references: Sequence[str],
    generate: Generate | None = None,
    loss: Loss | None = None,
    scores: dict[str, Scorer] | None = None,
    resamples: int = 1000,
    permutations: int = 1000,
    seed: int = 0,
) -> dict[str, Dependence]:
    """Test any system that is a function of films (N, H, W): a `Dependence` for "swapped", "black" and "noise".

    generate: films -> one text per film. loss: films -> (summed token losses, token counts) of the references, one of
    each per film. At least one is needed. scores: name -> function of (texts, references); clinical F1 if left out.
    Both callables get all films in the order of `references` and must not draw at random.
    """
    images = np.asarray(images)
    check_pairs(references, references)
    if len(images) != len(references):
        raise RRGError(f"{len(images)} images but {len(references)} references: give one image per report")
    if generate is None and loss is None:
        raise RRGError("give the system's generate, its loss, or both")
    scores = {"clinical F1": clinical_f1} if scores is None else scores

    def ask(films: np.ndarray) -> tuple[list[str], dict[str, Statistic]]:
        texts = [] if generate is None else list(generate(films))
        found = {name: score(texts, references) for name, score in scores.items()} if generate else {}
        if loss is not None:
            sums, counts = loss(films)
            if len(sums) != len(references):
                raise RRGError(f"loss gave {len(sums)} values for {len(references)} films")
            found["loss"] = token_loss(sums, counts)
        return texts, found

    real_texts, real = ask(images)
    out = {}
    for name, films in substitutes(images, seed).items():
        texts, found = ask(films)
        worth = {}
        for metric in real:
            better_first = (found[metric], real[metric]) if metric == "loss" else (real[metric], found[metric])
            worth[metric] = paired_difference(*better_first, n=resamples, permutations=permutations, seed=seed)
        same = [float(a == b) for a, b in zip(texts, real_texts, strict=True)]
        out[name] = Dependence(worth, mean(same) if same else None)
    return out
