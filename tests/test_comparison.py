"""The comparison of encoders: AUROC against scikit-learn, bootstrap, kept runs; and the counting of cost."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from rrg_utils.data import ABNORMALITIES, load_dataset
from rrg_utils.errors import RRGError
from rrg_utils.vision import comparison, cost
from rrg_utils.vision.comparison import auroc, draws, macro, over_seeds
from rrg_utils.vision.pretrain import ENCODERS

RNG = np.random.default_rng(0)
CLASSES = len(ABNORMALITIES)


def example(studies=60, classes=4):
    truth = RNG.random((studies, classes)) < 0.3
    return truth, np.round(truth + RNG.normal(size=truth.shape), 1)  # rounded: ties


def test_auroc_is_that_of_scikit_learn():
    truth, logits = example()
    np.testing.assert_allclose(auroc(truth, logits), roc_auc_score(truth, logits, average=None))


def test_a_weight_is_a_study_drawn_that_often():
    truth, logits = example()
    weights = draws(len(truth), 5)
    assert weights.sum(1).tolist() == [60] * 5
    for row, drawn in zip(auroc(truth, logits, weights), weights, strict=True):
        again = np.repeat(np.arange(60), drawn)
        np.testing.assert_allclose(row, roc_auc_score(truth[again], logits[again], average=None))


def test_auroc_without_a_pair_is_nan_and_left_out_of_the_mean():
    truth, logits = example()
    truth[:, 0] = False
    assert np.isnan(auroc(truth, logits)).tolist() == [True, False, False, False]
    assert np.isfinite(macro(truth, [logits], draws(60, 5))).all()


def test_macro_is_the_mean_of_the_classes_for_each_seed():
    truth, logits = example()
    weights = draws(60, 5)
    found = macro(truth, [logits, -logits], weights)
    np.testing.assert_allclose(found[0], auroc(truth, logits, weights).mean(1))
    np.testing.assert_allclose(found[1], 1 - found[0])  # turned round


def test_intervals_cover_seeds_and_studies():
    """Of equal trainings only the studies' part is left; else 95 % of the intervals hold the true mean."""
    truth, logits = example(400)
    drawn = macro(truth, [logits] * 3, draws(400, 300))
    half = np.ptp(np.percentile(drawn[0], [2.5, 97.5])) / 2
    assert over_seeds([0.7] * 3, drawn) == pytest.approx((0.7, 0.7 - half, 0.7 + half))
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shift, seeds = draw.normal(), draw.normal(size=5)  # of the studies drawn, of five trainings
        samples = (seeds + shift)[:, None] + draw.normal(size=(1, 400))
        _, low, high = over_seeds(seeds + shift, samples)
        held += low <= 0 <= high
    assert 0.93 < held / 400 <= 1


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(RRGError, match=r"expected two arrays \(N, C\)"):
        auroc(np.ones((3, 2), bool), np.ones((3, 3)))


def keep(folder, name="swin", seed=0, classes=CLASSES, **card):
    card = {"encoder": name, "seed": seed, "studies": 8, "epochs": 1, "size": 128, "data hash": "", "films": {}} | card
    arrays = {"val": np.zeros((295, classes), np.float16), "test": np.zeros((591, classes), np.float16)}
    np.savez_compressed(folder / f"{name}-seed{seed}.npz", card=json.dumps(card), **arrays)


def test_kept_runs_are_read_by_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FOLDER", tmp_path)
    for name, seed in (("swin", 1), ("swin", 0), ("mamba", 0)):
        keep(tmp_path, name, seed)
    found = comparison.runs()
    assert {name: [run.card["seed"] for run in runs] for name, runs in found.items()} == {"mamba": [0], "swin": [0, 1]}


def test_runs_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FOLDER", tmp_path)
    with pytest.raises(RRGError, match="rrg compare"):
        comparison.runs()
    keep(tmp_path)
    keep(tmp_path, "vit", studies=9)
    with pytest.raises(RRGError, match="mixes films or lengths"):
        comparison.runs()
    keep(tmp_path, "vit", classes=3)
    with pytest.raises(RRGError, match="other studies or classes"):
        comparison.runs()
    (tmp_path / "vit-seed0.npz").write_bytes(b"PK")
    with pytest.raises(RRGError, match="damaged"):
        comparison.runs()


