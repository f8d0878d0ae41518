"""Trained systems and their reports, kept in the cache: each is made once, by whoever asks first."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch

from rrg_utils.artifacts import artifact, key_of
from rrg_utils.data import annotation
from rrg_utils.data import reports as _texts
from rrg_utils.data.datasets import DRAWING, indiana
from rrg_utils.labels import mentions
from rrg_utils.language.models import folder_digest
from rrg_utils.processes import is_main_process
from rrg_utils.systems.base import GeneratedReport
from rrg_utils.training import History
from rrg_utils.vision.features import ENCODING, weights_hash

_HISTORY, _REPORTS = "history.json", "reports.json"


class Saved(Protocol):
    """Anything that can write itself to a folder."""

    def save(self, folder: Path) -> None: ...


def training(
    kind: str,
    config,
    train: Callable[[Path], tuple[Saved, History | None]],
    code: Sequence[ModuleType],
    **more: str | None,
) -> Path:
    """Folder of a trained model, from the cache or trained now.

    `train(folder)` gives the model and how its training went; its checkpoints lie in `folder`, so that a killed
    training goes on. The key is made of the configuration (a dataclass with `encoder` and `size`), the cohort, the
    encoder's weights, those of a language model in a folder of one's own, `more`, `code`, and the code that makes
    films, tokens and texts. In several processes (`accelerate launch`) all train and the main one writes.
    """

    def make(folder: Path) -> None:
        with torch.enable_grad():  # whoever asks first may do so within no_grad
            model, history = train(folder / "fit")
        if is_main_process():
            model.save(folder)
            (folder / _HISTORY).write_text(json.dumps(history and asdict(history)))
            shutil.rmtree(folder / "fit", ignore_errors=True)

    inputs = asdict(config) | {"cohort": indiana().digest, "encoder weights": _weights(config)} | _data() | more
    llm = getattr(config, "llm", None)
    if llm is not None and (digest := folder_digest(llm)):
        inputs["language model weights"] = digest
    return artifact(kind, inputs, make, code=code, resume=True, together=True)


def _data() -> dict[str, str]:
    """A hash of the code that films, tokens and texts come from: trained systems and their reports are made of them."""
    return {"data code": key_of("data", {}, [*DRAWING, *ENCODING, _texts, annotation, mentions])}


def _weights(config) -> str | None:
    """A hash of the encoder's weights; none for a model that is told what the film shows."""
    return None if config.encoder == "annotation" else weights_hash(config.encoder, config.size)


def history(folder: Path) -> dict | None:
    """Losses and seconds of a training (`rrg_utils.training.History`); None where nothing was trained."""
    return json.loads((folder / _HISTORY).read_text())


def writing(
    kind: str, inputs: Mapping, write: Callable[[], Sequence[GeneratedReport]], code: Sequence[ModuleType] = ()
) -> Path:
    """Folder of the reports that a model writes, from the cache or written now; `reports` reads them."""

    def make(folder: Path) -> None:
        (folder / _REPORTS).write_text(json.dumps(write()))

    return artifact(kind, {**inputs, **_data()}, make, code=code)


def reports(folder: Path) -> list[GeneratedReport]:
    """The reports of a folder with their evidence."""
    return [GeneratedReport(*each) for each in json.loads((folder / _REPORTS).read_text())]
