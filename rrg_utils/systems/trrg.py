"""TRRG (Wang et al., MICCAI 2025, arXiv 2408.12141): a frozen language model is told which diseases the film recalls.

    stage 1   film and one random sentence of its report: symmetric InfoNCE (Eq. 1)     `rrg_utils.systems.contrastive`
    stage 2   film -> frozen Swin -> v_e --mapper--> v_d  --self-attention--> V' --queries--> E^v
                                      \\--mean--> v_cls -- w = softmax(v_cls . c_cls) -- top K
              14 clue prompts -> frozen text encoder -> c_cls, c -----------+
                                                   c_s --self-attention--> C' --queries--> E^c
              [image: <v_d> <E^v> <E^c> findings:] -> frozen language model -> report
              L = L_CE + L_DC,  L_DC = - mean cos(E^v, E^c)

Choices that the paper leaves open, all ours:
- the text encoder is MiniLM, where the paper has ClinicalBERT (a departure, not a choice);
- the 14 names are the CheXpert observations, and the words in the slots stand in `CLUES`;
- v_cls is pooled before the mapper, in the space of stage 1, for only there is it comparable with c_cls;
- w is divided by `clue_temperature`: between unit vectors the printed softmax is flat. It moves no rank;
- what the language model reads: the visual tokens v_d in every arm, so that each arm has all that BASE has, and after
  them the clue tokens (+DCI) or E^v and E^c (+CMCI);
- L = `queries` learnable tokens; one cross-attention and one FFN for both streams; a residual and a layer norm around
  self-attention; the sum of Eq. 4 runs over the queries;
- the mapper is the aligned projector of the course (`rrg_utils.systems.projector`), where the paper has one linear map;
- before the real reports, stage 2 reads as many rendered studies with composed reports as the mapper was aligned on,
  in every arm. Notebook 06 shows what the true clues are worth to a model that read the 2,069 real ones alone;
- without stage 1 the two heads into the common space are random ones, so that clues are drawn by chance.
"""

import string
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from rrg_utils import training
from rrg_utils.data import composed, rendered, synthetic
from rrg_utils.data.abnormalities import ABNORMALITIES, OBSERVATION_OF
from rrg_utils.data.datasets import PhantomDataset, indiana, label_vector, load_dataset
from rrg_utils.data.rendered import RenderedStudies, rendered_studies
from rrg_utils.device import stacked
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, load_llm, prompt, prompt_loss, tiny
from rrg_utils.language.sentences import load_sentence_encoder
from rrg_utils.systems import base, contrastive, projector, stored
from rrg_utils.systems.base import GeneratedReport, ReportGenerator, in_parallel, loss_on
from rrg_utils.systems.contrastive import CommonSpace, ContrastConfig
from rrg_utils.systems.projector import Alignment, FilmProjector, aligned, aligned_projector, alignment_studies
from rrg_utils.training import FitOptions, History, fit

# --- clue prompts -----------------------------------------------------------------------------------------------------

TEMPLATE = "Clue: {severity} {disease} at {location}"
# Name of a clue -> severity, disease, location, in the words of the reports.
CLUES: dict[str, tuple[str, str, str]] = {
    "Enlarged Cardiomediastinum": ("mild", "tortuous or enlarged aorta", "the mediastinum"),
    "Cardiomegaly": ("mild", "cardiomegaly", "the heart"),
    "Lung Opacity": ("patchy", "opacity", "the lung"),
    "Lung Lesion": ("small", "nodule or mass", "the lung"),
    "Edema": ("mild", "pulmonary edema", "both lungs"),
    "Consolidation": ("focal", "airspace consolidation", "the lower lobe"),
    "Pneumonia": ("focal", "pneumonia", "the lower lobe"),
    "Atelectasis": ("mild", "atelectasis", "the lung base"),
    "Pneumothorax": ("small", "pneumothorax", "the lung apex"),
    "Pleural Effusion": ("small", "pleural effusion", "the costophrenic angle"),
    "Pleural Other": ("mild", "pleural thickening", "the lung apex"),
    "Fracture": ("old", "fracture", "the ribs"),
    "Support Devices": ("stable", "pacemaker, catheter or surgical clips", "the chest"),
    "No Finding": ("no", "acute disease", "the heart and lungs"),
}
NAMES = tuple(CLUES)
_SLOTS = {"severity", "disease", "location"}


