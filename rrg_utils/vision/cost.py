"""What an encoder costs: operations counted, seconds and memory measured."""

import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from rrg_utils.vision.mamba import SelectiveSSM


def training(encoder: nn.Module, films: Tensor) -> None:
    """One forward and one backward pass; the gradients are thrown away."""
    encoder(films).tokens.square().mean().backward()
    encoder.zero_grad(set_to_none=True)


def inference(encoder: nn.Module, films: Tensor) -> None:
    """One forward pass that keeps nothing for a backward one."""
    with torch.inference_mode():
        encoder(films)


RUNS: dict[str, Callable[[nn.Module, Tensor], None]] = {"inference": inference, "training": training}


@lru_cache
def flops(make: Callable[[int], nn.Module], size: int, run: str = "inference") -> tuple[int, int]:
    """Floating-point operations for one film of `size` px: (all, those of them in selective scans).

    torch counts matrix products and convolutions, two operations per multiply-add, and leaves out what is done number
    by number (norms, activations). Two things it gets wrong: it cannot look into a scan, which is added by formula
    (`scan_flops`), and it counts grouped convolutions backwards as if they had one group (`_conv_backward`).
    Nothing is computed (torch's device "meta" has shapes and no numbers), so the count is exact and free at any size.
    """
    with torch.device("meta"):
        encoder, films = make(size), torch.empty(1, 1, size, size)
    scans = []

    def note(module: SelectiveSSM, arguments: tuple[Tensor], _) -> None:
        _, sequences, channels, length = arguments[0].shape
        scans.append(scan_flops(sequences * channels, length, module.states, run == "training"))

    for module in encoder.modules():
        if isinstance(module, SelectiveSSM):
            module.register_forward_hook(note)
    mapping = {torch.ops.aten.convolution_backward: _conv_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        RUNS[run](encoder, films)
    return counter.get_total_flops() + sum(scans), sum(scans)


def _conv_backward(grad, x, weight, _bias, _stride, _pad, _dilation, transposed, _out_pad, _groups, mask, **_) -> int:
    """As many operations as forwards for the gradient of the input, and again for that of the weights."""
    return conv_flop_count(x, weight, grad, transposed) * (mask[0] + mask[1])


def scan_flops(channels: int, length: int, states: int, training: bool = False) -> int:
    """Operations of one selective scan, exp counted as one.

    Forward, for every step, channel and state: delta A, exp, times h, plus delta u times B (two), times C and summed
    (two); once per channel delta u. Training adds the backward pass of `scan_cpu`: the states again (5 operations) and
    the gradients of state, A, B, C and step (14); once per channel delta u, du and ddelta (5).
    """
    forward = 7 * states + 1
    return channels * length * (forward + 19 * states + 5 if training else forward)


def seconds(call: Callable[[], object], rounds: int = 3) -> float:
    """The fastest of some calls, after one that warms up. What else the machine does can only make a call slower."""
    best = float("inf")
    for number in range(rounds + 1):
        _wait()
        start = time.perf_counter()
        call()
        _wait()
        if number:
            best = min(best, time.perf_counter() - start)
    return best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
