"""The Swin encoder, its pre-training heads and its committed weights."""

import hashlib
import json
import re
from functools import partial

import launch
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rrg_utils.data import load_dataset
from rrg_utils.errors import RRGError
from rrg_utils.vision import Detector, Swin, as_films, load_detector, load_encoder, matched_encoders
from rrg_utils.vision import pretrain as module
from rrg_utils.vision.features import encode, merge_tokens
from rrg_utils.vision.pretrain import PRETRAINABLE, WEIGHTS, _loss, _save, command, predict, pretrain

CARDS = sorted(WEIGHTS.glob("*.json"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 128, 128), dtype=np.uint8)


def test_features_have_the_documented_shapes(images):
    features = load_encoder("swin")(as_films(images))
    assert features.tokens.shape == (5, 64, 192)
    assert features.pooled.shape == (5, 192)
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_tokens_are_in_row_major_order_of_the_film():
    """A change in the film's upper left corner moves the first token most."""
    film = np.full((2, 128, 128), 90, np.uint8)
    film[1, :16, :16] = 255
    tokens = load_encoder("swin")(as_films(film)).tokens
    assert int((tokens[1] - tokens[0]).norm(dim=-1).argmax()) == 0
    film[1] = 90
    film[1, :16, -16:] = 255
    tokens = load_encoder("swin")(as_films(film)).tokens
    assert int((tokens[1] - tokens[0]).norm(dim=-1).argmax()) == 7


def test_a_film_is_encoded_alike_alone_and_in_a_batch(images):
    encoder = load_encoder("swin")
    together, alone = encode(encoder, images), encode(encoder, images[2:3])
    np.testing.assert_allclose(together[2:3].astype(float), alone.astype(float), atol=0.02)


