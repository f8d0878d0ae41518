"""Every system as a function from film pixels to reports, by name: what the bench measures and `rrg report` asks.

    reader = SYSTEMS["radscr"].open(SYSTEMS["radscr"].config(seed=0, profile="cpu"))
    reader.write(films)                                                  # (N, 128, 128) uint8 -> N reports

A configuration is put together from the parameters cell of the notebook that trains the system, so that bench and
notebook share what is in the cache. Films may come from anywhere. Two systems are told more than a film, as their
papers or their purpose have it, and need `Told`: LLaVA-TA in its paper's setting, and the template.

What is ours: nothing of a film is known but its pixels, hence R2GenCSR may be shown a training study whose report says
the same as the one to be written (the notebook bars it by its text); and R2GenCSR alone needs the training films at
hand when it writes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import yaml
from torch.nn import Module

from rrg_utils import runner
from rrg_utils.artifacts import key_of, only_from_cache
from rrg_utils.data.datasets import load_dataset
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import Report, clean
from rrg_utils.errors import RRGError
from rrg_utils.metrics import baselines
from rrg_utils.retrieval import StudyIndex, standardised
from rrg_utils.systems import contrastive, llava_ta, narrative, r2gencsr, radscr, trrg
from rrg_utils.systems.base import GeneratedReport
from rrg_utils.systems.llava_ta import LlavaTAConfig
from rrg_utils.systems.narrative import NarrativeConfig
from rrg_utils.systems.r2gencsr import R2GenCSRConfig
from rrg_utils.systems.radscr import RadSCRConfig
from rrg_utils.systems.trrg import TRRGConfig
from rrg_utils.vision import segmentation
from rrg_utils.vision.features import encode, film_tokens
from rrg_utils.vision.pretrain import load_encoder

# What takes minutes to make: entries of the cache that hold trained weights.
TRAINED = ("narrative", "projector", "r2gencsr", "trrg", "contrast", "llava-ta", "radscr", "unet", "tiny-lm")


class Told(NamedTuple):
    """What a system may be told beside a film. `drawn`: the annotation that each film was rendered from; `asked`: the
    study whose report is wanted. They differ where a study is given another film than its own."""

    drawn: Sequence[Report]
    asked: Sequence[Report]


class Reader:
    """A system ready to write. `size`: pixels a side of its films; `parameters`: how many weights were trained."""

    parameters: int = 0
    model: Module | None = None  # what writes; it is left where it was loaded

    def __init__(self, size: int) -> None:
        self.size = size

    @property
    def device(self) -> str:
        """The kind of device that writes: "cpu", "cuda"."""
        weights = self.model.parameters() if self.model is not None else ()
        return next((weight.device.type for weight in weights), "cpu")

    def write(self, films: np.ndarray, told: Told | None = None) -> list[GeneratedReport]:
        """A report with its evidence for each film (N, size, size) uint8. The same films give the same reports.

        RRGError for films of another shape or type, and where a system needs to be told more and is not.
        """
        films = np.asarray(films)
        if films.ndim != 3 or films.shape[1:] != (self.size, self.size) or films.dtype != np.uint8:
            raise RRGError(
                f"films are {films.dtype} {films.shape}: expected uint8 (N, {self.size}, {self.size}), "
                "see rrg_utils.data.pictures.fit"
            )
        if told is not None and not len(told.drawn) == len(told.asked) == len(films):
            raise RRGError(f"{len(films)} films, but told of {len(told.drawn)} and asked for {len(told.asked)}")
        return self.reports(films, told) if len(films) else []

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        """What `write` gives, for films that are in order."""
        raise NotImplementedError


def _trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# --- the five systems -------------------------------------------------------------------------------------------------


class NarrativeReader(Reader):
    """Film -> tokens of the frozen encoder -> the whole report."""

    def __init__(self, config: NarrativeConfig, longest: int) -> None:
        super().__init__(config.size)
        self.model, self.longest = narrative.trained(config), longest
        self.encoder = load_encoder(config.encoder, config.size)
        self.parameters = _trainable(self.model)

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        examples = [narrative.Example(tokens, "") for tokens in encode(self.encoder, films)]
        return self.model.generate(examples, self.longest)


class R2GenCSRReader(Reader):
    """Film -> tokens, and the training films that are nearest to it -> the report."""

    def __init__(self, config: R2GenCSRConfig, longest: int) -> None:
        super().__init__(config.size)
        if (config.retrieval, config.contexts) != ("nearest", "both") or config.train_encoder:
            raise RRGError("this reader is for the paper's idea: nearest contexts of both signs, frozen encoder")
        self.model, self.longest = r2gencsr.trained(config), longest
        self.encoder = load_encoder(config.encoder, config.size)
        self.parameters = _trainable(self.model)
        self.train = load_dataset("phantom", "train", config.size, config.train_reports)
        self.known = film_tokens(self.train.films, config.encoder, config.size)
        self.reference = np.asarray(self.known[: len(self.train)], np.float32).mean(1)
        vectors = standardised(self.reference, self.reference)
        self.pools = {sign: np.flatnonzero(pool) for sign, pool in r2gencsr.signs(config, self.train).items()}
        for sign, pool in self.pools.items():
            if len(pool) < config.pairs:
                raise RRGError(f"{len(pool)} {sign} training studies are too few for {config.pairs} pairs")
        self.index = {
            sign: StudyIndex.build([self.train.reports[r].id for r in pool], vectors[pool], "films")
            for sign, pool in self.pools.items()
        }

    def examples(self, films: np.ndarray) -> list[r2gencsr.Example]:
        """Films with their contexts, as `r2gencsr.examples` finds them for studies of which nothing is known."""
        tokens = encode(self.encoder, films)
        asked = standardised(tokens.astype(np.float32).mean(1), self.reference)
        pairs = self.model.config.pairs
        contexts = {sign: [()] * len(films) for sign in r2gencsr.SIGNS}
        for sign in r2gencsr.SIGNS if pairs else ():
            rows = self.pools[sign][self.index[sign].search(asked, pairs, "films").rows]
            contexts[sign] = [
                tuple(r2gencsr.Context(self.train.reports[r].id, self.known[r]) for r in line) for line in rows
            ]
        return [
            r2gencsr.Example(seen, "", *own)
            for seen, *own in zip(tokens, *(contexts[sign] for sign in r2gencsr.SIGNS), strict=True)
        ]

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        return self.model.generate(self.examples(films), self.longest)

    def film_of(self, study: str) -> np.ndarray:
        """The film (H, W) uint8 of a training study by its id."""
        return self.train.images[[report.id for report in self.train.reports].index(study)]


class TRRGReader(Reader):
    """Film -> tokens of the encoder after stage 1 -> clues -> the report. Stage 1 counts among the parameters."""

    def __init__(self, config: TRRGConfig, longest: int) -> None:
        super().__init__(config.size)
        self.model, self.longest = trrg.trained(config), longest
        first = contrastive.trained(config.contrast)
        self.encoder = first.encoder
        learnt = first if config.contrast.train_encoder else first.space
        self.parameters = _trainable(self.model) + sum(p.numel() for p in learnt.parameters())

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        examples = [trrg.Example(tokens, "") for tokens in encode(self.encoder, films)]
        return self.model.generate(examples, self.longest)


class LlavaReader(Reader):
    """Film -> topics -> for each, the film and its segmented part -> a sentence.

    `at_test`: how topics and masks are had, which may be otherwise than in training. Topics of the "truth" are those
    that the reference of the study names, whatever its film shows; true masks are those of the film.
    """

    def __init__(self, config: LlavaTAConfig, longest: int, at_test: Mapping[str, str]) -> None:
        super().__init__(config.size)
        self.model, self.longest = llava_ta.trained(config), longest
        self.model.config = replace(config, **at_test)
        self.parameters = _trainable(self.model)
        looks = self.model.config.model == "TA" and self.model.config.masks == "predicted"
        self.unet = segmentation.trained(config.unet) if looks else None

    def regions(self, films: np.ndarray, told: Told | None = None) -> list[dict[str, np.ndarray]]:
        """The masks (H, W) of the regions of each film; none where the model looks at no part."""
        config = self.model.config
        if config.model != "TA":
            return [{} for _ in films]
        if config.masks == "predicted":
            masks = segmentation.predict(self.unet, films)
        else:
            masks = _true_masks(_told(told, "true masks").drawn, self.size)
        return [dict(zip(segmentation.NAMES, masks[i], strict=True)) for i in range(len(films))]

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        cases = [
            llava_ta.read_film(self.model, film, regions)
            for film, regions in zip(films, self.regions(films, told), strict=True)
        ]
        if self.model.config.topics == "truth":
            asked = _told(told, "true topics").asked
            cases = [
                case._replace(reference=llava_ta.taken_apart(clean(report.findings)))
                for case, report in zip(cases, asked, strict=True)
            ]
        return self.model.generate(cases, self.longest)


def _told(told: Told | None, what: str) -> Told:
    if told is None:
        raise RRGError(f"this system needs {what}: it reads studies whose annotation is known, no mere films")
    return told


def _true_masks(drawn: Sequence[Report], size: int) -> segmentation.Masks:
    renderer = PhantomRenderer(size)

    class Drawn:
        """As much of a data set as `true_masks` asks for."""

        films = SimpleNamespace(key=key_of("drawn", {"studies": [[r.id, *map(str, r.mesh)] for r in drawn]}))

        def __len__(self) -> int:
            return len(drawn)

        def phantom(self, index: int, without: Sequence[str]):
            return renderer.render(drawn[index], "frontal", without=without)

    Drawn.size = size
    return segmentation.true_masks(Drawn())


class RadSCRReader(Reader):
    """Film -> hypotheses with regions -> criticised sentences."""

    def __init__(self, config: RadSCRConfig) -> None:
        super().__init__(config.size)
        self.model = radscr.trained(config)
        self.encoder = load_encoder(config.encoder, config.size)
        self.parameters = _trainable(self.model)

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        return self.model.generate([radscr.Example(tokens) for tokens in encode(self.encoder, films)])


# --- the five baselines -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaselineConfig:
    """What the trivial report writers need (`rrg_utils.metrics.baselines`)."""

    size: int = 128
    encoder: str = "swin"
    candidates: int = 270
    seed: int = 0


class BaselineReader(Reader):
    """A trivial report writer: `how` turns films (and what is told of them) into texts."""

    def __init__(self, config: BaselineConfig, how: Callable[..., list[str]]) -> None:
        super().__init__(config.size)
        self.config, self.how = config, how

    def reports(self, films: np.ndarray, told: Told | None) -> list[GeneratedReport]:
        return [GeneratedReport(text, {}) for text in self.how(self, films, told)]

    @cached_property
    def texts(self) -> list[str]:
        return load_dataset("phantom", "train", self.size).texts

    @cached_property
    def pooled(self) -> np.ndarray:
        """(M, d): the mean tokens of the training films."""
        train = load_dataset("phantom", "train", self.size)
        return np.asarray(film_tokens(train.films, self.config.encoder, self.size), np.float32).mean(1)

    @cached_property
    def best(self) -> str:
        """The report that serves best for all validation studies."""
        val = load_dataset("phantom", "val", self.size).texts
        return baselines.constant_report(self.texts, val, candidates=self.config.candidates, seed=self.config.seed)

    def constant(self, films, told) -> list[str]:
        return [self.best] * len(films)

    def random(self, films, told) -> list[str]:
        """By the place of a film among the films and the seed: never by what it shows."""
        return baselines.random_reports(self.texts, len(films), self.config.seed)

    def nearest(self, films, told) -> list[str]:
        features = encode(load_encoder(self.config.encoder, self.size), films).astype(np.float32).mean(1)
        return baselines.nearest_neighbours(self.pooled, self.texts, features)

    def shuffled(self, films, told) -> list[str]:
        return baselines.shuffled(self.nearest(films, told), self.config.seed)

    def template(self, films, told) -> list[str]:
        return baselines.templates(_told(told, "the annotation").drawn)


# --- by name ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """A system by its name.

    `notebook`: the number of the one that trains it and whose parameters it has; `changes`: what its arm there sets
    beside them. `told`: it needs to be told more than a film. `trained`: configuration -> folder of the trained system
    in the cache (none: nothing is trained); these functions of the systems are private because a change of their
    modules, even of a name, would cost every reader the whole training.
    """

    name: str
    title: str
    notebook: str
    Config: type
    reader: Callable[..., Reader]
    longest: str | None = None  # the parameter that limits the tokens of an answer
    changes: Mapping[str, object] = field(default_factory=dict)
    trained: Callable[[object], Path] | None = None
    told: bool = False

    def config(self, seed: int = 0, profile: str = "cpu"):
        """The configuration of the notebook at a profile."""
        known = parameters(self.notebook, profile)
        shared = {each.name: known[each.name] for each in fields(self.Config) if each.name in known}
        return self.Config(**(shared | {"seed": seed} | dict(self.changes)))

    def open(self, config=None, *, profile: str = "cpu") -> Reader:
        """The system ready to write; trained now if it is not in the cache. `profile` limits the length of answers."""
        config = self.config(profile=profile) if config is None else config
        if self.longest is None:
            return self.reader(config)
        return self.reader(config, longest=parameters(self.notebook, profile)[self.longest])

    def folder(self, config) -> Path | None:
        """Where the trained system lies in the cache, or None for a system that is not trained. Raises
        `rrg_utils.artifacts.NotBuilt` where it is not there yet: nothing is trained."""
        if self.trained is None:
            return None
        with only_from_cache(TRAINED):
            return self.trained(config)


def notebook(number: str) -> Path:
    """The notebook with a number, also one that is still a draft."""
    root = runner.project_dir()
    for name in ("notebooks", "drafts"):
        for path in sorted((root / name).glob(f"{number}_*.ipynb")):
            return path
    raise RRGError(f"no notebook {number} in {root}: run inside a whole checkout of the course")


def _settings(number: str) -> tuple[Path, dict]:
    path = notebook(number)
    return path, yaml.safe_load((path.parent / "profiles.yml").read_text())


def parameters(number: str, profile: str = "cpu") -> dict[str, object]:
    """The parameters of a notebook at a profile. RRGError for an unknown profile."""
    if profile not in runner.profiles():
        raise runner.unknown("profile", profile, list(runner.profiles()))
    path, settings = _settings(number)
    overrides = (settings["profiles"].get(profile) or {}).get(path.stem) or {}
    return runner.declared_parameters(path) | overrides


def minutes(number: str) -> float | None:
    """Minutes of a notebook on two cores, as `profiles.yml` has it."""
    path, settings = _settings(number)
    return (settings.get("minutes") or {}).get(path.stem)


def system(name: str) -> System:
    """A system by its name. RRGError, with the closest name, for an unknown one."""
    if name not in SYSTEMS:
        raise runner.unknown("system", name, list(SYSTEMS))
    return SYSTEMS[name]


def _llava(**at_test: str) -> Callable[..., Reader]:
    return partial(LlavaReader, at_test=at_test)


def _baseline(how: Callable[..., list[str]]) -> Callable[..., Reader]:
    return partial(BaselineReader, how=how)


_LLAVA = {
    "notebook": "07",
    "Config": LlavaTAConfig,
    "longest": "max_sentence_tokens",
    "trained": llava_ta.trained_folder,
}
_TRIVIAL = {"notebook": "02", "Config": BaselineConfig}

SYSTEMS: dict[str, System] = {
    each.name: each
    for each in (
        System(
            "narrative",
            "Narrative VLM",
            "03",
            NarrativeConfig,
            NarrativeReader,
            "max_new_tokens",
            trained=narrative.trained_folder,
        ),
        System(
            "r2gencsr",
            "R2GenCSR",
            "05",
            R2GenCSRConfig,
            R2GenCSRReader,
            "max_new_tokens",
            trained=r2gencsr.trained_folder,
        ),
        System(
            "trrg",
            "TRRG",
            "06",
            TRRGConfig,
            TRRGReader,
            "max_new_tokens",
            trained=trrg.trained_folder,
        ),
        System(
            "llava_t",
            "LLaVA-T, from the film alone",
            reader=_llava(topics="predicted"),
            changes={"model": "T", "lora_rank": 16},
            **_LLAVA,
        ),
        System("llava_ta_truth", "LLaVA-TA, true topics and masks", reader=_llava(topics="truth"), told=True, **_LLAVA),
        System(
            "llava_ta",
            "LLaVA-TA, from the film alone",
            reader=_llava(topics="predicted", masks="predicted"),
            **_LLAVA,
        ),
        System(
            "radscr",
            "RadSCR",
            "08",
            RadSCRConfig,
            RadSCRReader,
            trained=radscr.trained_folder,
        ),
        System("constant", "Constant report", reader=_baseline(BaselineReader.constant), **_TRIVIAL),
        System("random", "Random training report", reader=_baseline(BaselineReader.random), **_TRIVIAL),
        System("nearest", "Nearest neighbour's report", reader=_baseline(BaselineReader.nearest), **_TRIVIAL),
        System("shuffled", "Nearest neighbour, shuffled", reader=_baseline(BaselineReader.shuffled), **_TRIVIAL),
        System("template", "Template (oracle)", reader=_baseline(BaselineReader.template), told=True, **_TRIVIAL),
    )
}