def test_the_learning_rate_is_the_best_on_validation_films(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FOLDER", tmp_path)
    monkeypatch.setattr("rrg_utils.vision.pretrain.cache_dir", lambda: tmp_path)
    for module in ("comparison", "pretrain"):
        monkeypatch.setattr(f"rrg_utils.vision.{module}.load_dataset", partial(load_dataset, limit=24))
    chosen = comparison.learning_rate("cnn", studies=32)
    path = tmp_path / "cnn-rates.json"
    values = json.loads(path.read_text())["validation macro AUROC"]
    assert [float(rate) for rate in values] == list(comparison.RATES)
    assert values[f"{chosen:g}"] == max(values.values())
    assert len([*(tmp_path / "pretrain").iterdir()]) == 1, "the checkpoints of the best rate, for seed 0"
    with monkeypatch.context() as trained:
        trained.setattr("rrg_utils.vision.pretrain._loss", lambda *_: pytest.fail("it was trained again"))
        trained.setattr(comparison, "predict", lambda detector, films: np.zeros((len(films), CLASSES)))
        run = comparison._read(comparison.compare("cnn", studies=32))
    assert run.card["learning rate"] == chosen
    assert [*(tmp_path / "pretrain").iterdir()] == []

    def trained_again(*_, **__):
        raise AssertionError("the kept rates were not used")

    monkeypatch.setattr(comparison, "train", trained_again)
    assert comparison.learning_rate("cnn", studies=32) == chosen
    with pytest.raises(AssertionError):  # of another recipe
        comparison.learning_rate("cnn", studies=32, epochs=2)
    path.write_text("{")
    with pytest.raises(RRGError, match=r"cnn-rates\.json is damaged"):
        comparison.learning_rate("cnn", studies=32)


@pytest.mark.skipif(not comparison.FOLDER.is_dir(), reason="no results/encoders/: rrg compare makes them")
def test_committed_runs_fit_the_data():
    found = comparison.runs()
    assert {"swin", "mamba", "vmamba"} <= set(found)


def test_attention_and_grouped_convolutions_are_counted():
    """ViT by hand: what grows with the square of the tokens is there. Training is three times the forward pass."""
    small, large = (cost.flops(ENCODERS["vit"], size)[0] for size in (128, 256))
    few, many = 65, 257  # one more than the patches: the class token
    attention = 5 * 4 * 192 * (many**2 - 4 * few**2)
    linear = 5 * 2 * (192 * 576 + 192 * 192 + 2 * 192 * 672) * (many - 4 * few)
    assert large - 4 * small == attention + linear
    for name, make in ENCODERS.items():
        (inference, scans), (training, more) = (cost.flops(make, 128, run) for run in cost.RUNS)
        assert (training - more) / (inference - scans) == pytest.approx(3, rel=0.05), name


def test_scans_are_counted_by_formula():
    assert cost.flops(ENCODERS["swin"], 128)[1] == 0
    assert cost.flops(ENCODERS["mamba"], 128)[1] == 7 * 768 * 65 * (7 * 16 + 1)
    assert cost.flops(ENCODERS["vmamba"], 128)[1] == 6 * 4 * 384 * 64 * (7 * 16 + 1)


def test_runs_leave_no_gradients_behind():
    encoder = ENCODERS["mamba"](64)
    cost.training(encoder, torch.rand(1, 1, 64, 64))
    assert all(p.grad is None for p in encoder.parameters())
    assert cost.seconds(lambda: None) < 1


def test_calls_in_several_processes_take_other_encoders(tmp_path, monkeypatch):
    """The lock of an encoder that another process trains: the others come first, then it is waited for."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    monkeypatch.setattr(comparison, "compare", lambda name, *, seed, **recipe: (name, seed))
    elsewhere = comparison._only_here("swin")
    elsewhere.acquire()
    made = comparison.compare_all(["swin", "vit"], 2)
    assert [next(made), next(made)] == [("vit", 0), ("vit", 1)]
    elsewhere.release()
    assert list(made) == [("swin", 0), ("swin", 1)]
    assert list(comparison.compare_all(["swin"], 1)) == [("swin", 0)]  # the lock is free again
