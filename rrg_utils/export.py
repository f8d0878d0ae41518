"""Saves figures and tables: PNG and SVG to look at, CSV to compute with, Markdown to paste (`rrg figure`)."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.category import StrCategoryFormatter
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.contour import ContourSet

from rrg_utils.errors import RRGError


def save(figure: plt.Figure, stem: Path | str) -> None:
    """Write a figure as `stem`.png, `stem`.svg and, what it is drawn from, `stem`.csv (see `figure_data`)."""
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{stem}.png", bbox_inches="tight")
    with plt.rc_context({"svg.hashsalt": "rrg"}):  # the same figure, the same file
        figure.savefig(f"{stem}.svg", bbox_inches="tight", metadata={"Date": None})
    figure_data(figure).to_csv(f"{stem}.csv", index=False, float_format="%.6g")


def save_shown(stem: Path | str) -> None:
    """Save the next figure that is shown, wherever `plt.show()` stands: for `rrg figure`."""
    show = plt.show

    def save_and_show(*arguments, **options):
        plt.show = show
        save(plt.gcf(), stem)
        show(*arguments, **options)

    plt.show = save_and_show


def save_table(table: pd.DataFrame, stem: Path | str) -> None:
    """Write a table as `stem`.csv and `stem`.md. RRGError if it is no data frame."""
    if not isinstance(table, pd.DataFrame):
        raise RRGError(f"{Path(stem).name}: `table` is {type(table).__name__}, not a data frame")
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    named = not isinstance(table.index, pd.RangeIndex)
    table.to_csv(f"{stem}.csv", index=named, float_format="%.6g")
    shown = table.reset_index() if named else table
    heads = ["" if head == "index" else head for head in map(_cell, shown.columns)]
    lines = [heads, ["---"] * len(heads), *([_cell(value) for value in row] for row in shown.itertuples(index=False))]
    Path(f"{stem}.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    text = f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


FIELDS = ["panel", "title", "x_label", "y_label", "kind", "series", "x", "y", "x2", "y2", "value", "x_name", "y_name"]


def figure_data(figure: plt.Figure) -> pd.DataFrame:
    """What a figure shows, in long form, one row per mark, whatever it was drawn with.

    kind: `line`, `points` (x, y); `segment`, `bar`, `box` (from x, y to x2, y2); `band` (at x, from y to y2);
    `outline`; `cell` of a heat map (its `value`); `guide` (a line across the panel, in x or y); `text` (in `series`);
    `image` (of which `series` gives the shape only). x_name, y_name: the words on an axis of categories. Colour bars
    are left out.
    """
    rows = []
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    for number, axis in enumerate(panels):
        about = [number, axis.get_title(), axis.get_xlabel(), axis.get_ylabel()]
        names = [_names(axis.xaxis), _names(axis.yaxis)]
        for kind, series, *marks in _marks(axis):
            marks += [np.nan] * (5 - len(marks))
            middle = np.nanmean([marks[:2], marks[2:4]], axis=0) if not np.isnan(marks[:2]).any() else marks[:2]
            words = [found.get(_rounded(at), "") for found, at in zip(names, middle, strict=True)]
            series = "" if re.match(r"_child\d+$|_container\d+$|_no", series) else series.removeprefix("_")
            rows.append([*about, kind, series, *marks, *words])
    return pd.DataFrame(rows, columns=FIELDS)


def _marks(axis: plt.Axes) -> Iterator[tuple]:
    """(kind, series, x, y, x2, y2, value), as far as a mark has them."""
    inside = {part: str(group.get_label()) for group in axis.containers for part in _flat(group)}
    for line in axis.lines:
        label = inside.get(line, str(line.get_label()))
        xs, ys = (np.asarray(values, dtype=float) for values in line.get_data(orig=False))
        if line.get_transform() == axis.transData:
            kind = "points" if line.get_linestyle() in ("None", "none", " ", "") else "line"
            yield from ((kind, label, x, y) for x, y in zip(xs, ys, strict=True))
        else:  # axhline, axvline: one of the two coordinates runs over the panel
            across = line.get_transform() == axis.get_yaxis_transform("grid")
            yield ("guide", label, *((np.nan, ys[0]) if across else (xs[0], np.nan)))
    for patch in axis.patches:
        if isinstance(patch, plt.Rectangle):
            (x, y), width, height = patch.get_xy(), patch.get_width(), patch.get_height()
            kind = "bar" if patch in inside else "box"
            yield (kind, inside.get(patch, str(patch.get_label())), x, y, x + width, y + height)
    for drawn in axis.collections:
        label = inside.get(drawn, str(drawn.get_label()))
        if isinstance(drawn, LineCollection):
            for segment in drawn.get_segments():
                yield from (("segment", label, *start, *end) for start, end in pairwise(segment))
        elif isinstance(drawn, QuadMesh):
            corners, values = drawn.get_coordinates(), np.ma.filled(drawn.get_array().astype(float), np.nan)
            middles = (corners[:-1, :-1] + corners[1:, 1:]) / 2
            for (x, y), value in zip(middles.reshape(-1, 2), values.ravel(), strict=True):
                yield ("cell", label, x, y, np.nan, np.nan, value)
        elif isinstance(drawn, ContourSet):
            yield from (("contour", label, np.nan, np.nan, np.nan, np.nan, level) for level in drawn.levels)
        elif isinstance(drawn, PathCollection):
            yield from (("points", label, x, y) for x, y in np.ma.filled(drawn.get_offsets(), np.nan))
        elif isinstance(drawn, PolyCollection):
            for path in drawn.get_paths():
                yield from _band_or_outline(label, path.vertices)
    for image in axis.images:
        yield ("image", " x ".join(map(str, np.shape(image.get_array()))))
    for text in axis.texts:
        if text.get_text():
            yield ("text", " ".join(text.get_text().split()), *_position(text))


def _flat(group: tuple) -> Iterator:
    """The artists of a container: bars are listed in it, error bars stand in lists of lists."""
    for part in group:
        yield from _flat(part) if isinstance(part, tuple | list) else [part]


def _band_or_outline(label: str, vertices: np.ndarray) -> Iterator[tuple]:
    """What `fill_between` drew goes along the one edge, and back along the other, with a point more at each turn."""
    n = (len(vertices) - 3) // 2
    there, back = vertices[1 : n + 1], vertices[n + 2 : 2 * n + 2][::-1]
    if len(vertices) == 2 * n + 3 and np.array_equal(there[:, 0], back[:, 0]):
        edges = np.sort([there[:, 1], back[:, 1]], axis=0).T
        yield from (("band", label, x, low, x, high) for x, (low, high) in zip(there[:, 0], edges, strict=True))
    else:
        yield from (("outline", label, x, y) for x, y in vertices)


def _position(text: plt.Text) -> tuple[float, float]:
    try:
        x, y = map(float, text.get_position())
    except (TypeError, ValueError):
        return np.nan, np.nan
    return x, y


def _names(axis: plt.matplotlib.axis.Axis) -> dict[float, str]:
    """tick -> its word, where the ticks are words."""
    formatter, ticks = axis.get_major_formatter(), axis.get_ticklocs()
    given = isinstance(formatter, plt.FuncFormatter | plt.FixedFormatter) and isinstance(
        axis.get_major_locator(), plt.FixedLocator
    )
    if not given and not isinstance(formatter, StrCategoryFormatter):
        return {}
    return {_rounded(at): " ".join(word.split()) for at, word in zip(ticks, formatter.format_ticks(ticks), strict=True)}


def _rounded(value: float) -> float:
    return round(float(value), 6)
