"""One bench for every system: the same test films, the same scores, the same questions about what a report rests on.

    measure("radscr", seed=0)            # results/bench/radscr/cpu-seed0.json, unless it is there and still true
    rows = table("cpu")                  # one row per system in results/bench, for pandas.DataFrame
    tests = pairs("cpu", "film F1")      # every system against every other, corrected

A system is a black box here, films in and reports out (`rrg_utils.readers`), so that all are asked alike:

- scores: text overlap, the grid of clinical F1, facts, and facts against the film;
- image dependence: what the own film is worth over a black one and over another patient's (`derangement`);
- counterfactual: a finding that a report names and its film shows is taken out of the patient, who is rendered again
  the same in all else: does the naming die, and do the other true findings that were named stay?
- diversity: distinct reports and sentences;
- cost: trained weights, training seconds, reports per second, memory.

The counterfactual measure is ours. A naming that dies proves little where everything changes at random, hence its
control and `excess`, the share that dies beyond the share of others that vanish.
"""

import json
import math
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrg_utils import claims, readers, runner
from rrg_utils.artifacts import MANIFEST, NotBuilt, key_of
from rrg_utils.data import annotation
from rrg_utils.data.annotation import asserted_facts, film_facts
from rrg_utils.data.datasets import SPLITS, PhantomDataset, indiana, load_dataset
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import XXXX_POLICY, Report, clean, sentences
from rrg_utils.errors import RRGError
from rrg_utils.files import write_atomically
from rrg_utils.labels import facts as _facts
from rrg_utils.labels import labeller, mentions
from rrg_utils.language import prompt
from rrg_utils.metrics import baselines, clinical, conventions, evaluation, statistics, text
from rrg_utils.metrics.baselines import derangement
from rrg_utils.metrics.clinical import ce_abn, clinical_f1, clinical_grid, f1, fact_f1, film_fact_f1
from rrg_utils.metrics.evaluation import evaluate
from rrg_utils.metrics.statistics import Statistic, holm, mean, paired_difference
from rrg_utils.readers import Reader, System, Told, system
from rrg_utils.systems import aggregate
from rrg_utils.vision import segmentation
from rrg_utils.vision.features import weights_hash

COUNTED = ("fact F1", "CE F1", "film F1")  # with counts for every report: these can be tested in pairs
FILMS = ("black", "another")
FEWEST = 10  # studies for an interval over studies; ours, set after a run whose narrow interval rested on four findings


class Sizes(NamedTuple):
    """How much is measured: test `reports` (None: all), counterfactual `cases` at most, `timed` reports, bootstrap
    `resamples` and as many permutations, and whether `meteor` is started (where there is Java)."""

    reports: int | None
    cases: int
    timed: int
    resamples: int
    meteor: bool = True


SIZES = {"smoke": Sizes(24, 12, 8, 50, meteor=False), "cpu": Sizes(None, 300, 64, 1000)}


# --- one system -------------------------------------------------------------------------------------------------------


def measure(name: str, seed: int = 0, profile: str = "cpu", results: Path | None = None) -> Path:
    """Measure a system and keep the result, numbers only and no text, in `bench` below `results`; returns the file.

    `results` None: the `claims.destination`. Nothing is done where that file, or the one in the course's results, was
    made by the same model, code, films and sizes. The model is trained first if it is not in the cache. What it needs
    in memory is measured in a process of its own, where all the rest happens too; the file appears when everything is
    done, or not at all. RRGError for an unknown system or profile.
    """
    it = system(name)
    path, committed = (
        folder(each) / name / f"{profile}-seed{seed}.json" for each in (results or claims.destination(), None)
    )
    key = _key(it, seed, profile)
    for kept in (path, committed):
        if kept.exists() and _read(kept).get("key") == key:
            return kept
    _train(it, seed, profile)
    # Spawned, not forked: a copy of this process would have its memory.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            found = pool.submit(_in_own_process, name, seed, profile).result()
        except BrokenProcessPool:
            raise RRGError(f"measuring {name}: its process died, most often for lack of memory") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, _json({"key": key, "system": name, "title": it.title} | found) + "\n")


