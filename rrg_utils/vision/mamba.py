"""Vision Mamba: image encoders whose tokens meet in selective scans instead of attention.

A scan reads a sequence one way, and an image has no first pixel. Two ways out, selectable:

- `vim` (Zhu et al. 2024, "Vision Mamba", algorithm 1): the tokens row by row, read forwards and backwards, with the
  class token in the middle.
- `vmamba` (Liu et al. 2024, "VMamba", SS2D): four readings of the grid, rows and columns, each forwards and backwards,
  laid over each other again.

The sizes, the convolutional stem and the constant width are ours: as many weights as the Swin encoder beside it, and
tokens on the same grid. The released code of R2GenCSR uses VMamba-B, pre-trained on photographs at 224 px.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rrg_utils.errors import RRGError
from rrg_utils.vision.controls import PATCH, Stem, check_films, check_size
from rrg_utils.vision.encoder import Features
from rrg_utils.vision.scan import selective_scan

DEPTHS = {"vim": 7, "vmamba": 6}  # blocks, for about 2.2 M weights


class SelectiveSSM(nn.Module):
    """S6 of Mamba, for several sequences at once that have weights of their own: (B, K, E, L) -> the same.

    Each token gives its own step, what to write and what to read (`select`); A and the skip D belong to the channels.
    """

    def __init__(self, channels: int, sequences: int, states: int = 16, backend: str = "auto"):
        super().__init__()
        self.rank, self.states, self.backend = math.ceil(channels / 32), states, backend
        K, E = sequences, channels
        self.select = nn.Parameter(torch.empty(K, self.rank + 2 * states, E).uniform_(-1, 1) / math.sqrt(E))
        self.step = nn.Parameter(torch.empty(K, E, self.rank).uniform_(-1, 1) / math.sqrt(self.rank))
        # Steps start between 0.001 and 0.1, log-uniform (the bias is before softplus); A at -1, ..., -N (S4D-real).
        steps = torch.empty(K * E).uniform_(math.log(1e-3), math.log(1e-1)).exp()
        self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.A_log = nn.Parameter(torch.arange(1, states + 1.0).log().repeat(K * E, 1))
        self.D = nn.Parameter(torch.ones(K * E))

    def forward(self, x: Tensor) -> Tensor:
        rank, B, C = (self.select @ x).split([self.rank, self.states, self.states], 2)
        delta = self.step @ rank
        y = selective_scan(
            x.flatten(1, 2),
            delta.flatten(1, 2),
            -self.A_log.exp(),
            B,
            C,
            self.D,
            delta_bias=self.step_bias,
            delta_softplus=True,
            backend=self.backend,
        )
        return y.view_as(x)


class VimBlock(nn.Module):
    """Forwards and backwards over a sequence: (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, states: int = 16, backend: str = "auto"):
        super().__init__()
        inner = 2 * width
        self.norm = nn.RMSNorm(width)
        self.project = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(2 * inner, 2 * inner, 4, groups=2 * inner, padding=3)
        self.ssm = SelectiveSSM(inner, 2, states, backend)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.project(self.norm(tokens)).mT.chunk(2, 1)
        both = torch.cat((x, x.flip(-1)), 1)
        both = F.silu(self.conv(both)[..., : x.shape[-1]])  # padded on both sides, cut on the right: causal
        there, back = self.ssm(both.unflatten(1, (2, -1))).unbind(1)
        y = (there + back.flip(-1)) * F.silu(z)
        return tokens + self.out(y.mT)


def cross_scan(x: Tensor) -> Tensor:
    """The four readings of a grid: (B, E, H, W) -> (B, 4, E, H W): by rows, by columns, and both from the end."""
    two = torch.stack((x.flatten(2), x.mT.flatten(2)), 1)
    return torch.cat((two, two.flip(-1)), 1)


def cross_merge(y: Tensor, height: int, width: int) -> Tensor:
    """The four readings laid over each other, each token where it came from: (B, 4, E, H W) -> (B, E, H, W)."""
    rows, columns = (y[:, :2] + y[:, 2:].flip(-1)).unbind(1)
    return rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).mT


class SS2DBlock(nn.Module):
    """The four-direction scan over a grid: (B, H, W, d) -> (B, H, W, d)."""

    def __init__(self, width: int, states: int = 16, backend: str = "auto"):
        super().__init__()
        inner = 2 * width
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, groups=inner, padding=1)
        self.ssm = SelectiveSSM(inner, 4, states, backend)
        self.norm_out = nn.LayerNorm(inner)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.project(self.norm(tokens)).chunk(2, -1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2)))
        y = cross_merge(self.ssm(cross_scan(x)), *x.shape[2:]).permute(0, 2, 3, 1)
        return tokens + self.out(self.norm_out(y) * F.silu(z))


class VisionMamba(nn.Module):
    """Film (B, 1, size, size) in [0, 1] -> `Features`: tokens v_S (B, grid^2, width), pooled v_G (B, width).

    Args:
        size: pixels, a multiple of 16.
        scan: "vim" (v_G is the class token) or "vmamba" (v_G is the mean).
        depth: blocks; by default 7 for vim and 6 for vmamba, about 2.2 M weights.
        backend: of `selective_scan`.

    Raises:
        RRGError: an unknown scan, a size that the patch does not divide, films of another size.
    """

    def __init__(
        self,
        size: int = 128,
        width: int = 192,
        depth: int | None = None,
        scan: str = "vim",
        states: int = 16,
        backend: str = "auto",
    ):
        super().__init__()
        if scan not in DEPTHS:
            raise RRGError(f"scan={scan!r}: expected one of {', '.join(DEPTHS)}")
        check_size(size)
        depth = DEPTHS[scan] if depth is None else depth
        self.size, self.grid, self.width, self.scan = size, size // PATCH, width, scan
        self.config = {"size": size, "width": width, "depth": depth, "scan": scan, "states": states}
        self.stem = Stem(size, embed_dim=width)
        if scan == "vim":
            self.place = nn.Parameter(0.02 * torch.randn(self.grid**2 + 1, width))
            self.cls = nn.Parameter(0.02 * torch.randn(1, 1, width))
        block = VimBlock if scan == "vim" else SS2DBlock
        self.blocks = nn.Sequential(*(block(width, states, backend) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, films: Tensor) -> Features:
        check_films(films, self.size)
        tokens = self.stem((films - 0.5) / 0.25)
        if self.scan == "vmamba":
            grid = tokens.unflatten(1, (self.grid, self.grid))
            tokens = self.norm(self.blocks(grid)).flatten(1, 2)
            return Features(tokens, tokens.mean(1))
        middle = self.grid**2 // 2
        cls = self.cls.expand(len(tokens), -1, -1)
        tokens = torch.cat((tokens[:, :middle], cls, tokens[:, middle:]), 1) + self.place
        tokens = self.norm(self.blocks(tokens))
        return Features(torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), 1), tokens[:, middle])
