"""Writers of small radiograph files and of data trees in the layouts in which they are published."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid


def write_png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def film(seed: int, side: int = 48) -> np.ndarray:
    """A picture unlike those of other seeds."""
    return np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)


def dicom(path: Path, pixels: np.ndarray | None, bits: int = 12, compress: bool = False, **fields) -> Path:
    """A Computed Radiography file with these stored values; `fields` by DICOM keyword override the usual ones."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = ComputedRadiographyImageStorage
    data.SOPInstanceUID = generate_uid()
    data.Modality = "CR"
    if pixels is not None:
        data.Rows, data.Columns = pixels.shape[:2] if pixels.shape[-1] == 3 else pixels.shape[-2:]
        data.SamplesPerPixel = 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelRepresentation = 0
        data.BitsAllocated = 8 * pixels.itemsize
        data.BitsStored, data.HighBit = bits, bits - 1
        data.PixelData = pixels.tobytes()
    for keyword, value in fields.items():
        setattr(data, keyword, value)
    if compress:
        data.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_openi(root: Path, images: list[str], layout: str = "png") -> dict[str, Path]:
    """Files of these image ids: flat "png", "dicom" in a folder per report, or "kaggle", DICOM names ending in .png."""
    files = {}
    for seed, image in enumerate(images):
        number, series = image.removeprefix("CXR").split("_", 1)
        name = f"{number}_{series.removeprefix('1_')}"
        if layout == "png":
            files[image] = write_png(root / "NLMCXR_png" / f"{image}.png", film(seed))
        elif layout == "kaggle":
            files[image] = write_png(root / "images" / "images_normalized" / f"{name}.dcm.png", film(seed))
        else:
            stored = 4095 - film(seed).astype(np.uint16) * 16
            files[image] = dicom(
                root / "NLMCXR_dcm" / number / f"{name}.dcm",
                stored,
                PhotometricInterpretation="MONOCHROME1",
                WindowCenter=2048,
                WindowWidth=4096,
            )
    return files


def write_r2gen(root: Path, entries: dict[str, list[dict]]) -> Path:
    """annotation.json and a film for each `image_path` in it."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, entry in enumerate(entry for split in entries.values() for entry in split):
        for number, name in enumerate(entry["image_path"]):
            write_png(root / "images" / name, film(10 * seed + number))
    (root / "annotation.json").write_text(json.dumps(entries))
    return root


@dataclass(frozen=True)
class MimicStudy:
    """A study of an invented patient; `films` maps dicom ids to their ViewPosition."""

    subject: int
    study: int
    split: str
    films: dict[str, str]
    report: str = "                 FINAL REPORT\n FINDINGS: \n\n The lungs are clear.\n\n IMPRESSION: \n\n Normal.\n"


def write_mimic(root: Path, studies: list[MimicStudy], reports: str = "") -> Path:
    """A tree as PhysioNet distributes MIMIC-CXR-JPG, with `reports` the folder for the text files."""
    rows = []
    for study in studies:
        folder = Path("files", f"p{str(study.subject)[:2]}", f"p{study.subject}")
        for seed, (name, view) in enumerate(study.films.items()):
            path = root / folder / f"s{study.study}" / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film(study.study + seed)).save(path, quality=95)
            rows.append((name, study.study, study.subject, study.split, view))
        text = root / reports / folder / f"s{study.study}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(study.report)
    table = pd.DataFrame(rows, columns=["dicom_id", "study_id", "subject_id", "split", "ViewPosition"])
    table[["dicom_id", "study_id", "subject_id", "split"]].to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    metadata = table[["dicom_id", "subject_id", "study_id", "ViewPosition"]].assign(Rows=48, Columns=48)
    metadata.to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    labels = pd.DataFrame([(s.subject, s.study, 1.0, -1.0, None) for s in studies])
    labels.columns = ["subject_id", "study_id", "Atelectasis", "Cardiomegaly", "No Finding"]
    labels.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", index=False)
    return root


@contextmanager
def no_rights() -> Iterator[Path]:
    """A folder to close with chmod, and meanwhile an effective user to whom that means something: the tests may be run
    by the superuser, to whom no folder is closed."""
    superuser = os.geteuid() == 0
    with TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        if superuser:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if superuser:
                os.seteuid(0)
            for path in Path(name).iterdir():  # so that it can be removed
                path.chmod(0o700)
