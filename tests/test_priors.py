import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.data import geometry, priors, wheels
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.errors import RRGError

SIDED = [name for name in priors.SOURCES if name not in ("cardiomegaly", "tortuous aorta")]

# --- files ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_run_lengths_come_back(pixels):
    mask = np.array(pixels)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    text, last = [], 0
    for start, stop in edges.reshape(-1, 2):
        text += [start - last, stop - start]
        last = stop
    out = np.zeros(len(mask), bool)
    for start, stop in priors.decode_rle(" ".join(map(str, text))):
        out[start:stop] = True
    assert np.array_equal(out, mask)


@pytest.mark.parametrize("text", ["3", "3 4 5", "3 -4"])
def test_a_broken_run_length_code_is_refused(text):
    with pytest.raises(RRGError, match="run-length"):
        priors.decode_rle(text)


def test_nih_header_is_understood():
    boxes = priors.nih()
    assert len(boxes) == 984
    assert boxes.label.nunique() == 8
    hearts = boxes[boxes.label == "Cardiomegaly"]
    assert 0.45 < (hearts.x1 - hearts.x0).median() < 0.65  # the cardiothoracic ratio of large hearts


def test_vinbigdata_counts_one_reader_for_each_image_and_finding():
    columns = ["image", "label", "number", "reader", "x0", "y0", "x1", "y1"]
    raw = priors._table("vinbigdata-train.csv.gz", columns).dropna(subset=["x0"])
    most = raw.groupby(["image", "label", "reader"]).size().groupby(["image", "label"]).max()
    kept = priors.vinbigdata().groupby(["image", "label"]).size()
    assert len(kept) == len(most)
    assert (kept <= most).all()


def test_the_estimated_frame_of_vinbigdata_agrees_with_the_other_datasets():
    """What NIH and RSNA box too has the same size in both frames, although they were found independently."""
    vin, nih = priors.vinbigdata(), priors.nih()
    for ours, theirs, tolerance in (("Cardiomegaly", "Cardiomegaly", 0.08), ("Infiltration", "Infiltrate", 0.25)):
        a, b = vin[vin.label == ours], nih[nih.label == theirs]
        assert (a.x1 - a.x0).median() == pytest.approx((b.x1 - b.x0).median(), rel=tolerance)
    _, (width, height) = priors.vinbigdata_frame(_pixels())
    lungs = priors.lung_outlines()
    real = ((lungs.x1 - lungs.x0) / (lungs.y1 - lungs.y0) * lungs.film).mean()
    assert width / height == pytest.approx(real, rel=0.1)


def _pixels():
    columns = ["image", "label", "number", "reader", "x0", "y0", "x1", "y1"]
    return priors._table("vinbigdata-train.csv.gz", columns).dropna(subset=["x0"])


def test_pneumothoraces_lie_at_the_top_of_one_lung():
    """The run-length code runs down the columns: read along the rows, the masks would lie at the side."""
    masks = priors.siim()
    assert (masks.share > 0).all()
    assert 0.01 < masks.share.median() < 0.15
    assert ((masks.y0 + masks.y1) / 2).median() < 0.35
    assert 0.3 < (masks.x0 + masks.x1 < 1).mean() < 0.7


def test_lungs_differ_as_real_ones():
    lungs, spread = priors.lung_outlines(), priors.lung_spread()
    assert 400 < len(lungs) < 517
    assert ((lungs.x1 > lungs.x0) & (lungs.y1 > lungs.y0) & lungs.area.between(0.05, 0.8)).all()
    assert 0.03 < spread.width < spread.height < spread.aspect < 0.2


@pytest.mark.parametrize("read", ["nih", "rsna", "siim", "vinbigdata"])
def test_a_missing_file_gets_one_line(read, monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "find_spec", lambda name: type("Spec", (), {"submodule_search_locations": [tmp_path]}))
    with pytest.raises(RRGError, match="pip install --force-reinstall torchxrayvision") as error:
        getattr(priors, read).__wrapped__()
    assert "\n" not in str(error.value)


