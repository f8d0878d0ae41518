"""Region masks: what they hold, how they are made, that a small U-Net can learn them, bad input."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rrg_utils.data import ABNORMALITIES, lesions
from rrg_utils.data.anatomy import REGIONS
from rrg_utils.errors import RRGError
from rrg_utils.vision import segmentation
from rrg_utils.vision.segmentation import (
    NAMES,
    Masks,
    SegmentationConfig,
    UNet,
    cxas_masks,
    dice_per_region,
    loss,
    masked,
    predict,
    train,
    true_masks,
)

SMALL = SegmentationConfig(size=64, stride=2, depth=3, decoder=(32, 16, 8), epochs=12, batch_size=8, lr=3e-3)


class Data:
    """Rendered films of a small size in the place of a split."""

    size = 64

    def __init__(self, renderer, reports):
        self.renderer, self.reports = renderer, reports
        self.phantoms = [renderer.render(report) for report in reports]
        self.images = np.stack([np.round(film.image * 255).astype(np.uint8) for film in self.phantoms])
        self.films = type("Rendered", (), {"key": f"small-{len(reports)}", "images": self.images})

    def __len__(self):
        return len(self.reports)

    def phantom(self, index, without=()):
        return self.renderer.render(self.reports[index], without=without)


@pytest.fixture(scope="module")
def data(renderer, reports):
    return Data(renderer, reports[:48])


@pytest.fixture
def masks(data, monkeypatch, tmp_path):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    return true_masks(data)


@settings(max_examples=20, deadline=None)
@given(size=st.integers(5, 40), count=st.integers(1, 3), seed=st.integers(0, 99))
def test_packing_loses_nothing(size, count, seed):
    bits = np.random.default_rng(seed).random((count, len(NAMES), size, size)) < 0.5
    found = Masks(segmentation._pack(bits), size, "x")
    assert len(found) == count
    assert all((found[i] == bits[i]).all() for i in range(count))
    assert (found.area(0, NAMES[:2]) == (bits[0, 0] | bits[0, 1])).all()


def test_true_masks_are_the_renderers(data, masks):
    assert tuple(REGIONS) == NAMES
    for i, film in enumerate(data.phantoms):
        for name, mask in zip(NAMES, masks[i], strict=True):
            assert (mask == film.regions[name]).all(), (data.reports[i].id, name)
    drawn = [name for report in data.reports for name in ABNORMALITIES if name in segmentation._DRAWN and report.mesh]
    assert drawn  # the short cut left something out
    assert not set(segmentation._DRAWN) & set(lesions.BENDS)


def test_an_area_is_the_union_of_its_regions(masks):
    heart, lungs = masks.area(0, ["heart"]), masks.area(0, ["lungs"])
    assert (masks.area(0, ["heart", "lungs"]) == heart | lungs).all()
    with pytest.raises(RRGError, match="unknown region 'spleen'; known are: vertebrae"):
        masks.area(0, ["spleen"])
    with pytest.raises(RRGError, match="no region to mask"):
        masks.area(0, [])


def test_a_masked_film_is_black_outside():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4)
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    found = masked(image, mask)
    assert found.dtype == np.uint8
    assert (found[mask] == image[mask]).all()
    assert not found[~mask].any()


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        (np.zeros((4, 4)), np.ones((5, 4), bool)),
        (np.zeros((4, 4)), np.ones((4, 4))),
        (np.zeros((1, 4, 4)), np.ones((1, 4, 4), bool)),
    ],
)
def test_masks_of_another_size_or_type_are_refused(image, mask):
    with pytest.raises(RRGError, match="needs a boolean mask of its size"):
        masked(image, mask)


def test_a_small_unet_learns_where_the_lungs_are(data, masks, tmp_path):
    torch.manual_seed(0)
    model = train(SMALL, data, masks)
    found = Masks(segmentation._pack(predict(model, data.images)), 64, "predicted")
    dice = dict(zip(NAMES, np.nanmean(dice_per_region(found, masks), 0), strict=True))
    assert dice["lungs"] > 0.8, dice
    assert dice["heart"] > 0.5, dice
    untrained = Masks(segmentation._pack(predict(UNet(SMALL), data.images)), 64, "untrained")
    assert np.nanmean(dice_per_region(untrained, masks)) < np.mean(list(dice.values())) - 0.2


def test_dice_of_masks_with_themselves_is_one(masks):
    assert np.nanmin(dice_per_region(masks, masks)) == 1
    with pytest.raises(RRGError, match="cannot be compared"):
        dice_per_region(masks, Masks(masks.packed[:3], 64, "x"))


def test_the_loss_falls_towards_the_truth():
    truth = torch.zeros(2, len(NAMES), 8, 8)
    truth[:, :, 2:6] = 1

    def of(logits):
        return float(loss(lambda films: logits, (torch.zeros(2, 1, 8, 8), truth)))

    right = 20 * (truth - 0.5)
    assert of(right) < 1e-2
    assert of(right) < of(torch.zeros_like(truth)) < of(-right)


def test_networks_of_one_seed_start_the_same_and_of_two_differ():
    a, b, c = (UNet(SegmentationConfig(seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 100}, "needs a multiple of 32 pixels"),
        ({"depth": 3}, "as many decoder widths"),
    ],
)
def test_bad_networks_are_refused(arguments, message):
    with pytest.raises(RRGError, match=message):
        SegmentationConfig(**arguments)
    with pytest.raises(RRGError, match="expected"):
        UNet(SMALL)(torch.zeros(1, 1, 128, 128))


def test_without_cxas_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cxas", None)
    with pytest.raises(RRGError, match="pip install cxas, in an environment of its own"):
        cxas_masks(np.zeros((1, 64, 64), np.uint8))


def test_cxas_labels_become_the_seven_regions(monkeypatch):
    """A stand-in with CXAS's interface: weights cannot be fetched in a test."""
    import types

    shown = ["vertebrae T1", "posterior 3rd rib", "rib_cartilage", "heart", "left lung", "diaphragm"]
    labels = dict(enumerate([*shown, "cardiomediastinum", "liver"]))

    class CXAS:
        def __init__(self, gpus):
            pass

        def process_file(self, path):
            from PIL import Image

            pixels = np.asarray(Image.open(path))
            found = torch.zeros(1, len(labels), 128, 128, dtype=torch.bool)
            for number in range(len(labels) - 2):
                found[0, number, :, 20 * number : 20 * number + 20] = bool(pixels.max() == 200)
            return {"segmentation_preds": found}

    package, mapper = types.ModuleType("cxas"), types.ModuleType("cxas.label_mapper")
    package.CXAS, mapper.id2label_dict = CXAS, labels
    monkeypatch.setitem(sys.modules, "cxas", package)
    monkeypatch.setitem(sys.modules, "cxas.label_mapper", mapper)
    found = cxas_masks(np.full((1, 64, 64), 200, np.uint8))
    columns = {name: np.flatnonzero(mask.any(0)).tolist() for name, mask in zip(NAMES, found[0], strict=True)}
    assert columns["vertebrae"] == list(range(0, 10))
    assert columns["ribs"] == list(range(10, 20))
    assert columns["heart"] == list(range(30, 40))
    assert columns["lungs"] == list(range(40, 50))
    assert columns["abdomen"] == []
    assert found.key.startswith("cxas-")
