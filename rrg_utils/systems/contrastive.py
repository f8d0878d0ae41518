"""Stage 1 of TRRG: an image encoder learns from sentences (Wang et al. 2025, section 2.1, Eq. 1).

    film     -> Swin -> patch tokens -> mean -> linear -> v     image vector, unit length
    sentence -> frozen sentence encoder      -> linear -> t     sentence vector, unit length

From each report of a batch one sentence is drawn at random, and the loss asks which sentence belongs to which image.

Departures: MiniLM for ClinicalBERT, and pooled means for the CLS tokens of section 2.1.

Choices that the paper leaves open, all ours: sigma is the cosine; tau is fixed; the sum of Eq. 1 is averaged over the
batch; the sentence encoder is frozen, so that every sentence is encoded once, and a linear head on each side leads into
the common space; rendered studies with composed reports (`rrg_utils.data.composed`) stand beside the real ones, as
everywhere in this course. Reports repeat whole sentences, and Eq. 1 as printed then asks for what cannot be: to tell by
one sentence which of several films it was written for. `duplicates_positive` counts any of them as right.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data import composed, synthetic
from rrg_utils.data.composed import Composer
from rrg_utils.data.datasets import Films, indiana, load_dataset, render_films
from rrg_utils.data.reports import sentences
from rrg_utils.device import default_device
from rrg_utils.errors import RRGError
from rrg_utils.language.sentences import load_sentence_encoder, sentence_embeddings
from rrg_utils.language.tiny import normalise
from rrg_utils.systems import stored
from rrg_utils.systems.projector import Alignment, alignment_studies
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision import encoder as _encoder
from rrg_utils.vision.encoder import as_films
from rrg_utils.vision.features import ENCODING, encode, film_tokens
from rrg_utils.vision.pretrain import load_encoder
from rrg_utils.vision.pretrained import is_foreign


def info_nce(images: Tensor, texts: Tensor, temperature: float, same: Tensor | None = None) -> Tensor:
    """Eq. 1 for unit vectors of paired images and texts (N, d), averaged over the batch.

    `same` (N, N) bool says which texts of the batch are equal. Then a text has found its image when it finds any image
    that it belongs to, and an image its text likewise: minus the log of the summed probability (as in MIL-NCE, Miech et
    al. 2020). Without it only the pair itself counts, as printed.
    RRGError for fewer than two pairs: there is nothing to contrast.
    """
    if images.shape != texts.shape or images.ndim != 2:
        raise RRGError(f"images {tuple(images.shape)} and texts {tuple(texts.shape)} must be (N, d), one pair a row")
    if len(images) < 2:
        raise RRGError("the contrastive loss needs at least two pairs in a batch: one alone has nothing to contrast")
    if not temperature > 0:
        raise RRGError(f"temperature is {temperature}: give a positive one")
    similarity = texts @ images.T / temperature
    right = torch.eye(len(images), dtype=torch.bool, device=images.device) if same is None else same
    text_to_image = -similarity.log_softmax(1).masked_fill(~right, -torch.inf).logsumexp(1)
    image_to_text = -similarity.T.log_softmax(1).masked_fill(~right, -torch.inf).logsumexp(1)
    return (text_to_image + image_to_text).mean()


@dataclass(frozen=True)
class ContrastConfig:
    """Switches of stage 1. All values are ours; the paper gives d = 1024, batches of 8 and a rate of 1e-4, and does not
    say for which stage."""

    size: int = 128
    encoder: str = "swin"
    pretrained: bool = True  # start from the committed weights; False: from random ones
    train_encoder: bool = True  # False: the two linear heads alone, over the tokens of the encoder as it starts
    text: str = "minilm"
    target: str = "sentence"  # "report": the whole report instead of one random sentence
    duplicates_positive: bool = True
    width: int = 128  # of the common space
    temperature: float = 0.07
    reports: int | None = None  # training reports; None: all
    composed: int = 1000  # rendered studies beside them, the first of those that align the projector
    epochs: int = 1  # of encoder and heads; 0: nothing is trained
    head_epochs: int = 4  # of the heads alone before, while a pre-trained encoder is frozen
    batch_size: int = 64
    lr: float = 1e-4
    head_lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.target not in ("sentence", "report"):
            raise RRGError(f"target is {self.target!r}: choose sentence or report")
        if self.batch_size < 2:
            raise RRGError(f"batch_size is {self.batch_size}: the contrastive loss needs at least two pairs")
        if is_foreign(self.encoder) and not self.pretrained:
            raise RRGError(f"encoder is {self.encoder!r}: only our own can start from random weights")


class CommonSpace(nn.Module):
    """The two heads: pooled vectors of an encoder (B, w_v) and sentence vectors (B, w_t) to unit vectors (B, d).

    Films differ little from their mean, so pooled vectors are standardised first.
    """

    def __init__(self, visual: int, text: int, width: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.norm = nn.BatchNorm1d(visual, affine=False)
            self.image, self.text = nn.Linear(visual, width), nn.Linear(text, width)

    def see(self, pooled: Tensor) -> Tensor:
        """v: the mean of a film's patch tokens in the common space."""
        return F.normalize(self.image(self.norm(pooled)), dim=-1)

    def read(self, vectors: Tensor) -> Tensor:
        """t: vectors of the sentence encoder in the common space."""
        return F.normalize(self.text(vectors), dim=-1)


