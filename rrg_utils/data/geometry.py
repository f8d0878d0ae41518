"""The phantom's lesion boxes laid over the radiologists': has what is drawn the size and place of the real thing?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rrg_utils.data import priors
from rrg_utils.data.abnormalities import abnormality
from rrg_utils.data.mesh import Finding
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import balanced_studies

_BOX = ["x0", "y0", "x1", "y1"]
_BOTH_SIDES = ("interstitial markings",)  # drawn on both sides where the annotation names none
# Annotations that are drawn as another class or as several lesions: their box has no counterpart in the tables.
_LEAVE_OUT = {"streaky", "linear", "interstitial", "diffuse", "round", "nodular", "multiple", "scattered"}
_SPECIFIC = {
    *("mild", "small", "borderline", "moderate", "severe", "large", "bronchovascular", "apex", "base", "hilum"),
    *("upper lobe", "middle lobe", "lower lobe", "lingula", "retrocardiac"),
}


def phantom_boxes(
    renderer: PhantomRenderer,
    train: Sequence[Report],
    per_class: int = 80,
    names: Sequence[str] = tuple(priors.SOURCES),
    as_annotated: bool = False,
) -> pd.DataFrame:
    """Boxes of rendered lesions in the lung frame of their film: name, x0, y0, x1, y1.

    Each annotation of `balanced_studies` is rendered alone, up to `per_class` of each class. A lesion of both sides is
    boxed on each, as radiologists do. Words for severity and place are taken off the annotation first, so that all of
    the radiologists' boxes may be drawn: as annotated, Indiana's effusions are mostly small and its atelectases basal.
    """
    wanted = {name: [] for name in names}
    for study in balanced_studies(train, per_class * 40, seed=9):
        for finding in study.mesh:
            name = abnormality(finding)
            words = {*finding.anatomy, *finding.qualifiers}
            if name in wanted and len(wanted[name]) < per_class and not (name != "pneumonia" and words & _LEAVE_OUT):
                wanted[name].append((finding if as_annotated else _unspecific(finding), study.id))
    rows = []
    for name, findings in wanted.items():
        for finding, id in findings:
            film = renderer.render(Report(f"{id}-{name}", "", "", "", "", (finding,), ()))
            lungs = film.regions["lungs"]
            x, y = np.flatnonzero(lungs.any(0)), np.flatnonzero(lungs.any(1))
            middle = round((x[0] + x[-1] + 1) / 2)
            mask = film.lesions[0].mask
            both = finding.side == "bilateral" or (name in _BOTH_SIDES and finding.side is None)
            halves = (slice(0, middle), slice(middle, None)) if both else (slice(0, None),)
            for half in halves:
                rows_, cols = np.flatnonzero(mask[:, half].any(1)), np.flatnonzero(mask[:, half].any(0))
                if not len(rows_):
                    continue
                cols = cols + half.start
                box = np.array([cols[0], rows_[0], cols[-1] + 1, rows_[-1] + 1], float)
                low, size = np.array([x[0], y[0]] * 2), np.array([len(x), len(y)] * 2)
                rows.append((name, *(box - low) / size))
    return pd.DataFrame(rows, columns=["name", *_BOX])


def _unspecific(finding: Finding) -> Finding:
    kept = tuple(word for word in finding.qualifiers if word not in _SPECIFIC)
    anatomy = tuple(word for word in finding.anatomy if word not in _SPECIFIC) or ("lung",)
    return Finding(finding.name, anatomy, finding.side, None, kept)


_MEASURES = {
    "width": lambda table: table.x1 - table.x0,
    "height": lambda table: table.y1 - table.y0,
    "from the midline": lambda table: ((table.x0 + table.x1) / 2 - 0.5).abs(),
    "down": lambda table: (table.y0 + table.y1) / 2,
    "left edge": lambda table: table.x1,
}


def compare(phantom: pd.DataFrame) -> pd.DataFrame:
    """Medians of width, height and centre (relative to the lungs) of phantom and radiologists, one row per class."""
    rows = []
    for name, drawn in phantom.groupby("name", sort=False):
        real = priors.boxes(name)
        row = {"class": name, "drawn": len(drawn), "boxes": len(real)}
        for label, measure in _MEASURES.items():
            row[f"{label}, phantom"] = measure(drawn).median()
            row[f"{label}, radiologists"] = float(priors.weighted_quantile(measure(real), real.weight, 0.5))
        rows.append(row)
    return pd.DataFrame(rows).set_index("class")
