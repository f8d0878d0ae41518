"""One training loop for every model of the course, on `accelerate`.

    history = fit(model, lambda model, batch: model.loss(batch), studies, collate=list, options=FitOptions(epochs=5))

The same call trains on a laptop, on a GPU and, under `accelerate launch` or `torchrun`, in several processes, which
share out every batch: the same options train the same model on any number of processes. Their losses are weighted by
their numbers of examples. That is exact, to rounding, for a loss that is a mean over examples and draws nothing at
random; a mean over tokens or a contrast within a batch is taken in each process's share, and differs a little.

The processor runs ahead of a GPU: losses stay there and are looked at every `READ_EVERY` steps, before a checkpoint
and at the end of an epoch.

Exact resume. Everything random in a step (the order of the examples, dropout, augmentation drawn from the global
torch, numpy or `random` generators) is a function of (seed, epoch, step, process) and not of what ran before, so a
run that is killed and started again with the same `folder` ends with the same bits as one that was never interrupted,
on the same machine and with the same number of threads. It holds for randomness drawn from the global generators; a
private `torch.Generator` kept by the caller is out of our sight. With `workers > 0` the examples themselves must not
be random.
"""

import hashlib
import json
import logging
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rrg_utils import processes
from rrg_utils.errors import RRGError
from rrg_utils.processes import is_main_process

log = logging.getLogger("rrg")

KEPT_CHECKPOINTS = 2  # the last one, and the one before it in case the last is damaged
READ_EVERY = 50  # steps of a GPU after which its losses are read
BUCKET_BATCHES = 32  # examples are sorted by length within this many batches, so the order stays random beyond them


@dataclass(frozen=True)
class FitOptions:
    """How to train. `batch_size` counts all processes together, so that what is trained does not depend on them.

    `warmup` is the share of all optimiser steps in which the rate rises linearly; it then falls to zero along a cosine.
    `patience` is the number of epochs without a better validation value after which training stops (None: never).
    `precision` is "fp32", "bf16" (autocast; weights stay float32) or "auto" (see `autocast_bf16`).
    `checkpoint_every` counts optimiser steps (None: none on the way); one checkpoint is written at the end of each
    epoch in any case.
    `workers` are extra processes that load examples.
    """

    epochs: int = 10
    batch_size: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    grad_clip: float | None = 1.0
    accumulate: int = 1
    patience: int | None = None
    seed: int = 0
    precision: str = "auto"
    checkpoint_every: int | None = 200
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "patience", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RRGError(f"training option {name} is {value}: give at least 1")
        if not 0 <= self.warmup < 1:
            raise RRGError(f"training option warmup is {self.warmup}: it is a share of all steps, from 0 up to 1")
        if not self.lr > 0:
            raise RRGError(f"training option lr is {self.lr}: give a positive learning rate")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise RRGError(f"training option precision is {self.precision!r}: choose auto, fp32 or bf16")


