"""The scaling benchmark finds the law that was put in, and its committed numbers agree with their projection."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMMITTED = FOLDER.parent / "results" / "benchmarks" / "scaling.json"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield importlib.import_module("scaling")
    sys.modules.pop("scaling", None)


def rows(stage, seconds, megabytes):
    sizes = (250, 500, 1000)
    return [
        {"stage": stage, "studies": n, "processor s": seconds(n), "ms a study": 0, "peak MB": megabytes(n)}
        for n in sizes
    ]


def test_a_known_law_is_found_and_continued(bench):
    linear, square = bench.growth(
        rows("a", lambda n: 0.01 * n, lambda n: 50 + 0.02 * n) + rows("b", lambda n: 1e-6 * n**2, lambda n: 7),
        to=100_000,
    )
    assert (linear["exponent"], square["exponent"]) == (1.0, 2.0)
    assert linear["measured to"] == 1000
    assert linear["hours for 100,000"] == linear["hours if linear"] == pytest.approx(1000 / 3600, rel=0.01)
    assert square["hours for 100,000"] == pytest.approx(1e4 / 3600, rel=0.01)
    assert square["hours if linear"] == pytest.approx(100 / 3600, rel=0.01)
    assert linear["MB for each 1,000"] == 20
    assert linear["GB for 100,000"] == pytest.approx(2.05)
    assert square["GB for 100,000"] == pytest.approx(0.007)


def test_search_is_measured_as_it_is_used(bench, tmp_path):
    import numpy as np

    np.save(tmp_path / "tokens-300.npy", np.random.default_rng(0).standard_normal((300, 4, 16)).astype(np.float16))
    for stage in ("build the index", "search the index"):
        row = bench.measure(stage, 200, tmp_path, "none")
        assert (row["stage"], row["studies"]) == (stage, 200)
        assert row["processor s"] > 0
        assert row["ms a study"] == pytest.approx(5 * row["processor s"], rel=0.01)


@pytest.mark.parametrize("arguments", [("--sizes", "60"), ("--sizes", "60", "3000"), ("--most", "300")])
def test_bad_sizes_are_refused(bench, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_committed_numbers_agree_with_their_projection(bench):
    result = json.loads(COMMITTED.read_text())
    assert result["sizes"] == [250, 500, 1000, 2000, 2955]
    assert result["projection"] == bench.growth(result["rows"])
    exponents = {row["stage"]: row["exponent"] for row in result["projection"]}
    for stage in ("render films", "encode films", "train, one pass", "write reports"):
        assert exponents[stage] == pytest.approx(1, abs=0.15), "work on each study by itself"