def summary(path: Path) -> str:
    """A measurement in one line."""
    run = _read(path)
    shown = {
        "CE F1": run["scores"]["F1-rule micro-14"]["value"],
        "fact F1": run["scores"]["fact F1"]["value"],
        "film F1": run["scores"]["film fact F1"]["value"],
        "film F1 over black": run["image dependence"]["black"]["worth"]["film F1"]["value"],
    }
    numbers = ", ".join(f"{name} {math.nan if value is None else value:.3f}" for name, value in shown.items())
    rate = run["cost"]["reports per second"]
    return f"{run['system']:14} seed {run['seed']}: {numbers}, {run['studies']} reports, {rate:.3g} a second"


def folder(results: Path | None = None) -> Path:
    """Where measurements are kept, one folder per system; `results` None: in the course's results, which are shown."""
    return (results or claims.RESULTS) / "bench"


def sizes(profile: str) -> Sizes:
    """The sizes of a profile. RRGError for an unknown one."""
    if profile not in SIZES:
        raise runner.unknown("profile of the bench", profile, list(SIZES))
    return SIZES[profile]


def _key(it: System, seed: int, profile: str) -> str:
    config, how = it.config(seed, profile), sizes(profile)
    try:
        model = it.folder(config)
        model = model and model.name
    except NotBuilt as missing:
        model = missing.key
    inputs = {
        "system": it.name,
        "config": asdict(config),
        "longest": it.longest and readers.parameters(it.notebook, profile)[it.longest],
        "model": model,
        "films": load_dataset("phantom", "test", config.size).films.key,
        "encoder": weights_hash(config.encoder, config.size),
        "texts": [clean(report.findings) for split in SPLITS for report in getattr(indiana(), split)],
        "sizes": list(how),
    }
    return key_of("bench", inputs, _CODE)


# What is measured with; the code of a model is in the model's own key.
_CODE = [
    sys.modules[__name__],
    readers,
    aggregate,
    annotation,
    baselines,
    clinical,
    conventions,
    evaluation,
    _facts,
    labeller,
    mentions,
    prompt,
    segmentation,
    statistics,
    text,
]


def _train(it: System, seed: int, profile: str) -> None:
    """Train what is missing, here and not in the process whose memory is measured."""
    config = it.config(seed, profile)
    try:
        it.folder(config)
    except NotBuilt:
        it.trained(config)


def _in_own_process(name: str, seed: int, profile: str) -> dict:
    """Everything that is measured of a system, in this process."""
    it, how = system(name), sizes(profile)
    config = it.config(seed, profile)
    data = load_dataset("phantom", "test", config.size, how.reports)
    reader = it.open(config, profile=profile)
    cost = {"parameters": reader.parameters, **training(it.folder(config)), **speed(reader, data, how.timed)}
    return {"seed": seed, "profile": profile, "config": asdict(config)} | measured(reader, data, how) | {"cost": cost}


def measured(reader: Reader, data: PhantomDataset, how: Sizes) -> dict:
    """Scores, counts, image dependence, counterfactual grounding and diversity of a reader on test studies."""
    texts = write(reader, data.images, Told(data.reports, data.reports))
    return {
        "studies": len(data),
        "films": data.films.key,
        **scores(texts, data, how.resamples, how.meteor),
        "image dependence": image_dependence(reader, data, texts, how.resamples),
        "counterfactual": counterfactual(reader, data, texts, how.cases, how.resamples),
        "diversity": diversity(texts),
    }


def write(reader: Reader, films: np.ndarray, told: Told) -> list[str]:
    """The texts of the reports."""
    return [report.text for report in reader.write(films, told)]


def counted(texts: Sequence[str], data: PhantomDataset) -> dict[str, Statistic]:
    """The scores that can be tested in pairs (`COUNTED`): (tp, fp, fn) for each report."""
    found = fact_f1(texts, data.texts), clinical_f1(texts, data.texts), film_fact_f1(texts, data.reports)
    return dict(zip(COUNTED, found, strict=True))


def scores(texts: Sequence[str], data: PhantomDataset, resamples: int = 1000, meteor: bool = True) -> dict:
    """All scores with intervals (`scores`, `CE grid`), and the `counts` of every report."""
    found = {}
    for score in evaluate(texts, data.texts, XXXX_POLICY, preset="r2gen_iu", meteor_score=meteor, resamples=resamples):
        if score.value is None:
            found[score.name] = {"value": None, "reason": score.reason}
        else:
            numbers = {"value": score.value, **score.interval._asdict()}
            found[score.name] = _json_ready(numbers) | {"signature": score.signature}
    counts = counted(texts, data)
    found["film fact F1"] = _valued(counts["film F1"], resamples)
    found["CE-Abn"] = _valued(ce_abn(texts, data.texts), resamples)
    grid = {str(cell): _valued(value, resamples) for cell, value in clinical_grid(texts, data.texts).items()}
    return {
        "scores": found,
        "CE grid": grid,
        "counts": {name: each.counts.astype(int).tolist() for name, each in counts.items()},
    }


