"""Cost of the encoders against image size, 128 to 1,024 px: `python benchmarks/encoders.py [PX ...]`.

FLOPs are counted by torch for matrix products and convolutions, two per multiply-add, plus the scan's own, which
torch cannot see (see `scan_flops`). Wall time: one film, two threads, medians of rounds that go through all; on
a GPU the same lines time mamba-ssm. Peak memory: of a process of its own.
"""

import sys
from pathlib import Path

import torch
from common import growth_mb, interleaved, machine, median, peak_mb, save, table
from torch.utils.flop_counter import FlopCounterMode

from rrg_utils.vision import matched_encoders
from rrg_utils.vision.mamba import SelectiveSSM

SIZES = (128, 256, 512, 1024)
ROUNDS = 3
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scan_flops(encoder: torch.nn.Module, films: torch.Tensor) -> int:
    """FLOPs of the scans in one forward pass.

    Per step, channel and state: delta A, exp (as one), the product with h, delta u B added (two), the product with C
    summed (two); and delta u once per channel.
    """
    count = []

    def note(module, arguments, _):
        batch, sequences, channels, length = arguments[0].shape
        count.append(batch * sequences * channels * length * (7 * module.states + 1))

    handles = [m.register_forward_hook(note) for m in encoder.modules() if isinstance(m, SelectiveSSM)]
    with torch.no_grad():
        encoder(films)
    for handle in handles:
        handle.remove()
    return sum(count)


def flops(encoder: torch.nn.Module, films: torch.Tensor) -> tuple[int, int]:
    """FLOPs of one forward pass: (all, of these the scans)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(films)
    scans = scan_flops(encoder, films)
    return counter.get_total_flops() + scans, scans


def training_step(encoder: torch.nn.Module, films: torch.Tensor) -> None:
    encoder(films).tokens.square().mean().backward()
    encoder.zero_grad(set_to_none=True)


def inference(encoder: torch.nn.Module, films: torch.Tensor) -> None:
    with torch.inference_mode():
        encoder(films)


RUNS = {"training": training_step, "inference": inference}


def timed(run, encoder, films):
    def call():
        run(encoder, films)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return call


def memory(name: str, size: str, run: str) -> None:
    """Child process: MB by which one run grows the peak."""
    encoder, films = matched_encoders(int(size))[name].to(DEVICE), torch.rand(1, 1, int(size), int(size), device=DEVICE)
    RUNS[run](matched_encoders(128)[name].to(DEVICE), films[..., :128, :128])  # imports and compiles
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        RUNS[run](encoder, films)
        print((torch.cuda.max_memory_allocated() - before) / 1e6)
    else:
        print(growth_mb(lambda: RUNS[run](encoder, films)))


def main(sizes: tuple[int, ...]) -> None:
    torch.set_num_threads(2)
    result = {"machine": machine("timm"), "what": "one film, float32", "rows": []}
    for size in sizes:
        torch.manual_seed(0)
        encoders = {name: encoder.to(DEVICE) for name, encoder in matched_encoders(size).items()}
        films = torch.rand(1, 1, size, size, device=DEVICE)
        seconds = {
            name: interleaved({key: timed(run, encoder, films) for key, encoder in encoders.items()}, ROUNDS)
            for name, run in RUNS.items()
        }
        rows = []
        for name, encoder in encoders.items():
            total, scans = flops(encoder, films)
            rows.append(
                {
                    "px": size,
                    "tokens": encoder.grid**2,
                    "encoder": name,
                    "GFLOP": round(total / 1e9, 3),
                    "scan GFLOP": round(scans / 1e9, 3),
                    **{f"{run} s": median(seconds[run][name]) for run in RUNS},
                    **{
                        f"x swin, {run}": round(median(seconds[run][name]) / median(seconds[run]["swin"]), 2)
                        for run in RUNS
                    },
                    **{
                        f"{run} peak MB": round(peak_mb(Path(__file__), "--memory", name, str(size), run))
                        for run in RUNS
                    },
                }
            )
        print(table(rows), flush=True)
        result["rows"] += rows
    save("encoders", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        torch.set_num_threads(2)
        memory(*sys.argv[2:])
    else:
        main(tuple(int(x) for x in sys.argv[1:]) or SIZES)