def test_a_damaged_file_gets_one_line(monkeypatch, tmp_path):
    path = tmp_path / "BBox_List_2017.csv.gz"
    monkeypatch.setattr(priors, "wheel_file", lambda *parts: path)
    for content in (b"not gzip", gzip.compress(b"a,b\n1,2\n")):
        path.write_bytes(content)
        with pytest.raises(RRGError, match="BBox_List_2017"):
            priors.nih.__wrapped__()


# --- boxes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", priors.SOURCES)
def test_boxes_are_plausible(name):
    assert name in ABNORMALITIES
    table = priors.boxes(name)
    assert len(table) >= 300
    assert ((table.x1 > table.x0) & (table.y1 > table.y0)).all()
    centres = np.stack([(table.x0 + table.x1) / 2, (table.y0 + table.y1) / 2])
    # The lungs' bounding box and a quarter around it; VinBigData's frame is an estimate and misses on some images.
    assert (np.abs(centres - 0.5) < 0.75).all(0).mean() > 0.8
    assert (table.groupby("dataset").weight.sum() > 0).all()


def test_nodules_are_smaller_than_masses():
    nodule, mass = (priors.boxes(name).query("dataset == 'VinBigData'") for name in ("nodule", "mass"))
    assert np.maximum(nodule.x1 - nodule.x0, nodule.y1 - nodule.y0).max() <= priors.NODULE
    assert np.maximum(mass.x1 - mass.x0, mass.y1 - mass.y0).min() > priors.NODULE


def test_a_class_without_boxes_is_refused():
    with pytest.raises(RRGError, match="'edema'"):
        priors.boxes("edema")


@pytest.mark.parametrize("name", SIDED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_samples_keep_to_their_side_and_zone(name, side):
    def inside(x, y):
        return (y > 0.3) & (y < 0.9)

    for seed in range(20):
        box = priors.sample(name, side, np.random.default_rng(seed), inside)
        x, y = box.centre
        assert (x > 0.5) == (side == "left") or x == 0.5
        assert not box.placed or 0.3 < y < 0.9
        assert box == priors.sample(name, side, np.random.default_rng(seed), inside)


@pytest.mark.parametrize("name", ["opacity", "nodule", "pleural effusion"])
def test_parts_are_ordered_by_size(name):
    def area(part, seed):
        box = priors.sample(name, "left", np.random.default_rng(seed), part=part)
        return box.width * box.height

    assert max(area((0, 0.3), n) for n in range(20)) <= min(area((0.7, 1), n) for n in range(20))


def test_where_no_box_fits_only_its_size_counts():
    box = priors.sample("nodule", "left", np.random.default_rng(0), lambda x, y: np.zeros(len(x), bool))
    assert not box.placed
    assert box.width > 0


# --- the phantom ------------------------------------------------------------------------------------------------------

FACTOR = 1.5
# Not comparable: the phantom's mask is the whole thoracic aorta (only its left edge is learnt), and many of the
# radiologists box only the lower part of an enlarged heart.
WIDTH_ONLY = ("cardiomegaly",)


@pytest.fixture(scope="module")
def table(renderer, reports):
    names = [name for name in priors.SOURCES if name != "tortuous aorta"]
    return geometry.compare(geometry.phantom_boxes(renderer, reports[:2000], per_class=40, names=names))


@pytest.mark.parametrize("name", [name for name in priors.SOURCES if name != "tortuous aorta"])
def test_lesions_are_as_large_as_real_ones(table, name):
    for measure in ("width", "height")[: 1 if name in WIDTH_ONLY else 2]:
        ratio = table.loc[name, f"{measure}, phantom"] / table.loc[name, f"{measure}, radiologists"]
        assert 1 / FACTOR < ratio < FACTOR, (measure, ratio)
