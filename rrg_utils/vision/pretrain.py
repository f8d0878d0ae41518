"""Pre-training of image encoders on rendered studies with balanced findings (`rrg pretrain NAME`), and `load_encoder`.

Every encoder learns with the same recipe from the same studies, so that what differs between two is the encoder.

2,069 training reports are too few to train an encoder from scratch, and most findings are rare in them; rendering is
unlimited. The encoder learns to say which of the classes a film shows (one label each), in which cells of the patch
grid each lies, and which regions and lobes the cells belong to. The dense targets let it find small lesions.
"""

import difflib
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

import rrg_utils
from rrg_utils import training
from rrg_utils.artifacts import cache_dir, key_of
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.anatomy import LOBES, REGIONS
from rrg_utils.data.datasets import Films, indiana, label_vector, load_dataset, render_films
from rrg_utils.data.synthetic import CROWDED, balanced_studies
from rrg_utils.errors import RRGError
from rrg_utils.files import write_all
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision import controls, mamba, scan
from rrg_utils.vision import encoder as _encoder
from rrg_utils.vision.controls import CNN, ViT
from rrg_utils.vision.encoder import Swin, as_films
from rrg_utils.vision.mamba import VisionMamba
from rrg_utils.vision.pretrained import is_foreign, load_pretrained

log = logging.getLogger("rrg")

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "swin": Swin,
    "mamba": partial(VisionMamba, scan="vim"),
    "vmamba": partial(VisionMamba, scan="vmamba"),
    "vit": ViT,
    "cnn": CNN,
}
PRETRAINABLE = {
    "swin": "Swin Transformer (timm): attention within windows, two stages",
    "mamba": "Vision Mamba (Vim): one scan forwards, one backwards",
    "vmamba": "VMamba: four scans, along rows and columns, both ways",
    "vit": "Vision Transformer (timm): every patch attends to every other",
    "cnn": "a small ResNet (timm): near pixels only",
}
WEIGHTS = Path(rrg_utils.__file__).resolve().parents[1] / "weights"
_HASH = "weights sha256"  # in a card
_CHUNK = 4000  # studies per cache entry, so that an interrupted rendering loses little


def matched_encoders(size: int = 128) -> dict[str, nn.Module]:
    """All encoders untrained, at `size` px: about 2.2 M weights each at 128 px, tokens of width 192 per 16-px patch."""
    return {name: make(size) for name, make in ENCODERS.items()}