def clue_prompts(names: Sequence[str] = NAMES, template: str = TEMPLATE) -> list[str]:
    """The prompt of each clue. RRGError for an unknown name, and for a template without the slot {disease}."""
    try:
        slots = {slot for _, slot, _, _ in string.Formatter().parse(template) if slot is not None}
    except ValueError as error:
        raise RRGError(f"clue template {template!r}: {error}") from error
    if "disease" not in slots or not slots <= _SLOTS:
        raise RRGError(
            f"clue template {template!r} needs the slot {{disease}}, and may have {{severity}}, {{location}}"
        )
    check_clues(names)
    words = [dict(zip(("severity", "disease", "location"), CLUES[name], strict=True)) for name in names]
    return [template.format(**each) for each in words]


def check_clues(names: Sequence[str]) -> None:
    """Refuse a name that is not one of the clues."""
    for name in names:
        if name not in CLUES:
            raise RRGError(f"unknown disease {name!r}; clues are: {', '.join(NAMES)}")


def shown(labels: np.ndarray) -> np.ndarray:
    """What films show in the names of the clues: labels (N, C) by `ABNORMALITIES` -> (N, 14) bool.

    "No Finding" where there is no other but a support device, as in the labels of texts.
    """
    labels = np.asarray(labels, bool)
    out = np.zeros((len(labels), len(NAMES)), bool)
    for column, name in enumerate(ABNORMALITIES):
        if OBSERVATION_OF[name]:
            out[:, NAMES.index(OBSERVATION_OF[name])] |= labels[:, column]
    disease = [i for i, name in enumerate(NAMES) if name not in ("Support Devices", "No Finding")]
    out[:, NAMES.index("No Finding")] = ~out[:, disease].any(1)
    return out


# --- configuration ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TRRGConfig:
    """The paper's switches, then ours. The defaults are the whole system; BASE is `dci=False, cmci=False`."""

    stage1: bool = True  # sentence-level contrastive pre-training (Eq. 1); the paper never leaves it out
    dci: bool = True  # disease clue injection
    cmci: bool = True  # cross-modal clue interaction (Eq. 2-3)
    dc_weight: float = 1.0  # of L_DC in Eq. 5, which has no weight; 0: without it
    k: int = 3  # clues injected
    injection: str = "top-k"  # "hadamard": all clues times their weights (Figure of the first version)
    # All values below are ours, but for heads = 8 and the frozen language model.
    clues: str = "zero-shot"  # controls: "random", "constant" (the commonest in training), "oracle" (what is shown)
    template: str = TEMPLATE
    clue_temperature: float = 0.07
    queries: int = 8  # L
    heads: int = 8
    text: str = "minilm"
    size: int = 128
    encoder: str = "swin"
    llm: str = "tiny"
    lora_rank: int | None = None
    stage1_epochs: int = 1
    stage1_composed: int = 1000
    stage1_pretrained: bool = True  # start the encoder from the committed weights
    stage1_seed: int = 0  # one stage 1 for all seeds of stage 2
    align_studies: int = 4000  # rendered studies that align the mapper; 0: it starts at random
    align_epochs: int = 5
    composed_epochs: int = 1  # passes of stage 2 over the studies of the alignment with composed reports
    train_reports: int | None = None  # None: all
    val_reports: int | None = None
    epochs: int = 1
    batch_size: int = 16
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.k <= len(NAMES):
            raise RRGError(f"k is {self.k}: there are {len(NAMES)} clues, so give 0 to {len(NAMES)}")
        for name, known in (
            ("injection", ("top-k", "hadamard")),
            ("clues", ("zero-shot", "random", "constant", "oracle")),
        ):
            if getattr(self, name) not in known:
                raise RRGError(f"{name} is {getattr(self, name)!r}: choose from {', '.join(known)}")
        if self.queries < 1 or self.heads < 1:
            raise RRGError(f"queries is {self.queries} and heads {self.heads}: give at least 1 of each")
        if not self.clue_temperature > 0:
            raise RRGError(f"clue_temperature is {self.clue_temperature}: give a positive one")
        clue_prompts(template=self.template)

    @property
    def contrast(self) -> ContrastConfig:
        """Stage 1 of this configuration; without it nothing of it is trained."""
        return ContrastConfig(
            size=self.size,
            encoder=self.encoder,
            pretrained=self.stage1_pretrained,
            train_encoder=self.stage1,
            text=self.text,
            reports=self.train_reports,
            composed=self.stage1_composed,
            epochs=self.stage1_epochs if self.stage1 else 0,
            seed=self.stage1_seed,
        )

    @property
    def alignment(self) -> Alignment:
        """What the mapper starts from, the same for all seeds."""
        return Alignment(self.size, self.encoder, self.llm, self.align_studies, self.align_epochs)