@dataclass
class History:
    """What happened: mean training loss and validation value per epoch, and the epoch whose weights were kept.

    `best` is None without validation; then the weights are those of the last epoch. `stopped` tells that patience ran
    out. `seconds` is time spent training in this and earlier interrupted runs.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int | None = None
    stopped: bool = False
    seconds: float = 0.0


def fit(
    module: nn.Module,
    loss: Callable[[nn.Module, object], Tensor],
    train: Sequence,
    *,
    collate: Callable[[list], object] | None = None,
    options: FitOptions | None = None,
    length: Callable[[object], int] | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    folder: Path | str | None = None,
    progress: bool | None = None,
    name: str = "training",
) -> History:
    """Train the parameters of `module` that require gradients; leaves it in eval mode with the best weights.

    `loss(module, batch)` gives a differentiable scalar, `collate` makes a batch of a list of examples (None: the list
    itself). `length(example)` turns on bucketing: batches of similar length, in random order. `validate(module)` runs
    after every epoch in eval mode and without gradients; **lower is better**, so give a loss or the negative of a
    score. `folder` receives checkpoints: a call with the same folder, options and data goes on where the last one
    stopped, and returns at once when that one had finished. `progress` shows a bar on stderr (None: only on a
    terminal). A submodule whose parameters are all frozen is kept in eval mode, so that a frozen encoder has no
    dropout and does not update its normalisation statistics.

    Raises RRGError for a loss that is not finite, for nothing to train, for a checkpoint of another run, and when every
    checkpoint in the folder is damaged.
    """
    options = options or FitOptions()
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise RRGError("nothing to train: no parameter of the model requires a gradient")
    if len(train) == 0:
        raise RRGError("nothing to train on: the list of training examples is empty")

    if what := processes.alone():
        raise RRGError(
            f"{name}: one process makes {what} while the others of the launch wait for it, so they cannot train: "
            "make it by artifact(..., together=True)"
        )
    accelerator = _accelerator()
    rank, world = accelerator.process_index, accelerator.num_processes
    bf16 = options.precision == "bf16" or (options.precision == "auto" and autocast_bf16(accelerator.device))
    lengths = None if length is None else [int(length(example)) for example in train]
    optimizer = torch.optim.AdamW(trainable.values(), lr=options.lr, weight_decay=options.weight_decay)
    step, optimizer = accelerator.prepare(_Step(module, loss, accelerator.device.type, bf16), optimizer)

    if options.batch_size < world and is_main_process():
        log.warning("%s: batches of %d keep no more than as many of %d processes busy", name, options.batch_size, world)
    batches = len(_plan(len(train), lengths, options, epoch=0))
    groups = -(-batches // options.accumulate)  # optimiser steps in one epoch
    total = groups * options.epochs
    run = {"options": asdict(options), "examples": len(train), "processes": world, "weights": _shapes(trainable)}

    state = _State()
    best: dict[str, Tensor] | None = None
    if folder is not None:
        folder = Path(folder)
        loaded = _load_checkpoint(folder, run, rank)
        if loaded is not None:
            state, weights, best, moments = loaded
            _set_weights(module, weights)
            optimizer.load_state_dict(moments)
    if state.epoch or state.group:
        log.info("%s goes on at epoch %d of %d", name, state.epoch + 1, options.epochs)

    if len({*processes.from_all((state.epoch, state.group))}) > 1:
        raise RRGError(f"{name}: the processes found different checkpoints: {folder} must lie on a disk that all share")
    unread: list[tuple[int, list[Tensor]]] = []  # steps, and their losses where they were computed

    def read() -> float:
        """Look at the losses since the last time: here the processor waits for a GPU. Returns the last."""
        found = iter(torch.stack([each for _, losses in unread for each in losses]).tolist() if unread else ())
        value = math.nan
        for number, losses in unread:
            value = 0.0
            for _ in losses:  # not sum(), whose rounding depends on the version of Python
                value += next(found)
            if not math.isfinite(value):
                raise RRGError(
                    f"{name}: the loss became {value} in epoch {state.epoch + 1}, step {number} of {groups}: "
                    f"lower lr (now {options.lr:g}) or look for values in the data that are not finite"
                )
            state.total += value * len(losses)
            state.count += len(losses)
        unread.clear()
        return value

    def check() -> None:
        """Refuse what is not finite, so that it is never kept."""
        read()
        if not torch.stack([weights.detach().isfinite().all() for weights in trainable.values()]).all():
            raise RRGError(
                f"{name}: a weight became NaN or infinite in epoch {state.epoch + 1}, by step {state.group}, "
                f"though no loss was: lower lr (now {options.lr:g}) or set grad_clip"
            )

    def save() -> None:
        totals = processes.from_all(state.total)
        if folder is not None and is_main_process():
            _save_checkpoint(folder, run, state, totals, _weights(module), best, optimizer.state_dict())
        accelerator.wait_for_everyone()

    show = sys.stderr.isatty() if progress is None else progress
    bar = tqdm(
        total=total,
        initial=state.epoch * groups + state.group,
        desc=name,
        unit="step",
        file=sys.stderr,
        disable=not (show and is_main_process()),
    )
    pinned = accelerator.device.type == "cuda"
    clock = time.perf_counter()
    with bar, _global_rng_kept():
        while state.epoch < options.epochs and not state.history.stopped:
            _train_mode(module)
            plan = _plan(len(train), lengths, options, state.epoch)
            shares = [_share(batch, rank, world, options.batch_size) for batch in plan]
            loader = DataLoader(
                train,
                batch_sampler=[indices for indices, _ in shares[state.group * options.accumulate :]],
                collate_fn=collate or list,
                num_workers=options.workers,
                pin_memory=pinned,
                generator=torch.Generator().manual_seed(options.seed),  # else it would draw from the global generator
            )
            stream = iter(loader)
            while state.group < groups:
                _seed_everything(options.seed, state.epoch, state.group, rank)
                done = state.epoch * groups + state.group
                for group in optimizer.param_groups:
                    group["lr"] = options.lr * _rate(done, total, options.warmup)
                own = shares[state.group * options.accumulate :][: options.accumulate]
                losses = []
                for _, weight in own:
                    batch = send_to_device(next(stream), accelerator.device, non_blocking=pinned)
                    with nullcontext() if len(losses) == len(own) - 1 else accelerator.no_sync(step):
                        result = step(batch) * weight / len(own)
                        accelerator.backward(result)
                    losses.append(result.detach())
                unread.append((state.group + 1, losses))
                if len(unread) >= _steps_unread(accelerator.device):
                    bar.set_postfix(loss=f"{read():.3f}", refresh=False)
                if options.grad_clip is not None:
                    accelerator.clip_grad_norm_(trainable.values(), options.grad_clip)
                optimizer.step()
                optimizer.zero_grad()
                state.group += 1
                bar.update()
                if options.checkpoint_every and (done + 1) % options.checkpoint_every == 0 and state.group < groups:
                    check()
                    clock = _tick(state, clock)
                    save()

            check()
            sums = accelerator.reduce(torch.tensor([state.total, state.count], device=accelerator.device))
            state.history.train.append((sums[0] / sums[1]).item())
            if validate is not None:
                value = _validate(module, validate)
                value = processes.from_main(value)  # all processes must agree on when to stop
                if not math.isfinite(value):
                    raise RRGError(f"{name}: the validation value became {value} after epoch {state.epoch + 1}")
                history = state.history
                if history.best is None or value < history.validation[history.best]:
                    history.best = state.epoch
                    best = {n: t.clone() for n, t in _weights(module).items()}
                history.validation.append(value)
                history.stopped = options.patience is not None and state.epoch - history.best >= options.patience
            state.epoch, state.group, state.total, state.count = state.epoch + 1, 0, 0.0, 0
            clock = _tick(state, clock)
            save()

    if best is not None:
        _set_weights(module, best)
    module.eval()
    return state.history


def autocast_bf16(device: torch.device) -> bool:
    """Whether bf16 autocast is worth having on this device: CUDA with bf16, or a CPU with AMX tiles.

    AVX512-BF16 alone does not count: on such a CPU without AMX (2 cores, torch 2.14), forward + backward under
    autocast took 1.6 to 2.3 times as long as float32 for four-layer Llamas of width 256 and 576, and 1.1 to 2.0 times
    for linear layers.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _accelerator() -> Accelerator:
    """Precision is ours (see `_Step`), because accelerate fixes one precision per Python process."""
    on_cpu = processes.state().device.type == "cpu"
    # Which parameters a loss needs may depend on the batch: a batch without clues, a film on which nothing is found.
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[parallel])


