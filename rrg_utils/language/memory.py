"""How much memory a language model will take, from its configuration alone, and how much is free.

need = memory_need(AutoConfig.from_pretrained(folder), torch.bfloat16)
print(need)     # 15.0 GB: 13.5 for 6.74 B weights, 1.5 for a sequence of 512 tokens in training
"""

import re
from dataclasses import dataclass

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

TOKENS = 512  # of the one sequence that the estimate is for: a prompt with an image and a report
NF4_BYTES = (4 + 0.127) / 8  # of a weight, with its share of the doubly quantised scales (arXiv 2305.14314, section 3)


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes: of all weights, and beside them of one sequence of `tokens` tokens.

    `cache` are keys and values when it is written, `activations` what is kept when gradients go through it. A batch
    takes as many times as it has sequences.
    """

    parameters: int
    weights: int
    cache: int
    activations: int
    tokens: int

    @property
    def total(self) -> int:
        """Enough to load the model and to train on one sequence."""
        return self.weights + max(self.cache, self.activations)

    def __str__(self) -> str:
        count = f"{self.parameters / 1e9:.3g} B" if self.parameters >= 1e9 else f"{self.parameters / 1e6:.3g} M"
        return (
            f"{gigabytes(self.total)}: {gigabytes(self.weights)} for {count} weights, and for each sequence of "
            f"{self.tokens} tokens {gigabytes(self.activations)} in training, {gigabytes(self.cache)} in writing"
        )


def memory_need(
    config: PretrainedConfig, dtype: torch.dtype, *, four_bit: bool = False, checkpointing: bool = False
) -> MemoryNeed:
    """The estimate for a model of this configuration; no weight is read or made.

    Weights are counted exactly, on a model without storage. `four_bit` quantises the linear layers but the output
    layer, as bitsandbytes does. Activations: 17 values a token, layer and unit of width, attention matrices not being
    kept (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1, without dropout masks), or one with `checkpointing`;
    and three times the logits in float32. LoRA adds to these little.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in model.parameters())
    output = model.get_output_embeddings()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not output)
    size = dtype.itemsize
    weights = parameters * size + four_bit * int(linear * (NF4_BYTES - size))

    text = config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    tokens = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
    kept = layers + 17 if checkpointing else 17 * layers  # one layer is computed anew at a time
    return MemoryNeed(
        parameters=parameters,
        weights=weights,
        cache=cache_bytes(config, tokens, dtype),
        activations=tokens * (kept * width * size + 3 * 4 * text.vocab_size),
        tokens=tokens,
    )


def cache_bytes(config: PretrainedConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one sequence."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    of_head = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    return 2 * text.num_hidden_layers * key_heads * of_head * dtype.itemsize * tokens


def weights_by_name(name: str) -> float | None:
    """7e9 for a model of "7b" in its name; None if the name does not say its size."""
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name.lower().replace("_", "-"))
    return float(size[1]) * (1e9 if size[2] == "b" else 1e6) if size else None


def need_by_name(name: str) -> str:
    """What a model will need by its name, in words; nothing if the name does not say its size."""
    weights = weights_by_name(name)
    if weights is None:
        return ""
    return f" (by its name it needs about {gigabytes(2 * weights)} for its weights, {gigabytes(weights / 2)} in 4 bits)"


def free_memory(device: torch.device, spread: bool = False) -> int:
    """Free bytes on a device; `spread`: on all GPUs and the processor together, as a device map uses them."""
    processor = psutil.virtual_memory().available
    if spread:
        return processor + sum(torch.cuda.mem_get_info(k)[0] for k in range(torch.cuda.device_count()))
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else processor


def gigabytes(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
