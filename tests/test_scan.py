"""Every backend of the selective scan against its definition, and against transformers' Mamba."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rrg_utils.errors import RRGError
from rrg_utils.vision import scan, selective_scan
from rrg_utils.vision.scan import CHUNK
from rrg_utils.vision.scan_cpu import TILE

FAST = ["chunked", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def device(backend):
    if backend == "cuda" and (not torch.cuda.is_available() or scan._mamba_ssm() is None):
        pytest.skip("needs a CUDA device and mamba-ssm")
    return "cuda" if backend == "cuda" else "cpu"


def inputs(batch=2, channels=4, length=7, states=4, groups=None, dtype=torch.float64, device="cpu", seed=0):
    """Inputs of the sizes that a Mamba block sees: steps of 0.001 to 0.5 after softplus, A from -1 to -N."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    middle = (states,) if groups is None else (groups, states)
    made = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -torch.arange(1, states + 1, dtype=torch.float64).repeat(channels, 1)
        * (1 + 0.1 * normal(channels, 1).abs()),
        "B": normal(batch, *middle, length),
        "C": normal(batch, *middle, length),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels) - 3,
    }
    return {name: x.to(device, dtype).requires_grad_() for name, x in made.items()}


def values_and_gradients(tensors, backend, through_last=True):
    y, last = selective_scan(**tensors, delta_softplus=True, return_last_state=True, backend=backend)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    loss = (y * weights).sum()
    if through_last:
        loss = loss + last.square().sum()
    return y, last, *torch.autograd.grad(loss, list(tensors.values()))


def assert_agree(tensors, backend, rtol):
    reference = {name: x.detach().double().cpu().requires_grad_() for name, x in tensors.items()}
    through_last = backend != "cuda"  # mamba-ssm gives no gradient for the last state
    expected = values_and_gradients(reference, "loop", through_last)
    found = values_and_gradients(tensors, backend, through_last)
    for name, got, want in zip(("y", "last", *NAMES), found, expected, strict=True):
        assert got.dtype == tensors["u"].dtype
        torch.testing.assert_close(
            got.double().cpu(),
            want,
            rtol=0,
            atol=rtol * float(want.detach().abs().max()),
            msg=lambda m, name=name: f"{name}: {m}",
        )


def test_the_loop_is_the_recurrence():
    """By hand, two steps of one channel and one state: the definition in numbers."""
    u, delta, A = torch.tensor([[[2.0, 3.0]]]), torch.tensor([[[0.5, 0.25]]]), torch.tensor([[-1.0]])
    B, C, D, z = torch.tensor([[[1.0, -1.0]]]), torch.tensor([[[4.0, 2.0]]]), torch.tensor([10.0]), torch.zeros(1, 1, 2)
    h1 = 0.5 * 2
    h2 = torch.exp(torch.tensor(-0.25)) * h1 - 0.25 * 3
    y, last = selective_scan(u, delta, A, B, C, return_last_state=True, backend="loop")
    torch.testing.assert_close(y, torch.tensor([[[4 * h1, 2 * h2]]]))
    torch.testing.assert_close(last, torch.tensor([[[h2]]]))
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, D, backend="loop"), y + 10 * u)
    assert not selective_scan(u, delta, A, B, C, D, z, backend="loop").any(), "silu(0) = 0 shuts the gate"
    softplus = selective_scan(u, delta, A, B, C, delta_bias=torch.ones(1), delta_softplus=True, backend="loop")
    torch.testing.assert_close(softplus, selective_scan(u, F.softplus(delta + 1), A, B, C, backend="loop"))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [1, 2, 31, CHUNK, CHUNK + 1, TILE - 1, TILE, TILE + 1, 197])
def test_lengths(backend, length):
    if backend != "cuda":
        assert_agree(inputs(length=length), backend, 1e-10)
    assert_agree(inputs(length=length, dtype=torch.float32, device=device(backend)), backend, 2e-5)


@pytest.mark.parametrize("backend", FAST)
def test_a_long_sequence(backend):
    long = inputs(1, 8, 4096, 16, dtype=torch.float32, device=device(backend))
    assert_agree(long, backend, 5e-5)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=15, deadline=None)
