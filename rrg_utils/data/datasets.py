"""Studies as a map-style dataset, with the same fields whatever the source."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rrg_utils import processes
from rrg_utils.artifacts import artifact
from rrg_utils.data import abnormalities, anatomy, hospitals, lesions, mesh, phantom, priors
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.anatomy import LOBES, REGIONS, View
from rrg_utils.data.cohort import Cohort, cohort
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import Report, clean, load_indiana, study_views
from rrg_utils.errors import RRGError
from rrg_utils.files import array_on_disk

if TYPE_CHECKING:
    from rrg_utils.data.radiographs import RadiographDataset

SOURCES = ("phantom", "iu_xray", "mimic_cxr")
SPLITS = ("train", "val", "test")
CELLS = 16  # dense targets are kept on a grid of 16 x 16 cells
DRAWING = [anatomy, hospitals, lesions, priors, phantom, abnormalities, mesh]  # the code that draws films
_CHUNK = 64


@dataclass(frozen=True)
class Study:
    """One film with its report. `image` (H, W) float32 in [0, 1]; `text` the cleaned FINDINGS; `labels` (C,) bool, one
    per class of `ABNORMALITIES`, from the expert annotation, or None where a source has none (MIMIC-CXR)."""

    id: str
    view: str
    image: np.ndarray
    text: str
    labels: np.ndarray | None
    report: Report


@dataclass(frozen=True)
class Films:
    """Rendered films of many studies: `images` (N, H, W) uint8; `lesions` (N, C, 16, 16) and `regions` (N, 12, 16, 16)
    bool, which cells of the film each class touches and each of the regions and lobes covers by half or more."""

    images: np.ndarray
    _lesions: np.ndarray
    _regions: np.ndarray
    key: str  # names the contents: products made from these films are kept under it

    def __len__(self) -> int:
        return len(self.images)

    def lesions(self, index) -> np.ndarray:
        return _unpack(self._lesions[index])

    def regions(self, index) -> np.ndarray:
        return _unpack(self._regions[index])


def _unpack(packed: np.ndarray) -> np.ndarray:
    bits = np.unpackbits(np.asarray(packed), axis=-1)
    return bits.reshape(*packed.shape[:-1], CELLS, CELLS).astype(bool)


def label_vector(report: Report) -> np.ndarray:
    """(C,) bool: the classes of `ABNORMALITIES` that the annotation names."""
    found = abnormalities.present(report.mesh)
    return np.array([name in found for name in ABNORMALITIES])


def render_films(
    studies: Sequence[Report],
    size: int,
    *,
    seed: int = 0,
    conspicuity: float = 1.0,
    view: View = "frontal",
    hospital: str = "standard",
    progress: bool | None = None,
) -> Films:
    """Films of the studies, from the cache or rendered now on all cores; an interrupted call is continued."""
    inputs = {
        "studies": _digest(studies),
        "size": size,
        "seed": seed,
        "conspicuity": conspicuity,
        "view": view,
        "hospital": hospital,
        "patients": anatomy.PATIENTS,
    }
    folder = artifact(
        "films",
        inputs,
        lambda folder: _render(
            folder, studies, PhantomRenderer(size, conspicuity, anatomy.PATIENTS, hospital), view, seed, progress
        ),
        code=DRAWING,
        resume=True,
    )
    arrays = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "lesions", "regions"))
    return Films(*arrays, key=folder.name)


def _digest(studies: Sequence[Report]) -> str:
    import hashlib

    text = "\n".join(f"{study.id} {'; '.join(map(str, study.mesh))}" for study in studies)
    return hashlib.sha256(text.encode()).hexdigest()


def _render(
    folder: Path, studies: Sequence[Report], renderer: PhantomRenderer, view: View, seed: int, progress
) -> None:
    from tqdm.auto import tqdm

    size = renderer.size
    shapes = {
        "images": ((len(studies), size, size), np.uint8),
        "lesions": ((len(studies), len(ABNORMALITIES), CELLS * CELLS // 8), np.uint8),
        "regions": ((len(studies), len(REGIONS) + len(LOBES), CELLS * CELLS // 8), np.uint8),
        "done": ((-(-len(studies) // _CHUNK),), np.bool_),
    }
    arrays = {}
    for name, (shape, dtype) in shapes.items():
        arrays[name] = array_on_disk(folder / f"{name}.npy", dtype, shape)

    def chunk(number: int) -> None:
        for index in range(number * _CHUNK, min((number + 1) * _CHUNK, len(studies))):
            film = renderer.render(studies[index], view, seed)
            arrays["images"][index] = np.round(film.image * 255)
            arrays["lesions"][index] = np.packbits(_lesion_cells(film), axis=-1)
            arrays["regions"][index] = np.packbits(
                np.stack([_cells(mask, 0.5) for mask in (film.regions | film.lobes).values()]), axis=-1
            )
        arrays["done"][number] = True

    missing = np.flatnonzero(~arrays["done"])
    show = sys.stderr.isatty() if progress is None else progress
    with ThreadPoolExecutor(processes.cores()) as pool:
        list(
            tqdm(pool.map(chunk, missing), total=len(missing), desc=f"rendering {len(studies)} films", disable=not show)
        )
    for array in arrays.values():
        array.flush()


def _cells(mask: np.ndarray, share: float) -> np.ndarray:
    """(256,) bool: cells of which the mask covers at least `share`."""
    edges = np.linspace(0, len(mask), CELLS + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(mask, edges[:-1], axis=0, dtype=np.float32), edges[:-1], axis=1)
    area = np.outer(np.diff(edges), np.diff(edges))
    return (sums >= np.maximum(share * area, 1)).ravel()


def _lesion_cells(film: phantom.Phantom) -> np.ndarray:
    out = np.zeros((len(ABNORMALITIES), CELLS * CELLS), bool)
    for lesion in film.lesions:
        if lesion.box is not None:
            cells = _cells(lesion.mask, 0.1)
            if not cells.any():  # too small for any cell: the cell of its middle
                rows, cols = np.nonzero(lesion.mask)
                row, col = (int(at.mean() * CELLS / len(lesion.mask)) for at in (rows, cols))
                cells[row * CELLS + col] = True
            out[ABNORMALITIES.index(lesion.name)] |= cells
    return out


@lru_cache(maxsize=1)
def indiana() -> Cohort:
    """The cohort of the Indiana reports in the wheel."""
    return cohort(load_indiana())


class PhantomDataset(Sequence[Study]):
    """The studies of one split with rendered films, taken in one view at one hospital."""

    def __init__(
        self,
        split: str,
        size: int,
        limit: int | None = None,
        conspicuity: float = 1.0,
        view: View = "frontal",
        hospital: str = "standard",
    ):
        self.split, self.size, self.conspicuity, self.view, self.hospital = split, size, conspicuity, view, hospital
        section = hospitals.hospital(hospital).section
        self.reports: tuple[Report, ...] = tuple(
            report
            for report in getattr(indiana(), split)
            if view in study_views(report) and clean(getattr(report, section))
        )
        # The whole split is rendered once, whatever the limit: notebooks of different sizes share it.
        self.films = render_films(self.reports, size, conspicuity=conspicuity, view=view, hospital=hospital)
        if limit is not None:
            self.reports = self.reports[:limit]
        self.labels = np.stack([label_vector(report) for report in self.reports])
        self.texts = [clean(getattr(report, section)) for report in self.reports]

    @property
    def images(self) -> np.ndarray:
        """(N, H, W) uint8."""
        return self.films.images[: len(self)]

    def __len__(self) -> int:
        return len(self.reports)

    def __getitem__(self, index: int) -> Study:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        report = self.reports[index]
        image = self.images[index].astype(np.float32) / 255
        return Study(report.id, self.view, image, self.texts[index], self.labels[index], report)

    def phantom(self, index: int, without: Sequence = ()) -> phantom.Phantom:
        """The film of a study rendered again with its masks, or its counterfactual."""
        renderer = PhantomRenderer(self.size, self.conspicuity, anatomy.PATIENTS, self.hospital)
        return renderer.render(self.reports[index], self.view, without=without)


def load_dataset(
    source: str = "phantom",
    split: str = "train",
    size: int = 128,
    limit: int | None = None,
    root: str | Path | None = None,
    view: View = "frontal",
    hospital: str = "standard",
) -> "PhantomDataset | RadiographDataset":
    """Studies of a split: "train", "val" or "test". `limit` keeps the first so many. `Study` is the same for every
    source.

    source: "phantom" pairs the Indiana reports with films rendered from their annotation; it needs no `root`.
    "iu_xray" pairs them with the real films, in one of the layouts of `rrg_utils.data.iu_xray`, and "mimic_cxr" reads a
    credentialed copy of MIMIC-CXR-JPG (`rrg_utils.data.mimic_cxr`); both need `root`.

    Of the phantom only: view "lateral" holds the studies that have a lateral image (`study_views`), and hospital
    "portable" the shifted department of `rrg_utils.data.hospitals`, whose texts are the impressions.
    """
    if source not in SOURCES:
        raise RRGError(f"unknown data source {source!r}; known are: {', '.join(SOURCES)}")
    if split not in SPLITS:
        raise RRGError(f"unknown split {split!r}; known are: {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise RRGError(f"limit={limit}: give at least 1, or None for all")
    if view not in phantom.VIEWS:
        raise RRGError(f"unknown view {view!r}; known are: {', '.join(phantom.VIEWS)}")
    hospitals.hospital(hospital)
    if source != "phantom" and (view, hospital) != ("frontal", "standard"):
        raise RRGError(f"view and hospital are options of the phantom source; {source} has the films it has")
    if source != "phantom":
        from rrg_utils.data import iu_xray, mimic_cxr  # they use what is defined here

        return {"iu_xray": iu_xray, "mimic_cxr": mimic_cxr}[source].load(split, size, limit, root)
    if root is not None:
        raise RRGError(
            f"root={str(root)!r}: the phantom source reads its data from the installed wheels, leave root out"
        )
    return PhantomDataset(split, size, limit, view=view, hospital=hospital)
