"""The Indiana University chest X-ray reports (Open-i), read straight from the archive in the torchxrayvision wheel.

Source: Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval", JAMIA
23(2), 2016. Every file declares CC BY-NC-ND 4.0: the reports are read where they lie and no copy is written.
"""

import re
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args
from xml.etree.ElementTree import Element, ParseError

import pandas as pd
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from rrg_utils.data.mesh import NORMAL, Finding, parse_mesh
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError

Projection = Literal["frontal", "lateral"]
XXXXPolicy = Literal["drop", "mask", "keep"]

XXXX_POLICY: XXXXPolicy = "mask"  # the one choice that every result of the course is made with; argued in clean()
MASK = "___"  # the de-identification mark of MIMIC-CXR, so both corpora look alike to a model


@dataclass(frozen=True)
class Report:
    """One examination. Sections are as in the archive ("" when absent): pass them through `clean` before use."""

    id: str  # "CXR1000"; one report per patient in this collection
    findings: str
    impression: str
    indication: str
    comparison: str
    mesh: tuple[Finding, ...]
    images: tuple[str, ...]  # image ids, in the archive's order

    @property
    def normal(self) -> bool:
        """Indexed as normal and nothing else (1,391 of the 3,955)."""
        return self.mesh == (NORMAL,)


def load_indiana(path: Path | None = None) -> list[Report]:
    """All 3,955 reports in numeric id order (CXR1, CXR2, ...), from the wheel or from another copy of the archive.

    `mesh` holds the <major> entries only: they are what human experts assigned, with place, side and severity. The
    <automatic> entries (7,047 of 659 kinds) are a program's flat terms found in the text ("opacity", "pleural
    effusions"): no place, no side, and several spellings of one finding.

    Raises RRGError that names the archive, or the member in it, when one cannot be read.
    """
    path = wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz") if path is None else Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise RRGError(f"{path}: cannot read the report archive ({error.strerror})") from error
    return list(_read_archive(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)
def _read_archive(path: Path, size: int, mtime_ns: int) -> tuple[Report, ...]:
    """Parse the archive; size and time are part of the memory's key, so a replaced file is read again."""
    reports = []
    member = None
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".xml"):
                    reports.append(_parse_report(f"{path}: {member.name}", archive.extractfile(member).read()))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        place = f"at or after {member.name}" if member else "at its start"
        raise RRGError(
            f"{path}: the report archive is damaged {place} ({error}). "
            "Run: pip install --force-reinstall torchxrayvision"
        ) from error
    if not reports:
        raise RRGError(f"{path}: no .xml report inside; is this the Open-i archive NLMCXR_reports.tgz?")
    return tuple(sorted(reports, key=lambda report: id_order(report.id)))


def _parse_report(place: str, xml: bytes) -> Report:
    try:
        root = fromstring(xml)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise RRGError(f"{place}: broken XML ({error})") from error
    sections = {e.get("Label"): _text(e) for e in root.iter("AbstractText")}
    absent = [label for label in ("FINDINGS", "IMPRESSION", "INDICATION", "COMPARISON") if label not in sections]
    uid = root.find("uId")
    if uid is None or not uid.get("id") or absent:
        lacks = f"AbstractText {absent[0]}" if absent else "uId"
        raise RRGError(f"{place}: not an Open-i report, {lacks} is missing")
    images = tuple(e.get("id") or "" for e in root.iter("parentImage"))
    if "" in images:
        raise RRGError(f"{place}: a parentImage has no id")
    try:
        mesh = tuple(parse_mesh(_text(e)) for e in root.iterfind("MeSH/major"))
    except RRGError as error:
        raise RRGError(f"{place}: {error}") from error
    return Report(
        id=uid.get("id"),
        findings=sections["FINDINGS"],
        impression=sections["IMPRESSION"],
        indication=sections["INDICATION"],
        comparison=sections["COMPARISON"],
        mesh=mesh,
        images=images,
    )


def _text(element: Element) -> str:
    return "".join(element.itertext()).strip()