def test_gradients_reach_every_weight(images):
    detector = Detector(Swin()).train()
    image, cells = detector(as_films(images))
    (image.sum() + cells.square().sum()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def test_merged_tokens_hold_the_same_numbers_in_2_by_2_blocks():
    tokens = torch.arange(64.0).reshape(1, 64, 1)
    merged = merge_tokens(tokens)
    assert merged.shape == (1, 16, 4)
    assert merged[0, 0].tolist() == [0, 1, 8, 9]
    assert merged[0, 15].tolist() == [54, 55, 62, 63]


@pytest.mark.parametrize("side", [3, 7])
def test_merging_an_odd_grid_repeats_its_last_row_and_column(side):
    grid = torch.arange(float(side * side)).reshape(1, side, side)
    padded = torch.nn.functional.pad(grid[None], (0, 1, 0, 1), mode="replicate")[0]
    torch.testing.assert_close(merge_tokens(grid.reshape(1, -1, 1)), merge_tokens(padded.reshape(1, -1, 1)))
    with pytest.raises(RRGError, match="not a square grid"):
        merge_tokens(torch.zeros(1, side * side + 1, 4))


@pytest.mark.parametrize("size", [100, 120, 130])
def test_sizes_that_do_not_fit_are_refused(size):
    with pytest.raises(RRGError, match=f"size={size}"):
        Swin(size)


def test_films_of_another_size_are_refused():
    with pytest.raises(RRGError, match=re.escape("expected (B, 1, 128, 128)")):
        load_encoder("swin")(torch.zeros(1, 1, 64, 64))
    with pytest.raises(RRGError, match="shape"):
        as_films(np.zeros((128, 128)))


def test_missing_weights_say_how_to_make_them(tmp_path):
    with pytest.raises(RRGError, match="rrg pretrain swin"):
        load_detector("swin", 128, tmp_path)


def test_commands_name_a_size_that_is_not_the_default(tmp_path):
    assert command("swin") == "rrg pretrain swin"
    with pytest.raises(RRGError, match=r"no weights swin-224.* make them with rrg pretrain swin --size 224$"):
        load_detector("swin", 224, tmp_path)


def test_damaged_weights_say_how_to_make_them(tmp_path):
    for suffix in ("safetensors", "json"):
        (tmp_path / f"swin-128.{suffix}").write_bytes((WEIGHTS / f"swin-128.{suffix}").read_bytes()[:1000])
    with pytest.raises(RRGError, match="rrg pretrain swin"):
        load_detector("swin", 128, tmp_path)


def test_unknown_encoder_is_refused_by_name():
    with pytest.raises(RRGError, match="vgg"):
        pretrain("vgg")


def test_weights_are_small_and_half_precision():
    assert CARDS, "no weights are committed"
    sizes = [card.with_suffix(".safetensors").stat().st_size for card in CARDS]
    assert max(sizes) <= 8e6
    assert sum(sizes) <= 25e6
    for card in CARDS:
        dtypes = {t.dtype for t in load_file(card.with_suffix(".safetensors")).values()}
        assert dtypes <= {torch.float16, torch.int64}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_cards_say_how_the_weights_were_made(path):
    card = json.loads(path.read_text())
    assert card["command"].startswith(f"rrg pretrain {card['encoder']}")
    assert card["encoder"] in PRETRAINABLE
    assert {"seed", "data hash", "split digest", "validation", "parameters"} <= card.keys()
    assert card["weights sha256"] == hashlib.sha256(path.with_suffix(".safetensors").read_bytes()).hexdigest()
    assert card["parameters"] == sum(p.numel() for p in load_encoder(card["encoder"]).parameters())
    scores = [v for name, v in card["validation"]["auroc"].items() if card["validation"]["positives"][name] >= 5]
    assert np.median(scores) > 0.75


@pytest.mark.parametrize("name", PRETRAINABLE)
def test_every_encoder_is_written_and_read_back(name, tmp_path, images):
    torch.manual_seed(0)
    detector = Detector(matched_encoders()[name]).eval()
    _save(detector, tmp_path / f"{name}-128.safetensors", {"encoder": name, "config": detector.encoder.config})
    again = load_detector(name, folder=tmp_path)
    assert (tmp_path / f"{name}-128.safetensors").stat().st_size <= 25e6 / len(PRETRAINABLE)
    np.testing.assert_allclose(predict(again, images), predict(detector, images), atol=0.05)


def test_pretraining_lowers_the_loss_and_says_how_it_was_made(tmp_path, monkeypatch):
    """Stopped when it is trained and not yet written, it is not trained again; the checkpoints go with the writing."""
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    monkeypatch.setattr(module, "load_dataset", partial(load_dataset, limit=24))
    options = {"studies": 32, "epochs": 2, "seed": 3}

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(module, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain("mamba", **options)
    monkeypatch.setattr(module, "_loss", lambda *_: pytest.fail("it was trained again"))
    path = pretrain("mamba", **options)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["command"] == "rrg pretrain mamba --studies 32 --epochs 2 --seed 3 --lr 0.001"
    assert card["training loss"][1] < card["training loss"][0]
    assert load_detector("mamba", folder=tmp_path).encoder.scan == "vim"
    assert [*(tmp_path / "pretrain").iterdir()] == []


def test_checkpoints_are_those_of_the_code_that_made_them(tmp_path, monkeypatch):
    """Not of another loss or encoder, though the weights have the same shapes."""
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(module, "load_dataset", partial(load_dataset, limit=24))
    steps = []
    monkeypatch.setattr(module, "_loss", lambda *batch: steps.append(1) or _loss(*batch))
    first, again = (module.train("cnn", studies=32, epochs=1).checkpoints for _ in range(2))
    assert first == again
    assert len(steps) == 1
    monkeypatch.setattr(module, "_CODE", [*module._CODE, launch])  # any other code
    assert module.train("cnn", studies=32, epochs=1).checkpoints != first
    assert len(steps) == 2


def test_options_are_refused_before_a_film_is_rendered(monkeypatch):
    monkeypatch.setattr(module, "studies_for_training", lambda *_: pytest.fail("it rendered"))
    for options, message in (({"lr": -1.0}, "lr is -1.0"), ({"epochs": 0}, "epochs is 0"), ({"size": 100}, "size=100")):
        with pytest.raises(RRGError, match=message):
            pretrain("swin", **options)


def test_weights_with_the_card_of_others_are_noticed(tmp_path, images):
    """As a kill between the two files would leave them."""
    path, cards = tmp_path / "cnn-128.safetensors", []
    for seed in range(2):
        torch.manual_seed(seed)
        detector = Detector(matched_encoders()["cnn"]).eval()
        _save(detector, path, {"encoder": "cnn", "config": detector.encoder.config})
        cards.append(path.with_suffix(".json").read_text())
    np.testing.assert_allclose(
        predict(load_detector("cnn", folder=tmp_path), images), predict(detector, images), atol=0.05
    )
    path.with_suffix(".json").write_text(cards[0])
    with pytest.raises(RRGError, match=r"damaged \(the card is of other weights\): make them with rrg pretrain cnn"):
        load_detector("cnn", folder=tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cnn-128.json", "cnn-128.safetensors"]
