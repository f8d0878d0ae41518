"""The phantom's lesion boxes laid over the radiologists': has what is drawn the size and place of the real thing?"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from rrg_utils.data import priors
from rrg_utils.data.abnormalities import abnormality
from rrg_utils.data.mesh import Finding
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import balanced_studies
from rrg_utils.plots import COLOURS

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


def figure(phantom: pd.DataFrame) -> plt.Figure:
    """Box sizes and centres of each class: radiologists' blue, the phantom's orange.

    Left of each pair: width and height relative to the lungs, medians with the middle 80 %. Right: where the centres
    lie on the lungs (patient's left on the right), radiologists' as a density, the phantom's as dots.
    """
    names = list(dict.fromkeys(phantom.name))
    columns = 3
    lines = -(-len(names) // columns)
    fig, axes = plt.subplots(lines, 2 * columns, figsize=(12, 2.15 * lines), width_ratios=[1.25, 1] * columns)
    for (sizes, places), name in zip(axes.reshape(-1, 2), names, strict=False):
        drawn, real = phantom[phantom.name == name], priors.boxes(name)
        for table, weights, colour, shift in (
            (real, real.weight, COLOURS["blue"], 0.13),
            (drawn, np.ones(len(drawn)), COLOURS["orange"], -0.13),
        ):
            for line, measure in enumerate(("height", "width")):
                low, middle, high = priors.weighted_quantile(_MEASURES[measure](table), weights, (0.1, 0.5, 0.9))
                sizes.plot(
                    (low, high), (line + shift,) * 2, color=colour, linewidth=3, alpha=0.45, solid_capstyle="butt"
                )
                sizes.plot(middle, line + shift, "os"[shift < 0], color=colour, markersize=6)
        sizes.set(xlim=(0, 1.02), ylim=(-0.5, 1.5), xticks=(0, 0.5, 1), yticks=(0, 1), yticklabels=("height", "width"))
        sizes.set_title(f"{name}\n{len(real):,} boxes, {len(drawn)} drawn", fontsize=9)
        x, y = (real.x0 + real.x1) / 2, (real.y0 + real.y1) / 2
        places.hist2d(x, y, bins=18, range=((-0.05, 1.05), (-0.05, 1.15)), weights=real.weight, cmap="Blues")
        places.plot((drawn.x0 + drawn.x1) / 2, (drawn.y0 + drawn.y1) / 2, ".", color=COLOURS["orange"], markersize=4)
        places.add_patch(plt.Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLOURS["grey"], linewidth=0.8))
        places.set(xlim=(-0.05, 1.05), ylim=(1.15, -0.05), xticks=(), yticks=())
        places.grid(False)
    for axis in axes.reshape(-1, 2)[len(names) :].ravel():
        axis.axis("off")
    handles = [
        plt.Line2D(
            [], [], color=COLOURS["blue"], marker="o", label="radiologists: median, middle 80 %; density of centres"
        ),
        plt.Line2D([], [], color=COLOURS["orange"], marker="s", label="phantom: median, middle 80 %; centres"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=2)
    fig.supxlabel("relative to the width and height of both lungs; grey frame: the lungs' bounding box", fontsize=10)
    return fig
