"""Language models by name: those of the course, or any causal model that transformers can load.

    load_llm("tiny")                                    # two million weights, made on first use
    load_llm("smollm2", lora=8)                         # 135 million, pretrained, from a wheel
    load_llm("mistralai/Mistral-7B-v0.1:4bit")          # seven billion, from the hub, on a GPU

A model is refused before its weights are read if there is no memory for it.
"""

import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, wraps
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from rrg_utils.errors import RRGError
from rrg_utils.language.memory import free_memory, gigabytes, memory_need, need_by_name
from rrg_utils.training import autocast_bf16

SWITCHES = ("4bit", "checkpointing")  # may follow a name, so that a profile can set them: "org/model:4bit"
# What models call keys and values of earlier tokens: transformers 5.24 renamed it.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


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
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    device_map: str | dict | None = None,
    four_bit: bool = False,
    checkpointing: bool = False,
) -> LanguageModel:
    """A language model in eval mode, frozen; with `lora` (a rank or LoraOptions) only the adapters can be trained.

    `name` is "tiny" (see `rrg_utils.language.tiny`: built on first use, some minutes), "smoke" (the same, too small to
    know anything, for trying whether things run), "smollm2" (see `rrg_utils.language.smollm2`), a local folder, or a
    hub id such as "org/model". `HF_HUB_OFFLINE=1` keeps transformers from looking for a hub id outside its cache.

    `dtype` None: bfloat16 where the weights are stored in 16 bits and the device is fast in it (see `autocast_bf16`),
    else float32. `device_map` spreads a model over several GPUs and the processor ("auto", or accelerate's dict).
    `four_bit` quantises the linear layers to NF4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314; NVIDIA GPUs only).
    `checkpointing` keeps one activation a layer and computes the others again for gradients: less memory, more time.
    The last two can also be said in the name: "org/model:4bit:checkpointing".

    Raises RRGError, before any weight is read, when there is no such model or no memory for it, its tokenizer lacks
    what prompts need, or 4 bits are asked for where they cannot be had; after reading, when weights are missing.
    """
    name = str(name)
    base, switches = switches_of(name)
    four_bit, checkpointing = four_bit or "4bit" in switches, checkpointing or "checkpointing" in switches
    if four_bit:
        device = _device_for_4bit(name, device)
    source = _locate(base)
    config = _loaded(base, source, AutoConfig)
    tokenizer = _loaded(base, source, AutoTokenizer)
    if not tokenizer.is_fast:
        raise RRGError(f"language model {name} has no fast tokenizer (tokenizer.json): choose another model")
    if tokenizer.eos_token_id is None:
        raise RRGError(f"language model {name} has no token for the end of a text (eos_token): choose another model")

    device = torch.device(device or "cpu")
    dtype = dtype or _dtype(config, device)
    _check_memory(name, config, dtype, device, device_map, four_bit, checkpointing)
    options: dict = {"dtype": dtype}
    if four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if device_map is not None or device.type != "cpu":  # straight to where it belongs, not through main memory
        options["device_map"] = device_map or {"": device}
    model, found = _loaded(base, source, AutoModelForCausalLM, output_loading_info=True, **options)
    if found["missing_keys"]:  # they would be random
        raise RRGError(
            f"language model {name} lacks weights, such as {min(found['missing_keys'])}: "
            "check that they are those of a causal language model with this config, and whole"
        )

    model.requires_grad_(False)
    if checkpointing:
        _checkpoint_layers(model)
    if lora is not None:
        lora = LoraOptions(rank=lora) if isinstance(lora, int) else lora
        adapters = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
            torch.manual_seed(lora.seed)
            model = get_peft_model(model, adapters)
    return LanguageModel(name, model.eval(), tokenizer)


def switches_of(name: str) -> tuple[str, set[str]]:
    """The model's own name and the switches behind it."""
    base, behind = re.fullmatch(rf"(.*?)((?::(?:{'|'.join(SWITCHES)}))*)", name, re.S).groups()
    return base, set(behind.split(":")[1:])


def _locate(name: str) -> Path | str:
    """The folder or hub id meant by `name`; a model of the course is made if need be."""
    from rrg_utils.language.smollm2 import build_smollm2
    from rrg_utils.language.tiny import PRESETS, build_tiny  # it trains with prompts, which need this module

    if name in PRESETS:
        return build_tiny(PRESETS[name])
    if name == "smollm2":
        return build_smollm2()
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise RRGError(
        f"unknown language model {name!r}: give tiny, smollm2, an existing folder, or a hub id such as org/model"
    )


