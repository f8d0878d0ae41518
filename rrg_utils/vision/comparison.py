"""Encoders trained alike, several seeds of each, and how well they tell the classes apart (`rrg compare`).

Training them all took three and a half hours of one busy core, so what every trained encoder says about the validation
and test films is kept in `results/encoders/`: one number a film and class, from which notebook 04 computes everything.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from rrg_utils.artifacts import cache_dir
from rrg_utils.claims import RESULTS, combined
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.datasets import load_dataset
from rrg_utils.errors import RRGError
from rrg_utils.files import write_atomically
from rrg_utils.vision.pretrain import predict, studies_for_training, train

log = logging.getLogger("rrg")
FOLDER = RESULTS / "encoders"
SPLITS = ("val", "test")
RATES = (3e-4, 1e-3, 3e-3)  # learning rates to choose from on validation films, for every encoder


class Run(NamedTuple):
    """A trained encoder: its card and its logits (N, C) for every film of the two splits."""

    card: dict
    val: np.ndarray
    test: np.ndarray


def learning_rate(name: str, *, studies: int = 8000, epochs: int = 1, size: int = 128) -> float:
    """The rate of `RATES` with which seed 0 of an encoder reaches the best macro AUROC on validation films.

    An encoder needs its own: one rate for all would favour the one that it suits. Kept in `NAME-rates.json`.
    """
    path = FOLDER / f"{name}-rates.json"
    wanted = {"studies": studies, "epochs": epochs, "size": size, "data hash": studies_for_training(studies, size)[-1]}
    try:
        kept = json.loads(path.read_text())
    except FileNotFoundError:
        kept = {}
    except ValueError as error:
        raise _damaged(path, error) from error
    if not wanted.items() <= kept.items():
        val = load_dataset("phantom", "val", size)
        found, checkpoints = {}, {}
        for rate in RATES:
            detector, _, checkpoints[f"{rate:g}"] = train(name, studies=studies, epochs=epochs, size=size, lr=rate)
            found[f"{rate:g}"] = round(float(np.nanmean(auroc(val.labels, predict(detector, val.images)))), 4)
        kept = wanted | {"validation macro AUROC": found}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept, indent=1) + "\n")
        for rate, folder in checkpoints.items():
            if rate != _best(kept):  # `compare` takes the best for its seed 0
                shutil.rmtree(folder, ignore_errors=True)
    return float(_best(kept))


def _best(kept: dict) -> str:
    values = kept["validation macro AUROC"]
    return max(values, key=values.get)


def compare_all(names: Sequence[str], seeds: int, *, studies: int = 8000, epochs: int = 1) -> Iterator[Path]:
    """`compare` for every encoder and the seeds 0 to `seeds` - 1, giving each file as it is there.

    Of calls in several processes each takes other encoders; what another one is making is waited for at the end.
    """
    waiting = list(names)
    for patience in (0, -1):  # seconds to wait for another process; -1: as long as it takes
        names, waiting = waiting, []
        for name in names:
            try:
                with _only_here(name).acquire(timeout=patience):
                    for seed in range(seeds):
                        yield compare(name, seed=seed, studies=studies, epochs=epochs)
            except Timeout:
                log.info("%s is being trained by another process: the others first", name)
                waiting.append(name)


def _only_here(name: str) -> FileLock:
    folder = cache_dir() / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")


def compare(name: str, *, seed: int = 0, studies: int = 8000, epochs: int = 1, size: int = 128) -> Path:
    """Train an encoder with the recipe of pre-training at its own learning rate and keep its logits; returns the file.

    Does nothing if the file was made with the same arguments and films; goes on where an interrupted call stopped.
    """
    path = FOLDER / f"{name}-seed{seed}.npz"
    films = {split: load_dataset("phantom", split, size).films for split in SPLITS}
    recipe = {"studies": studies, "epochs": epochs, "size": size}
    wanted = recipe | {
        "encoder": name,
        "seed": seed,
        "data hash": studies_for_training(studies, size)[-1],
        "films": {split: films[split].key for split in SPLITS},
    }
    if path.exists() and wanted.items() <= _read(path).card.items():
        return path
    detector, card, checkpoints = train(name, seed=seed, lr=learning_rate(name, **recipe), **recipe)
    logits = {split: predict(detector, films[split].images).astype(np.float16) for split in SPLITS}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez_compressed(file, card=json.dumps(card | wanted), **logits))
    shutil.rmtree(checkpoints, ignore_errors=True)
    return path


def runs(size: int = 128) -> dict[str, list[Run]]:
    """encoder -> its kept runs in order of seed. RRGError if there are none, or if they were not all made alike."""
    found: dict[str, list[Run]] = {}
    recipes = set()
    shapes = [(len(load_dataset("phantom", split, size)), len(ABNORMALITIES)) for split in SPLITS]
    for path in sorted(FOLDER.glob("*-seed*.npz")):
        run = _read(path)
        if [run.val.shape, run.test.shape] != shapes:
            raise RRGError(
                f"results/encoders/{path.name} is of other studies or classes: make it again with rrg compare"
            )
        recipes.add(tuple(str(run.card[key]) for key in ("studies", "epochs", "size", "data hash", "films")))
        found.setdefault(run.card["encoder"], []).append(run)
    if not found:
        raise RRGError("results/encoders/ holds no trained encoders: make them with rrg compare")
    if len(recipes) > 1:
        raise RRGError("results/encoders/ mixes films or lengths of training: make them alike with rrg compare")
    return found


def _read(path: Path) -> Run:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Run(json.loads(str(kept["card"])), *(kept[split].astype(np.float32) for split in SPLITS))
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RRGError:
    return RRGError(f"results/encoders/{path.name} is damaged ({error}): delete it and run rrg compare")


def auroc(truth: np.ndarray, logits: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """AUROC of every class, for every weighting of the studies: (C,), or (R, C) with weights.

    The share of pairs (a study with the finding, one without) in which the former scores higher; ties count one half. A
    weight of 2 is a study drawn twice, so a bootstrap is one matrix product per class. NaN where a pair is missing.

    Args:
        truth: (N, C) bool.
        logits: (N, C).
        weights: (R, N), not negative.
    """
    if truth.shape != logits.shape or truth.ndim != 2:
        raise RRGError(f"truth {truth.shape} and logits {logits.shape}: expected two arrays (N, C)")
    drawn = np.ones((1, len(truth))) if weights is None else np.asarray(weights, dtype=np.float64)
    out = np.full((len(drawn), truth.shape[1]), np.nan)
    for column, (there, score) in enumerate(zip(truth.T, logits.T, strict=True)):
        first = np.sign(score[there][:, None] - score[~there]) / 2 + 0.5
        yes, no = drawn[:, there], drawn[:, ~there]
        with np.errstate(invalid="ignore"):
            out[:, column] = ((yes @ first) * no).sum(1) / (yes.sum(1) * no.sum(1))
    return out[0] if weights is None else out


def draws(studies: int, n: int = 1000, seed: int = 0) -> np.ndarray:
    """(n, studies) bootstrap weights: how often each study is drawn."""
    return np.random.default_rng(seed).multinomial(studies, np.full(studies, 1 / studies), size=n)


def macro(truth: np.ndarray, logits: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """(S, R) macro AUROC of each training of an encoder in every bootstrap sample of the studies.

    logits: one (N, C) per training seed. Classes without a pair in a sample are left out of its mean.
    """
    return np.stack([np.nanmean(auroc(truth, one, weights), axis=1) for one in logits])


def over_seeds(values: Sequence[float], samples: np.ndarray) -> tuple[float, float, float]:
    """The mean over training seeds of a value (S,), and its 95 % interval over seeds and studies.

    `samples` (S, R): the value of each seed in every bootstrap sample. The two parts are joined as those of all claims
    are (`claims.combined`); drawing seeds anew as well would not do, since five show too little of their spread.
    """
    ends = np.percentile(samples, [2.5, 97.5], axis=1).T
    return combined([(float(value), float(low), float(high)) for value, (low, high) in zip(values, ends, strict=True)])