class _Step(nn.Module):
    """The loss as a module: distributed wrappers hook `forward`, so this lets `loss` call any method of the model."""

    def __init__(self, module: nn.Module, loss: Callable, device_type: str, bf16: bool) -> None:
        super().__init__()
        self.module, self.loss, self.device_type, self.bf16 = module, loss, device_type, bf16

    def forward(self, batch: object) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16, enabled=self.bf16):
            return self.loss(self.module, batch).float()


@dataclass
class _State:
    """Position of a run: next epoch, next optimiser step in it, sum and number of its losses so far, history."""

    epoch: int = 0
    group: int = 0
    total: float = 0.0
    count: int = 0
    history: History = field(default_factory=History)


def _tick(state: _State, since: float) -> float:
    now = time.perf_counter()
    state.history.seconds += now - since
    return now


def _plan(n: int, lengths: list[int] | None, options: FitOptions, epoch: int) -> list[list[int]]:
    """The batches of an epoch as lists of example numbers: in random order, or with lengths, of similar length."""
    rng = np.random.default_rng([options.seed, epoch])
    order, size = rng.permutation(n), options.batch_size
    if lengths is None:
        return [order[i : i + size].tolist() for i in range(0, n, size)]
    batches = []
    for i in range(0, n, size * BUCKET_BATCHES):
        bucket = sorted(order[i : i + size * BUCKET_BATCHES].tolist(), key=lengths.__getitem__)
        batches += [bucket[j : j + size] for j in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _steps_unread(device: torch.device) -> int:
    """After how many steps losses are read; the processor need not wait for its own."""
    return 1 if device.type == "cpu" else READ_EVERY


def _share(batch: list[int], rank: int, world: int, batch_size: int) -> tuple[list[int], float]:
    """The part of a batch that a process computes, and the weight of its loss in the mean over processes.

    Where `batch_size` is two a process or more, no part is a single example, with which a contrast or a batch norm can
    do nothing: of a last batch too small for that, several processes compute the same part.
    """
    least = 2 if batch_size >= 2 * world else 1
    parts = min(world, max(1, len(batch) // least))
    part = batch[rank % parts :: parts]
    same = len(range(rank % parts, world, parts))  # processes that compute this part
    return part, len(part) / len(batch) * world / same


def _rate(step: int, total: int, warmup: float) -> float:
    """The learning rate of a step as a share of the highest: linear warm-up, then a cosine down to zero."""
    rise = round(total * warmup)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


def _seed_everything(*key: int) -> None:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - augmentation libraries still draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def _global_rng_kept() -> Iterator[None]:
    """Training seeds the global generators; the caller gets them back as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _train_mode(module: nn.Module) -> None:
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


@torch.no_grad()
def _validate(module: nn.Module, validate: Callable[[nn.Module], float]) -> float:
    module.eval()
    return float(validate(module))


# --- Weights and checkpoints ---


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """What training can change: trainable parameters and buffers. Frozen weights are the caller's to rebuild."""
    frozen = {n for n, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    seen: set[int] = set()
    weights = {}
    for n, t in module.state_dict().items():
        if n not in frozen and t.data_ptr() not in seen:  # tied weights once
            seen.add(t.data_ptr())
            weights[n] = t.detach()
    return weights


def _set_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    module.load_state_dict(weights, strict=False)


def _shapes(parameters: dict[str, Tensor]) -> str:
    text = json.dumps({n: list(p.shape) for n, p in parameters.items()})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _save_checkpoint(
    folder: Path,
    run: dict,
    state: _State,
    totals: list[float],
    weights: dict[str, Tensor],
    best: dict[str, Tensor] | None,
    moments: dict,
) -> None:
    """Write `folder/step-EEEE-SSSSSS` through a temporary folder and a rename, then drop old ones.

    Processes differ in nothing but their sum of losses: `totals` has one for each.
    """
    target = folder / f"step-{state.epoch:04d}-{state.group:06d}"
    temporary = folder / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({n: t.contiguous() for n, t in weights.items()}, temporary / "model.safetensors")
        if best is not None:
            save_file({n: t.contiguous() for n, t in best.items()}, temporary / "best.safetensors")
        torch.save(moments, temporary / "optimizer.pt")
        files = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "state.json").write_text(
            json.dumps({"run": run, "state": asdict(state), "totals": totals, "files": files}, indent=1)
        )
        if target.exists():  # a damaged one that was passed over
            shutil.rmtree(target)
        temporary.rename(target)
    except (OSError, SafetensorError, RuntimeError) as error:  # a full disk is not an OSError to all who write
        shutil.rmtree(temporary, ignore_errors=True)
        why = getattr(error, "strerror", None) or error
        raise RRGError(f"cannot write a checkpoint to {target}: {why}: free space or choose another folder") from error
    for old in _checkpoints(folder)[KEPT_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)


def _load_checkpoint(folder: Path, run: dict, rank: int) -> tuple[_State, dict, dict | None, dict] | None:
    """The newest readable checkpoint of this very run; None if there is none at all."""
    found = _checkpoints(folder)
    for path in found:
        try:
            saved = json.loads((path / "state.json").read_text())
            for file, digest in saved["files"].items():
                if _sha256(path / file) != digest:
                    raise ValueError(f"{file} is damaged")
            weights = load_file(path / "model.safetensors")
            best = load_file(path / "best.safetensors") if "best.safetensors" in saved["files"] else None
            moments = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
            state = _State(**{**saved["state"], "history": History(**saved["state"]["history"])})
            other, totals = saved["run"], saved["totals"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be read (%s): going back to the one before", path, error)
            continue
        _check_same_run(path, other, run)
        state.total = totals[rank]
        return state, weights, best, moments
    if found:
        raise RRGError(f"no checkpoint in {folder} can be read: delete that folder to train from the start")
    return None


def _check_same_run(path: Path, saved: dict, run: dict) -> None:
    flat = [{**r["options"], **{k: v for k, v in r.items() if k != "options"}} for r in (saved, run)]
    for key in flat[1]:
        if flat[0].get(key) != flat[1][key]:
            raise RRGError(
                f"checkpoint {path} belongs to another run ({key} was {flat[0].get(key)}, now {flat[1][key]}): "
                "choose another folder, or delete this one to train from the start"
            )


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first. Names sort by epoch and step."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
