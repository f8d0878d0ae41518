import numpy as np
import pytest
from scipy import ndimage

from rrg_utils.data import anatomy
from rrg_utils.data.anatomy import DEPTH_MM, LEFT_LUNG, LOBES, MASKS, NODE_MM, REGIONS, RIB, RIGHT_LUNG, VERTEBRA


@pytest.fixture(scope="module", params=range(3))
def patient(request, renderer):
    return renderer.patients[request.param]


def mask(patient, name):
    return (patient.seen("frontal")[1] >> MASKS.index(name)) & 1 == 1


def middle(mask):
    """(row, column) of the centroid of a mask."""
    return np.argwhere(mask).mean(0)


def width(mask):
    columns = np.nonzero(mask.any(0))[0]
    return columns[-1] - columns[0] + 1


# --- the chest --------------------------------------------------------------------------------------------------------


def test_patients_left_is_the_viewers_right(patient):
    spine = patient.marks.spine[:, 0].mean()
    assert middle(mask(patient, "heart"))[1] > spine + 10 / patient.pitch
    left = [middle(mask(patient, name))[1] for name in LOBES if name.startswith("left")]
    right = [middle(mask(patient, name))[1] for name in LOBES if name.startswith("right")]
    assert min(left) > spine > max(right)
    assert middle(mask(patient, "abdomen"))[0] > middle(mask(patient, "heart"))[0]  # head up


def test_upper_lobes_lie_above_lower_lobes(patient):
    for side in ("left", "right"):
        upper, lower = (middle(mask(patient, f"{side} {which} lobe"))[0] for which in ("upper", "lower"))
        assert upper < lower - 30 / patient.pitch
    assert middle(mask(patient, "right upper lobe"))[0] < middle(mask(patient, "right middle lobe"))[0]


def test_depth_runs_from_back_to_front(patient):
    depth = {name: np.argwhere(patient.tissue == tissue)[:, 2].mean() for name, tissue in LOBES.items()}
    assert depth["right lower lobe"] < depth["right middle lobe"]
    assert np.argwhere(patient.tissue == VERTEBRA)[:, 2].mean() < patient.marks.heart[2]


def test_liver_lifts_the_right_diaphragm(renderer):
    dome = renderer.patients[0].marks.dome
    assert dome["right"] <= dome["left"]


def test_lungs_are_the_lightest_part(patient):
    air = {side: patient.density[np.isin(patient.tissue, side)].mean() for side in (RIGHT_LUNG, LEFT_LUNG)}
    assert all(100 < density < 450 for density in air.values())
    for tissue in (anatomy.HEART, anatomy.MEDIASTINUM, anatomy.ABDOMEN):
        assert 900 < patient.density[patient.tissue == tissue].mean() < 1150
    assert patient.density[patient.tissue == RIB].mean() > 1050


def test_contrast_agent_is_gone(renderer):
    patient = renderer.patients[0]
    blood = np.isin(patient.tissue, (anatomy.HEART, anatomy.AORTA))
    assert np.percentile(patient.density[blood], 95) <= 1100  # CT contrast puts it near 1200


def test_a_patient_without_findings_has_no_enlarged_heart(patient):
    assert 0.4 < width(mask(patient, "heart")) / width(mask(patient, "lungs")) < 0.55


def test_patients_differ(renderer):
    films = [patient.seen("frontal")[0] for patient in renderer.patients]
    assert np.abs(films[0] - films[1]).mean() > 3  # mm of water
    assert np.abs(films[1] - films[2]).mean() > 3


def test_wall_distance_is_zero_outside_the_lungs(patient):
    lung = np.isin(patient.tissue, RIGHT_LUNG + LEFT_LUNG)
    assert (patient.wall[lung] > 0).all()
    assert (patient.wall[~lung] == 0).all()
    assert 30 < patient.wall.max() < 90  # mm: half the width of a lung


# --- projection -------------------------------------------------------------------------------------------------------


def test_projection_is_the_sum_along_the_beam(patient):
    expected = patient.density.astype(np.float64).sum(2) / 1000 * DEPTH_MM
    np.testing.assert_allclose(patient.seen("frontal")[0], expected, rtol=1e-5)


