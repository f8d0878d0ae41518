"""Size and place of lesions as radiologists drew them: the boxes and masks in the torchxrayvision wheel, in one frame.

The lung frame. A box is (x0, y0, x1, y1) relative to the bounding box of both lungs on a frontal film: x from 0 at the
patient's right edge (viewer's left) to 1 at the left, y from 0 at the apex to 1 at the lowest lung. The phantom has the
same frame, so a real box becomes millimetres of a phantom by a multiplication.

- VinBigData (Nguyen et al. 2022): boxes of 14 findings by up to three radiologists an image, in pixels of the original
  images. Their sizes are not in the file: where the lungs lie is estimated here (`vinbigdata_frame`).
- NIH ChestX-ray14 (Wang et al. 2017): 984 boxes of 8 findings. RSNA pneumonia challenge (Shih et al. 2019): boxes of
  lung opacities. SIIM-ACR challenge (2019): masks of pneumothoraces. All on images of 1024 x 1024 pixels, on which the
  lungs are taken to lie where they do on average in the real lung masks.
- V7 Labs: masks of both lungs on 517 films (COVID-19 collections), a part of them lateral and empty.

Nothing of these files is copied into the repository: they are read from the installed package at run time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
from PIL import Image, UnidentifiedImageError

from rrg_utils.artifacts import artifact
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError

# Which boxes a class of `ABNORMALITIES` takes its geometry from: (dataset, its label). Classes that are not here have
# no source in the wheel (edema, emphysema, hernia, bones, devices, ...) and keep ranges of ours.
SOURCES: dict[str, tuple[tuple[str, str], ...]] = {
    "cardiomegaly": (("VinBigData", "Cardiomegaly"), ("NIH", "Cardiomegaly")),
    "pleural effusion": (("VinBigData", "Pleural effusion"), ("NIH", "Effusion")),
    "blunted costophrenic angle": (("VinBigData", "Pleural effusion"), ("NIH", "Effusion")),  # the smallest: SMALLEST
    "consolidation": (("VinBigData", "Consolidation"), ("VinBigData", "Infiltration"), ("NIH", "Infiltrate")),
    "pneumonia": (("RSNA", "Lung Opacity"), ("NIH", "Pneumonia")),
    "atelectasis": (("VinBigData", "Atelectasis"), ("NIH", "Atelectasis")),
    "opacity": (("VinBigData", "Lung Opacity"),),
    "pneumothorax": (("SIIM", "Pneumothorax"),),
    "nodule": (("VinBigData", "Nodule/Mass"), ("NIH", "Nodule")),  # up to 30 mm: NODULE
    "mass": (("VinBigData", "Nodule/Mass"), ("NIH", "Mass")),  # more than 30 mm
    "granuloma": (("VinBigData", "Calcification"),),
    "tortuous aorta": (("VinBigData", "Aortic enlargement"),),
    "scar": (("VinBigData", "Pulmonary fibrosis"),),
    "interstitial markings": (("VinBigData", "ILD"),),
    "pleural thickening": (("VinBigData", "Pleural thickening"),),
}
# A nodule measures up to 30 mm (Fleischner Society); the lungs of the phantom's CT are 260 x 252 mm.
NODULE = 30 / 256
SMALLEST = {"blunted costophrenic angle": 0.25}  # ours: the smallest quarter of the effusions blunts an angle only
_FRAME_PIXELS = 1024
_ENOUGH = 20  # boxes on the annotated side; with fewer, those of the other side are mirrored and added
_BOX = ["x0", "y0", "x1", "y1"]


# --- the files --------------------------------------------------------------------------------------------------------


def _table(name: str, columns: list[str], **options) -> pd.DataFrame:
    """A table of the wheel, by its first columns, which get our names."""
    path = wheel_file("torchxrayvision", "data", name)
    try:
        table = pd.read_csv(path, skipinitialspace=True, **options)
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise RRGError(
            f"{path}: cannot read the table ({error}). Run: pip install --force-reinstall torchxrayvision"
        ) from None
    if len(table.columns) < len(columns):
        raise RRGError(f"{path}: {len(table.columns)} columns where {len(columns)} are expected: {', '.join(columns)}")
    return table.iloc[:, : len(columns)].set_axis(columns, axis=1)


def decode_rle(text: str) -> np.ndarray:
    """SIIM's run-length code: pairs (gap, run), each gap counted from the end of the run before.

    Pixels are numbered down the columns, left column first. Returns (runs, 2): first pixel and one past the last.
    """
    numbers = np.array(text.split(), np.int64)
    if len(numbers) % 2 or (numbers < 0).any():
        raise RRGError(f"not a run-length code of (gap, run) pairs: {text[:40]!r}")
    gaps, runs = numbers.reshape(-1, 2).T
    stops = np.cumsum(gaps + runs)
    return np.stack([stops - runs, stops], axis=1)


@lru_cache(maxsize=1)
def vinbigdata() -> pd.DataFrame:
    """VinBigData's boxes: image, label, box in the lung frame; one radiologist for each image and finding.

    Up to three radiologists read an image and often draw the same lesion. All their boxes would count agreed findings
    threefold; so for each image and finding one of those who saw it is drawn at random (fixed seed), with all the
    boxes that this radiologist drew of it.
    """
    columns = ["image", "label", "number", "reader", *_BOX]
    boxes = _table("vinbigdata-train.csv.gz", columns).dropna(subset=_BOX)
    pairs = boxes[["image", "label", "reader"]].drop_duplicates()
    chosen = pairs.sample(frac=1, random_state=0).drop_duplicates(["image", "label"])
    boxes = boxes.merge(chosen, on=["image", "label", "reader"])[["image", "label", *_BOX]]
    return _in_frame(boxes, *vinbigdata_frame(boxes))


def vinbigdata_frame(boxes: pd.DataFrame) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Where the lungs lie on VinBigData's images, in pixels, told from the boxes themselves.

    Returns the corners (image: left, top) and the size (width, height). The file gives no image sizes. Assumption of
    ours: one size of the lungs for all images, shifted on each to its own landmarks. Sideways the landmark is the
    middle of the heart (else of the aorta): the median distance from it to the outer edges of effusions, which reach
    the chest wall, gives the lungs' edges. Downwards they are the aortic arch and the lower border of the heart:
    pneumothoraces and pleural thickening above the arch reach the apex, effusions the lowest lung. An image with
    neither gets the median place. What remains wrong is the spread of the lungs' size.
    """
    middle_x, middle_y = (boxes.x0 + boxes.x1) / 2, (boxes.y0 + boxes.y1) / 2
    heart, aorta = boxes.label == "Cardiomegaly", boxes.label == "Aortic enlargement"
    by_image = boxes.image

    def mark(values: pd.Series, which: pd.Series) -> pd.Series:
        return values[which].groupby(by_image[which]).median()

    images = pd.Index(by_image.unique())
    across = mark(middle_x, heart).combine_first(mark(middle_x, aorta)).reindex(images)
    arch, base = mark(middle_y, aorta).reindex(images), mark(boxes.y1, heart).reindex(images)

    at = {name: each.reindex(by_image).to_numpy() for name, each in (("x", across), ("arch", arch), ("base", base))}
    effusion = boxes.label == "Pleural effusion"
    apical = boxes.label.isin(["Pleural thickening", "Pneumothorax"]) & (middle_y < at["arch"])
    to_right = (at["x"] - boxes.x0)[effusion & (middle_x < at["x"])].median()
    to_left = (boxes.x1 - at["x"])[effusion & (middle_x > at["x"])].median()
    to_top = (at["arch"] - boxes.y0)[apical].median()
    to_bottom = (boxes.y1 - at["base"])[effusion].median()
    span = (base - arch).median()
    height = to_top + span + to_bottom
    top = pd.concat([arch - to_top, base + to_bottom - height], axis=1).mean(axis=1)  # of those that are known
    left = across - to_right
    corners = pd.DataFrame({"left": left.fillna(left.median()), "top": top.fillna(top.median())}, index=images)
    return corners, (float(to_right + to_left), float(height))


