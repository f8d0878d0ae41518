"""Figures as data: every kind of mark comes out with its numbers, its series and the words of its axes."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils import export, plots
from rrg_utils.errors import RRGError


@pytest.fixture
def axis():
    figure, axis = plt.subplots()
    yield axis
    plt.close(figure)


def rows(axis, *fields):
    return export.figure_data(axis.figure)[["kind", "series", *fields]].to_numpy().tolist()


def test_lines_points_and_guides(axis):
    axis.plot([1, 2], [3, 4.5], label="a")
    axis.plot([1], [2], "o", label="b")
    axis.axhline(7)
    axis.axvline(8)
    axis.set(title="t", xlabel="seconds", ylabel="metres")
    found = export.figure_data(axis.figure)
    assert found[["kind", "series", "x", "y"]].fillna(-1).to_numpy().tolist() == [
        ["line", "a", 1, 3],
        ["line", "a", 2, 4.5],
        ["points", "b", 1, 2],
        ["guide", "", -1, 7],
        ["guide", "", 8, -1],
    ]
    assert found[["title", "x_label", "y_label"]].drop_duplicates().to_numpy().tolist() == [["t", "seconds", "metres"]]


def test_bars_have_the_names_of_their_categories(axis):
    axis.barh(["p", "q"], [2, 3], label="b")
    assert rows(axis, "x", "x2", "y_name") == [["bar", "b", 0, 2, "p"], ["bar", "b", 0, 3, "q"]]


def test_ticks_that_are_words_name_what_lies_there(axis):
    axis.hlines([0, 1], [0.1, 0.2], [0.3, 0.4])
    axis.set_yticks([0, 1], ["ours", "theirs"])
    assert rows(axis, "x", "x2", "y_name") == [["segment", "", 0.1, 0.3, "ours"], ["segment", "", 0.2, 0.4, "theirs"]]


def test_error_bars_belong_to_their_series(axis):
    axis.errorbar([1], [3], [0.5], label="e")
    assert rows(axis, "x", "y", "y2")[1] == ["segment", "e", 1, 2.5, 3.5]


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=6))
def test_bands_give_their_interval_at_every_x(edges):
    figure, axis = plt.subplots()
    intervals = [(min(pair), max(pair)) for pair in edges]
    plots.band(axis, range(len(edges)), [low for low, _ in intervals], intervals, "score", "red")
    found = export.figure_data(figure)
    plt.close(figure)
    band = found[found.kind == "band"]
    assert band[["x", "y", "y2"]].to_numpy().tolist() == [[x, *map(float, pair)] for x, pair in enumerate(intervals)]
    assert set(found.series) == {"score"}


def test_heat_maps_keep_values_and_names_and_lose_the_colour_bar(axis):
    sns.heatmap(pd.DataFrame([[1, 2], [3, 4]], index=["r", "s"], columns=["c", "d"]), ax=axis)
    assert rows(axis, "value", "x_name", "y_name")[2] == ["cell", "", 3, "c", "s"]
    assert len(rows(axis)) == 4


def test_pictures_are_named_by_shape_only(axis):
    axis.imshow(np.zeros((5, 6)))
    axis.contour(np.arange(30).reshape(5, 6), [10])
    plots.outline(axis, (1, 1, 3, 3), "nodule")
    assert {(kind, series) for kind, series in rows(axis)} == {
        ("image", "5 x 6"),
        ("contour", ""),
        ("box", ""),
        ("text", "nodule"),
    }


def test_saving_the_next_figure_only(axis, tmp_path):
    axis.plot([1, 2], [3, 4])
    show = plt.show
    export.save_shown(tmp_path / "new" / "one")
    plt.show()
    assert plt.show is show
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"one.png", "one.svg", "one.csv"}


def test_the_same_figure_gives_the_same_drawing(axis, tmp_path):
    axis.plot([1, 2], [3, 4])
    for name in "ab":
        export.save(axis.figure, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_tables_as_csv_and_markdown(tmp_path):
    export.save_table(pd.DataFrame({"a|b": [0.123456], "c": ["x\ny"]}), tmp_path / "t")
    assert (tmp_path / "t.md").read_text() == "| a\\|b | c |\n| --- | --- |\n| 0.1235 | x y |\n"
    assert pd.read_csv(tmp_path / "t.csv")["a|b"][0] == 0.123456
    with pytest.raises(RRGError, match="t: `table` is dict, not a data frame"):
        export.save_table({}, tmp_path / "t")