class ImageText(nn.Module):
    """Image encoder and common space."""

    def __init__(self, config: ContrastConfig):
        super().__init__()
        self.config = config
        self.encoder = load_encoder(config.encoder, config.size)
        if not config.pretrained:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed)
                self.encoder = type(self.encoder)(config.size)
        self.encoder.requires_grad_(config.train_encoder)
        text = load_sentence_encoder(config.text).width
        self.space = CommonSpace(self.encoder.width, text, config.width, config.seed)

    def save(self, folder: Path) -> None:
        """Encoder and heads."""
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")


@dataclass(frozen=True)
class Pairs:
    """Films and, for each, the rows of its sentences among the vectors of the distinct ones."""

    images: Sequence[np.ndarray]  # parts of (N_p, H, W) uint8
    pooled: np.ndarray | None  # (N, w), where the encoder is not trained
    rows: list[np.ndarray]
    vectors: Tensor

    def film(self, index: int) -> np.ndarray:
        for part in self.images:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


def sentence_parts(texts: Sequence[str], target: str = "sentence") -> list[list[str]]:
    """The texts that may stand for each report: its sentences in lower case, or itself."""
    return [[normalise(part) for part in (sentences(text) if target == "sentence" else [text])] for text in texts]


def _pairs(config: ContrastConfig) -> Pairs:
    train = load_dataset("phantom", "train", config.size, config.reports)
    films, texts = [train.films], list(train.texts)
    images = [train.images]
    if config.composed:
        studies = alignment_studies(max(config.composed, Alignment.studies))  # those that are rendered anyway
        composer, rng = Composer(indiana().train), np.random.default_rng([31, config.seed])
        texts += [composer.compose(study, rng) for study in studies[: config.composed]]
        films.append(render_films(studies, config.size))
        images.append(films[-1].images[: config.composed])
    parts = sentence_parts(texts, config.target)
    distinct = sorted({part for own in parts for part in own})
    number = {text: i for i, text in enumerate(distinct)}
    pooled = None
    if not config.train_encoder:
        found = [_tokens_before(each, config)[: len(shown)] for each, shown in zip(films, images, strict=True)]
        pooled = np.concatenate([np.asarray(tokens, np.float32).mean(1) for tokens in found])
    vectors = torch.from_numpy(sentence_embeddings(distinct, config.text))
    return Pairs(images, pooled, [np.array([number[part] for part in own]) for own in parts], vectors)


def _tokens_before(films: Films, config: ContrastConfig) -> np.ndarray:
    """Tokens of the encoder that stage 1 starts from."""
    if config.pretrained:
        return film_tokens(films, config.encoder, config.size)
    return encode(ImageText(config).encoder.eval(), films.images)


