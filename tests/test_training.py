"""The training loop: what it learns, that a killed run resumes to the same bits, and what it refuses."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import launch
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from rrg_utils import training
from rrg_utils.errors import RRGError
from rrg_utils.training import FitOptions, _plan, _rate, _share, autocast_bf16, fit

DIGITS = load_digits()
EXAMPLES = [
    (torch.tensor(x, dtype=torch.float32) / 16, int(y)) for x, y in zip(DIGITS.data, DIGITS.target, strict=True)
]
TRAIN, HELD_OUT = EXAMPLES[:400], EXAMPLES[400:600]


def model() -> nn.Module:
    """A frozen first layer, normalisation statistics (buffers) and dropout: everything a resume could lose."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    net[0].requires_grad_(False)
    return net


def collate(examples):
    """Draws augmentation from all three global generators, as image code does."""
    x = torch.stack([x for x, _ in examples])
    x = x + 0.1 * torch.randn_like(x) + 0.01 * random.random() + 0.01 * np.random.rand()  # noqa: NPY002
    return x, torch.tensor([y for _, y in examples])


def loss(net, batch):
    return F.cross_entropy(net(batch[0]), batch[1])


def held_out(net) -> float:
    x, y = torch.stack([x for x, _ in HELD_OUT]), torch.tensor([y for _, y in HELD_OUT])
    return F.cross_entropy(net(x), y).item()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


OPTIONS = FitOptions(epochs=4, batch_size=32, lr=0.01, accumulate=2, checkpoint_every=3)


def test_learns_and_keeps_frozen_weights():
    net = model()
    before, frozen = held_out(net.eval()), net[0].weight.clone()
    history = fit(net, loss, TRAIN, collate=collate, options=replace(OPTIONS, epochs=12), validate=held_out)
    assert held_out(net) < 0.5 * before
    assert torch.equal(net[0].weight, frozen)
    assert not net.training
    assert len(history.train) == len(history.validation) == 12
    assert history.validation[history.best] == min(history.validation) == pytest.approx(held_out(net))


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [1, 5, 7, 13, 20])
def test_resume_is_exact(tmp_path, kill_at):
    """7 optimiser steps an epoch (13 batches, accumulated by 2); killed within and between epochs, twice."""
    whole = model()
    expected = fit(whole, loss, TRAIN, collate=collate, options=OPTIONS, validate=held_out)

    for again in range(2):
        batches = 0

        def dying_loss(net, batch):
            nonlocal batches
            batches += 1
            if batches > 2 * kill_at:
                raise Killed
            return loss(net, batch)

        torch.manual_seed(again)  # the state of the global generators at the start must not matter
        try:
            fit(
                model(), dying_loss, TRAIN, collate=collate, options=OPTIONS, validate=held_out, folder=tmp_path / "run"
            )
        except Killed:
            continue
    net = model()
    history = fit(net, loss, TRAIN, collate=collate, options=OPTIONS, validate=held_out, folder=tmp_path / "run")
    assert same(net, whole)
    assert (history.train, history.validation, history.best) == (expected.train, expected.validation, expected.best)


def test_resume_keeps_patience_and_best_weights(tmp_path):
    """The second epoch is best by a prescribed course; killed in the fourth, training must stop after the fifth."""
    course = [3.0, 1.0, 2.0, 2.5, 2.2, 0.1, 0.1]
    options = FitOptions(epochs=7, batch_size=100, lr=0.01, patience=3)
    snapshots = {}

    def validate(net):
        epoch = len(snapshots)
        snapshots[epoch] = {n: t.clone() for n, t in net.state_dict().items()}
        if epoch == 3 and not killed:
            killed.append(True)
            del snapshots[epoch]
            raise Killed
        return course[epoch]

    killed: list[bool] = []
    with pytest.raises(Killed):
        fit(model(), loss, TRAIN, collate=collate, options=options, validate=validate, folder=tmp_path)
    net = model()
    history = fit(net, loss, TRAIN, collate=collate, options=options, validate=validate, folder=tmp_path)
    assert history.stopped
    assert history.best == 1
    assert history.validation == course[:5]
    assert all(torch.equal(t, snapshots[1][n]) for n, t in net.state_dict().items())
    # A finished run gives its result at once.
    again = model()
    assert fit(again, loss, TRAIN, collate=collate, options=options, validate=validate, folder=tmp_path) == history
    assert same(again, net)


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json", "best.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damaged_checkpoint_falls_back(tmp_path, caplog, file, how):
    options = FitOptions(epochs=3, batch_size=100, lr=0.01)
    whole = model()
    fit(whole, loss, TRAIN, collate=collate, options=options, validate=held_out, folder=tmp_path)
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) == 2
    broken = checkpoints[-1] / file
    if how == "missing":
        broken.unlink()
    elif how == "truncated" or file == "state.json":
        broken.write_bytes(broken.read_bytes()[:100])
    else:
        damage(broken)
    net = model()
    fit(net, loss, TRAIN, collate=collate, options=options, validate=held_out, folder=tmp_path)
    assert same(net, whole)
    assert "going back to the one before" in caplog.text
    for checkpoint in tmp_path.iterdir():
        damage(checkpoint / "model.safetensors")
    with pytest.raises(RRGError, match="delete that folder"):
        fit(model(), loss, TRAIN, collate=collate, options=options, validate=held_out, folder=tmp_path)