@given(
    batch=st.integers(1, 3),
    width=st.integers(1, 5),
    groups=st.sampled_from([None, 1, 2, 3]),
    length=st.integers(1, 150),
    states=st.sampled_from([1, 4, 16]),
    seed=st.integers(0, 99),
)
def test_any_shape(backend, batch, width, groups, length, states, seed):
    kind = {"dtype": torch.float32, "device": device(backend), "seed": seed}
    assert_agree(inputs(batch, width * (groups or 1), length, states, groups, **kind), backend, 5e-5)


@pytest.mark.parametrize("backend", ["loop", "chunked", "cpu"])
def test_gradcheck(backend):
    tensors = inputs(2, 2, 3, 4, groups=2)

    def scan_of(*values):
        named = dict(zip(NAMES, values, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(scan_of, tuple(tensors.values()))


def test_threads_do_not_change_the_result():
    tensors = inputs(1, 12, 70, 4, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = values_and_gradients(tensors, "cpu")
        torch.set_num_threads(3)
        for one, many in zip(alone, values_and_gradients(tensors, "cpu"), strict=True):
            torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["chunked", "cpu"])
def test_extreme_steps_neither_overflow_nor_become_nan(backend):
    """A step of 1e4 forgets everything, one of 0 nothing: exp(-1e4) is 0 in float32, and its gradient too."""
    t = inputs(1, 2, 40, 4, dtype=torch.float32)
    delta = torch.zeros(1, 2, 40)
    delta[..., ::3] = 1e4
    t |= {"delta": delta.requires_grad_(), "delta_bias": torch.zeros(2, requires_grad=True)}
    y = selective_scan(**t, backend=backend)
    torch.testing.assert_close(y, selective_scan(**t, backend="loop"))
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(t.values())))


def test_growing_states_agree_too():
    """A may be positive: exp far above 1 is as exact as far below."""
    t = inputs(1, 2, 5, 4, dtype=torch.float32)
    t["A"] = torch.linspace(0.1, 20, 8).view(2, 4).requires_grad_()
    assert_agree(t, "cpu", 2e-5)


@pytest.mark.parametrize("backend", ["loop", "chunked", "cpu"])
def test_views_work_and_are_left_alone(backend):
    t = {name: x.detach() for name, x in inputs(3, 4, 9, 4).items()}
    views = {name: x.mT.contiguous().mT if x.ndim > 1 else x.repeat_interleave(2)[::2] for name, x in t.items()}
    assert not views["u"].is_contiguous()
    copies = {name: x.clone() for name, x in views.items()}
    torch.testing.assert_close(selective_scan(**views, backend=backend), selective_scan(**t, backend="loop"))
    assert all(torch.equal(views[name], copies[name]) for name in views)
    expanded = t["delta"][:1, :, :1].expand(3, 4, 9)
    torch.testing.assert_close(
        selective_scan(**t | {"delta": expanded}, backend=backend),
        selective_scan(**t | {"delta": expanded.contiguous()}, backend="loop"),
    )


