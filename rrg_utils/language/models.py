"""Language models by name: the tiny one of the course, or any causal model that transformers can load."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rrg_utils.errors import RRGError


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers but the output layer.

    The update of a weight is alpha / rank * B A; `seed` sets the random A (B starts at zero, so the model starts
    unchanged).
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RRGError(f"lora rank is {self.rank}: give at least 1, or None for no LoRA")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer. Without LoRA all weights are frozen."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase

    @property
    def width(self) -> int:
        """Length of an input embedding."""
        return self.model.get_input_embeddings().weight.shape[1]

    @property
    def context(self) -> int | None:
        """Most tokens the model can take, prompt and answer together; None if it sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def bos(self) -> list[int]:
        """What the tokenizer puts before a text: one token or none."""
        return [i for i in self.tokenizer("")["input_ids"][:1] if i == self.tokenizer.bos_token_id]

    @property
    def eos(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id


def load_llm(
    name: str | Path = "tiny",
    *,
    lora: LoraOptions | int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> LanguageModel:
    """A language model in eval mode, frozen; with `lora` (a rank or LoraOptions) only the adapters can be trained.

    `name` is "tiny" (see `rrg_utils.language.tiny`: built on first use, some minutes), "smoke" (the same, too small to
    know anything, for trying whether things run), a local folder, or a hub id
    such as "org/model". `HF_HUB_OFFLINE=1` keeps transformers from looking for a hub id outside its cache.
    Raises RRGError when there is no such model or its tokenizer lacks what prompts need.
    """
    name = str(name)
    from rrg_utils.language.tiny import PRESETS, build_tiny  # it trains with prompts, which need this module

    source = build_tiny(PRESETS[name]) if name in PRESETS else _locate(name)
    try:
        with no_bars() if isinstance(source, Path) else nullcontext():  # a download is worth a bar
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "check that the folder holds a causal language model with config, weights and tokenizer"
        if isinstance(source, str):
            remedy = f"download it where there is a network (hf download {name}), or give a local folder"
        raise RRGError(f"cannot load language model {name}: {reason}: {remedy}") from error
    if not tokenizer.is_fast:
        raise RRGError(f"language model {name} has no fast tokenizer (tokenizer.json): choose another model")
    if tokenizer.eos_token_id is None:
        raise RRGError(f"language model {name} has no token for the end of a text (eos_token): choose another model")

    model.requires_grad_(False)
    if lora is not None:
        lora = LoraOptions(rank=lora) if isinstance(lora, int) else lora
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            torch.manual_seed(lora.seed)
            model = get_peft_model(model, config)
    return LanguageModel(name, model.to(device).eval(), tokenizer)


def _locate(name: str) -> Path | str:
    """The folder or hub id meant by `name`."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise RRGError(f"unknown language model {name!r}: give tiny, an existing folder, or a hub id such as org/model")


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars that transformers draws for what takes milliseconds here."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
