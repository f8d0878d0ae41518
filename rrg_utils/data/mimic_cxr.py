"""A credentialed local copy of MIMIC-CXR-JPG (Johnson et al. 2019) with the reports of MIMIC-CXR.

The root holds, as PhysioNet distributes them:

    files/pNN/pNNNNNNNN/sNNNNNNNN/<dicom_id>.jpg     images of a study
    files/pNN/pNNNNNNNN/sNNNNNNNN.txt                its report (mimic-cxr-reports.zip, here or in mimic-cxr-reports/)
    mimic-cxr-2.0.0-split.csv.gz, -metadata.csv.gz, -chexpert.csv.gz

Nothing derived from these data may be committed, logged or left in a notebook: messages of `load` hold counts, never an
id; only `rrg data check` names files, on the owner's terminal.
"""

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rrg_utils.data.radiographs import Exam, Inventory, RadiographDataset, folder, map_files, require
from rrg_utils.data.reports import Report, clean
from rrg_utils.errors import RRGError

HOW = (
    "a copy of MIMIC-CXR-JPG with the reports of MIMIC-CXR: https://physionet.org/content/mimic-cxr-jpg (credentialed)"
)
SPLITS = {"train": "train", "val": "validate", "test": "test"}
FRONTAL = ("PA", "AP")  # the better projection first

_TABLES = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "metadata": ("dicom_id", "study_id", "subject_id", "ViewPosition"),
    "chexpert": ("study_id", "subject_id"),
}


class MimicDataset(RadiographDataset):
    """`observations`: a row per study, in order: the 14 CheXpert labels of the official table (1, 0, -1, NaN)."""

    CREDENTIALED = True

    def __init__(self, split: str, size: int, exams: Sequence[Exam], observations: pd.DataFrame):
        super().__init__(split, size, exams)
        self._all = observations

    @property
    def observations(self) -> pd.DataFrame:
        return self._all.reindex([exam.report.id for exam in self.exams])


def load(split: str, size: int, limit: int | None, root: str | Path | None) -> RadiographDataset:
    """Studies of the official split that have FINDINGS and a frontal film: the first PA film, else the first AP one.

    `labels` of the studies is None, as nobody annotated them with MeSH; CheXpert's labels are in `observations`.
    Raises RRGError if a table is missing or wrong, or if a patient is in two splits.
    """
    root = folder(root, "mimic_cxr", HOW)
    images = _images(root)
    if len(leaks := _straddling(images)):
        raise RRGError(f"{_table_path(root, 'split')}: {len(leaks)} patients are in more than one split")
    observations = _observations(root)

    frontal = images[(images["split"] == SPLITS[split]) & images["ViewPosition"].isin(FRONTAL)]
    exams: list[Exam] = []
    missing = 0
    for (subject, study), films in (
        frontal.groupby(["subject_id", "study_id"], sort=False)["dicom_id"].agg(tuple).items()
    ):
        if limit is not None and len(exams) == limit:
            break
        film, text = image_path(root, subject, study, films[0]), report_path(root, subject, study)
        try:
            report = parse_report(f"s{study}", text, films) if text and film.is_file() else None
        except RRGError:
            report = None
        if report is None:
            missing += 1
        elif report.findings:
            exams.append(Exam(report, clean(report.findings), "frontal", film, None))
    require(exams, missing, split, root, "mimic_cxr")
    return MimicDataset(split, size, exams, observations)


def inventory(root: str | Path | None) -> Inventory:
    """All images of the split table by dicom id, and all that is missing, unreadable or contradictory."""
    root = folder(root, "mimic_cxr", HOW)
    found = Inventory()
    images = _images(root, found.problems)
    studies = images.drop_duplicates("study_id")
    labelled = set(_read(root, "chexpert")["study_id"])
    try:
        _observations(root)
    except RRGError as error:
        found.problems.append(str(error))
    found.problems += [
        f"{_table_path(root, 'split')}: patient p{subject} is in more than one split" for subject in _straddling(images)
    ]
    found.counts = {f"images of {name}": int((images["split"] == official).sum()) for name, official in SPLITS.items()}
    found.counts |= {
        "studies": len(studies),
        "patients": images["subject_id"].nunique(),
        "frontal images": int(images["ViewPosition"].isin(FRONTAL).sum()),
        "studies without CheXpert labels": int((~studies["study_id"].isin(labelled)).sum()),
    }
    for dicom, path in _paths(root, images).items():
        if path.is_file():
            found.images[dicom] = path
        else:
            found.problems.append(f"{path}: missing")

    def read(row) -> Report | RRGError:
        path = report_path(root, row.subject_id, row.study_id)
        try:
            if path is None:
                raise RRGError(f"{_report_name(root, row.subject_id, row.study_id)}: missing")
            return parse_report(f"s{row.study_id}", path, ())
        except RRGError as error:
            return error

    reports = list(map_files(read, studies.itertuples(), f"reading {len(studies):,} reports"))
    found.problems += [str(report) for report in reports if isinstance(report, RRGError)]
    sound = [report for report in reports if isinstance(report, Report)]
    found.counts |= {"reports": len(sound), "reports with FINDINGS": sum(bool(report.findings) for report in sound)}
    found.counts["images found"] = len(found.images)
    return found


def image_files(root: str | Path | None) -> dict[str, Path]:
    """The file of every image of the split table by dicom id, whether it is there or not."""
    root = folder(root, "mimic_cxr", HOW)
    return _paths(root, _images(root))


# --- files ------------------------------------------------------------------------------------------------------------


def image_path(root: Path, subject: str, study: str, dicom: str) -> Path:
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{dicom}.jpg"


