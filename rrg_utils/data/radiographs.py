"""Real radiographs as a data set of studies, and the check of a folder of them. `iu_xray` and `mimic_cxr` know the
layouts; what they share is here."""

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from rrg_utils import processes
from rrg_utils.data.datasets import Study
from rrg_utils.data.pictures import SUFFIXES, read_picture
from rrg_utils.data.reports import Report
from rrg_utils.errors import RRGError

log = logging.getLogger("rrg")


@dataclass(frozen=True)
class Exam:
    """A study before its film is read. `view` is "frontal", "lateral" or "unknown"; `labels` (C,) bool, or None where
    no expert annotated the study with MeSH (MIMIC-CXR)."""

    report: Report
    text: str
    view: str
    path: Path
    labels: np.ndarray | None


@dataclass
class Inventory:
    """What a folder holds: `counts` of things, `problems` (a line each, with its file), `images` the file of each."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    images: dict[str, Path] = field(default_factory=dict)


class RadiographDataset(Sequence[Study]):
    """Studies of one split with real films, one film a study, read when they are asked for.

    The fields are those of `PhantomDataset`. What only rendering knows (masks, counterfactuals) is not there, and
    `labels` is None where the source has no MeSH annotation. An unreadable film raises one RRGError that names its
    file; `readable()` gives the data set without such studies.
    """

    CREDENTIALED = False  # then no warning names a file: warnings may end in a notebook

    def __init__(self, split: str, size: int, exams: Sequence[Exam]):
        if size < 16:
            raise RRGError(f"size={size}: films need at least 16 pixels a side")
        self.split, self.size, self.exams = split, size, tuple(exams)

    @property
    def reports(self) -> tuple[Report, ...]:
        return tuple(exam.report for exam in self.exams)

    @property
    def texts(self) -> list[str]:
        return [exam.text for exam in self.exams]

    @property
    def labels(self) -> np.ndarray | None:
        """(N, C) bool, or None: see `Exam`."""
        if any(exam.labels is None for exam in self.exams):
            return None
        return np.stack([exam.labels for exam in self.exams])

    @cached_property
    def images(self) -> np.ndarray:
        """(N, H, W) uint8: all films, read on all cores and kept in memory."""
        return np.stack(list(map_files(self._pixels, self.exams, f"reading {len(self)} films")))

    def _pixels(self, exam: Exam) -> np.ndarray:
        return np.round(read_picture(exam.path, self.size) * 255).astype(np.uint8)

    def readable(self) -> "RadiographDataset":
        """The studies whose film can be read; a warning names the files of the others. Reads every film once."""
        films = list(map_files(_attempt(self._pixels), self.exams, f"reading {len(self)} films"))
        good = [k for k, film in enumerate(films) if not isinstance(film, RRGError)]
        bad = [film for film in films if isinstance(film, RRGError)]
        if not good:
            raise RRGError(f"none of the {len(self)} films of split {self.split!r} can be read; the first: {bad[0]}")
        if bad:
            names = "" if self.CREDENTIALED else ": " + "; ".join(map(str, bad))
            log.warning("%d studies left out, their films cannot be read%s", len(bad), names)
        kept = copy(self)
        kept.exams = tuple(self.exams[k] for k in good)
        kept.images = np.stack([films[k] for k in good])
        return kept

    def __len__(self) -> int:
        return len(self.exams)

    def __getitem__(self, index: int) -> Study:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        exam = self.exams[index]
        image = read_picture(exam.path, self.size)
        return Study(exam.report.id, exam.view, image, exam.text, exam.labels, exam.report)


def require(exams: Sequence[Exam], left_out: int, split: str, root: Path, source: str) -> None:
    """Say how many studies of the split were left out because a file of theirs is missing; raise if none remains."""
    advice = f"rrg data check --source {source} --root ... lists them"
    if not exams:
        raise RRGError(f"{root}: no study of split {split!r} has its files here ({left_out} lack some); {advice}")
    if left_out:
        log.warning("%s, split %s: %d studies left out, files are missing; %s", source, split, left_out, advice)


def folder(root: str | Path | None, source: str, how: str) -> Path:
    """The root folder of a source, or one line on what is wrong with it."""
    if root is None:
        raise RRGError(f"source {source!r} needs root=FOLDER: {how}")
    root = Path(root).expanduser()
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        raise RRGError(f"{root}: cannot read the folder ({error.strerror}). {source} needs {how}") from error
    if empty:
        raise RRGError(f"{root}: the folder is empty. {source} needs {how}")
    return root


def walk(root: Path, problems: list[str]) -> list[Path]:
    """All pictures below a folder, told by suffix, in a fixed order; folders that cannot be read become problems."""

    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot read the folder ({error.strerror})")

    found = [
        Path(place, name)
        for place, _, names in os.walk(root, onerror=unreadable)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith("._")  # what macOS leaves beside every file
    ]
    return sorted(found)


def image_files(source: str, root: str | Path | None) -> dict[str, Path]:
    """The file of every image of a source by id, of all splits and views, in a fixed order."""
    return _module(source).image_files(root)


def _module(source: str):
    from rrg_utils.data import iu_xray, mimic_cxr  # they use what is defined here

    return {"iu_xray": iu_xray, "mimic_cxr": mimic_cxr}[source]


def check(source: str, root: str | Path | None, decode: bool = True) -> Inventory:
    """Count and verify all that a source needs in a folder. Goes on after every bad file; decodes every image."""
    found = _module(source).inventory(root)
    if decode:
        tests = map_files(_attempt(_decodes), found.images.values(), f"decoding {len(found.images):,} images")
        broken = [str(error) for error in tests if error is not None]
        found.problems += broken
        found.counts["images decoded"] = len(found.images) - len(broken)
    return found


def _decodes(path: Path) -> None:
    read_picture(path)


def _attempt(function):
    def attempt(item):
        try:
            return function(item)
        except RRGError as error:
            return error

    return attempt


def map_files(function, items: Iterable, what: str):
    """`map` on all cores with a progress bar on a terminal; the decoders release the interpreter lock."""
    from tqdm.auto import tqdm

    items = list(items)
    with ThreadPoolExecutor(processes.cores()) as pool:
        yield from tqdm(pool.map(function, items), total=len(items), desc=what, disable=not sys.stderr.isatty())
