"""Where the anatomy is: region masks that are known (phantom), predicted by a small U-Net, or CXAS's (real films).

    masks = true_masks(data)                       # exact, from the renderer
    masks = predicted_masks(data)                  # by a U-Net that learned from films of the training split
    masks = cxas_masks(images)                     # by CXAS, which LLaVA-TA uses, where it is installed

LLaVA-TA takes its masks from CXAS (Seibold et al. 2023, a U-Net with a ResNet-50 trained on projected CT labels). Ours
is of the same kind, smaller, and learned from projected CT labels as well: those of the course's one CT. So its Dice
says how well it reads our films and nothing about films of patients.
"""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data import anatomy, lesions, phantom
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.anatomy import REGIONS
from rrg_utils.data.datasets import DRAWING, PhantomDataset, indiana, load_dataset
from rrg_utils.device import default_device
from rrg_utils.errors import RRGError
from rrg_utils.processes import is_main_process
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision.encoder import as_films

NAMES = tuple(REGIONS)  # the seven regions of LLaVA-TA
_BATCH = 64


@dataclass(frozen=True)
class Masks:
    """Region masks of many films, packed to bits: `masks[i]` is (7, H, W) bool in the order of `NAMES`."""

    packed: np.ndarray  # (N, 7, H * W / 8) uint8
    size: int
    key: str  # names the contents: what is made with these masks is kept under it

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> np.ndarray:
        bits = np.unpackbits(np.asarray(self.packed[index]), axis=-1, count=self.size**2)
        return bits.reshape(len(NAMES), self.size, self.size).astype(bool)

    def area(self, index: int, regions: Sequence[str]) -> np.ndarray:
        """(H, W) bool: the regions merged into one mask. RRGError for an unknown region, and for none at all."""
        unknown = [name for name in regions if name not in NAMES]
        if unknown:
            raise RRGError(f"unknown region {unknown[0]!r}; known are: {', '.join(NAMES)}")
        if not regions:
            raise RRGError("no region to mask: what has none is seen on the whole film")
        return self[index][[NAMES.index(name) for name in regions]].any(0)


def masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The segmented film S: the image (H, W) inside the mask (H, W), black outside. How S is formed is ours.

    RRGError for a mask of another size or type.
    """
    image, mask = np.asarray(image), np.asarray(mask)
    if image.ndim != 2 or mask.shape != image.shape or mask.dtype != bool:
        raise RRGError(
            f"a film {image.shape} needs a boolean mask of its size, got {mask.dtype} {mask.shape}: resize the mask"
        )
    return np.where(mask, image, np.zeros((), image.dtype))


# --- true masks -------------------------------------------------------------------------------------------------------

# Findings that bend the anatomy move its masks, those drawn into it do not: leaving them out saves half of the time.
_DRAWN = tuple(name for name in ABNORMALITIES if name not in lesions.BENDS)


def true_masks(data: PhantomDataset) -> Masks:
    """The exact masks of a data set's films at full resolution, from the cache or rendered now (10 ms a film)."""

    def make(folder: Path) -> None:
        found = np.stack([np.stack(list(data.phantom(i, _DRAWN).regions.values())) for i in range(len(data))])
        np.save(folder / "masks.npy", _pack(found))

    inputs = {"films": data.films.key, "count": len(data)}
    folder = artifact("region-masks", inputs, make, code=[anatomy, lesions, phantom])
    return Masks(np.load(folder / "masks.npy", mmap_mode="r"), data.size, folder.name)


def _pack(masks: np.ndarray) -> np.ndarray:
    return np.packbits(masks.reshape(*masks.shape[:2], -1), axis=-1)


# --- predicted masks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SegmentationConfig:
    """A small U-Net and its training; all values ours, so chosen that it costs less than two minutes of one core."""

    size: int = 128
    stride: int = 2  # the network works on pixels of so many film pixels: regions are large, and steps are many
    backbone: str = "resnet18"
    depth: int = 4
    decoder: tuple[int, ...] = (64, 32, 16, 8)
    reports: int | None = None  # films of the training split; None: all
    epochs: int = 2
    batch_size: int = 8
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        step = self.stride * 2**self.depth
        if self.size % step:
            raise RRGError(f"size={self.size}: this U-Net needs a multiple of {step} pixels")
        if len(self.decoder) != self.depth:
            raise RRGError(f"a U-Net of depth {self.depth} has as many decoder widths, got {len(self.decoder)}")


class UNet(nn.Module):
    """U-Net of segmentation-models-pytorch with random first weights: films (B, 1, H, W) -> logits (B, 7, H, W)."""

    def __init__(self, config: SegmentationConfig):
        super().__init__()
        import segmentation_models_pytorch as smp

        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.body = smp.Unet(
                config.backbone,
                encoder_depth=config.depth,
                encoder_weights=None,
                decoder_channels=config.decoder,
                in_channels=1,
                classes=len(NAMES),
            )
        self.size, self.stride = config.size, config.stride

    def forward(self, films: Tensor) -> Tensor:
        """Films in [0, 1]."""
        if films.shape[1:] != (1, self.size, self.size):
            raise RRGError(f"films of shape {tuple(films.shape)}: expected (B, 1, {self.size}, {self.size})")
        logits = self.body((F.avg_pool2d(films, self.stride) - 0.5) / 0.25)
        return F.interpolate(logits, size=(self.size, self.size), mode="bilinear")