def id_order(id: str) -> tuple[tuple[str, int], ...]:
    """Sort key that counts: CXR2 before CXR10."""
    return tuple((word, int(number or -1)) for word, number in re.findall(r"(\D*)(\d*)", id))


# DICOM View Position (PA and AP are frontal, LL and RL left and right lateral) and the pixel table's "PA" and "L".
_VIEWS: dict[str, Projection] = {
    "PA": "frontal",
    "AP": "frontal",
    "L": "lateral",
    "LL": "lateral",
    "RL": "lateral",
    "LATERAL": "lateral",
    "LARGE LATERAL": "lateral",
}


@lru_cache(maxsize=1)
def projections() -> dict[str, Projection | None]:
    """Projection of each of the 7,470 images: 3,661 frontal, 1,322 lateral, None (2,487) where it is not known.

    Two sources disagree. torchxrayvision's table of views, told from the pixels, covers the first image of each of
    3,851 reports. The DICOM field View Position covers 4,883; where it says lateral the pixels never disagree, but it
    says PA or AP of 198 of the 584 images that look lateral, probably from the study's protocol. So the pixels come
    first, then DICOM; but a DICOM "frontal" does not count in a report whose first image is frontal by its pixels.
    """
    dicom, pixels = (
        _view_table("nlmcxr_dicom_metadata.csv.gz", "View Position"),
        _view_table("nlmcxr_tsne_pa.csv.gz", "tsne-view"),
    )
    views = {}
    for report in load_indiana():
        for image in report.images:
            # The archive writes the two images of CXR1 as CXR1_1_IM-..., the DICOM table as CXR1_IM-...
            view = pixels.get(image) or dicom.get(image.replace("CXR1_1_", "CXR1_"))
            doubtful = image not in pixels and view == "frontal" and pixels.get(report.images[0]) == "frontal"
            views[image] = None if doubtful else view
    return views


def study_views(report: Report) -> tuple[Projection, ...]:
    """The views of a study by the metadata of its images: frontal always, lateral where there is one.

    An image of unknown projection beside a known frontal one counts as the lateral (a choice of ours: the archive's
    studies are pairs, and no other table names the 2,487). Five studies of the cohort hold two lateral images and no
    other; they get a frontal film all the same, because every system needs one.
    """
    known = [projections().get(image) for image in report.images]
    paired = None in known and "frontal" in known
    return ("frontal", "lateral") if "lateral" in known or paired else ("frontal",)


def _view_table(name: str, column: str) -> dict[str, Projection | None]:
    path = wheel_file("torchxrayvision", "data", name)
    try:
        table = pd.read_csv(path, usecols=["imageid", column], dtype=str, keep_default_na=False)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise RRGError(
            f"{path}: cannot read the table ({error}). Run: pip install --force-reinstall torchxrayvision"
        ) from error
    return {image: _VIEWS.get(view) for image, view in zip(table["imageid"], table[column], strict=True)}


_ABBREVIATIONS = frozenset(["dr.", "mr.", "mrs.", "ms.", "prof.", "a.m.", "p.m.", "e.g.", "i.e.", "vs.", "approx."])
_STOP = re.compile(r"""[.?!](?:\s*[.?!])*["')\]]*""")  # ". ." and ".." end one sentence, not two
_NUMBER = re.compile(r"(?<!\S)\d{1,2}\.(?![\d.])")  # may mark an item of a numbered list


def sentences(text: str) -> list[str]:
    """Split report text into sentences, each stripped; list numbers stay with their item ("2. Stable cardiomegaly.").

    Handles what these reports hold: decimals (2.5 cm), titles and times (Dr., p.m.), doubled stops (". ."), a missing
    space after a stop ("bilaterally.There is"), sentences in lower case, and numbered lists whose items lack stops
    ("1. Low volumes 2. Clear lungs"). There, a number opens an item only if it is 1 or one more than the last, so that
    "fracture of right rib 4. The" is not a list. No character other than space is lost.
    """
    cuts, start, item = [0], 0, 0
    numbers = {match.start(): match for match in _NUMBER.finditer(text)}
    stops = {match.start(): match for match in _STOP.finditer(text)}
    for position in sorted(numbers.keys() | stops.keys()):
        if number := numbers.get(position):
            value = int(number.group()[:-1])
            opens = not text[start:position].strip()
            if opens or value in (1, item + 1):
                item, start = value, position
                cuts.append(position)
        elif (end := stops[position].end()) and _ends_sentence(text, start, position, end):
            start = end
            cuts.append(end)
    pieces = (text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True))
    return [piece for piece in pieces if piece]


