"""Where computing happens: the accelerator of this process if there is one, otherwise the processor."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rrg_utils import processes


def default_device() -> torch.device:
    """The device that training uses too; under `accelerate launch` or `torchrun` each process has its own."""
    return processes.state().device


def stacked(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Arrays of one shape as a float32 tensor (N, ...) on a device.

    To a GPU they go as they are, from pinned memory, so that the processor need not wait for the copy.
    """
    tensor = torch.from_numpy(np.stack(arrays))
    if device.type == "cuda":
        tensor = tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device).float()