def test_half_precision_is_computed_in_float32_and_given_back():
    t = {name: x.detach().bfloat16() for name, x in inputs(length=20).items()}
    y = selective_scan(**t, delta_softplus=True)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(
        y, selective_scan(**{n: x.float() for n, x in t.items()}, delta_softplus=True).bfloat16()
    )


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_memory_is_linear_and_under_a_quarter_of_the_loop(backend):
    """What autograd keeps from the forward to the backward pass. `benchmarks/scan.py` measures whole processes."""

    def kept(length, backend):
        storages = {}

        def note(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            y = selective_scan(**inputs(1, 64, length, 16, dtype=torch.float32), backend=backend)
        assert y.requires_grad
        return sum(size for size, _ in storages.values())

    short, long = kept(256, backend), kept(1024, backend)
    assert 3.5 * short < long < 4.5 * short
    assert short < kept(256, "loop") / 4


@pytest.mark.parametrize("backend", ["loop", "chunked", "cpu"])
def test_a_whole_mixer_of_transformers(backend):
    """transformers' MambaMixer on its slow path, and the same weights through `selective_scan`."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(0)
    config = MambaConfig(hidden_size=24, state_size=4, expand=2, conv_kernel=4, time_step_rank=3, num_hidden_layers=1)
    mixer = MambaMixer(config, layer_idx=0)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    films = torch.randn(2, 37, 24)
    expected = mixer(films)  # without CUDA kernels: the slow path

    x, z = mixer.in_proj(films).mT.chunk(2, 1)
    x = F.silu(mixer.conv1d(x)[..., :37])
    rank, B, C = mixer.x_proj(x.mT).split([3, 4, 4], -1)
    y = selective_scan(
        *(x, (rank @ mixer.dt_proj.weight.T).mT, -mixer.A_log.exp(), B.mT, C.mT, mixer.D, z, mixer.dt_proj.bias),
        delta_softplus=True,
        backend=backend,
    )
    torch.testing.assert_close(mixer.out_proj(y.mT), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "bad", "says"),
    [
        ("u", torch.zeros(2, 4), r"u has shape \(2, 4\): expected \(B, D, L\)"),
        ("u", torch.zeros(2, 4, 0), "at least one"),
        ("u", torch.zeros(0, 4, 7), "at least one"),
        ("delta", torch.zeros(2, 4, 6), r"delta has shape \(2, 4, 6\): expected \(B, D, L\) = \(2, 4, 7\)"),
        ("A", torch.zeros(4), r"A has shape \(4,\): expected \(D, N\)"),
        ("A", torch.zeros(5, 4), r"expected \(D, N\) = \(4, N\)"),
        ("A", torch.zeros(4, 0), "expected"),
        ("B", torch.zeros(2, 7, 4), r"B has shape .*expected \(B, N, L\) = \(2, 4, 7\)"),
        ("B", torch.zeros(4, 4), "B has shape"),
        ("C", torch.zeros(2, 3, 4, 7), "divides D = 4"),
        ("C", torch.zeros(2, 2, 4, 7), "same number"),
        ("D", torch.zeros(3), r"D has shape \(3,\): expected \(D,\) = \(4,\)"),
        ("z", torch.zeros(2, 7, 4), "z has shape"),
        ("delta_bias", torch.zeros(1, 4), "delta_bias has shape"),
        ("u", torch.zeros(2, 4, 7, dtype=torch.int64), "u has dtype int64: expected a real floating type"),
        ("A", torch.zeros(4, 4, dtype=torch.complex64), "A has dtype complex64"),
        ("B", None, "B is NoneType: expected a tensor"),
        ("u", [[1.0]], "u is list"),
        ("delta", torch.full((2, 4, 7), torch.nan), r"delta of shape \(2, 4, 7\) holds NaN"),
        ("D", torch.tensor([1.0, torch.nan, 1, 1]), "D of shape"),
    ],
)
def test_bad_input_says_what_was_expected(name, bad, says):
    with pytest.raises(RRGError, match=says):
        selective_scan(**inputs(dtype=torch.float32) | {name: bad})


def test_infinity_is_not_nan():
    t = {name: x.detach() for name, x in inputs(dtype=torch.float32).items()}
    t["z"][0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    assert selective_scan(**t).shape == (2, 4, 7)


def test_backends_that_are_unknown_or_cannot_run():
    t = inputs(dtype=torch.float32)
    with pytest.raises(RRGError, match="expected one of auto, loop, chunked, cpu, cuda"):
        selective_scan(**t, backend="triton")
    with pytest.raises(RRGError, match="move them to a GPU"):
        selective_scan(**t, backend="cuda")


def test_without_the_kernel_auto_says_so_and_goes_on(monkeypatch, caplog):
    def broken():
        raise ImportError("no numba here")

    scan._fused_works.cache_clear()
    monkeypatch.setattr(scan, "_fused", broken)
    t = inputs(dtype=torch.float32)
    with caplog.at_level(logging.WARNING, "rrg"):
        y = selective_scan(**t)
    scan._fused_works.cache_clear()
    assert "no numba here" in caplog.text
    assert "chunked" in caplog.text
    torch.testing.assert_close(y, selective_scan(**t, backend="loop"), rtol=1e-4, atol=1e-5)
    with pytest.raises(ImportError):
        selective_scan(**t, backend="cpu")
