"""The selective scan of Mamba (Gu and Dao 2023, algorithm 2), with interchangeable backends.

Every channel d keeps a state h of N numbers, and every step t of the sequence says by itself how long to remember
(delta), what to write (B) and what to read (C):

    h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]        y[t] = C[t] . h[t]

The backends compute just this. `loop` is the definition; `chunked` is plain PyTorch that keeps few states; `cpu` is the
compiled kernel of `scan_cpu`; `cuda` is mamba-ssm's. They agree in values and gradients.
"""

import logging
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from rrg_utils.errors import RRGError

log = logging.getLogger("rrg")

CHUNK = 32
BACKENDS = ("auto", "loop", "chunked", "cpu", "cuda")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y = (scan(u) + D u) silu(z), as mamba-ssm's `selective_scan_fn`; differentiable in every tensor.

    Args:
        u, delta: input and step size, (B, D, L). With `delta_softplus` the step is softplus(delta + delta_bias).
        A: (D, N), real, negative for a state that fades.
        B, C: (B, N, L), or (B, G, N, L) with channels in G equal groups.
        D, delta_bias: (D,).
        z: gate, (B, D, L).
        return_last_state: give (y, h[L] of shape (B, D, N)) instead of y. mamba-ssm gives no gradient through h[L].
        backend: "loop", "chunked", "cpu", "cuda", or "auto": mamba-ssm on a GPU that has it, the kernel on a CPU.

    Returns:
        y (B, D, L) of u's dtype. Computed in float32, or in float64 if any input is.

    Raises:
        RRGError: an unknown or unavailable backend; a shape that does not fit; a dtype that is not real and floating;
            length 0; NaN in an input (looked for on the CPU only: on a GPU it would stop the queue).
    """
    B, C = (x[:, None] if isinstance(x, Tensor) and x.ndim == 3 else x for x in (B, C))
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _check({name: x for name, x in tensors.items() if x is not None or name in ("u", "delta", "A", "B", "C")})
    dtype = (
        torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors.values()) else torch.float32
    )
    backend = _choose(backend, u.device, dtype)
    given = u.dtype
    u, delta, A, B, C, D, z, delta_bias = (x if x is None else x.to(dtype) for x in tensors.values())

    if backend == "cuda":
        y, last = _mamba_ssm()(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state=True)
    else:
        if delta_bias is not None:
            delta = delta + delta_bias[:, None]
        if delta_softplus:
            delta = F.softplus(delta)
        y, last = _SCANS[backend](u, delta, A, B, C)
        if D is not None:
            y = torch.addcmul(y, u, D[:, None])
        if z is not None:
            y = y * F.silu(z)
    return (y.to(given), last) if return_last_state else y.to(given)


def _loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """The definition.

    `unbind` before the loop, not x[..., t] in it: the backward of each such index writes a whole tensor of zeros, which
    makes the cost quadratic in the length.
    """
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (B, C))
    h, y = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for u_t, delta_t, B_t, C_t in zip(*(x.unbind(-1) for x in (u, delta, B, C)), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t
        y.append((h * C_t).sum(-1))
    return torch.stack(y, -1), h


def _chunked(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Chunk after chunk, all steps of a chunk at once.

    Only the states between chunks are kept; the backward pass computes each chunk again.
    """
    h, y = u.new_zeros(*u.shape[:2], A.shape[1]), []
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, A, B, C))
    size = u.shape[-1] if u.is_meta else CHUNK  # on "meta" there are no numbers, so no memory to bound
    for u_c, delta_c, B_c, C_c in zip(*(x.split(size, -1) for x in (u, delta, B, C)), strict=True):
        part = (h, u_c, delta_c, A, B_c, C_c)
        y_c, h = checkpoint(_chunk, *part, use_reentrant=False, preserve_rng_state=False) if keep else _chunk(*part)
        y.append(y_c)
    return torch.cat(y, -1), h


