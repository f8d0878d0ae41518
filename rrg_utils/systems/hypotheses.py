"""Hypotheses of RadSCR: which abnormalities a film may show, and where each of them would be.

    encoder tokens -> V --AvgPool, FCN, sigmoid--> p (37)         positive where p > 0.5
                      +---Grad-CAM of m--> W_m --objectness--> masks b_m1, b_m2, ... --MaxPool, Map--> region B_m

Choices that the paper leaves open, all ours: V is a small network over the tokens of the course's pre-trained Swin,
frozen unless `RadSCRConfig.train_encoder`; the saliency is enlarged `FINE` times before it is cut into objects, which
are its connected parts above half of its peak; the objectness of a part is by how much its saliency exceeds that of the
ring around it (contrast with the surroundings, as in Alexe et al., "What is an object?", 2010).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from captum.attr import LayerAttribution, LayerGradCam
from scipy import ndimage
from torch import Tensor, nn

from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.errors import RRGError

FINE = 4  # saliency has so many pixels per side of a patch
_PART = 0.5  # of the peak: where a part ends
_KEPT = 0.5  # of the best objectness: which parts are objects


class Hypotheses(nn.Module):
    """Film tokens (F, T, w) -> V (F, T, d) and logits (F, 37); saliency of a class on demand."""

    def __init__(self, tokens: int, width: int, d: int):
        super().__init__()
        self.grid = round(tokens**0.5)
        if self.grid**2 != tokens:
            raise RRGError(f"{tokens} tokens are not a square grid of patches")
        # Tokens differ more from place to place than from film to film: they are read as deviations from the mean film.
        self.register_buffer("mean", torch.zeros(tokens, width))
        self.register_buffer("spread", torch.ones(width))
        self.encode = nn.Sequential(nn.Linear(width, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.head = Head(d)

    def refer_to(self, tokens: np.ndarray) -> None:
        """Take the mean film and the spread about it from films (N, T, w)."""
        sample = torch.from_numpy(np.asarray(tokens, np.float32))
        self.mean.copy_(sample.mean(0))
        self.spread.copy_((sample - self.mean).std((0, 1)).clamp(min=1e-3))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """V and the logits of p = sigmoid(FCN(AvgPool(V)))."""
        v = self.encode((tokens - self.mean) / self.spread)
        return v, self.head(self.on_grid(v))

    def on_grid(self, v: Tensor) -> Tensor:
        """V (F, T, d) as (F, d, g, g)."""
        return v.transpose(1, 2).unflatten(2, (self.grid, self.grid))

    def saliency(self, v: Tensor, classes: Tensor) -> Tensor:
        """W (R, FINE g, FINE g): Grad-CAM (Selvaraju et al. 2017, by captum) of one class for each row of V (R, T, d).

        Not negative; zero everywhere where nothing speaks for the class. No gradient flows back through it.
        """
        if not len(v):
            return v.new_zeros(0, FINE * self.grid, FINE * self.grid)
        maps = self.on_grid(v.detach()).contiguous().requires_grad_()
        with torch.enable_grad():
            cam = LayerGradCam(self.head, self.head.map).attribute(maps, classes, relu_attributions=True)
        size = (FINE * self.grid, FINE * self.grid)
        return LayerAttribution.interpolate(cam.detach(), size, "bilinear")[:, 0]

    def regions(self, saliency: Tensor) -> Tensor:
        """B (R, T) bool on the patch grid: Map(MaxPool) of the objects of each saliency map."""
        masks = [union(objects(w), w.shape) for w in saliency.cpu().numpy()]
        return torch.from_numpy(patches(np.stack(masks) if masks else np.zeros((0, *saliency.shape[1:]), bool)))


class Head(nn.Module):
    """AvgPool and FCN; `map` is where captum looks."""

    def __init__(self, d: int):
        super().__init__()
        self.map = nn.Identity()
        self.fcn = nn.Linear(d, len(ABNORMALITIES))
        nn.init.constant_(self.fcn.bias, -3.0)  # most films show little

    def forward(self, maps: Tensor) -> Tensor:
        return self.fcn(self.map(maps).mean((2, 3)))


class Object(NamedTuple):
    """One part of a saliency map: its mask (h, w) bool, and by how much it stands out, in shares of the peak."""

    mask: np.ndarray
    objectness: float


def objects(saliency: np.ndarray) -> list[Object]:
    """The objects of a saliency map (h, w) that is not negative, best first; none where it is zero everywhere."""
    saliency = np.asarray(saliency, np.float64)
    if saliency.ndim != 2 or not np.isfinite(saliency).all() or (saliency < 0).any():
        raise RRGError(f"a saliency map is (h, w), finite and not negative, got shape {saliency.shape}")
    peak = saliency.max()
    if peak <= 0:
        return []
    parts, count = ndimage.label(saliency > _PART * peak, structure=np.ones((3, 3)))
    found = []
    for number in range(1, count + 1):
        mask = parts == number
        ring = ndimage.maximum_filter(mask.view(np.uint8), 2 * FINE + 1).view(bool) & ~mask
        around = saliency[ring].mean() if ring.any() else 0.0
        found.append(Object(mask, float((saliency[mask].mean() - around) / peak)))
    found.sort(key=lambda part: -part.objectness)
    return [part for part in found if part.objectness >= _KEPT * found[0].objectness]


def union(found: Sequence[Object], shape: tuple[int, ...]) -> np.ndarray:
    """The union of the masks of objects; empty if there are none."""
    return np.any([part.mask for part in found], axis=0) if found else np.zeros(shape, bool)


def patches(masks: np.ndarray) -> np.ndarray:
    """Masks (R, FINE g, FINE g) on the patch grid (R, T): a patch belongs to what touches it."""
    rows, height, _ = masks.shape
    g = height // FINE
    return masks.reshape(rows, g, FINE, g, FINE).any((2, 4)).reshape(rows, g * g)
