"""Which language models fit which GPU: the estimate that `load_llm` makes before it loads, for whole batches.

    python benchmarks/memory.py [--no-save]

Nothing is loaded or measured here (`benchmarks/gpu.py` measures): weights are counted on models without storage, and
`rrg_utils.language.memory` says what a sequence of 512 tokens takes beside them in training and in writing. A tenth of
the GPU is left for the CUDA context, the projector and fragmentation. Results go to results/benchmarks/memory.json.
"""

import argparse

import torch
from common import save
from gpu import LLAMAS
from transformers import MistralConfig, Phi3Config

from rrg_utils.language.memory import TOKENS, memory_need

MODELS = {
    "SmolLM2-135M": LLAMAS["135M"],
    "Phi-3-mini": Phi3Config(),  # the default sizes of these two are those of Phi-3-mini and Mistral-7B-v0.1
    "Llama-2-7B, Vicuna-7B": LLAMAS["7B"],
    "Mistral-7B": MistralConfig(),
}
WAYS = {
    "bf16": {},
    "bf16, checkpointing": {"checkpointing": True},
    "4 bits": {"four_bit": True},
    "4 bits, checkpointing": {"four_bit": True, "checkpointing": True},
}
GPUS, USED = (24, 80), 0.9  # GB, and the share of it that is used


def rows() -> list[dict]:
    """One for each model and way of loading it: GB of the weights, and the largest batches on each GPU (0: none)."""
    out = []
    for name, config in MODELS.items():
        for way, options in WAYS.items():
            need = memory_need(config, torch.bfloat16, **options)
            row = {"model": name, "way": way, "weights GB": round(need.weights / 1e9, 1)}
            for size in GPUS:
                free = size * 1e9 * USED - need.weights
                row[f"training, {size} GB"] = max(0, int(free // need.activations))
                row[f"writing, {size} GB"] = max(0, int(free // need.cache))
            out.append(row)
    return out


def markdown(rows: list[dict]) -> str:
    """The rows as a table for docs/gpu.md."""
    head = list(rows[0])
    lines = [head, ["---", "---", *["--:"] * (len(head) - 2)], *([str(row[key]) for key in head] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only")
    options = parser.parse_args()
    found = rows()
    print(markdown(found))
    if options.save:
        save("memory", {"tokens of a sequence": TOKENS, "share of a GPU used": USED, "rows": found})


if __name__ == "__main__":
    main()
