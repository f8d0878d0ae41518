"""Image encoders behind one interface: a film in, patch tokens v_S and a global vector v_G out."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rrg_utils.errors import RRGError


class Features(NamedTuple):
    """What an encoder gives: `tokens` v_S (B, N, d) in row-major order of the patch grid, `pooled` v_G (B, d)."""

    tokens: Tensor
    pooled: Tensor


class ConvStem(nn.Module):
    """Patch embedding by four small convolutions instead of one large one, for timm's `embed_layer`.

    (B, 1, H, W) -> (B, H/8, W/8, width). Early convolutions let a small Transformer see small things after short
    training (Xiao et al. 2021); with timm's linear 4-px patches nodules of two pixels stayed near chance here.
    """

    def __init__(self, img_size, patch_size, in_chans, embed_dim, norm_layer=None, **_):
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        layers: list[nn.Module] = []
        channels = in_chans
        for out, stride in ((24, 2), (48, 2), (48, 1), (embed_dim, 2)):
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.norm = norm_layer(embed_dim) if norm_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Swin Transformer (Liu et al. 2021) from timm, cut down to two stages for small films.

    At 128 px: a convolutional stem to 16x16 tokens of width 96, then 8x8 tokens of width 192 in windows of 8 patches.
    The sizes and the stem are ours; the papers use Swin-B at 224 px.
    """

    PATCH = 8

    def __init__(self, size: int = 128, width: int = 96, depths: tuple[int, ...] = (2, 4), heads=(4, 8)):
        super().__init__()
        from timm.models.swin_transformer import SwinTransformer

        step = self.PATCH * 2 ** (len(depths) - 1)
        window = next((w for w in (8, 7) if size % (step * w) == 0), None)
        if window is None:
            raise RRGError(f"size={size}: the Swin encoder needs a multiple of {step * 8} or {step * 7} pixels")
        self.size, self.grid = size, size // step
        self.config = {"size": size, "width": width, "depths": list(depths), "heads": list(heads)}
        self.body = SwinTransformer(
            img_size=size,
            patch_size=self.PATCH,
            in_chans=1,
            num_classes=0,
            embed_dim=width,
            depths=depths,
            num_heads=heads,
            window_size=window,
            drop_path_rate=0.05,
            embed_layer=ConvStem,
        )
        self.width = self.body.num_features

    def forward(self, films: Tensor) -> Features:
        """Films (B, 1, H, W) in [0, 1]."""
        if films.shape[1:] != (1, self.size, self.size):
            raise RRGError(f"films of shape {tuple(films.shape)}: expected (B, 1, {self.size}, {self.size})")
        tokens = self.body.forward_features((films - 0.5) / 0.25).flatten(1, 2)
        return Features(tokens, tokens.mean(1))


def as_films(images: np.ndarray) -> Tensor:
    """Images (N, H, W), uint8 in 0..255 or float in [0, 1], as films (N, 1, H, W) float32 in [0, 1]."""
    images = np.asarray(images)
    if images.ndim != 3:
        raise RRGError(f"images of shape {images.shape}: expected (N, H, W)")
    films = torch.from_numpy(images.astype(np.float32))[:, None]
    return films / 255 if images.dtype == np.uint8 else films