def _in_frame(boxes: pd.DataFrame, corners: pd.DataFrame, size: tuple[float, float]) -> pd.DataFrame:
    corners = corners.reindex(boxes.image)
    out = boxes.copy()
    for axis, corner, extent in (("x", "left", size[0]), ("y", "top", size[1])):
        for end in "01":
            out[axis + end] = (boxes[axis + end] - corners[corner].to_numpy()) / extent
    return out


def _square_frame(boxes: pd.DataFrame) -> pd.DataFrame:
    """Boxes in pixels of a 1024 x 1024 image to the lung frame, that is to the mean lungs of the real masks."""
    x0, y0, x1, y1 = lung_outlines()[_BOX].mean() * _FRAME_PIXELS
    out = boxes.copy()
    out[["x0", "x1"]] = (boxes[["x0", "x1"]] - x0) / (x1 - x0)
    out[["y0", "y1"]] = (boxes[["y0", "y1"]] - y0) / (y1 - y0)
    return out


@lru_cache(maxsize=1)
def nih() -> pd.DataFrame:
    """NIH's boxes in the lung frame. The header of the file reads `Bbox [x,y,w,h],,,`: commas split it into columns."""
    boxes = _table("BBox_List_2017.csv.gz", ["image", "label", "x0", "y0", "x1", "y1"])
    boxes["x1"] += boxes.x0
    boxes["y1"] += boxes.y0
    return _square_frame(boxes)


