"""The backends of `selective_scan` against each other and mambapy's pscan: `python benchmarks/scan.py`.

Forward plus backward, float32, in rounds that go through all of them; medians and ratios. Peak memory is that of a
process of its own. On two threads of the processor or, where there is one, on the GPU, with mamba-ssm's kernel.
mambapy is no dependency: `pip install --no-deps mambapy`; without it its row is left out.
On a machine that does other work, OMP_WAIT_POLICY=PASSIVE is fairer to the loop and to pscan, whose many small parallel
operations otherwise wait for each other in busy loops.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from common import growth_mb, interleaved, machine, median, peak_mb, save, table

from rrg_utils.vision import selective_scan

SIZES = ((16, 196, 384, 16), (1, 4096, 384, 16))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 3 if DEVICE == "cpu" else 20


def inputs(batch: int, length: int, channels: int, states: int) -> list[torch.Tensor]:
    """u, delta, A, B, C as at the start of training."""
    torch.manual_seed(0)
    delta = torch.empty(batch, channels, length).uniform_(0.001, 0.1)
    A = -torch.arange(1, states + 1.0).repeat(channels, 1)
    B, C = torch.randn(2, batch, states, length)
    made = (torch.randn(batch, channels, length), delta, A, B.clone(), C.clone())
    return [x.to(DEVICE).requires_grad_() for x in made]


def pscan(u, delta, A, B, C):
    """mambapy's parallel scan, fed as its own Mamba block feeds it."""
    from mambapy.pscan import pscan

    delta, u, B, C = (x.mT for x in (delta, u, B, C))
    decay = torch.exp(delta[..., None] * A)
    states = pscan(decay, (delta * u)[..., None] * B[:, :, None])
    return (states @ C[..., None])[..., 0].mT


def indexing(u, delta, A, B, C):
    """The published reference loops: decay and input of all steps first, and [:, :, t] of them inside the loop."""
    decay = torch.exp(delta[..., None] * A[:, None])
    inflow = (delta * u)[..., None] * B.mT[:, None]
    h, y = 0, []
    for t in range(u.shape[-1]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        y.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(y, -1)


def scans() -> dict:
    """Every scan that can run here; the compiled one first."""
    found = {
        name: (lambda *x, backend=name: selective_scan(*x, backend=backend)) for name in (DEVICE, "chunked", "loop")
    }
    try:
        import mambapy.pscan  # noqa: F401

        found["pscan"] = pscan
    except ImportError:
        print("mambapy is not installed (pip install --no-deps mambapy): no pscan row")
    return found


def forward(scan, tensors):
    y = scan(*tensors)
    _wait()
    return y


def both_passes(scan, tensors):
    gradients = torch.autograd.grad(scan(*tensors).sum(), tensors)
    _wait()
    return gradients


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def memory(name: str, size: str) -> None:
    """Child process: MB by which both passes grow the peak."""
    shape = [int(x) for x in size.split(",")]
    scan = scans()[name]
    both_passes(scan, inputs(1, 8, 8, shape[3]))  # imports and compiles
    tensors = inputs(*shape)
    print(growth_mb(lambda: both_passes(scan, tensors), DEVICE))


def main() -> None:
    torch.set_num_threads(2)
    result = {"machine": machine("mambapy", "mamba-ssm"), "what": "forward and backward, float32", "sizes": []}
    found = scans()
    for size in SIZES:
        tensors = inputs(*size)
        both = {name: partial(both_passes, scan, tensors) for name, scan in found.items()}
        seconds = interleaved(both, ROUNDS)
        one = interleaved({name: partial(forward, scan, tensors) for name, scan in found.items()}, ROUNDS)
        shape = ",".join(map(str, size))
        rows = [
            {
                "scan": name,
                "seconds": median(seconds[name]),
                "forward": median(one[name]),
                f"times {DEVICE}": round(median(seconds[name]) / median(seconds[DEVICE]), 1),
                "peak MB": round(peak_mb(Path(__file__), "--memory", name, shape)),
            }
            for name in found
        ]
        print(f"\n(batch, length, inner, state) = {size}")
        print(table(rows), flush=True)
        all_seconds = {name: [round(s, 4) for s in times] for name, times in seconds.items()}
        result["sizes"].append({"batch, length, inner, state": size, "rows": rows, "all seconds": all_seconds})

    # The trap grows with the square of the length.
    trap = []
    for length in (128, 512, 1024):
        tensors = inputs(1, length, 384, 16)
        calls = {
            "index": partial(both_passes, indexing, tensors),
            "unbind": partial(both_passes, found["loop"], tensors),
        }
        seconds = interleaved(calls, 1)
        index, unbind = median(seconds["index"]), median(seconds["unbind"])
        trap.append({"length": length, "x[..., t]": index, "unbind": unbind, "ratio": round(index / unbind, 1)})
    print("\nthe loop that indexes inside, seconds")
    print(table(trap))
    save("scan" if DEVICE == "cpu" else "scan-gpu", result | {"indexing inside the loop": trap})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        torch.set_num_threads(2)
        memory(*sys.argv[2:])
    else:
        main()
