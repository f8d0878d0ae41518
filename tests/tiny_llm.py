"""A random language model of the tiny one's kind, small enough to make in a test."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rrg_utils.language.tiny import train_tokenizer


def make_llm(folder: Path, texts: list[str], context: int = 512) -> str:
    """Write model and tokenizer, made from `texts`, to a folder; returns it as a name for `load_llm`."""
    tokenizer = train_tokenizer(texts, 400)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=context,
        )
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