def loss(model: UNet, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy per pixel, plus one minus the soft Dice overlap, summed over regions; regions may overlap.

    With the mean in the place of the sum the heart, a small region, was never found.
    """
    films, truth = batch
    logits = model(films)
    p = logits.sigmoid()
    overlap = 2 * (p * truth).sum((0, 2, 3)) / (p + truth).sum((0, 2, 3)).clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, truth) + (1 - overlap).sum()


@torch.no_grad()
def predict(model: UNet, images: np.ndarray) -> np.ndarray:
    """Masks (N, 7, H, W) bool of films (N, H, W), uint8 or float in [0, 1]: what is likelier inside than outside."""
    model.eval()
    device = next(model.parameters()).device
    batches = (as_films(images[k : k + _BATCH]).to(device) for k in range(0, len(images), _BATCH))
    return np.concatenate([(model(films) > 0).cpu().numpy() for films in batches])


def train(config: SegmentationConfig, data: PhantomDataset, masks: Masks, folder: Path | None = None) -> UNet:
    """A U-Net that has learned the masks of a data set's films."""
    model = UNet(config)

    def collate(indices: list[int]) -> tuple[Tensor, Tensor]:
        truth = np.stack([masks[i] for i in indices])
        return as_films(np.stack([data.images[i] for i in indices])), torch.from_numpy(truth).float()

    fit(
        model,
        loss,
        range(len(data)),
        collate=collate,
        options=FitOptions(epochs=config.epochs, batch_size=config.batch_size, lr=config.lr, seed=config.seed),
        folder=folder,
        name="training the U-Net",
    )
    return model


def trained(config: SegmentationConfig = SegmentationConfig()) -> UNet:
    """The U-Net of a configuration, from the cache or trained now on films of the training split."""
    model = UNet(config)
    model.load_state_dict(load_file(_trained_folder(config) / "unet.safetensors"))
    return model.to(default_device()).eval()


_CODE = [sys.modules[__name__], *DRAWING, training]


def _trained_folder(config: SegmentationConfig) -> Path:
    def make(folder: Path) -> None:
        data = load_dataset("phantom", "train", config.size, config.reports)
        with torch.enable_grad():
            model = train(config, data, true_masks(data), folder / "fit")
        if is_main_process():
            save_file(model.state_dict(), folder / "unet.safetensors")
            (folder / "config.json").write_text(json.dumps(asdict(config)))
            shutil.rmtree(folder / "fit")

    inputs = asdict(config) | {"cohort": indiana().digest}
    return artifact("unet", inputs, make, code=_CODE, resume=True, together=True)


def predicted_masks(data: PhantomDataset, config: SegmentationConfig | None = None) -> Masks:
    """The masks that the U-Net predicts on a data set's films, from the cache or predicted now."""
    config = config or SegmentationConfig(size=data.size)
    unet = _trained_folder(config)

    def make(folder: Path) -> None:
        np.save(folder / "masks.npy", _pack(predict(trained(config), data.images)))

    folder = artifact("predicted-masks", {"films": data.films.key, "count": len(data), "unet": unet.name}, make)
    return Masks(np.load(folder / "masks.npy", mmap_mode="r"), data.size, folder.name)


def dice_per_region(found: Masks, truth: Masks) -> np.ndarray:
    """Dice overlap (N, 7) of two sets of masks, film by film; NaN where both are empty."""
    if len(found) != len(truth) or found.size != truth.size:
        raise RRGError(f"{len(found)} masks of {found.size} px cannot be compared with {len(truth)} of {truth.size} px")
    from rrg_utils.metrics.grounding import dice

    pairs = ((found[i], truth[i]) for i in range(len(found)))
    return np.array([[dice(f, t) for f, t in zip(a, b, strict=True)] for a, b in pairs])


# --- CXAS -------------------------------------------------------------------------------------------------------------

# Which of CXAS's 159 labels make up each region: by name, or by how the name starts or ends. The grouping is ours.
_CXAS = {
    "vertebrae": lambda name: name.startswith("vertebrae "),
    "ribs": lambda name: " rib" in name,
    "diaphragm": lambda name: name in ("diaphragm", "left hemidiaphragm", "right hemidiaphragm"),
    "mediastinum": lambda name: name == "cardiomediastinum" or name.endswith(" mediastinum"),
    "abdomen": lambda name: (
        name in ("stomach", "small bowel", "duodenum", "liver", "pancreas", "kidney left", "kidney right")
    ),
    "heart": lambda name: name == "heart",
    "lungs": lambda name: name in ("right lung", "left lung"),
}


def cxas_masks(images: np.ndarray) -> Masks:
    """Region masks of real films (N, H, W), square as the data sets give them, by CXAS; its first call fetches weights.

    RRGError where CXAS is not installed.
    """
    try:
        from cxas import CXAS
        from cxas.label_mapper import id2label_dict
    except ImportError as error:
        raise RRGError(
            f"CXAS cannot be used ({error}): pip install cxas, in an environment of its own since it needs "
            "pydicom < 3; its weights (CC BY-NC-SA 4.0) are downloaded at the first call"
        ) from error
    from PIL import Image

    pixels = (as_films(images)[:, 0] * 255).round().byte().numpy()
    model = CXAS(gpus="0" if torch.cuda.is_available() else "cpu")
    members = [
        [int(number) for number, name in id2label_dict.items() if belongs(name)] for belongs in map(_CXAS.get, NAMES)
    ]
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for image in pixels:  # CXAS reads files
            path = Path(folder) / "film.png"
            Image.fromarray(image).save(path)
            found = model.process_file(str(path))["segmentation_preds"][0].cpu().float()
            regions = torch.stack([found[numbers].amax(0) for numbers in members])
            out.append((F.interpolate(regions[None], image.shape, mode="area")[0] >= 0.5).numpy())
    packed = _pack(np.stack(out))
    return Masks(packed, pixels.shape[-1], f"cxas-{hashlib.sha256(packed.tobytes()).hexdigest()[:20]}")
