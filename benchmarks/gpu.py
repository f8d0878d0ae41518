"""What a language model costs on one GPU: memory and seconds of training steps and of writing.

    python benchmarks/gpu.py [--sizes 135M 1.1B 7B] [--batches 1 8 32] [--four-bit] [--no-save]

Models of the architecture and size of SmolLM2-135M, TinyLlama-1.1B and Llama-2-7B with random weights, in bf16, written
to a folder and loaded by `load_llm` with LoRA of rank 16, as a profile would: what weights say does not change what
they cost. Each prompt is 64 visual tokens of a projector and words, each answer a real report of the training split in
the tokens of the smallest course model. A training step is one of `fit`. Writing is 100 tokens for each of 256 prompts.
Peaks are what PyTorch had allocated at most, so a GPU needs about a gigabyte more. Beside them stands the estimate that
`load_llm` makes before it loads, for the tokens of the longest answer. Results go to results/benchmarks/gpu.json.
"""

import argparse
import gc
import tempfile
import time
from pathlib import Path

import torch
from common import machine, save, table
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from rrg_utils.data import indiana
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, generate, load_llm, prompt_loss
from rrg_utils.language.memory import TOKENS, memory_need
from rrg_utils.language.smollm2 import SIZES as SMOLLM2
from rrg_utils.training import FitOptions, fit

LLAMAS = {
    "135M": SMOLLM2,
    "1.1B": LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    ),
    "7B": LlamaConfig(max_position_embeddings=4096),  # transformers' default sizes are those of Llama-2-7B
}
VISUAL, WIDTH, WRITTEN, NEW_TOKENS, STEPS = 64, 192, 256, 100, 8


class Reader(nn.Module):
    """A projector of film tokens (64, 192) before a language model with LoRA."""

    def __init__(self, llm):
        super().__init__()
        self.llm, self.language = llm, llm.model
        self.projector = nn.Sequential(nn.Linear(WIDTH, llm.width), nn.GELU(), nn.Linear(llm.width, llm.width))
        self.projector.to(llm.device)

    def prompts(self, count):
        tokens = self.projector(torch.randn(count, VISUAL, WIDTH, device=self.llm.device))
        return [Prompt("image:", each, "findings:") for each in tokens]

    def loss(self, texts):
        return prompt_loss(self.llm, self.prompts(len(texts)), texts).mean


def random_model(size, folder):
    """A folder with a model of this size, random weights and the tokenizer of the smallest course model."""
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(LLAMAS[size], dtype=torch.bfloat16).save_pretrained(folder)
    load_llm("smoke").tokenizer.save_pretrained(folder)


def measure(name, mode, batches, texts):
    """Rows for one way of loading the model in a folder."""
    config = AutoConfig.from_pretrained(name)
    need = memory_need(config, torch.bfloat16, four_bit="4bit" in mode, checkpointing="checkpointing" in mode)
    llm = load_llm(f"{name}{mode}", lora=16, device="cuda")
    reader = Reader(llm)
    loaded = torch.cuda.memory_allocated()
    rows = []
    for batch in batches:
        torch.cuda.reset_peak_memory_stats()
        options = FitOptions(epochs=1, batch_size=batch, lr=1e-4)
        row = {"way": mode.strip(":") or "bf16", "batch": batch}
        try:
            fit(reader, Reader.loss, texts[:batch], options=options)  # warms up
            seconds = fit(reader, Reader.loss, texts[: STEPS * batch], options=options).seconds / STEPS
        except torch.OutOfMemoryError:
            rows.append(row | {"step s": None, "reports a second": None, "peak GB": None})
            break
        longest = max(len(llm.tokenizer(text)["input_ids"]) for text in texts[: STEPS * batch]) + VISUAL
        estimate = need.weights + batch * need.activations * longest / min(TOKENS, config.max_position_embeddings)
        rows.append(
            row
            | {
                "step s": round(seconds, 3),
                "reports a second": float(f"{batch / seconds:.3g}"),
                "peak GB": round(torch.cuda.max_memory_allocated() / 1e9, 2),
                "estimated GB": round(estimate / 1e9, 2),
                "longest": longest,
            }
        )
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    writing = {}
    try:
        with torch.no_grad():
            prompts = reader.eval().prompts(WRITTEN)
        generate(llm, prompts, max_new_tokens=4)
        start = time.perf_counter()
        generate(llm, prompts, max_new_tokens=NEW_TOKENS)
        writing = {
            "reports a second": float(f"{WRITTEN / (time.perf_counter() - start):.3g}"),
            "peak GB": round(torch.cuda.max_memory_allocated() / 1e9, 2),
        }
    except torch.OutOfMemoryError:
        pass
    return {"loaded GB": round(loaded / 1e9, 2), "training": rows, "writing": writing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(LLAMAS), default=list(LLAMAS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--four-bit", action="store_true", help="also in 4 bits (bitsandbytes)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only")
    options = parser.parse_args()
    if min(options.batches) < 1:
        parser.error("--batches: give at least 1")
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    texts = [report.findings for report in indiana().train[: STEPS * max(options.batches)]]
    result = {"machine": machine("transformers", "peft", "bitsandbytes"), "visual tokens": VISUAL, "models": {}}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            random_model(size, folder)
            found = {}
            for mode in ("", ":checkpointing", *([":4bit", ":4bit:checkpointing"] if options.four_bit else [])):
                gc.collect()
                torch.cuda.empty_cache()
                try:
                    found[mode.strip(":") or "bf16"] = measure(folder, mode, options.batches, texts)
                except RRGError as error:
                    print(f"{size}{mode}: {str(error).replace(str(Path(folder)), size)}")
        result["models"][size] = found
        print(size)
        print(table([row for each in found.values() for row in each["training"]]))
        for mode, each in found.items():
            print(f"{mode}: {each['loaded GB']} GB loaded, writing {each['writing']}")
    if options.save:
        save("gpu", result)


if __name__ == "__main__":
    main()
