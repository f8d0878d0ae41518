"""Cost of the encoders against image size, 128 to 1,024 px: `python benchmarks/encoders.py [PX ...]`.

FLOPs are counted (`rrg_utils.vision.cost.flops`). Wall time: one film, two threads, medians of rounds that go through
all; on the GPU where there is one, with mamba-ssm's scan. Peak memory: of a process of its own, above what it held.
"""

import subprocess
import sys
from functools import partial

import torch
from common import growth_mb, interleaved, machine, median, save, table

from rrg_utils.vision import cost
from rrg_utils.vision.pretrain import ENCODERS

SIZES = (128, 256, 512, 1024)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 3 if DEVICE == "cpu" else 20


def call(run: str, encoder: torch.nn.Module, films: torch.Tensor) -> None:
    cost.RUNS[run](encoder, films)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def memory(name: str, size: str) -> None:
    """Child process: MB by which one film grows the peak, without and with a backward pass."""
    px = int(size)
    for run in cost.RUNS:  # imports and compiles
        call(run, ENCODERS[name](128).to(DEVICE), torch.rand(1, 1, 128, 128, device=DEVICE))
    encoder, films = ENCODERS[name](px).to(DEVICE), torch.rand(1, 1, px, px, device=DEVICE)
    for run in cost.RUNS:
        print(growth_mb(lambda run=run: call(run, encoder, films), DEVICE))


def peaks(name: str, size: int) -> dict[str, float]:
    """MB of `memory` for every run, from a fresh process."""
    command = [sys.executable, __file__, "--memory", name, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(cost.RUNS, map(float, done.stdout.split()[-len(cost.RUNS) :]), strict=True))


def rows(size: int) -> list[dict]:
    """One row per encoder at an image size."""
    torch.manual_seed(0)
    encoders = {name: make(size).to(DEVICE) for name, make in ENCODERS.items()}
    films = torch.rand(1, 1, size, size, device=DEVICE)
    seconds = {
        run: {
            name: median(times)
            for name, times in interleaved(
                {name: partial(call, run, encoder, films) for name, encoder in encoders.items()}, ROUNDS
            ).items()
        }
        for run in cost.RUNS
    }
    found = []
    for name, encoder in encoders.items():
        peak = peaks(name, size)
        row = {"px": size, "tokens": encoder.grid**2, "encoder": name}
        for run in cost.RUNS:
            total, scans = cost.flops(ENCODERS[name], size, run)
            row |= {f"{run} GFLOP": round(total / 1e9, 3), f"of these scans, {run}": round(scans / 1e9, 3)}
            row |= {f"{run} s": seconds[run][name]}
            row |= {f"x swin, {run}": round(seconds[run][name] / seconds[run]["swin"], 2)}
            row |= {f"{run} peak MB": round(peak[run])}
        found.append(row)
    return found


def main(sizes: tuple[int, ...]) -> None:
    torch.set_num_threads(2)
    result = {"machine": machine("timm", "mamba-ssm"), "what": "one film, float32", "rows": []}
    for size in sizes:
        found = rows(size)
        print(table(found), flush=True)
        result["rows"] += found
    save("encoders" if DEVICE == "cpu" else "encoders-gpu", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        torch.set_num_threads(2)
        memory(*sys.argv[2:])
    else:
        main(tuple(int(x) for x in sys.argv[1:]) or SIZES)
