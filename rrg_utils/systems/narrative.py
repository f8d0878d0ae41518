"""The narrative baseline: a vision-language model that writes the whole report as one text, as LLaVA-Rad does.

    film -> frozen Swin -> projector (MLP) -> visual tokens -> [image: <tokens> findings:] -> language model -> report

LLaVA-Rad's recipe: stage 1 trains the projector alone (`rrg_utils.systems.projector`), stage 2 projector and LoRA. What
is ours: stage 2 can replace a share of the words that the model reads of its own text by random ones (`word_dropout`).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rrg_utils import training
from rrg_utils.data import composed, synthetic
from rrg_utils.data.datasets import Films, PhantomDataset, load_dataset
from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import caption
from rrg_utils.device import stacked
from rrg_utils.language import Prompt, load_llm, prompt, tiny
from rrg_utils.systems import base, projector, stored
from rrg_utils.systems.base import ReportGenerator, in_parallel, loss_on
from rrg_utils.systems.projector import Alignment, FilmProjector, aligned, aligned_projector
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision.features import film_tokens


@dataclass(frozen=True)
class NarrativeConfig:
    """Switches of the narrative model. All values are ours."""

    size: int = 128
    encoder: str = "swin"  # "annotation": no picture but the expert annotation in words, the upper bound
    llm: str = "tiny"
    lora_rank: int | None = 16  # None: only the projector is trained
    align_studies: int = 4000  # rendered studies for stage 1; 0 leaves stage 1 out
    align_epochs: int = 5  # each with other composed reports for the same films
    train_reports: int | None = None  # None: all 2,069
    epochs: int = 2
    word_dropout: float = 0.0
    lr: float = 5e-4
    batch_size: int = 16
    seed: int = 0


class Example(NamedTuple):
    """What is seen of a study, the answer, and the true text before it."""

    seen: np.ndarray | str  # tokens of a film (T, d) float16, or an annotation in words: see `seen`
    text: str
    prefix: str = ""


class NarrativeVLM(ReportGenerator):
    """Projector and language model over tokens of the frozen encoder."""

    Config = NarrativeConfig

    def __init__(self, config: NarrativeConfig):
        super().__init__(config)
        if config.encoder != "annotation":
            self.projector = FilmProjector(self.llm, config.encoder, config.size, config.seed)

    def prompts(self, batch: Sequence[Example]) -> list[Prompt]:
        """`image: <16 visual tokens, or words> findings: <prefix>` for each study."""
        if self.config.encoder == "annotation":
            visual = [f" {example.seen} " for example in batch]
        else:
            visual = self.projector(stacked([example.seen for example in batch], self.llm.device))
        return [
            Prompt("image:", v, f"findings: {example.prefix}".rstrip())
            for v, example in zip(visual, batch, strict=True)
        ]

    def loss(self, batch: Sequence[Example], word_dropout: float | None = None) -> Tensor:
        """Mean loss per token of the answers."""
        return super().loss(batch, self.config.word_dropout if word_dropout is None else word_dropout)

    def prepare(self, train: PhantomDataset, val: PhantomDataset | None = None, folder: Path | None = None) -> History:
        """Both stages; in the second, on the real reports, the epoch with the lowest loss on `val` is kept.

        Without `val` it is the last one.
        """
        config = self.config
        of_train, of_val = (_examples(config, data) if data is not None else [] for data in (train, val))
        if config.align_studies:
            self.projector.load_state_dict(aligned_projector(_alignment(config)))
        elif config.encoder != "annotation":
            self.projector.refer_to(np.stack([example.seen for example in of_train[:1000]]))
        return fit(
            self,
            lambda model, batch: model.loss(batch),
            of_train,
            options=FitOptions(
                epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, patience=2, seed=config.seed
            ),
            length=lambda example: len(example.text),
            validate=loss_on(of_val),
            folder=folder,
            name=f"training on reports (word dropout {config.word_dropout:g})",
        )


def _examples(config: NarrativeConfig, data: PhantomDataset) -> list[Example]:
    return list(map(Example, seen(config, data.reports, lambda: data.films), data.texts))


def seen(config: NarrativeConfig, reports: Sequence[Report], films: Callable[[], Films]) -> np.ndarray | list[str]:
    """What the model is given of each study: encoder tokens of its film (N, T, d), or its annotation in words."""
    if config.encoder == "annotation":
        return [caption(report) for report in reports]
    return film_tokens(films(), config.encoder, config.size)


def oracle(config: NarrativeConfig) -> NarrativeConfig:
    """The same model with the expert annotation instead of the film: the upper bound of what a film can tell it."""
    return replace(config, encoder="annotation", align_studies=0)


def train_all(configs: Sequence[NarrativeConfig]) -> None:
    """Make sure that several models are in the cache, training on all cores what is missing."""
    for name in {config.llm for config in configs}:
        load_llm(name)
    for config in configs:  # what they share is made first, with all cores for each
        for split in ("train", "val"):
            data = load_dataset("phantom", split, config.size)
            seen(config, data.reports, lambda data=data: data.films)
    in_parallel(aligned, [_alignment(config) for config in configs if config.align_studies])
    in_parallel(trained_folder, configs)


def _alignment(config: NarrativeConfig) -> Alignment:
    return Alignment(
        config.size, config.encoder, config.llm, config.align_studies, config.align_epochs, seed=config.seed
    )


def trained_folder(config: NarrativeConfig) -> Path:
    """Folder of the model of a configuration after both stages, from the cache or trained now."""

    def train(folder: Path) -> tuple[NarrativeVLM, History]:
        model = NarrativeVLM(config)
        reports = load_dataset("phantom", "train", config.size, config.train_reports)
        return model, model.prepare(reports, load_dataset("phantom", "val", config.size), folder)

    return stored.training("narrative", config, train, _CODE)


def trained(config: NarrativeConfig) -> NarrativeVLM:
    """The narrative model of a configuration after both stages."""
    return NarrativeVLM.load(trained_folder(config))


_CODE = [sys.modules[__name__], base, projector, composed, synthetic, prompt, tiny, training]