def image_dependence(reader: Reader, data: PhantomDataset, texts: Sequence[str], resamples: int = 1000) -> dict:
    """What the own film is worth (score with it minus score without), and the share of reports that stay to the letter.

    "black": black films, which show nothing. "another": another patient's. A system that is told the study's true
    topics is told the same ones, so that nothing but the film differs; the template is told what the film shows.
    """
    other = derangement(len(data))
    shown = {
        "black": (np.zeros_like(data.images), [replace(report, mesh=()) for report in data.reports]),
        "another": (data.images[other], [data.reports[i] for i in other]),
    }
    real, out = counted(texts, data), {}
    for name, (films, drawn) in shown.items():
        instead = write(reader, films, Told(drawn, data.reports))
        worth = {
            metric: _json_ready(paired_difference(real[metric], value, n=resamples, permutations=resamples)._asdict())
            for metric, value in counted(instead, data).items()
        }
        same = mean([float(a == b) for a, b in zip(texts, instead, strict=True)])
        out[name] = {"worth": worth, "unchanged": _valued(same, resamples)}
    return out


class Case(NamedTuple):
    """A finding to be taken out: the row of its study, its class (`VISIBLE`), the annotation without it, and the other
    findings that are named and true."""

    row: int
    finding: str
    without: Report
    others: frozenset[str]


def cases(texts: Sequence[str], reports: Sequence[Report], limit: int) -> list[Case]:
    """Every finding that a text asserts and its film shows, or `limit` of them, always the same ones."""
    found = []
    for row, (said, report) in enumerate(zip(texts, reports, strict=True)):
        true = {fact.name for fact in asserted_facts(said)} & {fact.name for fact in film_facts(report)}
        for finding in sorted(true):
            found.append(Case(row, finding, without(report, finding), frozenset(true - {finding})))
    order = np.random.default_rng(51).permutation(len(found))[:limit]
    return [found[i] for i in sorted(order)]


def without(report: Report, finding: str) -> Report:
    """The report with an annotation that lacks one class of `VISIBLE`; nothing else is different on its film."""

    def shows(one) -> bool:
        return finding in {fact.name for fact in film_facts(replace(report, mesh=(one,)))}

    return replace(report, mesh=tuple(one for one in report.mesh if not shows(one)))


def counterfactual(
    reader: Reader, data: PhantomDataset, texts: Sequence[str], limit: int, resamples: int = 1000
) -> dict:
    """Does the naming of a finding die with the finding? Shares over findings, with intervals over studies, whose
    findings share a film and a first report.

    "died": of the findings taken out, those that the new report no longer asserts. "others stay": of the other true
    findings that the first report named, those that the new one still does. "excess": died - (1 - others stay).
    None where no finding was named rightly; the last two also where the others belong to fewer than `FEWEST` studies:
    a bootstrap does not know the spread of so few.
    """
    found = cases(texts, data.reports, limit)
    if not found:
        return {"findings": 0, "died": None, "others": 0, "others stay": None, "excess": None}
    renderer = PhantomRenderer(data.size, data.conspicuity)
    drawn = [case.without for case in found]
    films = np.stack([np.round(renderer.render(report).image * 255).astype(np.uint8) for report in drawn])
    again = write(reader, films, Told(drawn, [data.reports[case.row] for case in found]))
    counts = np.zeros((len(data), 4))
    for case, said in zip(found, again, strict=True):
        named = {fact.name for fact in asserted_facts(said)}
        counts[case.row] += case.finding not in named, 1, len(case.others & named), len(case.others)
    counts = counts[counts[:, 1] > 0]
    enough = np.count_nonzero(counts[:, 3]) >= FEWEST
    return {
        "findings": len(found),
        "died": _valued(Statistic(counts, _died), resamples),
        "others": int(counts[:, 3].sum()),
        "others stay": _valued(Statistic(counts, _stay), resamples) if enough else None,
        "excess": _valued(Statistic(counts, lambda sums: _died(sums) + _stay(sums) - 1), resamples) if enough else None,
    }


