"""LLaVA-TA (Cheng and Subramanian, ICLR 2026): a report is written topic by topic, each with its region in view.

    report  --decomposed-->  one sentence per topic      `rrg_utils.labels.topics`
    film I  --frozen Swin--> Z_I --projector--+
    film S  --frozen Swin--> Z_S --projector--+   S: I inside the topic's region, black outside
    [Given the image <Z_I> and the segmented part <Z_S>, describe the findings for the topic: organ-heart.]
            -> language model -> one sentence; the sentences of all topics asked for, joined, are the report

    stage 1   the projector alone (`rrg_utils.systems.projector`, shared by all systems of the course)
    stage 2   projector and LoRA, or the projector only: the paper's parameter-efficient setting, language model frozen

Three models by one switch: "narrative" writes the whole report from the film (the baseline, as LLaVA-Rad does), "T" is
given topics, "TA" topics and masks. Choices that the paper leaves open, all ours:
- the topics, their regions, and how reports are taken apart (`rrg_utils.labels.ontology`, `rrg_utils.labels.topics`);
- S is black outside the region. A topic without a region sees the whole film twice;
- "ground-truth disease topics" are those that the reference names, asserted or denied; `topics="asserted"` takes only
  the asserted ones. Organ and special topics are always asked for, as in the paper;
- a report's silence teaches something too: `silent` topics (disease or special) that it does not name are drawn for
  each training report and answered by their standard negative, or else a model never learns that devices may be absent;
- a special topic that is denied is left out of the report: nobody reports an absent pacemaker;
- sentences are joined in the order of the ontology, organs first, then diseases, then the rest;
- the topic classifier is one linear layer on the frozen encoder's tokens, trained in the same loop as the system.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data import composed, synthetic
from rrg_utils.data.anatomy import REGIONS
from rrg_utils.data.datasets import PhantomDataset, load_dataset
from rrg_utils.device import stacked
from rrg_utils.errors import RRGError
from rrg_utils.files import array_on_disk
from rrg_utils.labels import mentions, ontology, topics
from rrg_utils.labels.ontology import TOPICS
from rrg_utils.labels.topics import TopicSentence, decompose
from rrg_utils.language import Prompt, generate, load_llm, prompt, prompt_loss, tiny
from rrg_utils.metrics.baselines import derangement
from rrg_utils.systems import base, projector, stored
from rrg_utils.systems.base import GeneratedReport, ReportGenerator, in_parallel, loss_on
from rrg_utils.systems.projector import Alignment, FilmProjector, aligned, aligned_projector
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision import segmentation
from rrg_utils.vision.features import ENCODING, encode, film_tokens, weights_hash
from rrg_utils.vision.pretrain import load_encoder
from rrg_utils.vision.segmentation import SegmentationConfig, masked, predicted_masks, true_masks

# --- topics and what is seen of them ----------------------------------------------------------------------------------

DISEASES = tuple(name for name, topic in TOPICS.items() if topic.level == "disease")
ALWAYS = tuple(name for name, topic in TOPICS.items() if topic.level != "disease")  # asked of every film
_PLACE = {
    name: (("organ", "disease", "special").index(topic.level), number)
    for number, (name, topic) in enumerate(TOPICS.items())
}

Area = tuple[str, ...]  # the regions of a topic, merged into one mask; () is the whole film
_AREA = {name: tuple(region for region in REGIONS if region in topic.regions) for name, topic in TOPICS.items()}
AREAS: tuple[Area, ...] = tuple(dict.fromkeys(area for area in _AREA.values() if area))
# The control "wrong": the next area that shares no region with the right one.
WRONG: dict[Area, Area] = {
    area: next(other for other in AREAS[i:] + AREAS[:i] if not set(other) & set(area)) for i, area in enumerate(AREAS)
}


def area_of(topic: str) -> Area:
    """The regions in which a topic is looked for. RRGError for an unknown topic."""
    if topic not in TOPICS:
        raise RRGError(f"unknown topic {topic!r}; topics are: {', '.join(TOPICS)}")
    return _AREA[topic]


@lru_cache(maxsize=8192)
def taken_apart(text: str) -> tuple[TopicSentence, ...]:
    """The topic sentences of a report; decomposed once."""
    return tuple(decompose(text))


# --- configuration ----------------------------------------------------------------------------------------------------

MODELS = ("narrative", "T", "TA")
MASKS = ("true", "predicted", "full", "random", "wrong")
SELECTIONS = ("truth", "asserted", "predicted", "all", "reference")
WORDINGS = {  # without topic, with topic, with topic and segmented part
    "paper": (  # the paper's for TA; those of the other two are ours, after it
        ("Given the image", ", describe the findings."),
        ("Given the image", ", describe the findings for the topic: {topic}."),
        ("Given the image", "and the segmented part", ", describe the findings for the topic: {topic}."),
    ),
    "course": (
        ("image:", "findings:"),
        ("image:", "topic: {topic} findings:"),
        ("image:", "segmented part:", "topic: {topic} findings:"),
    ),
}


@dataclass(frozen=True)
class LlavaTAConfig:
    """The paper's switches, then ours. The defaults are LLaVA-TA with LoRA, true masks and ground-truth topics."""

    model: str = "TA"  # "narrative": whole reports, as LLaVA-Rad; "T": topics; "TA": topics and masks
    lora_rank: int | None = 16  # the paper's is 128; None: the language model is frozen, only the projector is trained
    masks: str = "true"  # or "predicted"; controls: "full" film twice, "random" patient's mask, "wrong" region
    # Which topics are asked for: always the organ and special ones, and of the diseases those of the "truth", only the
    # "asserted" ones, the "predicted" ones or "all"; "reference": exactly what the reference names (topic level).
    topics: str = "truth"
    # All values below are ours.
    wording: str = "paper"  # "course": the words that the tiny language model knows from its training
    silent: int = 1  # topics per training report that are answered by their standard negative, since it names them not
    classifier_weight: float = 1.0  # of the topic classifier's loss
    size: int = 128
    encoder: str = "swin"
    llm: str = "tiny"
    align_studies: int = 4000  # rendered studies that align the projector; 0: it starts at random
    align_epochs: int = 5
    unet_reports: int | None = None  # films from which the U-Net of the predicted masks learns; None: all
    train_reports: int | None = None  # None: all
    val_reports: int | None = 100  # for the validation loss
    epochs: int = 1
    batch_size: int = 32  # sentences; the narrative model takes half as many reports
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("model", MODELS),
            ("masks", MASKS),
            ("topics", SELECTIONS),
            ("wording", tuple(WORDINGS)),
        ):
            if getattr(self, name) not in known:
                raise RRGError(f"{name} is {getattr(self, name)!r}: choose from {', '.join(known)}")
        if self.silent < 0:
            raise RRGError(f"silent is {self.silent}: give 0 or more topics")

    @property
    def alignment(self) -> Alignment:
        """Stage 1, the same for all arms and seeds."""
        return Alignment(self.size, self.encoder, self.llm, self.align_studies, self.align_epochs)

    @property
    def unet(self) -> SegmentationConfig:
        """What predicts masks."""
        return SegmentationConfig(self.size, reports=self.unet_reports)

    @property
    def by_topic(self) -> bool:
        return self.model != "narrative"


