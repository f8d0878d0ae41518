"""The expert annotation as model input: the upper bound of what a picture drawn from it can tell."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rrg_utils.data.datasets import indiana
from rrg_utils.data.mesh import Finding
from rrg_utils.data.reports import Report

FINDINGS = 12  # of the cohort's reports, all but a few have fewer annotations; the rest is left out


def _parts(finding: Finding) -> list[str]:
    parts = [finding.name, *finding.anatomy, finding.side, finding.severity, *finding.qualifiers]
    return [part for part in parts if part]


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """The parts of all annotations of the training split, numbered."""
    parts = {part for report in indiana().train for finding in report.mesh for part in _parts(finding)}
    return {part: number for number, part in enumerate(sorted(parts))}


def annotation_tokens(reports: Sequence[Report]) -> np.ndarray:
    """(N, 12, V) float16: for each study one row per annotation, with a 1 for each of its parts; empty rows are 0."""
    known = vocabulary()
    out = np.zeros((len(reports), FINDINGS, len(known)), np.float16)
    for row, report in zip(out, reports, strict=True):
        for slot, finding in zip(row, report.mesh, strict=False):
            slot[[known[part] for part in _parts(finding) if part in known]] = 1
    return out