def folder_digest(name: str) -> str | None:
    """A hash of the files of a language model in a local folder, to key what is made with it: they may change under
    the same name. None for the models of the course and of the hub."""
    from rrg_utils.language.tiny import PRESETS

    base, _ = switches_of(name)
    folder = Path(base).expanduser()
    if base in PRESETS or base == "smollm2" or not folder.is_dir():
        return None
    files = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return _files_digest(tuple((path, of.st_size, of.st_mtime_ns) for path, of in files))


@lru_cache
def _files_digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Names and contents; size and time of change are there to know them again without reading them."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:20]


def _loaded(name: str, source: Path | str, what: type, **options):
    """`what.from_pretrained(source)`; whatever is wrong with folder or hub becomes one line with the remedy."""
    try:
        with no_bars() if isinstance(source, Path) else nullcontext():  # a download is worth a bar
            return what.from_pretrained(source, **options)
    except torch.OutOfMemoryError as error:
        need = need_by_name(name)
        raise RRGError(f"no room on the GPU for language model {name}{need}: load it with :4bit, or free it") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "check that the folder holds a causal language model with config, weights and tokenizer"
        if isinstance(source, str):
            reason, remedy = _hub_trouble(name, error, reason)
            remedy += need_by_name(name)
        raise RRGError(f"cannot load language model {name}: {reason}: {remedy}") from error


def _hub_trouble(name: str, error: BaseException, reason: str) -> tuple[str, str]:
    """Why a hub id could not be had, and what to do; transformers wraps the hub's own errors."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    if any(isinstance(e, GatedRepoError) for e in chain):
        return "it is gated", f"accept its terms on {constants.ENDPOINT}/{name}, then log in with hf auth login"
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return "the hub has no model of this name", "check the spelling; for a private one, log in with hf auth login"
    download = f"hf download {name} where there is a network, or give a local folder"
    if constants.HF_HUB_OFFLINE or any(isinstance(e, OfflineModeIsEnabled) for e in chain):
        return "it is not in the local cache and the hub is switched off", f"unset HF_HUB_OFFLINE, or {download}"
    return reason, download


def _device_for_4bit(name: str, device: torch.device | str | None) -> torch.device:
    device = torch.device(device or "cuda")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise RRGError(f"language model {name}: 4-bit weights need an NVIDIA GPU: leave 4bit out, or use smollm2")
    if find_spec("bitsandbytes") is None:
        raise RRGError(f"language model {name}: 4-bit weights need bitsandbytes: pip install -e '.[gpu]'")
    return device


def _dtype(config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """See `load_llm`. Training moves a model that is loaded on the processor to the GPU, if there is one."""
    stored = getattr(config, "dtype", None) or torch.float32
    used_on = torch.device("cuda") if torch.cuda.is_available() else device
    return torch.bfloat16 if stored.itemsize <= 2 and autocast_bf16(used_on) else torch.float32


def _check_memory(
    name: str,
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | dict | None,
    four_bit: bool,
    checkpointing: bool,
) -> None:
    try:
        need = memory_need(config, dtype, four_bit=four_bit, checkpointing=checkpointing)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise RRGError(f"{name} is no causal language model that transformers knows: {reason}") from error
    free = free_memory(device, spread=device_map is not None)
    if need.total <= free:
        return
    remedy = "free memory or choose a smaller model"
    if not four_bit:
        smaller = memory_need(config, torch.bfloat16, four_bit=True, checkpointing=checkpointing)
        remedy += f"; on a GPU with {gigabytes(smaller.total)} free, {name}:4bit would do"
    where = "all devices" if device_map is not None else {"cpu": "this machine"}.get(device.type, str(device))
    bits = "4 bits" if four_bit else f"{dtype.itemsize * 8} bits"
    raise RRGError(
        f"not enough memory for language model {name}: {gigabytes(free)} are free on {where}, "
        f"and in {bits} it needs about {need}: {remedy}"
    )


def _checkpoint_layers(model: nn.Module) -> None:
    """Checkpoint every layer where gradients are wanted.

    transformers' own switch works in training mode only, but a frozen model stays in eval mode, and gradients still
    pass through it to what made its prompt.
    """

    def checkpointed(forward):
        @wraps(forward)
        def call(*args, **kwargs):
            if torch.is_grad_enabled() and kwargs.get(CACHE) is None:
                return checkpoint(forward, *args, use_reentrant=False, **kwargs)
            return forward(*args, **kwargs)

        return call

    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = checkpointed(layer.forward)


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