# --- what a model is given --------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One answer: what is seen, and the sentence of one topic, or the whole report where `topic` is None."""

    seen: np.ndarray  # tokens Z_I (T, w) of the film
    text: str
    topic: str | None = None
    part: np.ndarray | None = None  # tokens Z_S (T, w) of the segmented film
    named: tuple[str, ...] = ()  # all topics that the study's report names: what the classifier learns
    prefix: str = ""


class Case(NamedTuple):
    """A study to be reported: tokens of its film, of its segmented film for each area, and the true topic sentences,
    of which a model reads no more than which topics there are, and only where `topics` says so."""

    seen: np.ndarray
    parts: Mapping[Area, np.ndarray] = {}  # read only
    reference: tuple[TopicSentence, ...] = ()


class LlavaTA(ReportGenerator):
    """Projector and language model over the tokens of a film and of its segmented part."""

    Config = LlavaTAConfig

    def __init__(self, config: LlavaTAConfig):
        super().__init__(config)
        self.projector = FilmProjector(self.llm, config.encoder, config.size, config.seed)
        if config.by_topic:
            self.classifier = TopicClassifier(len(self.projector.spread))

    # --- prompts ---

    def prompts(self, batch: Sequence[Example]) -> list[Prompt]:
        """The prompt of each example; a film that several examples share is projected once."""
        return self._prompts(batch, self._visual([e.seen for e in batch]), self._visual(self._parts(batch)))

    def _prompts(self, batch: Sequence[Example], image: Sequence[Tensor], part: Sequence[Tensor]) -> list[Prompt]:
        out = []
        for k, example in enumerate(batch):
            seen = [image[k]] + ([part[k]] if len(part) else [])
            *before, last = WORDINGS[self.config.wording][MODELS.index(self.config.model)]
            words = [piece for pair in zip(before, seen, strict=True) for piece in pair]
            out.append(Prompt(*words, f"{last.format(topic=example.topic)} {example.prefix}".rstrip()))
        return out

    def _parts(self, batch: Sequence[Example]) -> list[np.ndarray]:
        """Tokens Z_S of each example; none where the model has no second image."""
        for example in batch:
            if self.config.by_topic and example.topic is None:
                raise RRGError(f"the model {self.config.model} writes about topics: an example has none")
        if self.config.model != "TA":
            return []
        for example in batch:
            if example.part is None:
                raise RRGError(f"topic {example.topic}: no tokens of the segmented film, which the model TA needs")
        return [example.part for example in batch]

    def _visual(self, tokens: Sequence[np.ndarray]) -> list[Tensor]:
        """Visual tokens of each film (T / 4, d); what is one and the same array goes through the projector once."""
        unique = {id(each): each for each in tokens}
        if not unique:
            return []
        films = stacked(list(unique.values()), self.llm.device)
        projected = dict(zip(unique, self.projector(films), strict=True))
        return [projected[id(each)] for each in tokens]

    def loss(self, batch: Sequence[Example], word_dropout: float = 0.0) -> Tensor:
        """Cross-entropy of the answers, and for topic models that of the classifier beside it."""
        loss = super().loss(batch, word_dropout)
        if self.config.by_topic and self.config.classifier_weight:
            wanted = torch.tensor([[topic in example.named for topic in TOPICS] for example in batch]).float()
            logits = self.topic_logits([example.seen for example in batch])
            loss = loss + self.config.classifier_weight * F.binary_cross_entropy_with_logits(
                logits, wanted.to(logits.device)
            )
        return loss

    # --- which topics ---

    def topic_logits(self, seen: Sequence[np.ndarray]) -> Tensor:
        """(B, topics): does a report of this film name the topic? By the classifier on the frozen tokens."""
        return self.classifier(self.projector.relative(stacked(seen, self.llm.device)))

    @torch.no_grad()
    def asked(self, cases: Sequence[Case]) -> list[list[str]]:
        """The topics that are asked of each case (`LlavaTAConfig.topics`), in the order of the report."""
        how = self.config.topics
        if how == "predicted":
            likely = self.topic_logits([case.seen for case in cases]) > self.classifier.threshold
            chosen = [
                {name for name, is_likely in zip(TOPICS, row, strict=True) if is_likely} for row in likely.tolist()
            ]
        elif how == "all":
            chosen = [set(DISEASES)] * len(cases)
        else:
            chosen = [
                {told.topic for told in case.reference if how != "asserted" or told.polarity == mentions.PRESENT}
                for case in cases
            ]
        if how != "reference":
            chosen = [{name for name in each if name in DISEASES} | set(ALWAYS) for each in chosen]
        return [sorted(each, key=_PLACE.get) for each in chosen]

    # --- reports ---

    @torch.no_grad()
    def generate(self, batch: Sequence[Case], max_new_tokens: int = 90) -> list[GeneratedReport]:
        """Reports with their evidence: `topics` asked, `sentences` written, `regions` looked at, one of each per topic.

        All topics of all cases are written in common batches; a film is projected once. `max_new_tokens` is the limit
        of the whole report of the narrative model and of each sentence of a topic model. A case of which no topic is
        asked gets an empty report.
        """
        self.eval()
        if not self.config.by_topic:
            texts = self.write([Example(case.seen, "") for case in batch], max_new_tokens)
            return [GeneratedReport(text, {"topics": [], "sentences": [], "regions": []}) for text in texts]
        topics = self.asked(batch) if len(batch) else []
        asked = [
            Example(case.seen, "", topic, self._part(case, topic))
            for case, own in zip(batch, topics, strict=True)
            for topic in own
        ]
        sentences = iter(self.write(asked, max_new_tokens))
        return [report_of(own, [next(sentences) for _ in own]) for own in topics]

    @torch.no_grad()
    def write(self, batch: Sequence[Example], max_new_tokens: int = 90) -> list[str]:
        """What the model answers to each example's prompt (greedy)."""
        prompts = [prompt for k in range(0, len(batch), 256) for prompt in self.prompts(batch[k : k + 256])]
        return generate(self.llm, prompts, max_new_tokens=max_new_tokens)

    def _part(self, case: Case, topic: str) -> np.ndarray | None:
        if self.config.model != "TA":
            return None
        area = area_of(topic)
        if not area or self.config.masks == "full":
            return case.seen
        if area not in case.parts:
            raise RRGError(f"topic {topic}: the case has no film segmented to {' + '.join(area)}")
        return case.parts[area]

    def heat(self, batch: Sequence[Example]) -> np.ndarray:
        """Where the film speaks for the text of each example: (B, g, g), not negative, rows from the top.

        Gradient of the text's log-likelihood in the tokens of both films, times the tokens' difference from the mean
        film, in absolute value, summed over width and films. The paper draws attention; gradients are ours.
        """
        self.eval()
        with torch.enable_grad():
            leaves = [
                stacked(films, self.llm.device).requires_grad_()
                for films in ([example.seen for example in batch], self._parts(batch))
                if films
            ]
            visual = [list(self.projector(leaf)) for leaf in leaves]
            prompts = self._prompts(batch, visual[0], visual[1] if len(visual) > 1 else [])
            nll = prompt_loss(self.llm, prompts, [example.text for example in batch]).nll.sum()
            gradients = torch.autograd.grad(nll, leaves)
        with torch.no_grad():
            heat = sum(
                (g * (leaf - self.projector.mean)).sum(-1).abs() for g, leaf in zip(gradients, leaves, strict=True)
            )
        side = round(heat.shape[1] ** 0.5)
        return heat.reshape(-1, side, side).cpu().numpy()

    # --- training ---

    def prepare(self, train: PhantomDataset, val: PhantomDataset | None = None, folder: Path | None = None) -> History:
        """Stage 1 from the shared projector, then stage 2; the epoch with the lowest loss on `val` is kept.

        Without `val` it is the last one, and the thresholds of the topics are set on the training films.
        """
        config = self.config
        if config.align_studies:
            self.projector.load_state_dict(aligned_projector(config.alignment))
        else:
            self.projector.refer_to(film_tokens(train.films, config.encoder, config.size))
        of_train, of_val = (examples(config, data) if data is not None else [] for data in (train, val))
        history = fit(
            self,
            lambda model, batch: model.loss(batch),
            of_train,
            options=FitOptions(
                epochs=config.epochs,
                batch_size=config.batch_size if config.by_topic else max(1, config.batch_size // 2),
                lr=config.lr,
                seed=config.seed,
            ),
            length=lambda example: len(example.text),
            validate=loss_on(of_val),
            folder=folder,
            name=f"LLaVA-TA, stage 2: {config.model} (seed {config.seed})",
        )
        if config.by_topic:
            self._set_thresholds(of_train, of_val or of_train)
        return history

    @torch.no_grad()
    def _set_thresholds(self, of_train: Sequence[Example], of_val: Sequence[Example]) -> None:
        """Ask for a topic as often on held-out films as the training reports name it (our choice)."""
        share = (
            torch.tensor([[topic in named for topic in TOPICS] for named in _studies(of_train).values()])
            .float()
            .mean(0)
        )
        logits = self.topic_logits([each for _, each in _seen(of_val)]).cpu()
        levels = [torch.quantile(column, 1 - float(s)) for column, s in zip(logits.T, share, strict=True)]
        self.classifier.threshold.copy_(torch.stack(levels))


class TopicClassifier(nn.Module):
    """Mean and largest value of the tokens (B, T, w) -> one logit per topic; `threshold` decides."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, len(TOPICS)))
        nn.init.zeros_(self.layers[1].weight)
        nn.init.constant_(self.layers[1].bias, -2.0)
        self.register_buffer("threshold", torch.zeros(len(TOPICS)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(torch.cat([tokens.mean(1), tokens.amax(1)], -1))


def report_of(asked: Sequence[str], sentences: Sequence[str]) -> GeneratedReport:
    """One report of the sentences written for the topics asked; special topics that are denied are left out."""
    kept = [
        sentence if sentence.rstrip().endswith((".", "!", "?")) else f"{sentence}."
        for topic, sentence in zip(asked, sentences, strict=True)
        if sentence and not (TOPICS[topic].level == "special" and sentence.lower() == TOPICS[topic].negative.lower())
    ]
    regions = [" + ".join(area_of(topic)) or "whole film" for topic in asked]
    return GeneratedReport(" ".join(kept), {"topics": list(asked), "sentences": list(sentences), "regions": regions})


# --- from studies to examples -----------------------------------------------------------------------------------------


def examples(config: LlavaTAConfig, data: PhantomDataset) -> list[Example]:
    """What a model is trained on: one example per report, or per topic of a report and `silent` ones beside."""
    seen = film_tokens(data.films, config.encoder, config.size)[: len(data)]
    films = [seen[i] for i in range(len(data))]
    if not config.by_topic:
        return [Example(film, text) for film, text in zip(films, data.texts, strict=True)]
    rng = np.random.default_rng(41)  # the same for every seed, which thus share the tokens of the segmented films
    rows = []  # (study, topic, sentence)
    for i, text in enumerate(data.texts):
        told = taken_apart(text)
        rows += [(i, each.topic, each.sentence) for each in told]
        if told:  # a report of which nothing is recognised teaches nothing, not even silence
            named = {each.topic for each in told}
            rest = [name for name, topic in TOPICS.items() if topic.level != "organ" and name not in named]
            for name in rng.permutation(rest)[: config.silent].tolist():
                rows.append((i, name, TOPICS[name].negative))
    pairs = list(dict.fromkeys((i, area_of(topic)) for i, topic, _ in rows))
    parts = segmented(config, data, pairs) if config.model == "TA" else {}
    names = [tuple(each.topic for each in taken_apart(text)) for text in data.texts]
    return [
        Example(films[i], sentence, topic, parts.get((i, area_of(topic)), films[i]), names[i])
        for i, topic, sentence in rows
    ]


def cases(config: LlavaTAConfig, data: PhantomDataset) -> list[Case]:
    """The studies of a data set to be reported, with the film segmented to every area that a topic has."""
    seen = film_tokens(data.films, config.encoder, config.size)[: len(data)]
    parts = {}
    if config.model == "TA":
        parts = segmented(config, data, [(i, area) for i in range(len(data)) for area in AREAS])
    return [
        Case(seen[i], {area: parts[i, area] for area in AREAS if (i, area) in parts}, taken_apart(text))
        for i, text in enumerate(data.texts)
    ]


def segmented(
    config: LlavaTAConfig, data: PhantomDataset, pairs: Sequence[tuple[int, Area]]
) -> dict[tuple[int, Area], np.ndarray]:
    """Tokens Z_S (T, w) of films segmented to areas, for pairs of (index of the film, area): from the cache or encoded
    now. What is masked, and by whose mask, follows from `config.masks`; the whole film, (), is left out.
    """
    pairs = [(i, area) for i, area in pairs if area]
    if config.masks == "full" or not pairs:
        return {}
    masks = predicted_masks(data, config.unet) if config.masks == "predicted" else true_masks(data)
    other = derangement(len(data)) if config.masks == "random" else np.arange(len(data))

    def make(folder: Path) -> None:
        model = load_encoder(config.encoder, config.size)
        out = array_on_disk(folder / "tokens.npy", np.float16, (len(pairs), model.grid**2, model.width))
        for k in range(0, len(pairs), 64):
            films = []
            for i, area in pairs[k : k + 64]:
                area = WRONG[area] if config.masks == "wrong" else area
                films.append(masked(data.images[i], masks.area(other[i], area)))
            out[k : k + 64] = encode(model, np.stack(films))
        out.flush()

    inputs = {
        "films": data.films.key,
        "masks": masks.key,
        "which": config.masks,
        "pairs": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
        "areas": [list(area) for area in AREAS] if config.masks == "wrong" else None,
        "weights": weights_hash(config.encoder, config.size),
    }
    folder = artifact("segmented-tokens", inputs, make, code=ENCODING)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    return dict(zip(pairs, tokens, strict=True))


_encoder_of = lru_cache(maxsize=2)(load_encoder)


def read_film(
    model: LlavaTA, image: np.ndarray, regions: Mapping[str, np.ndarray], asked: Sequence[str] = tuple(TOPICS)
) -> Case:
    """A film (H, W) that no data set holds, with the masks (H, W) of its regions: encoded in one batch, the whole film
    once and each area of the topics `asked` once.

    RRGError for a mask of another size, and for an area whose region is missing.
    """
    areas = ()
    if model.config.model == "TA" and model.config.masks != "full":
        areas = tuple(dict.fromkeys(area for topic in asked if (area := area_of(topic))))
    films = [np.asarray(image)]
    for area in areas:
        missing = [name for name in area if name not in regions]
        if missing:
            raise RRGError(f"no mask of the region {missing[0]!r}, which topics need; there are: {', '.join(regions)}")
        films += [masked(image, np.any([regions[name] for name in area], axis=0))]
    tokens = encode(_encoder_of(model.config.encoder, model.config.size), np.stack(films))
    return Case(tokens[0], dict(zip(areas, tokens[1:], strict=True)))


def _seen(batch: Sequence[Example]) -> list[tuple[int, np.ndarray]]:
    """The films of examples, each once."""
    return list({id(example.seen): example.seen for example in batch}.items())


def _studies(batch: Sequence[Example]) -> dict[int, tuple[str, ...]]:
    """The topics that the report of each film names."""
    return {id(example.seen): example.named for example in batch}


# --- trained systems from the cache -----------------------------------------------------------------------------------


def train_all(configs: Sequence[LlavaTAConfig]) -> None:
    """Make sure that several models are in the cache, training on all cores what is missing."""
    prepare_shared(configs)
    in_parallel(trained_folder, [_in_training(config) for config in configs])


def prepare_shared(configs: Sequence[LlavaTAConfig]) -> None:
    """What several models share: language model, aligned projector, masks, tokens of the segmented films."""
    for name in {config.llm for config in configs}:
        load_llm(name)
    in_parallel(aligned, [config.alignment for config in configs if config.align_studies])
    for split in ("train", "val"):
        in_parallel(
            _Examples(split), [replace(_in_training(c), lora_rank=None, wording="paper", seed=0) for c in configs]
        )


class _Examples(NamedTuple):
    """Makes the examples of a configuration, for the sake of the tokens that they leave in the cache."""

    split: str

    def __call__(self, config: LlavaTAConfig) -> None:
        limit = config.train_reports if self.split == "train" else config.val_reports
        examples(config, load_dataset("phantom", self.split, config.size, limit))


def _in_training(config: LlavaTAConfig) -> LlavaTAConfig:
    """Which topics are asked for plays no part in training."""
    return replace(config, topics="truth")


def trained_folder(config: LlavaTAConfig) -> Path:
    """Folder of the model of a configuration after both stages, from the cache or trained now."""
    config = _in_training(config)

    def train(folder: Path) -> tuple[LlavaTA, History]:
        model = LlavaTA(config)
        reports = load_dataset("phantom", "train", config.size, config.train_reports)
        return model, model.prepare(reports, load_dataset("phantom", "val", config.size, config.val_reports), folder)

    return stored.training("llava-ta", config, train, _CODE)


def trained(config: LlavaTAConfig) -> LlavaTA:
    """The model of a configuration after both stages."""
    model = LlavaTA.load(trained_folder(config))
    model.config = config
    return model


def history(config: LlavaTAConfig) -> dict:
    """How its training went (`rrg_utils.training.History`)."""
    return stored.history(trained_folder(config))


FILMS = ("real", "black", "another")


class Task(NamedTuple):
    """The reports of a model for a split. `masks`, where given, are others than those it was trained with; `film` is
    what it is shown: the real films, black ones, or another patient's (asked for the same topics)."""

    config: LlavaTAConfig
    split: str = "test"
    limit: int | None = None
    masks: str | None = None
    hospital: str = "standard"
    film: str = "real"
    max_new_tokens: int = 60


def written(task: Task) -> list[GeneratedReport]:
    """The reports of a task with their evidence, from the cache or written now."""
    return stored.reports(_written_folder(task))


def write_all(tasks: Sequence[Task]) -> None:
    """Make sure that the reports of several tasks are in the cache."""
    train_all([task.config for task in tasks])
    in_parallel(_shown, [_views(task) for task in tasks])
    in_parallel(_written_folder, tasks)


def _shown(task: Task) -> list[Case]:
    """The cases of a task; what is slow about them stays in the cache."""
    config = replace(task.config, masks=task.masks or task.config.masks)
    real = cases(config, load_dataset("phantom", task.split, config.size, task.limit, hospital=task.hospital))
    return instead(real, task.film, config)


def instead(real: Sequence[Case], film: str, config: LlavaTAConfig) -> list[Case]:
    """The same studies with other films: "black" ones (segmented, they are black as well) or "another" patient's, with
    that patient's segmented films. RRGError for an unknown kind of film.
    """
    if film not in FILMS:
        raise RRGError(f"film is {film!r}: choose from {', '.join(FILMS)}")
    if film == "black":
        (dark,) = encode(load_encoder(config.encoder, config.size), np.zeros((1, config.size, config.size), np.uint8))
        return [case._replace(seen=dark, parts=dict.fromkeys(case.parts, dark)) for case in real]
    if film == "another":
        return [
            case._replace(seen=real[k].seen, parts=real[k].parts)
            for case, k in zip(real, derangement(len(real)), strict=True)
        ]
    return list(real)


def _views(task: Task) -> Task:
    """The same task for every model that is shown the same."""
    config = LlavaTAConfig(
        task.config.model,
        masks=task.masks or task.config.masks,
        size=task.config.size,
        encoder=task.config.encoder,
        unet_reports=task.config.unet_reports,
    )
    return Task(config, task.split, task.limit, hospital=task.hospital)


def _written_folder(task: Task) -> Path:
    def write() -> list[GeneratedReport]:
        model = trained(task.config)
        model.config = replace(task.config, masks=task.masks or task.config.masks)
        return model.generate(_shown(task), task.max_new_tokens)

    inputs = {
        "model": trained_folder(task.config).name,
        "topics": task.config.topics,
        **dict(zip(Task._fields[1:], task[1:], strict=True)),
    }
    return stored.writing("llava-ta-reports", inputs, write, [sys.modules[__name__], segmentation])


_CODE = [
    sys.modules[__name__],
    base,
    projector,
    segmentation,
    mentions,
    ontology,
    topics,
    composed,
    synthetic,
    prompt,
    tiny,
    training,
]