class Detector(nn.Module):
    """An encoder with the two heads of pre-training.

    Film (B, 1, H, W) -> image logits (B, C) and cell logits (B, C + 12, g, g): the classes, then regions and lobes.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.cells = nn.Linear(encoder.width, len(ABNORMALITIES) + len(REGIONS) + len(LOBES))
        self.image = nn.Linear(encoder.width, len(ABNORMALITIES))
        self.share = nn.Parameter(torch.ones(len(ABNORMALITIES)))
        nn.init.constant_(self.cells.bias, -3.0)

    def forward(self, films: Tensor) -> tuple[Tensor, Tensor]:
        tokens, pooled = self.encoder(films)
        cells = self.cells(tokens)
        # A film shows a finding if one of its cells does, or if the whole looks like it.
        image = self.image(pooled) + self.share * cells[..., : len(ABNORMALITIES)].amax(1)
        side = self.encoder.grid
        return image, cells.transpose(1, 2).unflatten(2, (side, side))


def _loss(detector: Detector, batch: dict[str, Tensor]) -> Tensor:
    films = batch["films"]
    if detector.training:  # exposure varies; geometry already does from render to render
        gain = torch.empty(len(films), 1, 1, 1, device=films.device).uniform_(0.85, 1.15)
        films = (films - 0.5) * gain + 0.5 + 0.04 * torch.randn_like(gain) + 0.01 * torch.randn_like(films)
    image, cells = detector(films)
    side, classes = cells.shape[-1], len(ABNORMALITIES)
    lesions = F.adaptive_max_pool2d(batch["lesions"], side)
    regions = (F.adaptive_avg_pool2d(batch["regions"], side) >= 0.5).float()
    return (
        F.binary_cross_entropy_with_logits(image, batch["labels"])
        + F.binary_cross_entropy_with_logits(
            cells[:, :classes], lesions, pos_weight=torch.tensor(4.0, device=films.device)
        )
        + 0.2 * F.binary_cross_entropy_with_logits(cells[:, classes:], regions)
    )


def _collate(parts: list[Films], labels: np.ndarray):
    def collate(indices: list[int]) -> dict[str, Tensor]:
        where = [(parts[i // _CHUNK], i % _CHUNK) for i in indices]
        return {
            "films": as_films(np.stack([films.images[k] for films, k in where])),
            "lesions": torch.from_numpy(np.stack([films.lesions(k) for films, k in where])).float(),
            "regions": torch.from_numpy(np.stack([films.regions(k) for films, k in where])).float(),
            "labels": torch.from_numpy(labels[indices]).float(),
        }

    return collate


def studies_for_training(studies: int, size: int = 128) -> tuple[list[Films], np.ndarray, str]:
    """Films in parts, labels (studies, C) and a hash of the first rendered studies, from the cache or made now."""
    reports = balanced_studies(indiana().train, studies, seed=0, findings=CROWDED)
    parts = [render_films(reports[k : k + _CHUNK], size) for k in range(0, studies, _CHUNK)]
    digest = hashlib.sha256("".join(films.key for films in parts).encode()).hexdigest()[:16]
    return parts, np.stack([label_vector(report) for report in reports]), digest


class Trained(NamedTuple):
    """An encoder with its heads, the card of its training, and the folder of its checkpoints, which is to be removed
    once what was made of the encoder is kept."""

    detector: Detector
    card: dict
    checkpoints: Path


def train(
    name: str, *, studies: int = 16000, epochs: int = 3, size: int = 128, seed: int = 0, lr: float = 1e-3
) -> Trained:
    """Train an encoder with its heads on the first `studies` rendered studies.

    `seed` is that of the first weights, the order and the augmentation: the studies are the same for every seed.
    On a GPU if there is one. Resumes where an interrupted call with the same arguments, films and code stopped.
    """
    if name not in PRETRAINABLE:
        raise RRGError(f"unknown encoder {name!r}; can be pre-trained: {', '.join(PRETRAINABLE)}")
    options = FitOptions(
        epochs=epochs, batch_size=32, lr=lr, weight_decay=0.05, checkpoint_every=100, seed=seed, precision="fp32"
    )
    torch.manual_seed(seed)
    detector = Detector(ENCODERS[name](size))
    parts, labels, data = studies_for_training(studies, size)
    val = load_dataset("phantom", "val", size)
    inputs = {"encoder": name, "size": size, "epochs": epochs, "seed": seed, "lr": lr, "data": data}
    checkpoints = cache_dir() / "pretrain" / key_of("pretrain", inputs, _CODE)
    history = fit(
        detector,
        _loss,
        range(studies),
        collate=_collate(parts, labels),
        options=options,
        validate=lambda module: -float(np.nanmean(list(scores(module, val).values()))),
        folder=checkpoints,
        name=f"pre-training {name}",
    )
    card = {
        "encoder": name,
        "config": detector.encoder.config,
        "parameters": sum(p.numel() for p in detector.encoder.parameters()),
        "studies": studies,
        "epochs": epochs,
        "seed": seed,
        "learning rate": lr,
        "device": _device_name(detector),
        "split digest": indiana().digest,
        "data hash": data,
        "training loss": [round(x, 4) for x in history.train],
        "minutes": round(history.seconds / 60, 1),
    }
    return Trained(detector, card, checkpoints)


_CODE = [sys.modules[__name__], controls, _encoder, mamba, scan, training]


def pretrain(
    name: str, *, studies: int = 16000, epochs: int = 3, size: int = 128, seed: int = 0, lr: float = 1e-3
) -> Path:
    """`train` an encoder and write it with its card to `weights/`; returns the file."""
    detector, card, checkpoints = train(name, studies=studies, epochs=epochs, size=size, seed=seed, lr=lr)
    val = load_dataset("phantom", "val", size)
    card["command"] = f"{command(name, size)} --studies {studies} --epochs {epochs} --seed {seed} --lr {lr:g}"
    card["validation"] = {"studies": len(val), "auroc": scores(detector, val), "positives": _positives(val)}
    path = _save(detector, WEIGHTS / f"{name}-{size}.safetensors", card)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return path


def command(name: str, size: int = 128) -> str:
    """What makes the weights of an encoder at `size` px."""
    return f"rrg pretrain {name}" + (f" --size {size}" if size != 128 else "")


@torch.no_grad()
def predict(detector: Detector, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """Image logits (N, C) of films (N, H, W) uint8, computed where the detector is."""
    detector.eval()
    device = detector.share.device
    films = (as_films(images[k : k + batch]).to(device) for k in range(0, len(images), batch))
    return np.concatenate([detector(each)[0].cpu().numpy() for each in films])


def scores(detector: Detector, dataset) -> dict[str, float]:
    """AUROC of every class with at least one positive and one negative study in the data set."""
    logits = predict(detector, np.asarray(dataset.images))
    return {
        name: round(float(roc_auc_score(truth, logit)), 3)
        for name, truth, logit in zip(ABNORMALITIES, dataset.labels.T, logits.T, strict=True)
        if 0 < truth.sum() < len(truth)
    }


def _device_name(detector: Detector) -> str:
    device = detector.share.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _positives(dataset) -> dict[str, int]:
    return {name: int(n) for name, n in zip(ABNORMALITIES, dataset.labels.sum(0), strict=True)}


def _save(detector: Detector, path: Path, card: dict) -> Path:
    """Write the weights and their card, which names them by their hash: one without the other is noticed in loading."""
    derived = _derived(detector)
    state = detector.state_dict()
    weights = save({key: value.half().cpu().contiguous() for key, value in state.items() if key not in derived})
    card = card | {_HASH: hashlib.sha256(weights).hexdigest()}
    path.parent.mkdir(exist_ok=True)
    write_all({path: weights, path.with_suffix(".json"): json.dumps(card, indent=1) + "\n"})
    return path


def load_detector(name: str = "swin", size: int = 128, folder: Path = WEIGHTS) -> Detector:
    """An encoder pre-trained here with its heads, in eval mode and float32; RRGError for encoders of others."""
    if is_foreign(name):
        raise RRGError(f"encoder {name} has no heads for findings and regions: choose from {', '.join(ENCODERS)}")
    if name not in ENCODERS:
        close = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise RRGError(f"unknown encoder {name!r}{hint}; known: {', '.join(ENCODERS)}, timm:NAME, xrv:NAME")
    path, remake = Path(folder) / f"{name}-{size}.safetensors", f"make them with {command(name, size)}"
    if not path.is_file():
        raise RRGError(f"no weights {path.name} in {path.parent.name}/: {remake}")
    try:
        card, weights = json.loads(path.with_suffix(".json").read_text()), path.read_bytes()
        if card.get(_HASH) not in (None, hashlib.sha256(weights).hexdigest()):
            raise ValueError("the card is of other weights")
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in card["config"].items()}
        state = {key: value.float() for key, value in load(weights).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RRGError(f"weights {path.name} or their card are damaged ({error}): {remake}") from error
    detector = Detector(ENCODERS[name](**config))
    missing, unexpected = detector.load_state_dict(state, strict=False)
    if unexpected or set(missing) - _derived(detector):
        raise RRGError(f"weights {path.name} do not fit this version of the encoder: {remake}")
    return detector.eval()


def _derived(detector: Detector) -> set[str]:
    """Buffers that the encoder computes itself: they are not stored."""
    names = ("attn_mask", "relative_position_index", "num_batches_tracked")
    return {key for key in detector.state_dict() if key.endswith(names)}


def load_encoder(name: str = "swin", size: int = 128) -> nn.Module:
    """A pre-trained encoder, frozen: film (B, 1, size, size) -> `Features`.

    One of `ENCODERS`, or one that others pre-trained: "timm:NAME", "xrv:NAME", either with "@FILE" for weights of one's
    own (`rrg_utils.vision.pretrained`).
    """
    if is_foreign(name):
        return load_pretrained(name, size)
    return load_detector(name, size).encoder.requires_grad_(False)
