"""Nearest neighbours at the size of MIMIC-CXR: exact, inverted lists with product quantisation, and a graph.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py [--vectors 377110] [--width 1024] [--queries 300] [--no-save]

No features of so many films are at hand, so the vectors are synthetic: a mixture of clusters of very different sizes in
a space of 64 dimensions, turned into `--width` and blurred. Real features may be easier or harder; memory, build time
and speed carry over, recall less so. The vectors lie in a temporary file (1.5 GB) that is read through the page cache,
and every kind is built by `StudyIndex.build` in a process of its own, whose memory is what it needs.

Times are the processor's seconds of one thread, so that a busy machine does not count. Results go to
results/benchmarks/retrieval.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import common
import faiss
import numpy as np

from rrg_utils.errors import RRGError
from rrg_utils.retrieval import StudyIndex

MIMIC = 377_110  # images of MIMIC-CXR
K = 3  # neighbours of each sign in the released scripts
ENOUGH = 0.95  # of the true neighbours must be found for a kind to be recommended
SHARD = 65_536
# Kind: how it is built and what is varied in the search. Parameters ours; SQ8 keeps a byte per number in the graph.
KINDS = {
    "Flat": [""],
    "IVF1024,PQ64": ["nprobe=1", "nprobe=8", "nprobe=32", "nprobe=128"],
    "IVF1024,SQ8": ["nprobe=1", "nprobe=8", "nprobe=32"],
    "HNSW16,SQ8": ["efSearch=16", "efSearch=64", "efSearch=256"],
}


def mixture(count: int, width: int, rng: np.random.Generator, shape: np.random.Generator) -> np.ndarray:
    """(count, width) float32: points about cluster centres; the centres are drawn from `shape`, the same every time."""
    clusters, inner = 500, 64
    centres = shape.standard_normal((clusters, inner), dtype=np.float32)
    turn = shape.standard_normal((inner, width), dtype=np.float32) / inner**0.5
    share = shape.pareto(1.5, clusters) + 0.1
    member = rng.choice(clusters, count, p=share / share.sum())
    points = centres[member] + 0.7 * rng.standard_normal((count, inner), dtype=np.float32)
    return points @ turn + 0.2 * rng.standard_normal((count, width), dtype=np.float32)


def write_vectors(path: Path, count: int, width: int) -> None:
    """The vectors, shard by shard."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    for number, start in enumerate(range(0, count, SHARD)):
        stop = min(start + SHARD, count)
        out[start:stop] = mixture(stop - start, width, np.random.default_rng([1, number]), np.random.default_rng(0))
    out.flush()


def measure(folder: Path, kind: str) -> list[dict]:
    """Build one kind and search it, in this process. Flat leaves the truth in the folder."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    queries = np.load(folder / "queries.npy")
    ids = [str(i) for i in range(len(vectors))]
    start, built = time.process_time(), {}
    growth = common.growth_mb(lambda: built.update(index=StudyIndex.build(ids, vectors, "synthetic", factory=kind)))
    build = time.process_time() - start
    index = built["index"]
    faiss.write_index(index.index, str(folder / "index.faiss"))
    size = (folder / "index.faiss").stat().st_size / 1e6
    rows = []
    for options in KINDS[kind]:
        faiss.ParameterSpace().set_index_parameters(index.index, options)
        start = time.process_time()
        found = index.search(queries, K, "synthetic").rows
        seconds = time.process_time() - start
        if kind == "Flat":
            np.save(folder / "truth.npy", found)
        truth = np.load(folder / "truth.npy")
        recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)])
        rows.append(
            {
                "kind": kind,
                "search": options or "-",
                f"recall at {K}": round(float(recall), 3),
                "queries per second": round(len(queries) / seconds, 1),
                "index MB": round(size),
                "build peak MB": round(growth),
                "build s": round(build, 1),
            }
        )
    return rows


def recommend(rows: list[dict]) -> dict:
    """The fastest search that finds enough, and the smallest index that does, with what they gain over Flat."""
    flat = next(row for row in rows if row["kind"] == "Flat")
    good = [row for row in rows if row[f"recall at {K}"] >= ENOUGH]

    def against_flat(row: dict) -> dict:
        hours = MIMIC / row["queries per second"] / 3600
        return {
            "kind": row["kind"],
            "search": row["search"],
            "times as fast as Flat": round(row["queries per second"] / flat["queries per second"], 1),
            "share of Flat's size": round(row["index MB"] / flat["index MB"], 3),
            f"hours for {MIMIC:,} queries": round(hours, 2),
        }

    return {
        f"fastest with recall of {ENOUGH} or more": against_flat(max(good, key=lambda row: row["queries per second"])),
        f"smallest with recall of {ENOUGH} or more": against_flat(min(good, key=lambda row: row["index MB"])),
        "exact": against_flat(flat),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--vectors", type=int, default=MIMIC)
    options.add_argument("--width", type=int, default=1024)
    options.add_argument("--queries", type=int, default=300)
    options.add_argument("--no-save", action="store_true", help="print only")
    options.add_argument("--measure", nargs=2, metavar=("FOLDER", "KIND"), help=argparse.SUPPRESS)
    asked = options.parse_args()
    if asked.measure:
        print(json.dumps(measure(Path(asked.measure[0]), asked.measure[1])))
        return
    if asked.vectors < 5_000 or asked.width % 64 or asked.queries < 1:
        options.error("--vectors must be at least 5000, --width a multiple of 64, --queries at least 1")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_vectors(folder / "vectors.npy", asked.vectors, asked.width)
        queries = mixture(asked.queries, asked.width, np.random.default_rng(2), np.random.default_rng(0))
        np.save(folder / "queries.npy", queries)
        for kind in KINDS:
            command = [sys.executable, __file__, "--measure", name, kind]
            done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
            if done.returncode:
                raise RRGError(f"{kind}: {done.stderr.strip().splitlines()[-1]}")
            rows += json.loads(done.stdout.splitlines()[-1])
            print(common.table(rows[-len(KINDS[kind]) :]), flush=True)
    result = {
        "vectors": asked.vectors,
        "width": asked.width,
        "queries": asked.queries,
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "rows": rows,
        "recommended": recommend(rows),
        "machine": common.machine("faiss-cpu", "numpy"),
    }
    print(json.dumps(result["recommended"], indent=1))
    if not asked.no_save:
        common.save("retrieval", result)


if __name__ == "__main__":
    main()
