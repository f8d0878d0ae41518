"""The processes of a launch: `accelerate launch` and `torchrun` start one program many times, on one machine or more.

Without a launch there is one process, which is the main one, and nothing here imports torch. Also: the cores that a
process may use.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

import joblib

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_alone: ContextVar[str | None] = ContextVar("alone", default=None)


def cores() -> int:
    """Processor cores that this process may use: a container (by its quota) or a scheduler (by affinity) often gives
    fewer than the machine has."""
    return joblib.cpu_count()


def count() -> int:
    """How many processes the launch has, over all machines; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_main_process() -> bool:
    """Whether this process is the one of the launch that writes files and prints; True without a launch."""
    return int(os.environ.get("RANK") or 0) == 0


def state() -> "PartialState":
    """This process among the others: accelerate's `PartialState`. The first call meets them all."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Where there is no GPU, each process would otherwise think itself alone.
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def wait_for_everyone() -> None:
    """Go on when all processes of the launch are here."""
    if count() > 1:
        state().wait_for_everyone()


def leave() -> None:
    """Take leave of the others, at the end of a command."""
    if count() > 1:
        state().destroy_process_group()


@contextmanager
def one_makes(what: str) -> Iterator[None]:
    """Within, this process works while the others of its launch wait: it must not try to meet them."""
    token = _alone.set(what if count() > 1 else None)
    try:
        yield
    finally:
        _alone.reset(token)


def alone() -> str | None:
    """What this process of a launch makes while the others wait; None otherwise."""
    return _alone.get()


def from_main(value: T) -> T:
    """The value that the main process gives, in every process (pickled)."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    state()
    return broadcast_object_list([value])[0]


def from_all(value: T) -> list[T]:
    """The values that all processes give, in the order of the processes (pickled)."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    state()
    return gather_object([value])
