"""The retrieval benchmark measures what it says and recommends by its numbers."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMMITTED = FOLDER.parent / "results" / "benchmarks" / "retrieval.json"


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("retrieval")
    sys.modules.pop("retrieval", None)


@pytest.fixture(scope="module")
def folder(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    bench.write_vectors(folder / "vectors.npy", 6000, 64)
    queries = bench.mixture(50, 64, np.random.default_rng(2), np.random.default_rng(0))
    np.save(folder / "queries.npy", queries)
    return folder


def test_flat_is_exact_and_more_cells_find_more(bench, folder):
    (flat,) = bench.measure(folder, "Flat")
    assert flat["recall at 3"] == 1
    assert flat["index MB"] == pytest.approx(6000 * 64 * 4 / 1e6, abs=1)
    vectors, queries = np.load(folder / "vectors.npy"), np.load(folder / "queries.npy")
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, vectors)]
    np.testing.assert_array_equal(np.load(folder / "truth.npy")[:, 0], (unit[0] @ unit[1].T).argmax(1))
    recalls = [row["recall at 3"] for row in bench.measure(folder, "HNSW16,SQ8")]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.9


def test_the_same_vectors_every_time(bench, folder, tmp_path):
    bench.write_vectors(tmp_path / "again.npy", 6000, 64)
    np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), np.load(folder / "vectors.npy"))


def row(kind, recall, speed, size):
    return {"kind": kind, "search": "-", "recall at 3": recall, "queries per second": speed, "index MB": size}


def test_only_what_finds_enough_is_recommended(bench):
    rows = [row("Flat", 1.0, 10, 100), row("fast", 0.5, 1000, 1), row("good", 0.96, 200, 50), row("small", 0.95, 20, 5)]
    fastest, smallest, exact = bench.recommend(rows).values()
    assert (fastest["kind"], smallest["kind"], exact["kind"]) == ("good", "small", "Flat")
    assert fastest["times as fast as Flat"] == 20
    assert smallest["share of Flat's size"] == 0.05


@pytest.mark.skipif(not COMMITTED.exists(), reason="the benchmark was not run yet")
def test_committed_numbers_agree_with_their_recommendation(bench):
    result = json.loads(COMMITTED.read_text())
    assert (result["vectors"], result["width"]) == (377_110, 1024)
    assert result["recommended"] == bench.recommend(result["rows"])
    assert max(row["build peak MB"] for row in result["rows"]) < 6000