def test_interrupted_write_leaves_no_checkpoint(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RRGError, match="No space left on device: free space"):
        fit(model(), loss, TRAIN, collate=collate, options=OPTIONS, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_refuses_the_checkpoint_of_another_run(tmp_path):
    fit(model(), loss, TRAIN, collate=collate, options=FitOptions(epochs=1), folder=tmp_path)
    for options, train, word in (
        (FitOptions(epochs=1, lr=0.5), TRAIN, "lr was 0.001, now 0.5"),
        (FitOptions(epochs=1), TRAIN[:100], "examples was 400, now 100"),
    ):
        with pytest.raises(RRGError, match=word):
            fit(model(), loss, train, collate=collate, options=options, folder=tmp_path)


def test_accumulation_equals_a_larger_batch():
    """With batches of one size and no noise, two halves give the gradient of the whole."""
    nets = []
    for batch_size, accumulate in ((40, 1), (20, 2)):
        torch.manual_seed(0)
        net = nn.Linear(64, 10).double()
        options = FitOptions(epochs=2, batch_size=batch_size, accumulate=accumulate, lr=0.01)
        fit(
            net,
            loss,
            [(x.double(), y) for x, y in TRAIN],
            collate=lambda b: (torch.stack([x for x, _ in b]), torch.tensor([y for _, y in b])),
            options=options,
        )
        nets.append(net)
    assert torch.allclose(nets[0].weight, nets[1].weight, atol=1e-12)


def test_caller_keeps_its_random_state():
    net = model()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    fit(net, loss, TRAIN[:64], collate=collate, options=FitOptions(epochs=1))
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_frozen_normalisation_is_left_alone():
    net = nn.Sequential(nn.Sequential(nn.BatchNorm1d(64)).requires_grad_(False), nn.Linear(64, 10))
    fit(net, loss, TRAIN[:64], collate=collate, options=FitOptions(epochs=1))
    assert net[0][0].num_batches_tracked == 0


@pytest.mark.parametrize("n", [1, 7, 64, 1000])
def test_plan_covers_every_example_once(n):
    lengths = np.random.default_rng(0).integers(1, 300, n).tolist()
    options = FitOptions(batch_size=8)
    for given in (None, lengths):
        plan = _plan(n, given, options, epoch=3)
        assert sorted(i for batch in plan for i in batch) == list(range(n))
        assert plan == _plan(n, given, options, epoch=3)
        assert n <= 8 or plan != _plan(n, given, options, epoch=4)


def test_buckets_save_padding():
    lengths = np.random.default_rng(0).integers(1, 300, 1000).tolist()

    def padded(given):
        return sum(max(lengths[i] for i in b) * len(b) for b in _plan(1000, given, FitOptions(batch_size=16), 0))

    assert padded(lengths) < 1.1 * sum(lengths) < padded(None)


def test_learning_rate_course():
    rates = [_rate(i, 100, 0.1) for i in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_bf16_only_where_it_helps():
    # Measured: without AMX it is slower, so the rule must follow the processor's flags.
    assert autocast_bf16(torch.device("cpu")) == bool(torch.cpu.get_capabilities().get("amx_bf16"))
    seen = []

    def spy(net, batch):
        seen.append(net(batch[0]).dtype)
        return loss(net, batch)

    for precision in ("bf16", "fp32"):
        fit(model(), spy, TRAIN[:32], collate=collate, options=FitOptions(epochs=1, batch_size=32, precision=precision))
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"precision": "fp8"}, "choose auto, fp32 or bf16"),
    ],
)
def test_bad_options(change, words):
    with pytest.raises(RRGError, match=words):
        FitOptions(**change)


def test_nothing_to_train():
    with pytest.raises(RRGError, match="no parameter"):
        fit(model().requires_grad_(False), loss, TRAIN, collate=collate)
    with pytest.raises(RRGError, match="list of training examples is empty"):
        fit(model(), loss, [], collate=collate)