def _died(sums: np.ndarray) -> np.ndarray:
    return statistics.ratio(sums[..., :2])


def _stay(sums: np.ndarray) -> np.ndarray:
    return statistics.ratio(sums[..., 2:])


def diversity(texts: Sequence[str]) -> dict:
    """Distinct reports, as a share of all, and distinct sentences; upper and lower case count as the same."""
    distinct = {text.lower() for text in texts}
    parts = {part.strip().lower() for text in distinct for part in sentences(text)}
    return {"distinct reports": len(distinct) / len(texts), "distinct sentences": len(parts)}


# --- cost -------------------------------------------------------------------------------------------------------------


def training(trained: Path | None) -> dict:
    """Seconds of training from the history in the cache, and of making all that is in the folder (which includes a
    first pass over rendered studies, where there is one); None where nothing was trained. Shared parts do not count."""
    out = {"training seconds": None, "building seconds": None}
    if trained is not None:
        out["training seconds"] = json.loads((trained / "history.json").read_text())["seconds"]
        out["building seconds"] = json.loads((trained / MANIFEST).read_text())["seconds"]
    return out


def speed(reader: Reader, data: PhantomDataset, count: int) -> dict:
    """Reports per second, encoding included, and the most memory that this process ever had (MB)."""
    import torch

    count = min(count, len(data))
    told = Told(data.reports[:count], data.reports[:count])
    reader.write(data.images[:2], Told(data.reports[:2], data.reports[:2]))  # what is loaded at the first call
    start = time.perf_counter()
    reader.write(data.images[:count], told)
    seconds = time.perf_counter() - start
    return {
        "reports per second": count / seconds,
        "timed reports": count,
        "threads": torch.get_num_threads(),
        "device": reader.device,
        "peak memory MB": peak_memory(),
    }


def peak_memory() -> float:
    """The most memory that this process ever had, in MB (10^6 bytes)."""
    try:
        # Not `ru_maxrss`: on Linux a new process starts with its parent's.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


# --- all systems ------------------------------------------------------------------------------------------------------


def runs(profile: str = "cpu", results: Path | None = None) -> dict[str, list[dict]]:
    """system -> its kept measurements in order of seed, systems in the order of `SYSTEMS`. RRGError if there are none,
    or if they are not of the same films. `results` None: the course's."""
    found: dict[str, list[dict]] = {}
    for name in readers.SYSTEMS:
        paths = (folder(results) / name).glob(f"{profile}-seed*.json")
        kept = sorted((_read(path) for path in paths), key=lambda run: run["seed"])
        if kept:
            found[name] = kept
    if not found:
        raise RRGError(f"nothing is measured at the profile {profile}: rrg bench --commit --profile {profile} does it")
    if len({(run["films"], run["studies"]) for kept in found.values() for run in kept}) > 1:
        raise RRGError(
            f"{runner.show(folder(results))} mixes films or numbers of studies: measure them alike (rrg bench --commit)"
        )
    return found


_COLUMNS = {  # column -> where it is kept; what has an interval gets columns "low" and "high" too
    **{
        name: ("scores", name)
        for name in ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "F1-rule micro-14", "F1-rule macro-14")
    },
    "fact F1": ("scores", "fact F1"),
    "film fact F1": ("scores", "film fact F1"),
    "CE-Abn": ("scores", "CE-Abn"),
    **{
        f"{metric}, own film - {film}": ("image dependence", film, "worth", metric)
        for film in FILMS
        for metric in COUNTED
    },
    **{f"unchanged, {film}": ("image dependence", film, "unchanged") for film in FILMS},
    "findings taken out": ("counterfactual", "findings"),
    "naming died": ("counterfactual", "died"),
    "others stay": ("counterfactual", "others stay"),
    "excess": ("counterfactual", "excess"),
    "distinct reports": ("diversity", "distinct reports"),
    "distinct sentences": ("diversity", "distinct sentences"),
    "trained parameters": ("cost", "parameters"),
    "training seconds": ("cost", "building seconds"),  # all passes, over rendered studies too
    "reports per second": ("cost", "reports per second"),
    "peak memory MB": ("cost", "peak memory MB"),
}


