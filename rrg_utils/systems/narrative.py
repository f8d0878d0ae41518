"""The narrative baseline: a vision-language model that writes the whole report as one text, as LLaVA-Rad does.

    film -> frozen Swin -> projector (MLP) -> visual tokens -> [image: <tokens> findings:] -> language model -> report

LLaVA-Rad's recipe: stage 1 trains the projector alone, stage 2 projector and LoRA. What is ours: stage 1 uses rendered
studies with balanced findings and composed reports (`rrg_utils.data.composed`), as many as wanted; tokens are taken
relative to the mean film and merged 2 x 2 before the projector; and stage 2 can replace a share of the words that the
model reads of its own text by random ones (`word_dropout`).
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data import composed, synthetic
from rrg_utils.data.composed import Composer
from rrg_utils.data.datasets import Films, PhantomDataset, indiana, load_dataset, render_films
from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import balanced_studies, caption
from rrg_utils.errors import RRGError
from rrg_utils.language import LoraOptions, Prompt, generate, load_llm, prompt, prompt_loss, tiny
from rrg_utils.language.prompt import TokenLoss
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision.features import film_tokens, merge_tokens, weights_hash
from rrg_utils.vision.pretrain import load_encoder


@dataclass(frozen=True)
class NarrativeConfig:
    """Switches of the narrative model. All values are ours."""

    size: int = 128
    encoder: str = "swin"  # "annotation": no picture but the expert annotation in words, the upper bound
    llm: str = "tiny"
    lora_rank: int | None = 16  # None: only the projector is trained
    align_studies: int = 4000  # rendered studies for stage 1; 0 leaves stage 1 out
    align_epochs: int = 2  # each with other composed reports for the same films
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


class GeneratedReport(NamedTuple):
    """A report and what it rests on. The narrative model has no evidence to show."""

    text: str
    evidence: dict


class NarrativeVLM(nn.Module):
    """Projector and language model over tokens of the frozen encoder."""

    def __init__(self, config: NarrativeConfig):
        super().__init__()
        self.config = config
        lora = (
            None if config.lora_rank is None else LoraOptions(config.lora_rank, 2 * config.lora_rank, seed=config.seed)
        )
        self.llm = load_llm(config.llm, lora=lora)
        self.language = self.llm.model  # registered, so that LoRA weights are trained and saved
        if config.encoder == "annotation":
            return
        encoder = load_encoder(config.encoder, config.size)
        width = 4 * encoder.width  # four neighbouring tokens become one
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.projector = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * self.llm.width),
                nn.GELU(),
                nn.Linear(2 * self.llm.width, self.llm.width),
            )
        # Projected tokens start at the size of word embeddings, so that the frozen model meets nothing outlandish.
        scale = self.llm.model.get_input_embeddings().weight.std()
        with torch.no_grad():
            self.projector[-1].weight.mul_(scale / 0.1)
            self.projector[-1].bias.zero_()
        # Films differ less from patient to patient than from place to place: tokens are read relative to the mean film.
        self.register_buffer("mean", torch.zeros(encoder.grid**2, encoder.width))
        self.register_buffer("spread", torch.ones(encoder.width))

    # --- prompt ---

    def prompts(self, batch: Sequence[Example]) -> list[Prompt]:
        """`image: <16 visual tokens, or words> findings: <prefix>` for each study."""
        if self.config.encoder == "annotation":
            visual = [f" {example.seen} " for example in batch]
        else:
            tokens = torch.from_numpy(np.stack([example.seen for example in batch])).float()
            visual = self.projector(merge_tokens((tokens - self.mean) / self.spread))
        return [
            Prompt("image:", v, f"findings: {example.prefix}".rstrip())
            for v, example in zip(visual, batch, strict=True)
        ]

    # --- training ---

    def loss(self, batch: Sequence[Example], word_dropout: float | None = None) -> Tensor:
        """Mean loss per token of the answers."""
        dropout = self.config.word_dropout if word_dropout is None else word_dropout
        return prompt_loss(
            self.llm, self.prompts(batch), [example.text for example in batch], word_dropout=dropout
        ).mean

    def align(self, folder: Path | None = None) -> History:
        """Stage 1: the projector alone, on rendered studies with balanced findings and composed reports."""
        config = self.config
        studies = alignment_studies(config)
        tokens = seen(config, studies, lambda: render_films(studies, config.size))
        self._refer_to(tokens)
        composer, rng = Composer(indiana().train), np.random.default_rng([7, config.seed])
        examples = [
            Example(tokens[i], composer.compose(study, rng))
            for _ in range(config.align_epochs)
            for i, study in enumerate(studies)
        ]
        adapters = [weight for weight in self.language.parameters() if weight.requires_grad]
        self.language.requires_grad_(False)
        history = fit(
            self,
            lambda model, batch: model.loss(batch, 0.0),
            examples,
            options=FitOptions(epochs=1, batch_size=config.batch_size, lr=3e-3, seed=config.seed),
            length=lambda example: len(example.text),
            folder=folder and folder / "align",
            name="aligning the projector",
        )
        for weight in adapters:
            weight.requires_grad_(True)
        return history

    def prepare(self, train: PhantomDataset, val: PhantomDataset, folder: Path | None = None) -> History:
        """Stage 2: projector and LoRA on the real reports; the epoch with the lowest validation loss is kept."""
        config = self.config
        of_train, of_val = (seen(config, data.reports, lambda data=data: data.films) for data in (train, val))
        if not config.align_studies:
            self._refer_to(of_train)
        held_out = [Example(of_val[i], text) for i, text in enumerate(val.texts)]
        return fit(
            self,
            lambda model, batch: model.loss(batch),
            [Example(of_train[i], text) for i, text in enumerate(train.texts)],
            options=FitOptions(
                epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, patience=2, seed=config.seed
            ),
            length=lambda example: len(example.text),
            validate=lambda model: model.mean_loss(held_out),
            folder=folder and folder / "prepare",
            name=f"training on reports (word dropout {config.word_dropout:g})",
        )

    def _refer_to(self, tokens: np.ndarray) -> None:
        """Take the mean film and the spread about it from the first thousand studies (N, T, d)."""
        if self.config.encoder != "annotation":
            sample = torch.from_numpy(np.asarray(tokens[:1000], np.float32))
            self.mean.copy_(sample.mean(0))
            self.spread.copy_((sample - self.mean).std((0, 1)).clamp(min=1e-3))

    # --- use ---

    @torch.no_grad()
    def token_losses(self, examples: Sequence[Example], batch: int = 64) -> list[TokenLoss]:
        """Loss of every token of the answers, given film and prefix; one entry per example, in order."""
        self.eval()
        out: list[TokenLoss | None] = [None] * len(examples)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].prefix) + len(examples[i].text))
        for k in range(0, len(order), batch):
            chunk = [examples[i] for i in order[k : k + batch]]
            loss = prompt_loss(self.llm, self.prompts(chunk), [example.text for example in chunk])
            for row, i in enumerate(order[k : k + batch]):
                n = int(loss.mask[row].sum())
                out[i] = TokenLoss(loss.nll[row : row + 1, :n], loss.mask[row : row + 1, :n], [loss.offsets[row]])
        return out

    def mean_loss(self, examples: Sequence[Example]) -> float:
        """Loss in nats per token over all answers."""
        losses = self.token_losses(examples)
        return float(sum(loss.nll.sum() for loss in losses) / sum(loss.mask.sum() for loss in losses))

    @torch.no_grad()
    def generate(self, batch: Sequence[Example], max_new_tokens: int = 90) -> list[GeneratedReport]:
        """What the model writes for each film after its prefix (greedy); the examples' texts are not read."""
        self.eval()
        prompts = [prompt for k in range(0, len(batch), 256) for prompt in self.prompts(batch[k : k + 256])]
        return [GeneratedReport(text, {}) for text in generate(self.llm, prompts, max_new_tokens=max_new_tokens)]

    # --- storage ---

    def save(self, folder: Path) -> None:
        """What was trained (safetensors) and the configuration (JSON)."""
        ours = ("projector.", "mean", "spread")
        kept = {k: v.contiguous() for k, v in self.state_dict().items() if k.startswith(ours) or "lora_" in k}
        save_file(kept, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "NarrativeVLM":
        """A saved model, in eval mode."""
        try:
            config = NarrativeConfig(**json.loads((folder / "config.json").read_text()))
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise RRGError(f"no narrative model in {folder}: {error}") from error
        model = cls(config)
        _, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected:
            raise RRGError(f"the model in {folder} does not fit this version: unexpected {unexpected[0]}")
        return model.eval()


def seen(config: NarrativeConfig, reports: Sequence[Report], films: Callable[[], Films]) -> np.ndarray | list[str]:
    """What the model is given of each study: encoder tokens of its film (N, T, d), or its annotation in words."""
    if config.encoder == "annotation":
        return [caption(report) for report in reports]
    return film_tokens(films(), config.encoder, config.size)


def oracle(config: NarrativeConfig) -> NarrativeConfig:
    """The same model with the expert annotation instead of the film: the upper bound of what a film can tell it."""
    return replace(config, encoder="annotation", align_studies=0)


def train_all(configs: Sequence[NarrativeConfig]) -> None:
    """Make sure that several models are in the cache, training on all cores what is missing.

    One process per core with one thread each: matrices this small gain little from a second thread.
    """
    for name in {config.llm for config in configs}:
        load_llm(name)
    for config in configs:  # what they share is made first, with all cores for each
        for split in ("train", "val"):
            data = load_dataset("phantom", split, config.size)
            seen(config, data.reports, lambda data=data: data.films)
        if config.align_studies:
            studies = alignment_studies(config)
            seen(config, studies, lambda studies=studies, size=config.size: render_films(studies, size))
    stage_1 = list(dict.fromkeys(_before_stage_2(config) for config in configs if config.align_studies))
    workers = 1 if torch.cuda.is_available() else min(os.cpu_count(), len(configs))
    for build, todo in ((aligned, stage_1), (_trained_folder, list(dict.fromkeys(configs)))):
        if workers == 1:
            for config in todo:
                build(config)
        else:
            joblib.Parallel(n_jobs=workers)(joblib.delayed(_with_one_thread)(build, config) for config in todo)


def _with_one_thread(build: Callable[[NarrativeConfig], Path], config: NarrativeConfig) -> Path:
    torch.set_num_threads(1)
    return build(config)


def alignment_studies(config: NarrativeConfig) -> list[Report]:
    """The rendered studies of stage 1; other ones than the encoder was pre-trained on."""
    return balanced_studies(indiana().train, config.align_studies, seed=1)


def _before_stage_2(config: NarrativeConfig) -> NarrativeConfig:
    return replace(config, train_reports=None, epochs=0, word_dropout=0.0, lr=0.0)


def aligned(config: NarrativeConfig) -> Path:
    """Folder of a model after stage 1 (shared by all that differ in stage 2 only), from the cache or trained now."""
    config = _before_stage_2(config)

    def make(folder: Path) -> None:
        model = NarrativeVLM(config)
        model.align(folder)
        model.save(folder)
        shutil.rmtree(folder / "align")

    return artifact("narrative-aligned", _inputs(config), make, code=_CODE, resume=True)


def _trained_folder(config: NarrativeConfig) -> Path:
    def make(folder: Path) -> None:
        model = NarrativeVLM(config)
        if config.align_studies:
            start = NarrativeVLM.load(aligned(config))
            model.load_state_dict(start.state_dict())
        train = load_dataset("phantom", "train", config.size, config.train_reports)
        history = model.prepare(train, load_dataset("phantom", "val", config.size), folder)
        model.save(folder)
        (folder / "history.json").write_text(json.dumps(asdict(history)))
        shutil.rmtree(folder / "prepare")

    return artifact("narrative", _inputs(config), make, code=_CODE, resume=True)


def trained(config: NarrativeConfig) -> NarrativeVLM:
    """The narrative model of a configuration after both stages, from the cache or trained now."""
    return NarrativeVLM.load(_trained_folder(config))


_CODE = [sys.modules[__name__], composed, synthetic, prompt, tiny, training]


def _inputs(config: NarrativeConfig) -> dict:
    weights = None if config.encoder == "annotation" else weights_hash(config.encoder, config.size)
    return asdict(config) | {"cohort": indiana().digest, "encoder weights": weights}
