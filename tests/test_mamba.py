"""Vision Mamba and its controls: what they give, what they see, and that they are of one size."""

import re

import pytest
import torch
from torch.nn import functional as F

from rrg_utils.errors import RRGError
from rrg_utils.vision import CNN, Detector, VisionMamba, ViT, matched_encoders
from rrg_utils.vision.mamba import SelectiveSSM, SS2DBlock, VimBlock, cross_merge, cross_scan

NAMES = ["swin", "mamba", "vmamba", "vit", "cnn"]


@pytest.fixture(scope="module")
def encoders():
    torch.manual_seed(0)
    return {name: encoder.eval() for name, encoder in matched_encoders().items()}


def film(seed=0, count=2):
    return torch.rand(count, 1, 128, 128, generator=torch.Generator().manual_seed(seed))


def test_all_have_the_same_number_of_weights(encoders):
    counts = {name: sum(p.numel() for p in encoder.parameters()) for name, encoder in encoders.items()}
    assert list(counts) == NAMES
    assert all(0.9 < count / counts["swin"] < 1.1 for count in counts.values()), counts
    assert counts["swin"] == pytest.approx(2.2e6, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_same_shapes(encoders, name):
    encoder = encoders[name]
    assert (encoder.grid, encoder.width, encoder.size) == (8, 192, 128)
    tokens, pooled = encoder(film())
    assert tokens.shape == (2, 64, 192)
    assert pooled.shape == (2, 192)
    if name in ("vmamba", "swin", "cnn"):
        torch.testing.assert_close(pooled, tokens.mean(1))


@pytest.mark.parametrize("name", NAMES)
def test_configs_make_the_same_encoder(encoders, name):
    kind = type(encoders[name])
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in encoders[name].config.items()}
    again = kind(**config)
    again.load_state_dict(encoders[name].state_dict())
    torch.testing.assert_close(again.eval()(film()).tokens, encoders[name](film()).tokens)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_in_row_major_order_of_the_film(encoders, name):
    """A change in one place moves the token of that place most, or one beside it, also through untrained weights."""
    for row, column in ((0, 0), (2, 5), (7, 1)):
        changed = film(count=1).clone()
        changed[..., row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = 1
        moved = (encoders[name](changed).tokens - encoders[name](film(count=1)).tokens)[0].norm(dim=-1)
        found = divmod(int(moved.argmax()), 8)
        assert max(abs(found[0] - row), abs(found[1] - column)) <= 1


@pytest.mark.parametrize("name", ["mamba", "vmamba", "vit"])
def test_every_token_sees_the_whole_film(encoders, name):
    films = film(count=1).requires_grad_()
    tokens = encoders[name](films).tokens
    for token in (0, 27, 63):
        (seen,) = torch.autograd.grad(tokens[0, token].square().sum(), films, retain_graph=True)
        assert (F.max_pool2d(seen.abs(), 16) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_film_is_encoded_alike_alone_and_in_a_batch(encoders, name):
    together, alone = encoders[name](film(count=3)), encoders[name](film(count=3)[1:2])
    torch.testing.assert_close(together.tokens[1:2], alone.tokens, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", [VisionMamba, lambda: VisionMamba(scan="vmamba"), ViT, CNN])
def test_gradients_reach_every_weight(make):
    detector = Detector(make()).train()
    image, cells = detector(film())
    (image.square().sum() + cells.square().sum()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_a_step_down_the_gradient_lowers_the_loss():
    """Films with a bright half are told from those without: the compiled backward pass points downhill."""
    torch.manual_seed(0)
    encoder = VisionMamba(64, width=32, depth=2)
    head = torch.nn.Linear(32, 1)
    films, side = torch.rand(16, 1, 64, 64), torch.arange(16) % 2
    films[side == 1, :, :, :32] += 0.5
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    losses = []
    for _ in range(12):
        loss = F.binary_cross_entropy_with_logits(head(encoder(films).pooled)[:, 0], side.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_cross_scan_reads_rows_and_columns_both_ways():
    grid = torch.arange(6.0).view(1, 1, 2, 3)
    assert cross_scan(grid)[0, :, 0].tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_cross_merge_puts_every_token_back():
    grid = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(cross_merge(cross_scan(grid), 4, 5), 4 * grid)
    one = torch.zeros(1, 4, 1, 20)
    for k in range(4):
        reading = cross_scan(grid[:1, :1])
        only = torch.where(torch.arange(4).view(1, 4, 1, 1) == k, reading, one)
        torch.testing.assert_close(cross_merge(only, 4, 5), grid[:1, :1])


def test_vim_is_blind_to_direction_up_to_its_weights():
    """With the two directions' weights swapped, a reversed sequence gives the reversed result."""
    torch.manual_seed(0)
    block, swapped = VimBlock(16, 4), VimBlock(16, 4)
    state = block.state_dict()
    for name, value in state.items():
        if name.startswith(("conv.", "ssm.")):
            state[name] = value.roll(len(value) // 2, 0)
    swapped.load_state_dict(state)
    tokens = torch.randn(2, 9, 16)
    torch.testing.assert_close(swapped(tokens.flip(1)).flip(1), block(tokens), rtol=1e-4, atol=1e-5)


def test_vim_forwards_alone_is_causal():
    torch.manual_seed(0)
    ssm = SelectiveSSM(8, 1, 4)
    x = torch.randn(1, 1, 8, 10)
    later = x.clone()
    later[..., 6:] += 1
    difference = (ssm(later) - ssm(x)).abs().amax((0, 1, 2))
    assert (difference[:6] == 0).all()
    assert (difference[6:] > 0).all()


@pytest.mark.parametrize("backend", ["loop", "chunked"])
@pytest.mark.parametrize("scan", ["vim", "vmamba"])
def test_backends_give_the_same_features(scan, backend):
    fused, other = (VisionMamba(64, 32, 1, scan, backend=b).eval() for b in ("cpu", backend))
    other.load_state_dict(fused.state_dict())
    films = film()[..., :64, :64]
    torch.testing.assert_close(other(films).tokens, fused(films).tokens, rtol=1e-3, atol=1e-4)


def test_ss2d_sees_wide_grids():
    assert SS2DBlock(16, 4)(torch.randn(1, 3, 7, 16)).shape == (1, 3, 7, 16)


@pytest.mark.parametrize("make", [VisionMamba, ViT, CNN])
@pytest.mark.parametrize("size", [0, 8, 100, 130])
def test_sizes_that_the_patch_does_not_divide_are_refused(make, size):
    with pytest.raises(RRGError, match=f"size={size}: patches of 16 px do not divide it"):
        make(size)


@pytest.mark.parametrize("name", NAMES)
def test_films_of_another_size_are_refused(encoders, name):
    with pytest.raises(RRGError, match=re.escape("expected (B, 1, 128, 128)")):
        encoders[name](torch.zeros(1, 1, 64, 64))


def test_an_unknown_scan_is_refused():
    with pytest.raises(RRGError, match="expected one of vim, vmamba"):
        VisionMamba(scan="spiral")
