"""What the benchmarks share: the machine in words, interleaved timing, memory of a fresh process, tables, files."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks"


def machine(*packages: str) -> dict:
    """Processor, cores, versions: no names or paths of the machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    found = {}
    for package in ("torch", "numba", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "load before": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": found,
    }


def interleaved(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    outputs: dict[str, object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every call in every round, after one warm-up each.

    Rounds go through all calls, so that a machine that is busy for a while is busy for all of them. What each call
    returned last is put into `outputs`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):  # the first is for warming up
        for name, call in calls.items():
            start = clock()
            output = call()
            if turn:
                seconds[name].append(clock() - start)
            if outputs is not None:
                outputs[name] = output
    return seconds


def median(values: list[float]) -> float:
    """The median, to four digits."""
    return float(f"{statistics.median(values):.4g}")


def peak_mb(script: Path, *arguments: str) -> float:
    """MB by which the peak of a fresh process grew: `script arguments` prints it."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    return float(done.stdout.split()[-1])


def growth_mb(call: Callable[[], object], device: str = "cpu") -> float:
    """MB by which memory peaks above where it was, during call(): of the GPU, or resident of this process (Linux only).

    What imports and compilation needed before would hide the peak, so the high-water mark is set back first.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    before = psutil.Process().memory_info().rss / 1e6
    Path("/proc/self/clear_refs").write_text("5")
    call()
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) * 1024 / 1e6 - before


def table(rows: list[dict]) -> str:
    """Rows as aligned text."""
    head = list(rows[0])
    cells = [head, *([str(row[key]) for key in head] for row in rows)]
    widths = [max(len(line[k]) for line in cells) for k in range(len(head))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def save(name: str, result: dict) -> None:
    """Write results/benchmarks/NAME.json."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"-> results/benchmarks/{path.name}")