def _report_name(root: Path, subject: str, study: str) -> Path:
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}.txt"


def _paths(root: Path, images: pd.DataFrame) -> dict[str, Path]:
    return {row.dicom_id: image_path(root, row.subject_id, row.study_id, row.dicom_id) for row in images.itertuples()}


def report_path(root: Path, subject: str, study: str) -> Path | None:
    """The report beside the images, or where mimic-cxr-reports.zip unpacks into a folder of its own."""
    for base in (root, root / "mimic-cxr-reports"):
        if (path := _report_name(base, subject, study)).is_file():
            return path
    return None


def _table_path(root: Path, table: str) -> Path:
    name = f"mimic-cxr-2.0.0-{table}.csv"
    return root / name if (root / name).is_file() else root / f"{name}.gz"


def _read(root: Path, table: str) -> pd.DataFrame:
    path = _table_path(root, table)
    if not path.is_file():
        raise RRGError(f"{path} is missing; it comes with MIMIC-CXR-JPG: https://physionet.org/content/mimic-cxr-jpg")
    try:
        rows = pd.read_csv(path, dtype=str)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RRGError(f"{path}: cannot read the table ({error})") from error
    if absent := [name for name in _TABLES[table] if name not in rows]:
        raise RRGError(f"{path}: column {absent[0]!r} is missing")
    return rows


def _observations(root: Path) -> pd.DataFrame:
    """CheXpert's labels: a row per study id, a column per observation. RRGError names the line that holds no number."""
    table = _read(root, "chexpert")
    table.index = "s" + table.pop("study_id")
    words = table.drop(columns="subject_id")
    labels = words.apply(pd.to_numeric, errors="coerce")
    if len(wrong := np.argwhere((labels.isna() & words.notna()).to_numpy())):
        row, column = wrong[0]
        raise RRGError(
            f"{_table_path(root, 'chexpert')}: line {row + 2}, column {words.columns[column]!r} is no number: "
            "labels are 1, 0, -1 or empty"
        )
    return labels


def _images(root: Path, problems: list[str] | None = None) -> pd.DataFrame:
    """A row per image: dicom_id, study_id, subject_id, split, ViewPosition; by patient and study, the frontal film to
    prefer first. What the two tables do not agree on raises, or is added to `problems`."""
    split, metadata = _read(root, "split"), _read(root, "metadata")
    path = _table_path(root, "split")
    faults = []
    if len(unknown := set(split["split"]) - set(SPLITS.values())):
        faults.append(f"{path}: unknown split {min(map(str, unknown))!r}; known are: {', '.join(SPLITS.values())}")
    if split["dicom_id"].duplicated().any():
        faults.append(f"{path}: {split['dicom_id'].duplicated().sum()} images occur twice")
    keys = ["dicom_id", "study_id", "subject_id"]
    metadata = metadata[[*keys, "ViewPosition"]].drop_duplicates("dicom_id")
    images = split.drop_duplicates("dicom_id").merge(metadata, how="left", on=keys, indicator=True)
    if lost := int((images.pop("_merge") == "left_only").sum()):
        faults.append(f"{_table_path(root, 'metadata')}: {lost} images of the split table are not in it")
    if problems is None and faults:
        raise RRGError(faults[0])
    if problems is not None:
        problems += faults
    preference = images["ViewPosition"].map({view: k for k, view in enumerate(FRONTAL)}).fillna(len(FRONTAL))
    order = images.assign(preference=preference, subject=pd.to_numeric(images["subject_id"], errors="coerce"))
    return images.loc[order.sort_values(["subject", "study_id", "preference", "dicom_id"]).index]


def _straddling(images: pd.DataFrame) -> list[str]:
    splits = images.groupby("subject_id")["split"].nunique()
    return list(splits.index[splits > 1])


# --- reports ----------------------------------------------------------------------------------------------------------

# A heading opens a line and ends with a colon: words in capitals, or one of the usual words as a sentence would begin.
_HEADING = re.compile(
    r"^[ \t]*(?P<name>[A-Z][A-Z ,/&()-]*[A-Z)]|Findings?|Impression|Indication|History|Comparison)[ \t]*:",
    re.MULTILINE,
)
# By what a heading contains, the first that fits. "FINDINGS AND IMPRESSION" is the only description there is: findings.
_SECTIONS = (
    ("findings", ("FINDING",)),
    ("impression", ("IMPRESSION", "CONCLUSION", "OPINION")),
    ("comparison", ("COMPARISON",)),
    ("indication", ("INDICATION", "HISTORY", "REASON FOR", "CLINICAL INFORMATION")),
)


def sections(text: str) -> dict[str, str]:
    """FINDINGS, IMPRESSION, COMPARISON and INDICATION of a report, on one line each and "" where absent.

    A section reaches to the next heading of any name. One that occurs again (an addendum) is joined to the first. Text
    without a heading is in no section: such a report has no FINDINGS, and is not guessed at.
    """
    found = {name: [] for name, _ in _SECTIONS}
    headings = [*_HEADING.finditer(text)]
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    for heading, end in zip(headings, ends, strict=False):
        title = heading["name"].upper()
        name = next((name for name, words in _SECTIONS if any(word in title for word in words)), None)
        if name:
            found[name].append(" ".join(text[heading.end() : end].split()))
    return {name: " ".join(filter(None, parts)) for name, parts in found.items()}


def parse_report(id: str, path: Path, images: tuple[str, ...]) -> Report:
    """The report in a text file. `mesh` is empty: MIMIC-CXR has no such annotation."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RRGError(f"{path}: cannot read the report ({error})") from error
    parts = sections(text)
    return Report(id, parts["findings"], parts["impression"], parts["indication"], parts["comparison"], (), images)
