"""Radiographs on disk: PNG and JPEG through Pillow, DICOM through pydicom, told apart by content and not by name.

Every picture comes out as film-like grey in [0, 1], bone white and air black. A file that cannot be used raises one
RRGError that names it.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from rrg_utils.errors import RRGError

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
SMALLEST = 32  # px a side: less shows no chest
LARGEST = 64_000_000  # px in all, checked before pixels are decoded; detectors and film scanners stay below 40 million


def read_picture(path: str | Path, size: int | None = None) -> np.ndarray:
    """Grey values (H, W) float32 in [0, 1], or (size, size): see `fit`.

    PNG and JPEG: eight bits are taken as they are; deeper ones, whose true depth the file does not tell, are stretched
    from their least to their greatest value; colour becomes luminance.
    DICOM: modality LUT, then the first VOI LUT or window (without one, the whole range), MONOCHROME1 turned over.

    Raises RRGError for a file that is missing, unreadable, truncated, of another kind, without pixels, with several
    frames, with a side below 32 px, or with more than 64 million pixels.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        raise RRGError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            image = _bitmap(PngImageFile, path, size)
        elif start.startswith(b"\xff\xd8\xff"):
            image = _bitmap(JpegImageFile, path, size)
        elif start[128:] == b"DICM":
            image = _dicom(path)
        else:
            kind = "empty" if not start else "neither PNG, JPEG nor DICOM"
            raise RRGError(f"{path}: the file is {kind}")
    except RRGError:
        raise
    except Exception as error:  # damaged files make the decoders fail in many ways, all of them the file's fault
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RRGError(f"{path}: damaged picture ({reason})") from error
    return image if size is None else fit(image, size)


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture (H, W) padded with black to a square, around its middle, and resampled to (size, size).

    Nothing is cut off, as a crop would do with the costophrenic angles, and nothing is stretched.
    """
    if size < SMALLEST // 2:
        raise RRGError(f"size={size}: films need at least {SMALLEST // 2} pixels a side")
    height, width = image.shape
    square = np.zeros((max(image.shape),) * 2, np.float32)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top : top + height, left : left + width] = image
    film = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)  # Pillow averages when it shrinks
    return np.clip(np.asarray(film, np.float32), 0, 1)


def _bounds(path: Path, width: int, height: int) -> None:
    if min(width, height) < SMALLEST:
        raise RRGError(f"{path}: {width} x {height} pixels are too few for a radiograph (at least {SMALLEST} a side)")
    if width * height > LARGEST:
        raise RRGError(f"{path}: {width} x {height} pixels are too many (at most {LARGEST // 10**6} million)")


def _bitmap(kind: type[Image.Image], path: Path, size: int | None) -> np.ndarray:
    # Opened by class, which reads the header alone: Image.open would warn of large pictures, and we refuse them anyway.
    with kind(path) as image:
        _bounds(path, *image.size)
        if size is not None:
            image.draft("L", (2 * size, 2 * size))  # a JPEG is decoded at a fraction of its size, never below this
        if image.mode.startswith("I"):  # 16 bits
            values = np.asarray(image, np.float32)
            return _stretch(values, values.min(), values.max())
        return np.asarray(image.convert("L"), np.float32) / 255


def _dicom(path: Path) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut

    data = dcmread(path)
    if "PixelData" not in data:
        raise RRGError(f"{path}: the DICOM file holds no pixel data")
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise RRGError(f"{path}: {data.NumberOfFrames} frames; a radiograph has one")
    _bounds(path, int(data.Columns), int(data.Rows))
    try:
        stored = data.pixel_array
    except (RuntimeError, NotImplementedError) as error:
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_compressed and "plugin" in str(error):
            raise RRGError(
                f"{path}: no decoder for {syntax.name}. Run: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
            ) from error
        raise
    photometric = data.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored, data)
        return _luminance(stored / np.iinfo(stored.dtype).max)
    if stored.ndim == 3:
        return _luminance(stored / (2 ** int(data.BitsStored) - 1))
    values = apply_modality_lut(stored, data)
    shown = apply_voi_lut(values, data).astype(np.float32)
    image = _stretch(shown, *_shown_range(data, shown))
    # PRESENTATION LUT SHAPE "INVERSE" says of a MONOCHROME1 image what its name says already: one inversion, not two.
    return 1 - image if photometric == "MONOCHROME1" else image


def _shown_range(data, shown: np.ndarray) -> tuple[float, float]:
    """What least and greatest input become in the VOI step: black and white need not occur in the picture."""
    from pydicom.pixels.processing import apply_voi, apply_windowing

    table = (data.get("VOILUTSequence") or [None])[0]
    if table is not None and table.get("LUTDescriptor") and table.get("LUTData"):
        entries, first, _ = table.LUTDescriptor
        outputs = apply_voi(np.arange(first, first + (entries or 2**16)), data)
        return float(outputs.min()), float(outputs.max())
    if data.get("WindowWidth") is not None and data.get("WindowCenter") is not None:
        with np.errstate(over="ignore"):
            low, high = apply_windowing(np.array([-1e9, 1e9]), data)
        return float(low), float(high)
    return float(shown.min()), float(shown.max())


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low` to 0 and `high` to 1; `high` may be the smaller one, after a negative rescale slope."""
    return np.clip((values - low) / ((high - low) or 1), 0, 1, dtype=np.float32)


def _luminance(rgb: np.ndarray) -> np.ndarray:
    return (rgb[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.float32)
