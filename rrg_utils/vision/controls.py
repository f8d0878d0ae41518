"""Controls for the comparison of encoders: a plain ViT and a small CNN (timm), of the Swin's size and interface.

All give tokens of width 192 on a grid of 16-px patches and have about 2.2 million weights at 128 px, so that what
differs is how the tokens come to know of each other.
"""

from torch import Tensor, nn

from rrg_utils.errors import RRGError
from rrg_utils.vision.encoder import ConvStem, Features

PATCH = 16


def check_size(size: int) -> None:
    """RRGError unless patches of 16 px tile a film of `size` px."""
    if size < PATCH or size % PATCH:
        raise RRGError(f"size={size}: patches of {PATCH} px do not divide it; expected a multiple of {PATCH}")


def check_films(films: Tensor, size: int) -> None:
    """RRGError unless films are (B, 1, size, size)."""
    if films.shape[1:] != (1, size, size):
        raise RRGError(f"films of shape {tuple(films.shape)}: expected (B, 1, {size}, {size})")


class Stem(nn.Module):
    """The Swin's stem of small convolutions and one more step: (B, 1, H, W) -> (B, H W / 16^2, width).

    Also timm's `embed_layer`, hence the names of its arguments.
    """

    def __init__(self, img_size: int, patch_size: int = PATCH, in_chans: int = 1, embed_dim: int = 192, **_):
        super().__init__()
        self.num_patches = (img_size // patch_size) ** 2
        self.layers = ConvStem(img_size, patch_size // 2, in_chans, embed_dim // 2)
        self.merge = nn.Conv2d(embed_dim // 2, embed_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(self.layers(x).permute(0, 3, 1, 2)).flatten(2).mT


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021), every token attending to every other. v_G is the class token."""

    def __init__(self, size: int = 128, width: int = 192, depth: int = 5, heads: int = 6, mlp_ratio: float = 3.5):
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        check_size(size)
        self.size, self.grid, self.width = size, size // PATCH, width
        self.config = {"size": size, "width": width, "depth": depth, "heads": heads, "mlp_ratio": mlp_ratio}
        self.body = VisionTransformer(
            img_size=size,
            patch_size=PATCH,
            in_chans=1,
            num_classes=0,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            embed_layer=Stem,
        )

    def forward(self, films: Tensor) -> Features:
        """Films (B, 1, size, size) in [0, 1]."""
        check_films(films, self.size)
        tokens = self.body.forward_features((films - 0.5) / 0.25)
        return Features(tokens[:, 1:], tokens[:, 0])


class CNN(nn.Module):
    """A small ResNet (He et al. 2016), tokens from near pixels only. v_G is the mean.

    Its last stage widens its filters instead of halving the grid, so that the grid is the others'.
    """

    def __init__(self, size: int = 128, width: int = 192, layers: tuple[int, ...] = (2, 2, 2, 3)):
        super().__init__()
        from timm.models.resnet import BasicBlock, ResNet

        check_size(size)
        self.size, self.grid, self.width = size, size // PATCH, width
        self.config = {"size": size, "width": width, "layers": list(layers)}
        channels = tuple(width // k for k in (8, 4, 2, 1))
        self.body = ResNet(BasicBlock, layers, num_classes=0, in_chans=1, output_stride=PATCH, channels=channels)

    def forward(self, films: Tensor) -> Features:
        """Films (B, 1, size, size) in [0, 1]."""
        check_films(films, self.size)
        tokens = self.body.forward_features((films - 0.5) / 0.25).flatten(2).mT
        return Features(tokens, tokens.mean(1))
