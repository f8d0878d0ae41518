"""How the cost of each stage grows with the number of studies, and what it would be for every image of MIMIC-CXR.

    python benchmarks/scaling.py [--sizes 250 500 1000 2000 2955] [--most 1000] [--llm tiny] [--no-save]

Stages: films rendered at 128 px; films encoded by the frozen Swin; an exact index of their global vectors built, and
searched for three neighbours of every study; one pass of training of the narrative model with LoRA; reports written.
The last two are measured up to `--most` reports, which keeps the whole within some ten minutes of one core.

Each stage runs for each size in a fresh process, after a little of it for warming up. Times are the processor's
seconds, so that a busy machine hardly counts; the peak of memory is what the stage adds to what its process held
before. Growth is the slope of log seconds against log studies. Results go to results/benchmarks/scaling.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import numpy as np
import torch

from rrg_utils.data import anatomy, indiana
from rrg_utils.data.datasets import _render
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import clean
from rrg_utils.data.synthetic import caption
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, generate, load_llm
from rrg_utils.retrieval import StudyIndex, standardised
from rrg_utils.systems.narrative import Example, NarrativeConfig, NarrativeVLM
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision.features import encode
from rrg_utils.vision.pretrain import load_encoder

MIMIC = 377_110  # images of MIMIC-CXR
PX, BATCH, NEIGHBOURS, NEW_TOKENS = 128, 64, 3, 60
SOON = 0.5  # seconds that a measurement lasts at least: shorter ones are repeated


def studies(count: int) -> list:
    """The first reports of the cohort, training reports first."""
    split = indiana()
    return [*split.train, *split.val, *split.test][:count]


# --- stages: each prepares in the folder what it needs, and returns what is to be measured ----------------------------


def render(count: int, folder: Path, llm: str) -> Callable[[], object]:
    renderer = PhantomRenderer(PX, 1.0, anatomy.PATIENTS)
    chosen = studies(count)
    for report in chosen[: anatomy.PATIENTS]:  # reads the patients, compiles
        renderer.render(report)
    films = folder / f"films-{count}"
    films.mkdir()
    return lambda: _render(films, chosen, renderer, "frontal", 0, False)


def _films(count: int, folder: Path) -> np.ndarray:
    largest = max(folder.glob("films-*"), key=lambda path: int(path.name.split("-")[1]))
    return np.load(largest / "images.npy", mmap_mode="r")[:count]


def encode_films(count: int, folder: Path, llm: str) -> Callable[[], object]:
    model, films = load_encoder("swin", PX), _films(count, folder)
    encode(model, films[:BATCH])
    out = np.lib.format.open_memmap(
        folder / f"tokens-{count}.npy", "w+", np.float16, (count, model.grid**2, model.width)
    )

    def call() -> None:
        for k in range(0, count, BATCH):
            out[k : k + BATCH] = encode(model, films[k : k + BATCH])
        out.flush()

    return call


def _tokens(count: int, folder: Path) -> np.ndarray:
    largest = max(folder.glob("tokens-*.npy"), key=lambda path: int(path.stem.split("-")[1]))
    return np.load(largest, mmap_mode="r")[:count]


def _vectors(count: int, folder: Path) -> np.ndarray:
    vectors = np.asarray(_tokens(count, folder), np.float32).mean(1)
    return standardised(vectors, vectors)


def build_index(count: int, folder: Path, llm: str) -> Callable[[], object]:
    vectors, chosen = _vectors(count, folder), studies(count)
    ids, texts = [each.id for each in chosen], [clean(each.findings) for each in chosen]
    StudyIndex.build(ids, vectors, "swin", texts)
    return lambda: StudyIndex.build(ids, vectors, "swin", texts)


def search_index(count: int, folder: Path, llm: str) -> Callable[[], object]:
    vectors, chosen = _vectors(count, folder), studies(count)
    ids = [each.id for each in chosen]
    index = StudyIndex.build(ids, vectors, "swin")
    index.search(vectors[:BATCH], NEIGHBOURS, "swin", ids[:BATCH])
    return lambda: index.search(vectors, NEIGHBOURS, "swin", ids)


def train(count: int, folder: Path, llm: str) -> Callable[[], object]:
    config = NarrativeConfig(llm=llm, align_studies=0)
    model, tokens = NarrativeVLM(config), _tokens(count, folder)
    model.projector.refer_to(tokens)
    examples = [Example(seen, clean(report.findings)) for seen, report in zip(tokens, studies(count), strict=True)]

    def one_pass(chosen: list[Example]) -> None:
        options = FitOptions(epochs=1, batch_size=config.batch_size, lr=config.lr, seed=config.seed)
        fit(
            model,
            lambda model, batch: model.loss(batch),
            chosen,
            options=options,
            length=lambda each: len(each.text),
            progress=False,
        )

    one_pass(examples[: config.batch_size])
    return lambda: one_pass(examples)


def write(count: int, folder: Path, llm: str) -> Callable[[], object]:
    model = load_llm(llm)
    scale = model.model.get_input_embeddings().weight.std().item()
    noise = torch.Generator().manual_seed(0)  # what visual tokens say does not change what they cost
    prompts = [
        Prompt("image:", scale * torch.randn(16, model.width, generator=noise), f"{caption(report)} findings:")
        for report in studies(count)
    ]
    generate(model, prompts[:BATCH], max_new_tokens=NEW_TOKENS)
    return lambda: generate(model, prompts, max_new_tokens=NEW_TOKENS)


STAGES: dict[str, Callable[[int, Path, str], Callable[[], object]]] = {
    "render films": render,
    "encode films": encode_films,
    "build the index": build_index,
    "search the index": search_index,
    "train, one pass": train,
    "write reports": write,
}
WITH_MODEL = ("train, one pass", "write reports")
REPEATED = ("build the index", "search the index")


def measure(stage: str, count: int, folder: Path, llm: str) -> dict:
    """Seconds and peak of one stage, in this process."""
    torch.set_num_threads(1)
    call = STAGES[stage](count, folder, llm)
    start = time.process_time()
    peak = common.growth_mb(call)
    seconds, times = time.process_time() - start, 1
    while stage in REPEATED and seconds < SOON:
        start, times = time.process_time(), times + 1
        call()
        seconds += time.process_time() - start
    seconds /= times
    return {
        "stage": stage,
        "studies": count,
        "processor s": float(f"{seconds:.4g}"),
        "ms a study": float(f"{1000 * seconds / count:.4g}"),
        "peak MB": round(peak, 1),
    }


# --- growth and projection --------------------------------------------------------------------------------------------


def growth(rows: list[dict], to: int = MIMIC) -> list[dict]:
    """For each stage the exponent of its seconds, and seconds and memory projected to `to` studies.

    The law of the exponent is continued from the largest size measured; "if linear" takes its seconds a study. Memory
    is a straight line through what was measured.
    """
    found = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row for row in rows if row["stage"] == stage]
        count, seconds, peak = (np.array([row[key] for row in own]) for key in ("studies", "processor s", "peak MB"))
        exponent, _ = np.polyfit(np.log(count), np.log(seconds), 1)
        slope, fixed = np.polyfit(count, peak, 1)
        last = int(np.argmax(count))
        times = to / count[last]
        found.append(
            {
                "stage": stage,
                "exponent": round(float(exponent), 3),
                "measured to": int(count[last]),
                f"hours for {to:,}": _figures(seconds[last] * times**exponent / 3600),
                "hours if linear": _figures(seconds[last] * times / 3600),
                "MB for each 1,000": _figures(1000 * max(0.0, slope)),
                f"GB for {to:,}": _figures((max(0.0, fixed) + max(0.0, slope) * to) / 1000),
            }
        )
    return found


def _figures(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else value


def assumptions(llm: str, threads: int) -> list[str]:
    """What the projection takes for granted."""
    return [
        f"one core of this machine ({threads} thread); with n processes the hours fall by n, as long as none waits for "
        "the disk or, in training, for the others",
        f"each of the {MIMIC:,} images of MIMIC-CXR counts as a study with a report of its own, as long as ours are; "
        "it has 227,835 reports, so training and writing by study cost 0.6 of what is said here",
        f"images of {PX} px as here: an encoder's cost grows with the pixels, see results/benchmarks/encoders.json; "
        "reading and resampling real files is not included, nor is rendering needed for them",
        f"the language model is {llm!r}: another one costs as much more as it has weights, roughly",
        "memory is what was resident at most: films and tokens are files mapped into memory, which the system can "
        "write out and drop, so these stages run in far less; what training and writing hold it cannot",
        "one pass of training; systems here take 1 to 3 passes, and the alignment of the projector some more",
        "the law measured at thousands of studies holds to hundreds of thousands: an extrapolation by a factor of more "
        "than 100. The exact search is quadratic in the end, more than its exponent shows at these sizes: "
        "results/benchmarks/retrieval.json measures it, and faster indices, at the full size",
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[250, 500, 1000, 2000, 2955], help="numbers of studies"
    )
    options.add_argument("--most", type=int, default=1000, help="reports in training and writing, at most")
    options.add_argument("--llm", default="tiny", help="language model of the last two stages")
    options.add_argument("--no-save", action="store_true", help="print only")
    options.add_argument("--measure", nargs=4, metavar=("STAGE", "COUNT", "FOLDER", "LLM"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.measure:
        stage, count, folder, llm = asked.measure
        print(json.dumps(measure(stage, int(count), Path(folder), llm)))
        return
    sizes = sorted({*asked.sizes}, reverse=True)  # the largest first: it leaves films and tokens for what follows
    if len(sizes) < 2 or sizes[-1] < 32 or sizes[0] > len(studies(10**6)):
        options.error(f"--sizes: give at least two numbers from 32 to {len(studies(10**6)):,}")
    if sum(size <= asked.most for size in sizes) < 2:
        options.error("--most: at least two of --sizes must be within it")
    load_llm(asked.llm)  # made now if it is not there yet
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            for count in sizes:
                if stage in WITH_MODEL and count > asked.most:
                    continue
                command = [sys.executable, __file__, "--measure", stage, str(count), folder, asked.llm]
                done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
                if done.returncode:
                    raise RRGError(f"{stage}, {count} studies: {done.stderr.strip().splitlines()[-1]}")
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(common.table(rows[-1:]), flush=True)
    rows.sort(key=lambda row: (list(STAGES).index(row["stage"]), row["studies"]))
    projected, taken = growth(rows), assumptions(asked.llm, int(os.environ["OMP_NUM_THREADS"]))
    print("", common.table(projected), *(f"- {line}" for line in taken), sep="\n")
    if not asked.no_save:
        result = {"sizes": sizes[::-1], "llm": asked.llm, "most reports": asked.most, "rows": rows}
        result |= {"projection": projected, "assumptions": taken}
        common.save("scaling", result | {"machine": common.machine("faiss-cpu", "timm", "transformers")})


if __name__ == "__main__":
    main()