# --- the parts --------------------------------------------------------------------------------------------------------


class Clues:
    """The clue prompts as the frozen text encoder has them: `pooled` (m, d_t), `words` (m, r, d_t), `real` (m, r)."""

    def __init__(self, template: str, text: str):
        encoder = load_sentence_encoder(text)
        prompts = [each.lower() for each in clue_prompts(template=template)]
        self.pooled = torch.from_numpy(encoder.encode(prompts))
        self.words, self.real = encoder.words(prompts)

    def tokens(self, which: Sequence[int], factors: Tensor | None = None) -> Tensor:
        """c_s: the words of the chosen clues one after the other (k * r, d_t), each clue times its factor."""
        rows = [self.words[i][self.real[i]] for i in which]
        if factors is not None:
            rows = [row * factor for row, factor in zip(rows, factors.cpu(), strict=True)]
        return torch.cat(rows) if rows else self.words.new_zeros(0, self.words.shape[-1])


def top_k(weights: Tensor, k: int) -> list[list[int]]:
    """topk(w, k): for each row of weights (B, m) the clues with the k largest, largest first."""
    return weights.topk(k, dim=-1).indices.tolist()


class ClueInteraction(nn.Module):
    """CMCI: two streams of self-attention, read by the same learnable queries (Eq. 2-3).

    Visual tokens (B, n, d) -> E^v (B, L, d); clue tokens (B, c, d) with padding (B, c) -> E^c (B, L, d).
    """

    def __init__(self, width: int, queries: int, heads: int, scale: float):
        super().__init__()
        if width % heads:
            raise RRGError(f"{heads} heads do not divide the width {width} of the language model")
        self.queries = nn.Parameter(torch.randn(queries, width))  # E^e
        self.norms = nn.ModuleDict({stream: nn.LayerNorm(width) for stream in ("visual", "clue")})
        self.own = nn.ModuleDict(
            {stream: nn.MultiheadAttention(width, heads, batch_first=True) for stream in ("visual", "clue")}
        )
        self.cross = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )
        nn.init.constant_(self.ffn[-1].weight, scale)  # the size of word embeddings

    def forward(self, stream: str, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        """E of one stream, "visual" or "clue"."""
        x = self.norms[stream](tokens)
        x = x + self.own[stream](x, x, x, key_padding_mask=padding, need_weights=False)[0]  # Eq. 2: V' or C'
        queries = self.queries.expand(len(x), -1, -1)
        return self.ffn(self.cross(queries, x, x, key_padding_mask=padding, need_weights=False)[0])  # Eq. 3


def consistency_loss(e_v: Tensor, e_c: Tensor) -> Tensor:
    """L_DC of Eq. 4 for E^v and E^c (B, L, d): minus the mean cosine over queries and studies."""
    return -F.cosine_similarity(e_v, e_c, dim=-1).mean()


def _to_word_size(layer: nn.Linear, scale: float) -> None:
    """Outputs start at the size of word embeddings, so that the frozen model meets nothing outlandish."""
    with torch.no_grad():
        layer.weight.mul_(scale / 0.1)
        layer.bias.zero_()


# --- the system -------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """What is seen of a study and the answer; `clues` names the clues to inject instead of the chosen ones."""

    seen: np.ndarray  # tokens v_e (T, w) of the encoder after stage 1
    text: str
    prefix: str = ""
    clues: tuple[str, ...] | None = None


class Streams(NamedTuple):
    """What one batch is made of: visual tokens v_d (B, n, d), clue tokens (B lists of (c, d)), E^v (B, L, d), E^c
    (B', L, d) of the rows that have clues, weights w (B, m), and the clues injected in each row."""

    v_d: Tensor
    c_s: list[Tensor]
    e_v: Tensor | None
    e_c: Tensor | None
    rows: list[int]
    weights: Tensor
    injected: list[list[int]]


class TRRG(ReportGenerator):
    """Stage 2: visual mapper, clue injection, clue interaction, frozen language model."""

    Config = TRRGConfig

    def __init__(self, config: TRRGConfig):
        super().__init__(config)
        self.mapper = FilmProjector(self.llm, config.encoder, config.size, config.seed)
        self.clues = Clues(config.template, config.text)
        d_t = self.clues.words.shape[-1]
        # Frozen; `prepare` puts in what stage 1 learned.
        self.space = CommonSpace(len(self.mapper.spread), d_t, config.contrast.width, config.stage1_seed)
        self.space.requires_grad_(False)
        width, scale = self.llm.width, float(self.llm.model.get_input_embeddings().weight.std())
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            if config.dci:
                self.clue_mapper = nn.Sequential(nn.LayerNorm(d_t), nn.Linear(d_t, width))
                _to_word_size(self.clue_mapper[-1], scale)
            if config.cmci:
                self.interaction = ClueInteraction(width, config.queries, config.heads, scale)

    def clue_weights(self, v_e: Tensor) -> Tensor:
        """w (B, m) = softmax(v_cls . c_cls / temperature), v_cls the mean of the patch tokens v_e (B, T, w)."""
        v_cls = self.space.see(v_e.mean(1))
        c_cls = self.space.read(self.clues.pooled.to(v_e.device))
        return (v_cls @ c_cls.T / self.config.clue_temperature).softmax(-1)

    def streams(self, batch: Sequence[Example]) -> Streams:
        """Everything before the language model."""
        config, device = self.config, self.llm.device
        v_e = stacked([example.seen for example in batch], device)
        v_d = self.mapper(v_e)
        weights = self.clue_weights(v_e)
        injected, c_s = self._inject(batch, weights)
        c_s = [
            self.clue_mapper(tokens.to(device)) if len(tokens) else v_d.new_zeros(0, v_d.shape[-1]) for tokens in c_s
        ]
        e_v = e_c = None
        rows = [i for i, tokens in enumerate(c_s) if len(tokens)]
        if config.cmci:
            e_v = self.interaction("visual", v_d)
            if rows:
                padded = pad_sequence([c_s[i] for i in rows], batch_first=True)
                length = torch.tensor([len(c_s[i]) for i in rows], device=device)
                padding = torch.arange(padded.shape[1], device=device) >= length[:, None]
                e_c = self.interaction("clue", padded, padding)
        return Streams(v_d, c_s, e_v, e_c, rows, weights, injected)

    def _inject(self, batch: Sequence[Example], weights: Tensor) -> tuple[list[list[int]], list[Tensor]]:
        """Which clues each study gets, and their word vectors c_s."""
        if not self.config.dci:
            return [[] for _ in batch], [self.clues.tokens([]) for _ in batch]
        everything = list(range(len(NAMES)))
        hadamard = self.config.injection == "hadamard"
        chosen = [everything] * len(batch) if hadamard else top_k(weights, self.config.k)
        for i, example in enumerate(batch):
            if example.clues is not None:
                check_clues(example.clues)
                chosen[i] = [NAMES.index(name) for name in example.clues]
        if not hadamard:
            return chosen, [self.clues.tokens(which) for which in chosen]
        return chosen, [self.clues.tokens(which, own[which]) for which, own in zip(chosen, weights, strict=True)]

    def prompts(self, batch: Sequence[Example]) -> list[Prompt]:
        """`image: <v_d> <clue tokens, or E^v and E^c> findings: <prefix>` for each study."""
        return self._prompts(batch, self.streams(batch))

    def _prompts(self, batch: Sequence[Example], streams: Streams) -> list[Prompt]:
        out = []
        for i, example in enumerate(batch):
            parts = [streams.v_d[i]]
            if streams.e_v is not None:
                parts.append(streams.e_v[i])
                if i in streams.rows:
                    parts.append(streams.e_c[streams.rows.index(i)])
            elif len(streams.c_s[i]):
                parts.append(streams.c_s[i])
            out.append(Prompt("image:", *parts, f"findings: {example.prefix}".rstrip()))
        return out

    def loss(self, batch: Sequence[Example], word_dropout: float = 0.0) -> Tensor:
        """L = L_CE + L_DC (Eq. 5), the second times `dc_weight`."""
        streams = self.streams(batch)
        texts = [example.text for example in batch]
        loss = prompt_loss(self.llm, self._prompts(batch, streams), texts, word_dropout=word_dropout).mean
        if self.config.dc_weight and streams.e_c is not None:
            loss = loss + self.config.dc_weight * consistency_loss(streams.e_v[streams.rows], streams.e_c)
        return loss

    @torch.no_grad()
    def generate(self, batch: Sequence[Example], max_new_tokens: int = 90) -> list[GeneratedReport]:
        """Reports with their evidence: `weights` of all clues and the names of those `injected`, largest first."""
        written = super().generate(batch, max_new_tokens)
        out = []
        for k in range(0, len(batch), 256):
            streams = self.streams(batch[k : k + 256])
            rows = zip(written[k : k + 256], streams.weights.tolist(), streams.injected, strict=True)
            for report, row, which in rows:
                weights = dict(zip(NAMES, (round(w, 4) for w in row), strict=True))
                out.append(GeneratedReport(report.text, {"weights": weights, "injected": [NAMES[i] for i in which]}))
        return out

    def prepare(self, train: PhantomDataset, val: PhantomDataset | None = None, folder: Path | None = None) -> History:
        """Stage 2: mapper, clue mapper and interaction learn from composed and then real reports, the rest is frozen.

        The epoch with the lowest cross-entropy on the reports of `val` is kept, without `val` the last one.
        """
        config = self.config
        of_train, of_val = (examples(config, data) if data is not None else [] for data in (train, val))
        if config.align_studies:
            self.mapper.load_state_dict(aligned_projector(config.alignment))
        self.mapper.refer_to(seen(config, train))
        self.space.load_state_dict(contrastive.trained(config.contrast).space.state_dict())

        def learn(data: list[Example], name: str, epochs: int, validate: Callable | None = None) -> History:
            return fit(
                self,
                lambda model, batch: model.loss(batch),
                data,
                options=FitOptions(batch_size=config.batch_size, lr=config.lr, seed=config.seed, epochs=epochs),
                length=lambda example: len(example.text),
                validate=validate,
                folder=folder and folder / name,
                name=f"TRRG, stage 2 on {name} reports (seed {config.seed})",
            )

        if config.composed_epochs and config.align_studies:
            learn(examples(config, _composed(config)), "composed", config.composed_epochs)
        return learn(of_train, "real", config.epochs, loss_on(of_val))


Studies = PhantomDataset | RenderedStudies


def seen(config: TRRGConfig, data: Studies) -> np.ndarray:
    """Tokens v_e (N, T, w) of the films of a data set after stage 1."""
    return contrastive.tokens(data.films, config.contrast, len(data))


def examples(config: TRRGConfig, data: Studies) -> list[Example]:
    """The studies of a data set; the controls of clue choice name the clues, otherwise the model chooses."""
    tokens = seen(config, data)
    named = controls(config, data.labels)
    return [Example(tokens[i], text, clues=named and named[i]) for i, text in enumerate(data.texts)]


def controls(config: TRRGConfig, labels: np.ndarray) -> list[tuple[str, ...]] | None:
    """The clues that a control names for films with these labels (N, C); None where the model chooses."""
    if config.clues == "zero-shot" or not config.dci:
        return None
    there = shown(labels)
    if config.clues == "oracle":
        return [tuple(name for name, is_there in zip(NAMES, row, strict=True) if is_there) for row in there]
    if config.clues == "constant":
        train = indiana().train
        return [commonest(np.stack([label_vector(report) for report in train]), config.k)] * len(there)
    rng = np.random.default_rng([32, config.seed, len(there)])
    return [tuple(NAMES[i] for i in rng.permutation(len(NAMES))[: config.k]) for _ in there]


def commonest(labels: np.ndarray, k: int) -> tuple[str, ...]:
    """The k clues that films with these labels (N, C) show most often."""
    return tuple(NAMES[i] for i in np.argsort(-shown(labels).sum(0), kind="stable")[:k])


# --- trained systems from the cache -----------------------------------------------------------------------------------


def train_all(configs: Sequence[TRRGConfig]) -> None:
    """Make sure that several systems are in the cache, training on all cores what is missing."""
    prepare_shared(configs)
    in_parallel(trained_folder, configs)


def prepare_shared(configs: Sequence[TRRGConfig]) -> None:
    """What several systems share: language model, stage 1, aligned mapper."""
    for name in {config.llm for config in configs}:
        load_llm(name)
    in_parallel(contrastive.trained, [config.contrast for config in configs])
    in_parallel(aligned, [config.alignment for config in configs if config.align_studies])
    for config in {replace(config, seed=0) for config in configs}:  # tokens of the training and validation films
        for split, limit in (("train", config.train_reports), ("val", config.val_reports)):
            seen(config, load_dataset("phantom", split, config.size, limit))
        if config.composed_epochs and config.align_studies:
            seen(config, _composed(config))


def _composed(config: TRRGConfig) -> RenderedStudies:
    return rendered_studies(alignment_studies(config.align_studies), config.size, config.seed)


def trained_folder(config: TRRGConfig) -> Path:
    """Folder of the system of a configuration after both stages, from the cache or trained now."""

    def train(folder: Path) -> tuple[TRRG, History]:
        model = TRRG(config)
        reports = load_dataset("phantom", "train", config.size, config.train_reports)
        return model, model.prepare(reports, load_dataset("phantom", "val", config.size, config.val_reports), folder)

    text = load_sentence_encoder(config.text).digest
    return stored.training("trrg", config, train, _CODE, **{"text weights": text})


def trained(config: TRRGConfig) -> TRRG:
    """The system of a configuration after both stages."""
    return TRRG.load(trained_folder(config))


class Task(NamedTuple):
    """The reports of a system for a split; `k`, where given, is another number of clues than in training."""

    config: TRRGConfig
    split: str = "test"
    limit: int | None = None
    k: int | None = None
    max_new_tokens: int = 90


def written(task: Task) -> list[GeneratedReport]:
    """The reports of a task with their evidence, from the cache or written now."""
    return stored.reports(_written_folder(task))


def write_all(tasks: Sequence[Task]) -> None:
    """Make sure that the reports of several tasks are in the cache."""
    train_all([task.config for task in tasks])
    in_parallel(_written_folder, tasks)


def _written_folder(task: Task) -> Path:
    def write() -> list[GeneratedReport]:
        model = trained(task.config)
        if task.k is not None:
            model.config = replace(task.config, k=task.k)
        data = load_dataset("phantom", task.split, task.config.size, task.limit)
        return model.generate(examples(model.config, data), task.max_new_tokens)

    inputs = {"model": trained_folder(task.config).name} | dict(zip(Task._fields[1:], task[1:], strict=True))
    return stored.writing("trrg-reports", inputs, write)


_CODE = [sys.modules[__name__], base, contrastive, projector, composed, rendered, synthetic, prompt, tiny, training]