def test_masks_are_what_a_ray_meets(patient):
    for name, tissues in REGIONS.items():
        assert np.array_equal(mask(patient, name), np.isin(patient.tissue, tissues).any(2)), name
    for name, tissue in LOBES.items():
        assert np.array_equal(mask(patient, name), (patient.tissue == tissue).any(2)), name
    lungs = np.any([mask(patient, name) for name in LOBES], axis=0)
    assert np.array_equal(lungs, mask(patient, "lungs"))


# --- deformation ------------------------------------------------------------------------------------------------------

PITCH = 5.0
SHAPE = (24, 28, 40)


@pytest.fixture(scope="module")
def volume():
    rng = np.random.default_rng(0)
    density = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5)
    density = np.round(1000 + 900 * density / np.abs(density).max()).astype(np.int16)
    return density, rng.integers(16, size=SHAPE, dtype=np.uint8)


def warp(volume, field):
    return anatomy.warp(*volume, field.astype(np.float32), PITCH, DEPTH_MM, NODE_MM)


def test_warp_by_nothing_is_the_identity(volume):
    out = warp(volume, np.zeros(anatomy.nodes(SHAPE, PITCH).shape))
    assert np.array_equal(out[0], volume[0])
    assert np.array_equal(out[1], volume[1])


@pytest.mark.parametrize("steps", [(2, 0, 0), (0, -3, 0), (0, 0, 4), (1, 2, -3)])
def test_warp_by_whole_voxels_is_a_shift(volume, steps):
    field = np.zeros(anatomy.nodes(SHAPE, PITCH).shape)
    field[:] = np.array(steps) * (PITCH, PITCH, DEPTH_MM)
    inner = tuple(slice(5, n - 5) for n in SHAPE)
    for out, source in zip(warp(volume, field), volume, strict=True):
        assert np.array_equal(out[inner], np.roll(source, [-step for step in steps], (0, 1, 2))[inner])


def test_warp_agrees_with_scipy(volume):
    field = anatomy.roughen(anatomy.nodes(SHAPE, PITCH), np.random.default_rng(1), 6.0)
    voxel = np.array([PITCH, PITCH, DEPTH_MM])
    at = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(float)
    knots = at * voxel.reshape(3, 1, 1, 1) / NODE_MM
    moved = np.stack([at[a] + ndimage.map_coordinates(field[..., a], knots, order=1) / voxel[a] for a in range(3)])
    density, tissue = warp(volume, field)
    inner = np.all([(moved[a] > 1) & (moved[a] < SHAPE[a] - 2) for a in range(3)], axis=0)
    assert inner.mean() > 0.6
    expected = ndimage.map_coordinates(volume[0].astype(float), moved, order=1, mode="nearest")
    assert np.abs(density - expected)[inner].max() <= 1
    nearest = ndimage.map_coordinates(volume[1], moved, order=0, mode="nearest")
    assert (tissue == nearest)[inner].mean() > 0.999  # rounding at exactly half a voxel may differ


def test_deforming_is_reproducible(renderer):
    base = renderer.patients[0]
    again = anatomy.deform(base, 2)
    assert np.array_equal(again.density, renderer.patients[2].density)
    assert np.array_equal(again.tissue, renderer.patients[2].tissue)


def test_scale_heart_changes_the_heart_only(renderer):
    patient = renderer.patients[0]
    at = anatomy.nodes(patient.tissue.shape, patient.pitch)
    widths, areas = [], []
    for factor in (0.9, 1.0, 1.2, 1.4):
        bent = patient.bent(anatomy.scale_heart(at, patient.marks, patient.spacing, factor))
        widths.append(width(mask(bent, "heart")))
        areas.append(mask(bent, "heart").sum())
        assert np.array_equal(bent.tissue[:8], patient.tissue[:8])  # the lung tops, far from the heart
    assert widths == sorted(widths)
    assert areas == sorted(areas)
    assert widths[1] == width(mask(patient, "heart"))
    assert areas[-1] > 1.25 * areas[1]


def test_move_diaphragm_moves_the_side_it_is_told(renderer):
    patient = renderer.patients[0]
    at = anatomy.nodes(patient.tissue.shape, patient.pitch)
    bent = patient.bent(anatomy.move_diaphragm(at, patient.marks, patient.spacing, -25.0, 0.0))
    before, after = patient.marks, anatomy.landmarks(bent.tissue)
    assert before.dome["right"] - after.dome["right"] >= 3  # rows of 5 mm
    assert abs(before.dome["left"] - after.dome["left"]) <= 1
    assert after.lung_top == before.lung_top