@lru_cache(maxsize=1)
def rsna() -> pd.DataFrame:
    """RSNA's boxes of lung opacities (suspected pneumonia) in the lung frame; images without any are left out."""
    boxes = _table("kaggle_stage_2_train_labels.csv.zip", ["image", "x0", "y0", "x1", "y1", "target"])
    boxes = boxes[boxes.target == 1].drop(columns="target").assign(label="Lung Opacity")
    boxes["x1"] += boxes.x0
    boxes["y1"] += boxes.y0
    return _square_frame(boxes)


@lru_cache(maxsize=1)
def siim() -> pd.DataFrame:
    """SIIM's pneumothorax masks: image, box in the lung frame, and `share` of one lung's area; one row for each side.

    One lung's area is half of the mean area of both in the real masks.
    """
    table = _table("siim-pneumothorax-train-rle.csv.gz", ["image", "code"])
    table = table[table.code.str.strip() != "-1"]
    runs = [decode_rle(code) for code in table.code]
    image = np.repeat(table.image.to_numpy(), [len(each) for each in runs])
    start, stop = np.concatenate(runs).T
    frame = pd.DataFrame(
        {
            "image": image,
            "x0": start // _FRAME_PIXELS,
            "y0": start % _FRAME_PIXELS,
            "x1": (stop - 1) // _FRAME_PIXELS + 1,
            "y1": (stop - 1) % _FRAME_PIXELS + 1,
            "area": stop - start,
        }
    )
    frame["left"] = frame.x0 > _FRAME_PIXELS * lung_outlines()[["x0", "x1"]].mean().mean()
    lumped = frame.groupby(["image", "left"], as_index=False).agg(
        {"x0": "min", "y0": "min", "x1": "max", "y1": "max", "area": "sum"}
    )
    whole = lumped.groupby("image").area.transform("sum")
    lumped = lumped[lumped.area > 0.1 * whole]  # a mask that only just crosses the midline is no second one
    lungs = lung_outlines()["area"].mean() * _FRAME_PIXELS**2
    return _square_frame(lumped.assign(label="Pneumothorax", share=lumped.area / (lungs / 2)).drop(columns="area"))