def table(profile: str = "cpu", results: Path | None = None) -> list[dict]:
    """One row per measured system, for `pandas.DataFrame`: `system`, `title`, `seeds` and all that was measured.

    A value is the mean over training seeds, with " sd" between them where there are several; " low" and " high" are the
    means of the seeds' 95 % intervals, so they speak of the spread between test reports for one training,
    not of that between trainings. NaN where a system has no such value (no METEOR without Java, no training, no finding
    named). `results`: see `runs`.
    """
    return [
        {"system": name, "title": kept[0]["title"], "seeds": len(kept), "studies": kept[0]["studies"]}
        | {column: value for at in _COLUMNS.items() for column, value in _cells(*at, kept).items()}
        for name, kept in runs(profile, results).items()
    ]


def rerun(profile: str = "cpu") -> list[dict]:
    """The `table` of the run in `results/rerun`, which made everything but the image encoders once more; empty where
    that run measured nothing at the profile, or nothing on the films of `runs`."""
    results = claims.RESULTS / "rerun"
    if not any(folder(results).glob(f"*/{profile}-seed*.json")):
        return []
    first, second = (next(iter(runs(profile, of).values()))[0] for of in (None, results))
    same = (first["films"], first["studies"]) == (second["films"], second["studies"])
    return table(profile, results) if same else []


def _cells(column: str, place: Sequence[str], kept: Sequence[dict]) -> dict[str, float]:
    each = []
    for run in kept:
        for step in place:
            run = run.get(step) if run is not None else None  # METEOR may be left out as a whole
        each.append(run)
    intervals = any(isinstance(found, dict) and "low" in found for found in each)
    out = {}
    for suffix, part in {"": "value", " low": "low", " high": "high"}.items() if intervals else {"": "value"}.items():
        values = [found.get(part) if isinstance(found, dict) else found for found in each]
        values = [math.nan if value is None else float(value) for value in values]
        out[column + suffix] = float(np.mean(values))
        if not suffix and len(values) > 1:
            out[f"{column} sd"] = float(np.std(values, ddof=1))
    return out


class Pair(NamedTuple):
    """`first` minus `second`, its paired bootstrap interval, p of the paired permutation test, and p after Holm."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def pairs(profile: str = "cpu", metric: str = "film F1", permutations: int = 10_000) -> list[Pair]:
    """Every measured system against every other in one of `COUNTED`, with Holm's correction over all these tests.

    Seeds are pooled: the counts of a report are averaged over a system's seeds, which makes its score the F1 of all its
    seeds' decisions together. The unit is the test report: its two rows of counts are swapped in permutations and drawn
    together in the bootstrap. So a test asks whether the systems as trained differ on other reports; it does not count
    the spread between trainings (`table` shows it). RRGError for another metric and for fewer than two systems.
    """
    if metric not in COUNTED:
        raise runner.unknown("metric with counts", metric, COUNTED)
    pooled = {
        name: Statistic(np.mean([run["counts"][metric] for run in kept], axis=0), f1)
        for name, kept in runs(profile).items()
    }
    if len(pooled) < 2:
        raise RRGError(f"only {next(iter(pooled))} is measured at the profile {profile}: a pair needs two systems")
    names = list(combinations(pooled, 2))
    found = [paired_difference(pooled[a], pooled[b], permutations=permutations) for a, b in names]
    corrected = holm([difference.p for difference in found])
    return [Pair(a, b, *difference, p_holm) for (a, b), difference, p_holm in zip(names, found, corrected, strict=True)]


# --- files ------------------------------------------------------------------------------------------------------------


def _valued(statistic: Statistic, resamples: int) -> dict:
    interval = statistic.bootstrap(resamples)
    return _json_ready({"value": statistic.value, "low": interval.low, "high": interval.high})


def _json_ready(numbers: dict[str, float]) -> dict[str, float | None]:
    """Rounded to six digits after the point; NaN becomes None, which JSON can write."""
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in numbers.items()}


def _json(content: dict) -> str:
    """Readable JSON; the counts in one line per metric."""
    counts = content["counts"]
    lines = json.dumps(content | {"counts": dict.fromkeys(counts, "")}, indent=1, allow_nan=False)
    for metric, rows in counts.items():
        lines = lines.replace(f'"{metric}": ""', f'"{metric}": {json.dumps(rows, separators=(",", ":"))}')
    return lines


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RRGError(f"{runner.show(path)} is damaged ({error}): delete it and run rrg bench") from error
