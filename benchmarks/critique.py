"""RadSCR at test: how long reports take, and whether FAISS is worth having for its library.

    python benchmarks/critique.py [--reports 200] [--rounds 5] [--no-save]

The system has random weights, which cost as much as trained ones, and the library of the real training reports;
hypotheses are the labels of the films, so that there are as many as findings. Results go to
results/benchmarks/critique.json.
"""

import argparse

import common
import faiss
import numpy as np
import torch

from rrg_utils.data import load_dataset
from rrg_utils.systems.radscr import Example, RadSCR, RadSCRConfig
from rrg_utils.systems.sentence_library import SentenceLibrary
from rrg_utils.vision.features import film_tokens

BUDGET = 10.0  # seconds for 200 studies, without language model, after encoding
SIZES = (1_869, 100_000)  # entries: as many as our library has, and as a large archive gives


def system(count: int) -> tuple[RadSCR, list[Example], np.ndarray]:
    """RadSCR with random weights, films to write about, and their labels."""
    train, test = (load_dataset("phantom", split, 128) for split in ("train", "test"))
    torch.manual_seed(0)
    model = RadSCR(RadSCRConfig(), SentenceLibrary.build(train.texts)).eval()
    tokens = np.asarray(film_tokens(train.films)[:1000], np.float32)
    model.hypotheses.refer_to(tokens)
    model.others.copy_(torch.from_numpy(tokens[: len(model.others)]))
    model.anatomy.fill_(True)
    model.settle()
    seen = film_tokens(test.films)[:count]
    with torch.no_grad():  # as many hypotheses as findings
        logits = torch.cat([model.see([Example(x) for x in seen[k : k + 64]])[1] for k in range(0, len(seen), 64)])
        findings = int(test.labels[: len(seen)].sum())
        model.shift.fill_(-float(logits.flatten().topk(findings).values[-1]) + 1e-4)
    return model, [Example(x) for x in seen], test.labels[: len(seen)]


def search(entries: int, width: int, queries: int, rounds: int) -> dict:
    """Seconds for the best sentence of `queries` proposals: matrix product against FAISS's exact index."""
    rng = np.random.default_rng(0)
    vectors, asked = (rng.standard_normal((n, width), dtype=np.float32) for n in (entries, queries))
    index = faiss.IndexFlatIP(width)
    index.add(vectors)
    stored, query = torch.from_numpy(vectors), torch.from_numpy(asked)
    seconds = common.interleaved(
        {
            "matrix product": lambda: (query @ stored.T).argmax(1),
            "FAISS, flat": lambda: index.search(asked, 1),
        },
        rounds,
    )
    same = (query @ stored.T).argmax(1).numpy() == index.search(asked, 1)[1][:, 0]
    return {"entries": entries, "queries": queries, "agree": float(same.mean())} | {
        f"{name}, ms": round(1000 * common.median(values), 3) for name, values in seconds.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--reports", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--no-save", action="store_true", help="print only")
    asked = options.parse_args()
    if not 1 <= asked.reports <= 591 or asked.rounds < 1:
        options.error("--reports must be 1 to 591, --rounds at least 1")
    model, examples, labels = system(asked.reports)
    seconds = common.interleaved({"reports": lambda: model.generate(examples)}, asked.rounds)["reports"]
    rows = [search(entries, model.config.width, 5 * len(examples), asked.rounds) for entries in SIZES]
    print(common.table(rows))
    result = {
        "reports": len(examples),
        "findings": int(labels.sum()),
        "library": len(model.library),
        "seconds": common.median(seconds),
        "budget, seconds": BUDGET,
        "search": rows,
        "machine": common.machine("faiss-cpu", "captum"),
    }
    print(f"{len(examples)} reports in {result['seconds']} s")
    if not asked.no_save:
        common.save("critique", result)


if __name__ == "__main__":
    main()