def _measure_lungs(folder: Path) -> None:
    path = wheel_file("torchxrayvision", "data", "semantic_masks_v7labs_lungs.zip")
    rows = []
    try:
        with ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.is_dir():
                    continue
                with archive.open(entry) as file, Image.open(file) as mask:
                    wide, high = mask.size
                    if (edges := mask.getbbox()) is None:
                        continue  # a lateral film: its lungs are not outlined
                    filled = wide * high - mask.histogram()[0]
                rows.append(
                    (entry.filename, *np.array(edges) / (wide, high, wide, high), filled / (wide * high), wide / high)
                )
    except (OSError, EOFError, BadZipFile, UnidentifiedImageError) as error:
        raise RRGError(
            f"{path}: cannot read the lung masks ({error}). Run: pip install --force-reinstall torchxrayvision"
        ) from None
    pd.DataFrame(rows, columns=["image", *_BOX, "area", "film"]).to_csv(folder / "outlines.csv", index=False)


@lru_cache(maxsize=1)
def lung_outlines() -> pd.DataFrame:
    """The outlines of both lungs in V7 Labs' masks, frontal films only (the masks of lateral films are empty).

    Columns: image; x0, y0, x1, y1 of both lungs and their `area`, as shares of the image; `film`, the image's width by
    its height. Reading 517 PNG files takes some seconds, so the table is cached.
    """
    size = wheel_file("torchxrayvision", "data", "semantic_masks_v7labs_lungs.zip").stat().st_size
    return pd.read_csv(artifact("lung_outlines", {"bytes": size}, _measure_lungs) / "outlines.csv")


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the logarithms of lung width and height, and of their ratio."""

    width: float
    height: float
    aspect: float


@lru_cache(maxsize=1)
def lung_spread() -> Spread:
    """How much lungs differ between people, without what the films' cropping adds.

    A film shows the lungs larger or smaller as it was cropped and as the person is built: a factor on width and height
    alike. Assumption of ours: this common factor is all that makes the two vary together, so that their covariance is
    its variance; it is taken off both. The spread of the ratio (in pixels, free of any crop) is left as measured.
    """
    lungs = lung_outlines()
    width, height = np.log(lungs.x1 - lungs.x0), np.log(lungs.y1 - lungs.y0)
    common = max(0.0, np.cov(width, height)[0, 1])
    own = [float(np.sqrt(max(0.0, each.var() - common))) for each in (width, height)]
    return Spread(*own, float((width - height + np.log(lungs.film)).std()))


# --- boxes of a class -------------------------------------------------------------------------------------------------

_READERS = {"VinBigData": vinbigdata, "NIH": nih, "RSNA": rsna, "SIIM": siim}


@cache
def boxes(name: str) -> pd.DataFrame:
    """The radiologists' boxes of a class by size: area, but width for the heart, left edge for the aorta, and share of
    the lung for pneumothoraces.

    Columns: dataset; x0, y0, x1, y1; `weight`; for pneumothoraces also `share`, their area as a share of one lung's.
    Each dataset counts the same, however many boxes it has (ours): VinBigData's many small lesions, which screening
    readers found, would otherwise outvote those of NIH's hospital patients.
    """
    if name not in SOURCES:
        raise RRGError(f"no radiologist's boxes for {name!r}; there are some for: {', '.join(SOURCES)}")
    parts = []
    for dataset, label in SOURCES[name]:
        table = _READERS[dataset]()
        parts.append(table[table.label == label].assign(dataset=dataset))
    found = pd.concat(parts, ignore_index=True)
    width, height = found.x1 - found.x0, found.y1 - found.y0
    found, area = found[(width > 0) & (height > 0)], width * height
    if name == "granuloma":  # beside the midline a calcification is the aorta's or a lymph node's: 0.12 is ours
        found = found[((found.x0 + found.x1) / 2 - 0.5).abs() > 0.12]
    if name in ("nodule", "mass"):
        size = np.maximum(width, height)
        named = found.dataset == "NIH"  # NIH tells nodules from masses itself
        found = found[named | (size <= NODULE if name == "nodule" else size > NODULE)]
    size = {"cardiomegaly": width, "tortuous aorta": found.x1, "pneumothorax": found.get("share")}.get(name, area)
    found = found.loc[size[found.index].sort_values(kind="stable").index].reset_index(drop=True)
    weight = 1 / found.groupby("dataset").dataset.transform("size")
    found["weight"] = weight / weight.sum()
    keep = found.weight.cumsum() <= SMALLEST.get(name, 1.0) + 1e-9
    return found.loc[keep, ["dataset", *_BOX, "weight", *(["share"] if "share" in found else [])]]


def weighted_quantile(values: np.ndarray, weights: np.ndarray, at: float | np.ndarray) -> np.ndarray:
    """The values below which the share `at` of the weight lies."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(np.asarray(weights)[order])
    index = np.searchsorted(below, np.asarray(at) * below[-1])
    return np.asarray(values)[order][np.minimum(index, len(order) - 1)]


