"""Text scores with bootstrap intervals: sums of per-report counts against pycocoevalcap run anew for every resample.

    python benchmarks/text_scores.py [--reports 590] [--resamples 1000] [--naive 10]

Times are written to results/benchmarks/text_scores.json with the machine they were taken on. The naive way is timed on
`--naive` resamples and scaled up, as all of them would take most of an hour. RadEval is timed where it is installed
(see `rrg_utils.metrics.models`): one scoring without any interval. Every way scores the same texts: each test report
against the next one, on plain tokens.
"""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

import rrg_utils
from rrg_utils.data import clean, indiana
from rrg_utils.errors import RRGError
from rrg_utils.metrics import bleu, cider, evaluate, meteor, rouge_l, tokenise
from rrg_utils.metrics.models import model_scores

RESULT = Path(rrg_utils.__file__).resolve().parents[1] / "results" / "benchmarks" / "text_scores.json"


def machine() -> dict:
    """What times depend on, without anything that names this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the architecture has to do
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = {name: version(name) for name in ("numpy", "scipy", "pycocoevalcap", "rrg-utils")}
    return {"cpu": cpu, "cores": cores, "python": platform.python_version(), **packages}


def timed(act):
    """(what `act` returns, seconds)."""
    start = time.perf_counter()
    return act(), time.perf_counter() - start


def naive(hypotheses: list[str], references: list[str]) -> list[float]:
    """BLEU-1..4, ROUGE-L and CIDEr by pycocoevalcap from the texts."""
    gts, res = ({i: [tokenise(t)] for i, t in enumerate(side)} for side in (references, hypotheses))
    four, _ = Bleu(4).compute_score(gts, res, verbose=0)
    return [*four, float(Rouge().compute_score(gts, res)[0]), float(Cider().compute_score(gts, res)[0])]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--reports", type=int, default=590)
    options.add_argument("--resamples", type=int, default=1000)
    options.add_argument("--naive", type=int, default=10, help="resamples that the naive way is timed on")
    options.add_argument("--output", type=Path, default=RESULT)
    asked = options.parse_args()
    if min(asked.reports, asked.resamples, asked.naive) < 2:
        options.error("--reports, --resamples and --naive must be at least 2")
    texts = [clean(report.findings) for report in indiana().test]
    if asked.reports > len(texts):
        options.error(f"--reports is at most {len(texts)}")
    references = texts[: asked.reports]
    hypotheses = references[1:] + references[:1]
    n = asked.resamples

    def ours() -> list[float]:
        statistics = [*bleu(hypotheses, references), rouge_l(hypotheses, references), cider(hypotheses, references)]
        for statistic in statistics:
            statistic.bootstrap(n)
        return [statistic.value for statistic in statistics]

    def all_of_evaluate():
        return evaluate(hypotheses, references, "mask", meteor_score=False, resamples=n)

    found, seconds = timed(ours)
    expected, once = timed(lambda: naive(hypotheses, references))
    difference = float(np.abs(np.subtract(found, expected)).max())
    if difference > 1e-9:
        raise RRGError(f"our scores differ from pycocoevalcap's by {difference:g}")
    rng = np.random.default_rng(0)

    def some_resamples() -> None:
        for _ in range(asked.naive):
            drawn = rng.integers(len(references), size=len(references))
            naive([hypotheses[i] for i in drawn], [references[i] for i in drawn])

    _, many = timed(some_resamples)
    _, everything = timed(all_of_evaluate)
    result = {
        "reports": len(references),
        "resamples": n,
        "seconds": {
            "ours: BLEU-1..4, ROUGE-L, CIDEr with intervals": round(seconds, 2),
            "pycocoevalcap: the same, scored once": round(once, 2),
            f"pycocoevalcap: resampled, scaled up from {asked.naive}": round(many / asked.naive * n, 1),
            "evaluate: all scores but METEOR with intervals": round(everything, 2),
        },
        "largest difference of a score": difference,
        "machine": machine(),
    }
    try:
        statistic, seconds = timed(lambda: meteor(hypotheses, references))
        _, again = timed(lambda: statistic.bootstrap(n))
        result["seconds"]["METEOR with interval, start of Java included"] = round(seconds + again, 2)
    except RRGError as error:
        result["METEOR"] = str(error)
    try:
        _, seconds = timed(lambda: model_scores(hypotheses, references, ["bleu", "rouge"]))
        result["seconds"]["RadEval: its BLEU and ROUGE once, start included"] = round(seconds, 2)
    except RRGError as error:
        result["RadEval"] = str(error).split(". ")[0]
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