def train(model: ImageText, config: ContrastConfig, folder: Path | None = None) -> History:
    """Train by Eq. 1.

    A pre-trained encoder is trained from heads that fit it: gradients through random heads would first undo what it
    knows (linear probing before fine-tuning, Kumar et al. 2022).
    """
    heads_only = not config.train_encoder
    if not heads_only and config.pretrained and config.head_epochs:
        first = trained(replace(config, train_encoder=False, epochs=config.head_epochs))
        model.space.load_state_dict(first.space.state_dict())
    pairs = _pairs(config)
    examples = list(range(len(pairs.rows)))
    if len(examples) % config.batch_size == 1:
        examples.pop()  # a last batch of one has nothing to contrast
    return fit(
        model,
        lambda model, batch: batch_loss(model, pairs, batch),
        examples,
        options=FitOptions(
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.head_lr if heads_only else config.lr,
            weight_decay=0.05,
            checkpoint_every=50,
            seed=config.seed,
        ),
        folder=folder,
        name="contrasting films and sentences",
    )


def batch_loss(model: ImageText, pairs: Pairs, batch: Sequence[int]) -> Tensor:
    """Eq. 1 for the pairs so numbered, with one sentence of each drawn at random."""
    drawn = torch.rand(len(batch)).numpy()  # from the global generator, which `fit` seeds
    chosen = torch.tensor([pairs.rows[i][int(u * len(pairs.rows[i]))] for i, u in zip(batch, drawn, strict=True)])
    device = model.space.image.weight.device
    if pairs.pooled is None:
        pooled = model.encoder(as_films(np.stack([pairs.film(i) for i in batch])).to(device)).pooled
    else:
        pooled = torch.from_numpy(pairs.pooled[batch]).to(device)
    same = (chosen[:, None] == chosen).to(device) if model.config.duplicates_positive else None
    images, texts = model.space.see(pooled), model.space.read(pairs.vectors[chosen].to(device))
    return info_nce(images, texts, model.config.temperature, same)


@torch.no_grad()
def _settle(model: ImageText, config: ContrastConfig) -> None:
    """After training: mean and spread of the pooled vectors over the first thousand training films."""
    films = load_dataset("phantom", "train", config.size, config.reports).images[:1000]
    pooled = torch.from_numpy(encode(model.cpu().eval().encoder, films).astype(np.float32).mean(1))
    model.space.norm.running_mean.copy_(pooled.mean(0))
    model.space.norm.running_var.copy_(pooled.var(0))


_CODE = [sys.modules[__name__], _encoder, composed, synthetic, training]


def _folder(config: ContrastConfig) -> Path:
    def learn(folder: Path) -> tuple[ImageText, History | None]:
        model = ImageText(config)
        history = train(model, config, folder) if config.epochs else None
        _settle(model, config)
        return model, history

    text = load_sentence_encoder(config.text).digest
    return stored.training("contrast", config, learn, _CODE, **{"text weights": text})


def trained(config: ContrastConfig) -> ImageText:
    """The encoder and heads after stage 1, frozen, from the cache or trained now (minutes, where the encoder is)."""
    model = ImageText(config)
    model.load_state_dict(load_file(_folder(config) / "model.safetensors"))
    return model.requires_grad_(False).eval()


def history(config: ContrastConfig) -> dict | None:
    """Training losses and seconds of a stage 1."""
    return stored.history(_folder(config))


def tokens(films: Films, config: ContrastConfig, count: int | None = None) -> np.ndarray:
    """Patch tokens v_e (N, T, w) float16 of the first `count` films (None: all) after stage 1: from the cache."""
    count = len(films) if count is None else count
    if not config.train_encoder and config.pretrained:
        return film_tokens(films, config.encoder, config.size)[:count]
    source = _folder(config)

    def make(folder: Path) -> None:
        np.save(folder / "tokens.npy", encode(trained(config).encoder.to(default_device()), films.images[:count]))

    inputs = {"films": films.key, "count": count, "model": source.name}
    folder = artifact("contrast-tokens", inputs, make, code=ENCODING)
    return np.load(folder / "tokens.npy", mmap_mode="r")