def test_loss_that_is_not_finite():
    with pytest.raises(RRGError, match=r"loss became nan in epoch 1, step 1 of 25.*lower lr"):
        fit(model(), lambda net, batch: loss(net, batch) * float("nan"), TRAIN, collate=collate)


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    """A gradient can be infinite where the loss is not: the square root at zero."""
    net = nn.Linear(64, 1, bias=False)
    nn.init.zeros_(net.weight)

    def rooted(net, batch):
        return net(batch[0]).abs().sqrt().mean()

    options = FitOptions(epochs=1, batch_size=100, checkpoint_every=1, grad_clip=None, precision="fp32")
    with pytest.raises(RRGError, match=r"a weight became NaN or infinite in epoch 1, by step 1.*lower lr"):
        fit(net, rooted, TRAIN, collate=collate, options=options, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_losses_are_read_only_now_and_then_from_a_device(tmp_path, monkeypatch):
    """As on a GPU, simulated on the processor: the same bits, and the error names the very step."""
    whole, seldom = model(), model()
    expected = fit(whole, loss, TRAIN, collate=collate, options=OPTIONS, validate=held_out)
    monkeypatch.setattr(training, "_steps_unread", lambda device: 5)
    history = fit(seldom, loss, TRAIN, collate=collate, options=OPTIONS, validate=held_out, folder=tmp_path)
    assert same(seldom, whole)
    assert (history.train, history.validation) == (expected.train, expected.validation)

    batches = 0

    def failing(net, batch):
        nonlocal batches
        batches += 1
        return loss(net, batch) * (float("nan") if batches == 7 else 1)

    with pytest.raises(RRGError, match=r"loss became nan in epoch 1, step 4 of 7"):
        fit(
            model(),
            failing,
            TRAIN,
            collate=collate,
            options=replace(OPTIONS, checkpoint_every=6),
            folder=tmp_path / "x",
        )
    assert batches == 10, "it was noticed at the fifth step"
    assert not (tmp_path / "x").exists()


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, 7, 16, 24])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_out_every_batch(world, batch_size):
    """Weighted by what each computes, the processes' means are the mean of the batch; every example counts alike."""
    for size in range(1, batch_size + 1):
        batch = list(range(100, 100 + size))
        counted = Counter()
        for part, weight in (_share(batch, rank, world, batch_size) for rank in range(world)):
            assert 1 <= len(part) <= max(3, -(-batch_size // world))
            assert len(part) > 1 or size == 1 or batch_size < 2 * world
            counted.update({i: weight / len(part) / world for i in part})
        assert dict(counted) == pytest.approx(dict.fromkeys(batch, 1 / size))
    assert _share(batch, 0, 1, batch_size) == (batch, 1.0)


NUMBERS = [torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in range(37)]
TOGETHER = FitOptions(epochs=3, batch_size=8, lr=0.05, accumulate=2, checkpoint_every=1)


def learn(folder=None, stop_at: int | None = None) -> dict:
    """A small regression: the loss curve to the last bit and the weights. Five batches an epoch, the last of five."""
    steps = 0

    def squares(net, x):
        nonlocal steps
        steps += 1
        if steps == stop_at:
            folder.with_name(f"stopped-{os.environ['RANK']}").touch()
            time.sleep(600)  # until killed
        return (net(x) - x.square().sum(1, keepdim=True)).square().mean()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    history = fit(
        net,
        squares,
        NUMBERS,
        collate=torch.stack,
        options=TOGETHER,
        length=lambda x: int(100 * x.abs().sum()),
        validate=lambda net: net(torch.stack(NUMBERS)).mean().abs().item(),
        folder=folder,
    )
    weights = torch.cat([p.detach().flatten() for p in net.parameters()]).tolist()
    return {"train": history.train, "validation": history.validation, "weights": weights}


def test_two_processes_train_as_one_and_go_on_after_being_killed(tmp_path):
    """Two processes against one here; then both killed within the second epoch, and launched again."""
    one = learn()
    killed = launch.start(2, __file__, tmp_path, 8)
    deadline = time.monotonic() + 250
    while len([*tmp_path.glob("stopped-*")]) < 2 and all(worker.poll() is None for worker in killed):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for worker in killed:
        worker.kill()
    said = launch.outputs(killed)
    assert [worker.returncode for worker in killed] == [-signal.SIGKILL] * 2, said
    left = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert left[-1] == "step-0001-000001"

    again = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__, tmp_path, "0"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["resumed"] == first["whole"], "a killed run ends as one that was never interrupted, to the last bit"
    for what, values in one.items():
        assert first["whole"][what] == pytest.approx(values, rel=1e-4, abs=1e-6), what
    state = json.loads((sorted((tmp_path / "run").iterdir())[-1] / "state.json").read_text())
    assert state["run"]["processes"] == 2


if __name__ == "__main__":
    to, stop_at = Path(sys.argv[1]), int(sys.argv[2])
    found = {"resumed": learn(to / "run", stop_at or None), "whole": learn()}
    (to / f"{os.environ['RANK']}.json").write_text(json.dumps(found))  # one file each: their prints may interleave
