"""Reports per second: our batches by length with a key-value cache against transformers' generate, report by report.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--reports 64] [--rounds 3] [--llm tiny] [--tokens 60] [--no-save]

Prompts are the real annotations of validation studies in words, beside sixteen visual tokens (random: what they say
does not change what they cost), so their lengths differ as in the course. All ways decode greedily to the end of text
or `--tokens` and must write the same texts, which is counted. "batched" is `rrg_utils.language.generate`; "one at a
time" is the same with batches of one; "transformers" calls `model.generate`, which has its own cache, for every report.
Rounds go through all ways; times are the processor's seconds of one thread (of a GPU: wall time), so that a busy
machine does not count. Results go to results/benchmarks/generation.json.
"""

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from common import interleaved, machine, median, save, table

from rrg_utils.data import indiana
from rrg_utils.data.synthetic import caption
from rrg_utils.language import Prompt, generate, load_llm
from rrg_utils.language.prompt import _embed, _tokenise


def inputs_of(llm, prompt):
    """Input embeddings (1, L, d) of a prompt, as transformers' generate takes them."""
    (row,) = _tokenise(llm, [prompt])
    return _embed(llm, torch.tensor([row.prompt]), row.embeddings)


@torch.no_grad()
def by_transformers(llm, prompts, tokens):
    """One call of transformers' generate for each report."""
    texts = []
    for prompt in prompts:
        embeds = inputs_of(llm, prompt)
        new = llm.model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=llm.eos,
            pad_token_id=llm.eos,
        )
        texts.append(llm.tokenizer.decode(new[0], skip_special_tokens=True).strip())
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60, help="longest report")
    parser.add_argument("--llm", default="tiny")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only")
    options = parser.parse_args()
    if min(options.reports, options.rounds, options.tokens) < 1:
        parser.error("--reports, --rounds and --tokens must be at least 1")
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time

    llm = load_llm(options.llm, device="cuda" if cuda else None)
    studies = indiana().val[: options.reports]
    scale = llm.model.get_input_embeddings().weight.std().item()
    noise = torch.Generator().manual_seed(0)
    prompts = [
        Prompt("image:", scale * torch.randn(16, llm.width, generator=noise), f"{caption(study)} findings:")
        for study in studies
    ]
    ways = {
        "batched": lambda: generate(llm, prompts, max_new_tokens=options.tokens),
        "one at a time": lambda: generate(llm, prompts, max_new_tokens=options.tokens, batch_size=1),
        "transformers": lambda: by_transformers(llm, prompts, options.tokens),
    }
    texts: dict[str, list[str]] = {}
    seconds = interleaved(ways, options.rounds, clock, texts)
    slow = median(seconds["transformers"])
    rows = [
        {
            "way": name,
            "reports a second": float(f"{len(prompts) / median(seconds[name]):.4g}"),
            "times transformers": float(f"{slow / median(seconds[name]):.3g}"),
            "same texts": f"{sum(map(str.__eq__, texts[name], texts['batched']))} of {len(prompts)}",
        }
        for name in ways
    ]
    print(table(rows))
    if options.save:
        save(
            "generation",
            {
                "machine": machine("transformers"),
                "llm": options.llm,
                "weights": sum(p.numel() for p in llm.model.parameters()),
                "dtype": str(llm.model.dtype).removeprefix("torch."),
                "reports": len(prompts),
                "tokens at most": options.tokens,
                "words written": sum(len(text.split()) for text in texts["batched"]),
                "rounds": options.rounds,
                "seconds": {name: [round(s, 3) for s in each] for name, each in seconds.items()},
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
