"""Tokens of frozen encoders, computed once and memory-mapped."""

import hashlib
import math
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rrg_utils.artifacts import artifact, key_of
from rrg_utils.data.datasets import Films
from rrg_utils.errors import RRGError
from rrg_utils.files import array_on_disk
from rrg_utils.vision import controls, mamba, pretrained, scan
from rrg_utils.vision import encoder as _encoder
from rrg_utils.vision.encoder import as_films
from rrg_utils.vision.pretrain import WEIGHTS, load_encoder

_BATCH = 64
ENCODING = [_encoder, controls, mamba, scan]  # the code that makes tokens of films


@torch.no_grad()
def encode(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Patch tokens v_S (N, T, d) float16 of films (N, H, W) uint8, or float in [0, 1], computed where the model is."""
    device = next(model.parameters()).device
    batches = (as_films(images[k : k + _BATCH]).to(device) for k in range(0, len(images), _BATCH))
    return np.concatenate([model(films).tokens.half().cpu().numpy() for films in batches])


@lru_cache
def weights_hash(name: str, size: int) -> str:
    """A hash of the weights of a pre-trained encoder, to key what is made with it."""
    encoder = load_encoder(name, size)  # says what to do if there are none
    if pretrained.is_foreign(name):  # with what is made of them around the weights; wherever the file lies
        inputs = {"name": name.partition("@")[0], "size": size, "state": pretrained.digest(encoder)}
        return key_of("encoder", inputs, [pretrained])
    return hashlib.sha256((WEIGHTS / f"{name}-{size}.safetensors").read_bytes()).hexdigest()[:20]


def film_tokens(films: Films, name: str = "swin", size: int = 128, progress: bool | None = None) -> np.ndarray:
    """Patch tokens (N, T, d) float16 of rendered films from a pre-trained encoder: from the cache, memory-mapped.

    They are made on the GPU if there is one.
    """
    from tqdm.auto import tqdm

    model = load_encoder(name, size)

    def make(folder: Path) -> None:
        # Not `default_device`, which may want to meet processes that wait for this one.
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        out = array_on_disk(folder / "tokens.npy", np.float16, (len(films), model.grid**2, model.width))
        show = sys.stderr.isatty() if progress is None else progress
        for k in tqdm(range(0, len(films), _BATCH), desc=f"encoding {len(films)} films", disable=not show):
            out[k : k + _BATCH] = encode(model, films.images[k : k + _BATCH])
        out.flush()

    inputs = {"films": films.key, "weights": weights_hash(name, size)}
    folder = artifact("tokens", inputs, make, code=ENCODING)
    return np.load(folder / "tokens.npy", mmap_mode="r")


def merge_tokens(tokens: torch.Tensor, factor: int = 2) -> torch.Tensor:
    """Join each `factor` x `factor` block of neighbouring tokens into one wide token (pixel shuffle, as in SmolVLM).

    (B, g * g, d) -> (B, (g / factor)^2, d * factor^2): nothing is lost and the language model reads a shorter prefix.
    A grid that the blocks do not tile, such as 7 x 7, first gets its last row and column again, to 8 x 8.
    """
    batch, count, width = tokens.shape
    side = math.isqrt(count)
    if side**2 != count:
        raise RRGError(f"{count} tokens are not a square grid of patches")
    if short := -side % factor:
        last = torch.arange(side + short, device=tokens.device).clamp(max=side - 1)
        tokens = tokens.unflatten(1, (side, side))[:, last[:, None], last]
        side += short
    blocks = tokens.reshape(batch, side // factor, factor, side // factor, factor, width)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, (side // factor) ** 2, width * factor**2)