def _ends_sentence(text: str, start: int, stop: int, end: int) -> bool:
    """Whether the stop mark at text[stop:end] closes the sentence that began at `start`."""
    if _NUMBER.fullmatch(text[start : stop + 1].strip()):
        return False  # the stop of a list number
    if not text[end : end + 1].strip():
        word = text[start:end].split()[-1].lower()
        return word.strip("\"'()[]") not in _ABBREVIATIONS
    # No space follows: a sentence only if a word ends here and a capital begins the next, so not "2.5" or "U.S.".
    return bool(re.match(r"\w\w$", text[stop - 2 : stop]) and text[end].isupper())


_XXXX = re.compile(r"X{4,}")
_XXXX_RUN = re.compile(r"X{4,}(?:[\s,/]*X{4,})*")


def clean(text: str, xxxx: XXXXPolicy = XXXX_POLICY) -> str:
    """One line of text with single spaces, no doubled stops, and the XXXX tokens treated by the named policy.

    XXXX stands where de-identification software removed words, mostly harmless ones ("The XXXX are intact", "Pulmonary
    XXXX are normal"). No image determines it. Of the 3,425 findings 1,486 hold at least one (43 %), in 2,000 of
    15,954 sentences (`xxxx_counts` recomputes these numbers).

    - "keep": the text as published, as R2Gen scores it. A model is then asked to predict XXXX and paid for doing so.
    - "drop": the sentence goes. It costs 17 % of all words, empties 8 reports, and is not neutral: 14.6 % of the
      sentences of abnormal reports go but 7.3 % of those of normal ones, as findings are told in rarer words
      ("calcified lymph XXXX", "wedge XXXX deformity"). The text would then omit what annotation and picture show.
    - "mask", the default: each run becomes one "___", as in MIMIC-CXR. Every finding stays, and as no word is spelt so,
      a loss or a score can leave the mark out.

    Raises RRGError for another policy.
    """
    if xxxx not in get_args(XXXXPolicy):
        raise RRGError(f"xxxx={xxxx!r}: use one of {', '.join(get_args(XXXXPolicy))}")
    if xxxx == "drop":
        text = " ".join(sentence for sentence in sentences(text) if not _XXXX.search(sentence))
    elif xxxx == "mask":
        text = _XXXX_RUN.sub(MASK, text)
    return " ".join(re.sub(r"\.(?:\s*\.)+", ".", text).split())


def xxxx_counts(reports: Iterable[Report]) -> dict[str, int | float]:
    """What XXXX and the policy "drop" touch in the non-empty FINDINGS: the numbers in the docstring of `clean`."""
    reports = [report for report in reports if report.findings.strip()]
    hit = {True: [], False: []}  # by Report.normal, one bool per sentence
    for report in reports:
        hit[report.normal] += [bool(_XXXX.search(sentence)) for sentence in sentences(report.findings)]
    words = {policy: sum(len(clean(r.findings, policy).split()) for r in reports) for policy in ("keep", "drop")}
    return {
        "reports": len(reports),
        "reports with XXXX": sum(bool(_XXXX.search(report.findings)) for report in reports),
        "sentences": len(hit[True]) + len(hit[False]),
        "sentences with XXXX": sum(hit[True]) + sum(hit[False]),
        "share of normal reports' sentences": sum(hit[True]) / max(1, len(hit[True])),
        "share of abnormal reports' sentences": sum(hit[False]) / max(1, len(hit[False])),
        "share of words lost by drop": 1 - words["drop"] / max(1, words["keep"]),
        "reports emptied by drop": sum(not clean(report.findings, "drop") for report in reports),
    }
