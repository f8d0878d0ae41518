"""R2GenCSR: a report is written from the film and from how it differs from other patients' films.

    film -> encoder -> v_S (patch tokens), v_G (global vector)
    training films, diseased (+) and normal (-) -> v_G+, v_G-
    [Note: <v_G - v_G-> normal.] [Note: <v_G - v_G+> with disease.] x pairs, [image: <v_S> findings:] -> frozen LLM

Wang et al., "R2GenCSR: Mining Contextual and Residual Information for LLMs-based Radiology Report Generation", arXiv
2408.09743. What the released code does differently with contexts is a switch of `R2GenCSRConfig`; its cut
references, end mark, beams, penalties and choice of the best epoch are not rebuilt.

Ours. The projector is an MLP aligned beforehand (`rrg_utils.systems.projector`) and not one linear layer. A context
image becomes the mean of its projected tokens: behind a linear layer that is the projected global vector, so for the
paper's projector it is the same. With `grid` above 1 the mean is taken in cells, so that a residual can say where. One
view is read, and decoding is greedy.
Before the real reports, every variant reads as many rendered studies with composed reports as the projector was aligned
on, so that what it learns of contexts does not rest on 2,069 reports alone.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rrg_utils import retrieval, training
from rrg_utils.data import composed, rendered, synthetic
from rrg_utils.data.datasets import Films, PhantomDataset, indiana, load_dataset, render_films
from rrg_utils.data.rendered import RenderedStudies, rendered_studies
from rrg_utils.device import stacked
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, load_llm, prompt, tiny
from rrg_utils.retrieval import StudyIndex, global_features, says_the_same, standardised
from rrg_utils.systems import base, projector, stored
from rrg_utils.systems.base import GeneratedReport, ReportGenerator, in_parallel, loss_on
from rrg_utils.systems.projector import Alignment, FilmProjector, aligned, aligned_projector, alignment_studies
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision.encoder import as_films
from rrg_utils.vision.features import film_tokens, merge_tokens, weights_hash
from rrg_utils.vision.pretrain import load_encoder

RETRIEVAL = {
    "keyword": "the released code: one draw for all studies; diseased is a report with the letters 'note' in it",
    "normal_by_mesh": "one draw for all studies; diseased and normal by the expert annotation",
    "nearest": "the most similar diseased and normal films: the paper's idea",
    "random": "diseased and normal films drawn anew for each study",
    "same_set": "control: the most similar films of any kind, called both diseased and normal",
    "counterfactual": "oracle: the same patient rendered without the findings is the normal film",
}
RESIDUAL = {
    "none": "the context images as they are",
    "prompt": "the released default: query minus every position of the wrapped context, its words included",
    "after": "query minus context image, after the projection",
    "before": "query minus context image, before the projection",
}
SIGNS = ("negative", "positive")  # in the order of the prompt (released code)


class Wording(NamedTuple):
    """The words around images. A context reads `note`, image, `negative` or `positive`; the query follows."""

    note: str
    negative: str
    positive: str
    query: str
    instruction: str


WORDINGS = {
    "paper": Wording(
        "Note: <Img>",
        "</Img> normal.",
        "</Img> with disease.",
        "Human: <Img>",
        "</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \nAssistant:",
    ),
    # Ours: the words that the tiny language model and the aligned projector know.
    "course": Wording("note:", "normal.", "with disease.", "image:", "findings:"),
}


@dataclass(frozen=True)
class R2GenCSRConfig:
    """The paper's switches, then sizes and schedule (ours). The defaults are the paper's idea, not its released code:
    that is `released(config)`."""

    encoder: str = "swin"  # any of `rrg_utils.vision.pretrain.ENCODERS`; the paper's is "vmamba"
    retrieval: str = "nearest"  # one of RETRIEVAL
    residual: str = "after"  # one of RESIDUAL
    pairs: int = 3  # contexts of each sign, 0 to 5
    contexts: str = "both"  # "negative" or "positive" shows those of one sign alone
    context_gradient: bool = True  # whether the projector (and encoder) learns through the contexts; released: False
    train_encoder: bool = False  # the paper trains it
    grid: int = 1  # a context image is grid x grid tokens; the paper has one global vector
    context_first: bool = True  # the paper's order; False puts the contexts between query and instruction
    wording: str = "course"  # one of WORDINGS
    llm: str = "tiny"
    lora_rank: int | None = None  # the paper's language model is frozen
    size: int = 128
    align_studies: int = 4000  # rendered studies of the shared projector; 0: an untrained one
    align_epochs: int = 5
    composed_epochs: int = 1  # passes over those studies with composed reports and contexts, before the real ones
    train_reports: int | None = None  # None: all 2,069
    epochs: int = 2
    word_dropout: float = 0.0
    lr: float = 5e-4
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("retrieval", RETRIEVAL), ("residual", RESIDUAL), ("wording", WORDINGS)):
            if getattr(self, name) not in known:
                raise RRGError(f"unknown {name} {getattr(self, name)!r}; known are: {', '.join(known)}")
        if self.contexts not in ("both", *SIGNS):
            raise RRGError(f"unknown contexts {self.contexts!r}; known are: both, {', '.join(SIGNS)}")
        if not 0 <= self.pairs <= 5:
            raise RRGError(f"pairs={self.pairs}: give 0 to 5 contexts of each sign")
        if self.grid not in (1, 2, 4):
            raise RRGError(f"grid={self.grid}: a context image can be 1, 2 or 4 tokens a side")


def released(config: R2GenCSRConfig) -> R2GenCSRConfig:
    """The contexts of the released code, by its defaults: fixed, by keyword, everything subtracted, no gradient.

    Encoder, projector and words stay those of `config`.
    """
    return replace(config, retrieval="keyword", residual="prompt", context_gradient=False, grid=1, context_first=True)


class Context(NamedTuple):
    """A film that a study is compared with, and the study it belongs to."""

    id: str
    seen: np.ndarray


class Example(NamedTuple):
    """A study with its contexts. `seen`: encoder tokens (T, d) of the film, or with a trained encoder the film itself
    (H, W) uint8. `text`: the answer; `prefix`: the true text before it."""

    seen: np.ndarray
    text: str
    negative: tuple[Context, ...] = ()
    positive: tuple[Context, ...] = ()
    prefix: str = ""


class R2GenCSR(ReportGenerator):
    """Projector (and encoder) before a frozen language model."""

    Config = R2GenCSRConfig

    def __init__(self, config: R2GenCSRConfig) -> None:
        super().__init__(config)
        self.projector = FilmProjector(self.llm, config.encoder, config.size, config.seed)
        self.words = WORDINGS[config.wording]
        if config.train_encoder:
            self.encoder = load_encoder(config.encoder, config.size).requires_grad_(True)

    # --- the prompt ---

    def prompts(self, batch: Sequence[Example]) -> list[Prompt]:
        """Contexts, each pair normal before diseased, and the query; see WORDINGS."""
        query = self.tokens([example.seen for example in batch])
        films = self.projector(query)
        notes = self.notes(query, batch)
        out = []
        for film, contexts, example in zip(films, notes, batch, strict=True):
            asked = Prompt(self.words.query, film)
            told = (contexts, asked) if self.config.context_first else (asked, contexts)
            out.append(Prompt(*told, f"{self.words.instruction} {example.prefix}".rstrip(" ")))
        return out

    def notes(self, query: Tensor, batch: Sequence[Example]) -> list[Prompt]:
        """The contexts of each study as a prompt; `query` (B, T, d) are the encoder's tokens of the studies' films."""
        contexts = [_in_turn(example.negative, example.positive) for example in batch]
        of = [i for i, line in enumerate(contexts) for _ in line]  # the study that each context belongs to
        if not of:
            return [Prompt() for _ in batch]
        with torch.set_grad_enabled(self.config.context_gradient and torch.is_grad_enabled()):
            images = iter(self.residual(query, self.tokens([c.seen for line in contexts for _, c in line]), of))
            notes = [
                Prompt(*(part for sign, _ in line for part in self._wrapped(next(images), sign))) for line in contexts
            ]
            if self.config.residual == "prompt":
                whole = self.pooled(self.projector(query))
                notes = [self._subtracted(one, note) for one, note in zip(whole, notes, strict=True)]
        return notes

    def residual(self, query: Tensor, context: Tensor, of: Sequence[int]) -> Tensor:
        """(M, grid * grid, width) residual tokens of contexts (M, T, d), each against the query (B, T, d) it is `of`.

        "none" gives the contexts as they are; so does "prompt", which subtracts later, with all that is around them.
        """
        project, side = self.projector, self.config.grid
        if self.config.residual == "before":
            difference = project.relative(query)[of] - project.relative(context)
            return self.pooled(project.layers(merge_tokens(difference)), side)
        images = self.pooled(project(context), side)
        if self.config.residual == "after":
            images = self.pooled(project(query), side)[of] - images
        return images

    @staticmethod
    def pooled(tokens: Tensor, side: int = 1) -> Tensor:
        """Means of projected tokens (N, n * n, d) over a grid: (N, side * side, d). One mean is the global vector."""
        n = round(tokens.shape[1] ** 0.5)
        cells = F.adaptive_avg_pool2d(tokens.transpose(1, 2).unflatten(2, (n, n)), side)
        return cells.flatten(2).transpose(1, 2)

    def _wrapped(self, image: Tensor, sign: str) -> tuple[str, Tensor, str]:
        """`note: <image> normal.` or `... with disease.`"""
        return self.words.note, image, f"{getattr(self.words, sign)} "

    def _subtracted(self, query: Tensor, note: Prompt) -> Prompt:
        """The query's global vector (1, d) minus every position of its contexts: the language model gets no word of
        them, only differences."""
        if not note.segments:
            return note
        return Prompt(query - torch.cat([self._embedded(s) if isinstance(s, str) else s for s in note.segments]))

    def _embedded(self, text: str) -> Tensor:
        """(n, width) word embeddings."""
        ids = self.llm.tokenizer(text.rstrip(" "), add_special_tokens=False)["input_ids"]
        return self.llm.model.get_input_embeddings()(torch.tensor(ids, device=self.llm.device))

    def tokens(self, seen: Sequence[np.ndarray]) -> Tensor:
        """Encoder tokens (N, T, d)."""
        if self.config.train_encoder:
            return self.encoder(as_films(np.stack(seen)).to(self.llm.device)).tokens
        return stacked(seen, self.llm.device)

    # --- training and use ---

    def loss(self, batch: Sequence[Example], word_dropout: float | None = None) -> Tensor:
        """Mean loss per token of the reports alone."""
        return super().loss(batch, self.config.word_dropout if word_dropout is None else word_dropout)

    def prepare(self, train: PhantomDataset, val: PhantomDataset | None = None, folder: Path | None = None) -> History:
        """Train on composed and then on the real reports, of which the epoch with the lowest loss on `val` is kept.

        Without `val` it is the last one. Contexts come from `train`.
        """
        config = self.config
        if config.align_studies:
            self.projector.load_state_dict(aligned_projector(_alignment(config)))
        else:
            self.projector.refer_to(film_tokens(train.films, config.encoder, config.size))
        held_out = examples(config, val, train) if val is not None else []

        def learn(batch: list[Example], name: str, epochs: int, validate: Callable | None = None) -> History:
            return fit(
                self,
                lambda model, batch: model.loss(batch),
                batch,
                options=FitOptions(
                    epochs=epochs, batch_size=config.batch_size, lr=config.lr, patience=2, seed=config.seed
                ),
                length=lambda example: len(example.text),
                validate=validate,
                folder=folder and folder / name,
                name=f"R2GenCSR ({config.retrieval}, {config.residual}, {config.pairs} pairs), {name} reports",
            )

        if config.composed_epochs and config.align_studies:
            learn(examples(config, _composed(config), train), "composed", config.composed_epochs)
        return learn(examples(config, train, train), "real", config.epochs, loss_on(held_out))

    def generate(self, batch: Sequence[Example], max_new_tokens: int = 90) -> list[GeneratedReport]:
        """Reports, with the ids of the studies that each was compared with as evidence."""
        written = super().generate(batch, max_new_tokens)
        return [
            report._replace(evidence={sign: [context.id for context in getattr(example, sign)] for sign in SIGNS})
            for report, example in zip(written, batch, strict=True)
        ]


# --- retrieval ---


def _in_turn(negative: Sequence[Context], positive: Sequence[Context]) -> list[tuple[str, Context]]:
    """The contexts with their signs in the order of the prompt: normal, diseased, normal, ..."""
    pairs = zip_longest(negative, positive)
    return [(sign, context) for pair in pairs for sign, context in zip(SIGNS, pair, strict=True) if context]


Studies = PhantomDataset | RenderedStudies


def examples(config: R2GenCSRConfig, data: Studies, train: PhantomDataset) -> list[Example]:
    """The studies of a data set with their contexts, all from `train`."""
    seen, known = _seen(config, data.films), _seen(config, train.films)
    rows = context_rows(config, data, train)
    pools = {
        sign: [tuple(Context(train.reports[r].id, known[r]) for r in line) for line in rows[sign]] for sign in SIGNS
    }
    if config.retrieval == "counterfactual" and rows["negative"].size:
        healthy = _seen(config, without_findings(data))
        pools["negative"] = [
            (Context(f"{report.id} without findings", healthy[i]),) * config.pairs
            for i, report in enumerate(data.reports)
        ]
    return [Example(seen[i], text, pools["negative"][i], pools["positive"][i]) for i, text in enumerate(data.texts)]


def context_rows(config: R2GenCSRConfig, data: Studies, train: PhantomDataset) -> dict[str, np.ndarray]:
    """Which studies of `train` each study of `data` is compared with: {"negative", "positive"} -> (N, pairs).

    Never the study itself, nor one whose report says the same. RRGError where a pool is empty or too small.
    """
    rows = {sign: np.zeros((len(data), 0), int) for sign in SIGNS}
    if not config.pairs:
        return rows
    wanted = SIGNS if config.contexts == "both" else (config.contexts,)
    pools = {sign: np.flatnonzero(pool) for sign, pool in signs(config, train).items() if sign in wanted}
    for sign, pool in pools.items():
        if not len(pool):
            raise RRGError(f"no {sign} studies among the {len(train)} training studies: take more of them")
    if config.retrieval in ("keyword", "normal_by_mesh", "random"):
        return rows | {sign: _drawn(config, pool, data, train) for sign, pool in pools.items()}
    source = f"{config.encoder}-{config.size}-{weights_hash(config.encoder, config.size)}"
    reference = global_features(train.films, config.encoder, config.size)[: len(train)]
    known = standardised(reference, reference)
    asked = standardised(global_features(data.films, config.encoder, config.size)[: len(data)], reference)
    for sign, pool in pools.items():
        index = StudyIndex.build(
            [train.reports[r].id for r in pool], known[pool], source, [train.texts[r] for r in pool]
        )
        ids = [report.id for report in data.reports]
        rows[sign] = pool[index.search(asked, config.pairs, source, ids, data.texts).rows]
    return rows


def signs(config: R2GenCSRConfig, train: PhantomDataset) -> dict[str, np.ndarray]:
    """Which training studies count as normal ("negative") and as diseased ("positive"): (N,) bool each."""
    if config.retrieval == "same_set":
        return dict.fromkeys(SIGNS, np.ones(len(train), bool))
    if config.retrieval == "keyword":  # the released rule: case matters, and "denote" counts
        noted = np.array(["note" in report.findings for report in train.reports])
        return {"negative": ~noted, "positive": noted}
    # Studies whose annotation names only what is not drawn are neither.
    normal = np.array([report.normal for report in train.reports])
    return {"negative": normal, "positive": train.labels.any(1)}


def _drawn(config: R2GenCSRConfig, pool: np.ndarray, data: Studies, train: PhantomDataset) -> np.ndarray:
    """(N, pairs) studies drawn from a pool: once for all ("keyword", "normal_by_mesh") or for each study anew."""
    rng = np.random.default_rng([31, config.seed])
    order = rng.permutation(pool)
    out = []
    for report, text in zip(data.reports, data.texts, strict=True):
        if config.retrieval == "random":
            order = np.random.default_rng([32, config.seed, *report.id.encode()]).permutation(pool)
        fit = (r for r in order if train.reports[r].id != report.id and not says_the_same(train.texts[r], text))
        row = [r for r, _ in zip(fit, range(config.pairs), strict=False)]
        if len(row) < config.pairs:
            raise RRGError(f"pairs={config.pairs}, but only {len(row)} studies may be shown to {report.id}")
        out.append(row)
    return np.array(out, int)


def without_findings(data: Studies) -> Films:
    """The films of a split rendered again without any finding: same patients, poses, exposures and noise."""
    reports = getattr(indiana(), data.split) if data.split else data.reports
    return render_films([replace(report, mesh=()) for report in reports], data.size, conspicuity=data.conspicuity)


def _seen(config: R2GenCSRConfig, films: Films) -> np.ndarray:
    """What the model is given of each film: tokens (N, T, d), or for a trained encoder the films (N, H, W)."""
    return films.images if config.train_encoder else film_tokens(films, config.encoder, config.size)


# --- from the cache ---


def train_all(configs: Sequence[R2GenCSRConfig]) -> None:
    """Make sure that several models are in the cache, training on all cores what is missing."""
    for name in {config.llm for config in configs}:
        load_llm(name)
    for config in configs:  # what they share is made first, with all cores for each
        train = _train(config)
        composed = [_composed(config)] if config.composed_epochs and config.align_studies else []
        for data in (train, load_dataset("phantom", "val", config.size), *composed):
            examples(config, data, train)
    in_parallel(aligned, [_alignment(config) for config in configs if config.align_studies])
    in_parallel(trained_folder, configs)


def trained(config: R2GenCSRConfig) -> R2GenCSR:
    """The model of a configuration."""
    return R2GenCSR.load(trained_folder(config))


def _train(config: R2GenCSRConfig) -> PhantomDataset:
    return load_dataset("phantom", "train", config.size, config.train_reports)


def _composed(config: R2GenCSRConfig) -> RenderedStudies:
    return rendered_studies(alignment_studies(config.align_studies), config.size, config.seed)


def _alignment(config: R2GenCSRConfig) -> Alignment:
    return Alignment(
        config.size, config.encoder, config.llm, config.align_studies, config.align_epochs, seed=config.seed
    )


def trained_folder(config: R2GenCSRConfig) -> Path:
    """Folder of the model of a configuration, from the cache or trained now."""

    def train(folder: Path) -> tuple[R2GenCSR, History]:
        model = R2GenCSR(config)
        return model, model.prepare(_train(config), load_dataset("phantom", "val", config.size), folder)

    return stored.training("r2gencsr", config, train, _CODE, films=_train(config).films.key)


_CODE = [sys.modules[__name__], base, projector, retrieval, composed, rendered, synthetic, prompt, tiny, training]