def _chunk(h: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk of c steps in log2(c) rounds (the scan of Hillis and Steele 1986).

    Steps compose: (a, b) then (a', b') is (a' a, a' b + b'). Once each step is joined with what lies 1, 2, 4, ...
    before it, b holds the states. Decays are only multiplied, never divided, so nothing overflows, as it does in
    versions that subtract cumulative sums of exponents.
    """
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (B, C))
    a = torch.exp(delta[:, :, None] * A[:, :, None])  # (B, D, N, c)
    b = (delta * u)[:, :, None] * B
    b = torch.cat((b[..., :1] + a[..., :1] * h[..., None], b[..., 1:]), -1)
    step = 1
    while step < u.shape[-1]:
        b = torch.cat((b[..., :step], b[..., step:] + a[..., step:] * b[..., :-step]), -1)
        a = torch.cat((a[..., :step], a[..., step:] * a[..., :-step]), -1)
        step *= 2
    return (b * C).sum(2), b[..., -1].clone()  # a view would keep all of b alive


def _cpu(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    return _fused().apply(u, delta, A, B, C)


_SCANS = {"loop": _loop, "chunked": _chunked, "cpu": _cpu}


@cache
def _fused() -> type[torch.autograd.Function]:
    """The compiled kernel. numba needs a second to import, so not before it is used."""
    from rrg_utils.vision.scan_cpu import FusedScan

    return FusedScan


@cache
def _mamba_ssm():
    """mamba-ssm's function, or None: without the CUDA that it was built for it fails to import in several ways."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError, RuntimeError):
        return None
    return selective_scan_fn


@cache
def _fused_works(dtype: torch.dtype) -> bool:
    """Whether the kernel can be compiled here: tried once, on one step."""
    try:
        one = torch.ones(1, 1, 1, dtype=dtype)
        _fused().apply(one, one, one[0], one[None], one[None])
    except Exception as error:
        log.warning(
            "the compiled scan cannot be built here (%s: %s): the slower backend 'chunked' is used",
            type(error).__name__,
            str(error).split("\n")[0],
        )
        return False
    return True


def _choose(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    if backend not in BACKENDS:
        raise RRGError(f"backend={backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend == "auto":
        if device.type == "cpu":
            return "cpu" if _fused_works(dtype) else "chunked"
        return "cuda" if device.type == "cuda" and dtype == torch.float32 and _mamba_ssm() else "chunked"
    if backend == "cpu" and device.type != "cpu":
        raise RRGError(f"backend='cpu' got tensors on {device}: move them, or use backend='auto'")
    if backend == "cuda":
        if device.type != "cuda":
            raise RRGError(f"backend='cuda' got tensors on {device}: move them to a GPU, or use backend='auto'")
        if _mamba_ssm() is None:
            raise RRGError("backend='cuda' needs mamba-ssm: pip install -e '.[gpu]' on a machine with CUDA")
        if dtype != torch.float32:
            raise RRGError("backend='cuda' computes in float32: got float64, use backend='chunked'")
    return backend


def _check(tensors: dict[str, Tensor]) -> None:
    """B and C come with their group axis."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise RRGError(f"{name} is {type(x).__name__}: expected a tensor")
        if not x.dtype.is_floating_point:
            raise RRGError(f"{name} has dtype {str(x.dtype)[6:]}: expected a real floating type such as float32")
    u, A, B = tensors["u"], tensors["A"], tensors["B"]
    if u.ndim != 3:
        raise RRGError(f"u has shape {tuple(u.shape)}: expected (B, D, L)")
    batch, channels, length = u.shape
    if 0 in u.shape:
        raise RRGError(f"u has shape {tuple(u.shape)}: expected (B, D, L) with at least one of each")
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise RRGError(
            f"A has shape {tuple(A.shape)}: expected (D, N) = ({channels}, N) for u of shape {tuple(u.shape)}"
        )
    states = A.shape[1]
    for name in ("B", "C"):
        shape = tuple(tensors[name].shape)
        groups = shape[1] if len(shape) == 4 else 0
        if shape != (batch, groups, states, length) or groups == 0 or channels % groups:
            raise RRGError(
                f"{name} has shape {shape}: expected (B, N, L) = ({batch}, {states}, {length}), or (B, G, N, L) with G "
                f"that divides D = {channels}"
            )
    if tensors["C"].shape[1] != B.shape[1]:
        raise RRGError(f"B has {B.shape[1]} groups and C {tensors['C'].shape[1]}: expected the same number")
    expected = {"delta": (batch, channels, length), "z": (batch, channels, length)}
    expected |= {"D": (channels,), "delta_bias": (channels,)}
    letters = {3: "(B, D, L)", 1: "(D,)"}
    for name, shape in expected.items():
        if name in tensors and tensors[name].shape != shape:
            raise RRGError(f"{name} has shape {tuple(tensors[name].shape)}: expected {letters[len(shape)]} = {shape}")
    devices = {name: str(x.device) for name, x in tensors.items()}
    if len(set(devices.values())) > 1:
        raise RRGError(f"tensors on different devices: {devices}; expected one")
    if u.device.type == "cpu":
        for name, x in tensors.items():
            # A sum reads the tensor once and copies nothing. Infinities can make it NaN too, so then look closer.
            if x.detach().sum().isnan() and x.isnan().any():
                raise RRGError(f"{name} of shape {tuple(x.shape)} holds NaN")
