"""One image, one report: pictures of every kind, evidence drawn for every system, mistakes in one line."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from radiographs import dicom
from tiny_readers import make_readers
from typer.testing import CliRunner

from rrg_utils import cli, readers
from rrg_utils.artifacts import NotBuilt, only_from_cache
from rrg_utils.artifacts import artifact as made_once
from rrg_utils.errors import RRGError
from rrg_utils.report import WARNING, _outlined, _radscr, report

NAMES = ["narrative", "r2gencsr", "trrg", "llava_t", "llava_ta", "radscr"]


@pytest.fixture(autouse=True)
def log_as_it_was():
    """The command line gives the log a handler that writes to a stream of this test only."""
    logger = logging.getLogger("rrg")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The systems by name, with small random models."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_readers(tmp_path_factory.mktemp("models"), patch)
        for name in NAMES:
            ready = replace(readers.SYSTEMS[name], reader=lambda config, name=name: made[name], longest=None)
            patch.setitem(readers.SYSTEMS, name, ready)
        yield made


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    """A grey picture that is no square, of noise around a bright middle."""
    rng = np.random.default_rng(0)
    image = rng.integers(20, 90, (160, 140), dtype=np.uint8)
    image[:, 60:80] += 140
    path = tmp_path_factory.mktemp("pictures") / "chest.png"
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_text_evidence_and_picture_are_written(tiny, png, tmp_path, name):
    made = report(png, name, tmp_path / "out")
    content = json.loads(made.content.read_text())
    assert content["report"] == made.text
    assert (content["system"], content["image"], content["warning"]) == (name, "chest.png", WARNING)
    assert bool(content["evidence"]) == (name != "narrative")
    with Image.open(made.picture) as picture:
        assert min(picture.size) > 300
        assert np.asarray(picture.convert("L")).std() > 10
    assert report(png, name, tmp_path / "again").text == made.text


def test_radscr_shows_every_region_on_a_film_of_its_own(tiny, png):
    """At most four films in a row; what has no region is listed below and has no film."""
    film = np.asarray(Image.open(png).convert("L").resize((128, 128)))
    (made,) = tiny["radscr"].write(film[None])
    lines = made.evidence["sentences"] + made.evidence["withdrawn"]
    placed = [line for line in lines if line.get("region")]
    assert len(placed) > 1
    figure = _radscr(tiny["radscr"], film / 255, made)
    first, *titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert first.startswith("the film")
    assert [title.splitlines()[0] for title in titles] == [line["abnormality"] for line in placed]
    assert figure.axes[0].get_gridspec().ncols <= 4
    below = figure.get_supxlabel().replace("\n", " ")
    assert all(line.get("text", line.get("abnormality")) in below for line in lines if not line.get("region"))
    figure.draw_without_rendering()
    wide, high = figure.get_size_inches() * figure.dpi
    for axis in figure.axes:
        assert axis.get_window_extent().width > 128  # pixels at screen resolution: no film is shrunk for its neighbours
        for text in axis.texts:
            box = text.get_window_extent()
            assert 0 <= box.x0 < box.x1 <= wide
            assert 0 <= box.y0 < box.y1 <= high


@pytest.mark.parametrize(
    "cells", [[(0, 0)], [(0, 0), (0, 1), (1, 0)], [(1, 1), (2, 2)], [(r, c) for r in (0, 1, 2) for c in (0, 1, 2)]]
)
def test_the_outline_runs_once_round_the_mask(cells):
    mask = np.zeros((3, 3), bool)
    mask[tuple(zip(*cells, strict=True))] = True
    neighbours = [(r + dr, c + dc) for r, c in cells for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))]
    border = sum(cell not in cells for cell in neighbours)
    axis = Figure().subplots()
    _outlined(axis, mask, 16, "red")
    drawn = [path.vertices for lines in axis.collections for path in lines.get_paths()]
    assert sum(np.abs(end - start).sum() for start, end in drawn) == 16 * border
    assert -0.5 <= np.min(drawn) < np.max(drawn) <= 47.5


def test_the_picture_may_be_of_any_kind(tiny, png, tmp_path):
    jpeg = tmp_path / "chest.jpg"
    Image.open(png).save(jpeg, quality=100, subsampling=0)
    assert report(jpeg, "narrative", tmp_path / "out").content.exists()
    bare = tmp_path / "chest"  # told by content, not by name
    bare.write_bytes(png.read_bytes())
    assert report(bare, "radscr", tmp_path / "a").text == report(png, "radscr", tmp_path / "b").text


def test_a_dicom_file_is_read_by_its_window(tiny, tmp_path):
    """From a file as a hospital stores it: 12 bits, white for dense or for air."""
    values = np.random.default_rng(0).integers(0, 4096, (150, 130), dtype=np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    one = report(dicom(tmp_path / "one.dcm", values, **window), "narrative", tmp_path / "one")
    content = json.loads(one.content.read_text())
    assert (content["image"], content["report"]) == ("one.dcm", one.text)
    inverted = dicom(tmp_path / "two.dcm", 4095 - values, PhotometricInterpretation="MONOCHROME1", **window)
    two = report(inverted, "narrative", tmp_path / "two")
    assert two.text == one.text
    assert two.picture.read_bytes() == one.picture.read_bytes(), "the same film"
    other = report(dicom(tmp_path / "three.dcm", 4095 - values, **window), "narrative", tmp_path / "three")
    assert other.picture.read_bytes() != one.picture.read_bytes()


def test_a_report_that_cannot_be_drawn_or_written_leaves_the_old_one(tiny, png, tmp_path, monkeypatch):
    report(png, "narrative", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with monkeypatch.context() as failing:
        failing.setattr(Figure, "savefig", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(png, "radscr", tmp_path / "out")
        with pytest.raises(ZeroDivisionError):
            report(png, "radscr", tmp_path / "new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RRGError, match=r"cannot write to .*file"):
        report(png, "narrative", tmp_path / "file")


def test_the_warning_comes_first_and_last(tiny, png, tmp_path):
    done = CliRunner().invoke(
        cli.app, ["report", str(png), "--system", "narrative", "--output", str(tmp_path)], catch_exceptions=False
    )
    lines = done.stdout.strip().splitlines()
    assert lines[0] == lines[-1] == WARNING
    assert "NOT FOR CLINICAL USE" in WARNING
    assert json.loads((tmp_path / "report.json").read_text())["report"] in done.stdout


def test_a_system_that_must_be_told_more_is_refused(png):
    with pytest.raises(RRGError, match="choose llava_ta"):
        report(png, "llava_ta_truth")
    with pytest.raises(RRGError, match="must be told the annotation"):
        report(png, "template")


def test_nothing_is_trained_unless_asked(png, tmp_path, monkeypatch):
    """With an empty cache: the entry that would be trained is named, the notebook and its minutes are said."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "cache"))

    def untrained(config, **_):
        return made_once("radscr", {}, lambda folder: pytest.fail("it was trained"))

    monkeypatch.setitem(readers.SYSTEMS, "radscr", replace(readers.SYSTEMS["radscr"], reader=untrained, longest=None))
    with pytest.raises(RRGError, match=r"radscr with seed 4 is not trained yet: `rrg run 08` .* min .*--train"):
        report(png, "radscr", seed=4)
    with only_from_cache(["radscr"]):
        with pytest.raises(NotBuilt) as missing:
            untrained(None)
        assert missing.value.kind == "radscr"
        folder = made_once("other", {}, lambda folder: None)
    with only_from_cache(["other"]):  # what is there may be had
        assert made_once("other", {}, lambda folder: None) == folder
    assert made_once("radscr", {}, lambda folder: None).name == missing.value.key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nope.png", "--system", "narrative"], "rrg: nope.png: cannot be read (No such file"),
        (["report", "text.png", "--system", "narrative"], "rrg: text.png: the file is neither PNG, JPEG nor DICOM"),
        (["report", "text.png", "--system", "radscar"], "rrg: unknown system 'radscar' (did you mean radscr?)"),
        (["bench", "trg"], "rrg: unknown system 'trg' (did you mean trrg?)"),
        (["bench", "--profile", "huge"], "rrg: unknown profile of the bench 'huge'; known: smoke, cpu"),
        (
            ["report", "text.png", "--system", "radscr", "--profile", "huge"],
            "rrg: unknown profile 'huge'; known: smoke,",
        ),
        (["train", "trrg", "-p", "queries=four"], "rrg: parameter queries: 'four' is str, not int"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["rrg", *arguments])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code.startswith(message)
    assert "\n" not in stopped.value.code
    assert capsys.readouterr().out == ""