@dataclass(frozen=True)
class Box:
    """One radiologist's box in the lung frame, on the wanted side. `placed`: its centre is where it was asked to be."""

    x0: float
    y0: float
    x1: float
    y1: float
    placed: bool
    share: float | None = None  # of a pneumothorax: its area as a share of one lung's

    @property
    def width(self) -> float:
        """Relative to the width of both lungs."""
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        """Relative to the height of the lungs."""
        return self.y1 - self.y0

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in the lung frame."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2


@cache
def _sided(name: str, side: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 5: box and share) of a class with their centres (N, 2) on one side; (N,) mirrored? and weights."""
    table = boxes(name)
    found = np.column_stack(
        [table[_BOX].to_numpy(float), table["share"] if "share" in table else [np.nan] * len(table)]
    )
    mirrored = np.zeros(len(found), bool)
    if side is not None:
        mirrored = (found[:, [0, 2]].mean(1) > 0.5) != (side == "left")
        found[mirrored] = (found[mirrored] * (-1, 1, -1, 1, 1) + (1, 0, 1, 0, 0))[:, [2, 1, 0, 3, 4]]
    return (
        found,
        np.stack([found[:, [0, 2]].mean(1), found[:, [1, 3]].mean(1)], axis=1),
        mirrored,
        table.weight.to_numpy(),
    )


def sample(
    name: str,
    side: str | None,
    rng: np.random.Generator,
    inside: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    part: tuple[float, float] = (0.0, 1.0),
) -> Box:
    """A radiologist's box of class `name`.

    side: "left", "right", or None for findings of the middle. inside: tells for arrays of x and y in the lung frame
    which lie where the box's centre may be (a lobe, a zone); boxes of the other side are mirrored where the own side
    has few, and where no box fits the size of any is drawn (`placed` is False). part: which part of the boxes that fit,
    by size, from 0 (smallest) to 1 (largest). Takes one number from `rng`.
    """
    found, centres, mirrored, weights = _sided(name, side)
    fits = np.ones(len(found), bool) if inside is None else inside(centres[:, 0], centres[:, 1])
    own = np.flatnonzero(fits & ~mirrored)
    pool = own if len(own) >= _ENOUGH else np.flatnonzero(fits)
    placed = len(pool) > 0
    if not placed:
        pool = np.arange(len(found))
    rank = part[0] + (part[1] - part[0]) * rng.random()
    below = np.cumsum(weights[pool])
    x0, y0, x1, y1, share = found[pool[min(np.searchsorted(below, rank * below[-1]), len(pool) - 1)]].tolist()
    return Box(x0, y0, x1, y1, placed, None if np.isnan(share) else share)
