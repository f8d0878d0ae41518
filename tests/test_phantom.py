import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from rrg_utils.data import anatomy, lesions, phantom
from rrg_utils.data.abnormalities import ABNORMALITIES, REGION_OF
from rrg_utils.data.anatomy import FILM_MM, LOBES, REGIONS, RIB
from rrg_utils.data.mesh import parse_mesh
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.errors import RRGError

MM = FILM_MM / 64  # one pixel


@pytest.fixture(scope="module")
def fine():
    """For small findings, of which the shared renderer's pixels of 5 mm leave a handful."""
    return PhantomRenderer(96, patients=3)


def same(one, other):
    return (
        np.array_equal(one.image, other.image)
        and all(np.array_equal(one.regions[name], other.regions[name]) for name in REGIONS)
        and all(np.array_equal(one.lobes[name], other.lobes[name]) for name in LOBES)
        and len(one.lesions) == len(other.lesions)
        and all(
            (a.finding, a.name, a.box) == (b.finding, b.name, b.box) and np.array_equal(a.mask, b.mask)
            for a, b in zip(one.lesions, other.lesions, strict=True)
        )
    )


def change(renderer, report, seed=0):
    """The picture of a report and |difference| to the one without any of its findings."""
    film = renderer.render(report, seed=seed)
    return film, np.abs(film.image - renderer.render(report, seed=seed, without=report.mesh).image)


def midline(film):
    return np.nonzero(film.regions["vertebrae"].any(0))[0].mean()


def centre(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


# --- the film ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["A", "B", "C", "D", "E"])
def test_a_film_looks_like_a_chest(renderer, study, id):
    film = renderer.render(study(id=id))
    assert film.image.dtype == np.float32
    assert film.image.shape == (64, 64)
    assert 0 <= film.image.min() < 0.25
    assert 0.75 < film.image.max() <= 1
    assert tuple(film.regions) == tuple(REGIONS)
    assert tuple(film.lobes) == tuple(LOBES)
    assert film.lesions == []
    lungs, bowels, middle = (film.regions[name] for name in ("lungs", "abdomen", "mediastinum"))
    air = film.image[lungs & ~bowels & ~middle & ~film.regions["heart"] & ~film.regions["vertebrae"]].mean()
    assert film.image[middle].mean() > air + 0.1
    assert film.image[bowels & ~lungs].mean() > air + 0.1
    heart = np.argwhere(film.regions["heart"]).mean(0)
    assert heart[1] > midline(film)  # on the viewer's right


@pytest.mark.parametrize("id", ["A", "B", "C", "D", "E"])
def test_the_marker_is_beside_the_left_shoulder(renderer, study, id):
    letter = np.argwhere(renderer.render(study(id=id)).image == np.float32(0.97))
    assert len(letter) >= 5
    assert letter[:, 0].max() < 64 * 0.25
    assert letter[:, 1].min() > 64 * 0.8


@pytest.mark.parametrize("id", ["A", "B", "C", "D", "E"])
def test_ribs_show_through_the_heart(renderer, study, id):
    """Compared with the same patients with ribs of soft tissue: a rib must not drown in the brightness of the heart."""
    soft = copy.copy(renderer)
    soft.patients = tuple(
        replace(p, density=np.where(p.tissue == RIB, np.minimum(p.density, 1040), p.density).astype(np.int16))
        for p in renderer.patients
    )
    film = renderer.render(study(id=id))
    brighter = film.image - soft.render(study(id=id)).image
    heart, ribs, lungs = (film.regions[name] for name in ("heart", "ribs", "lungs"))
    assert brighter[heart & ribs].mean() > 0.7 * brighter[lungs & ribs & ~heart].mean() > 0.002
    assert brighter[heart & ~ribs].mean() < 0


# --- the same input gives the same picture ----------------------------------------------------------------------------

FINDINGS = ("Pulmonary Edema/mild", "Nodule/lung/left", "Cardiomegaly/mild", "Catheters, Indwelling/right")


def test_same_input_same_picture(renderer, study):
    report = study(*FINDINGS)
    first = renderer.render(report)
    assert same(first, renderer.render(report))
    assert same(first, PhantomRenderer(64, patients=3).render(report))
    for other in (renderer.render(report, seed=1), renderer.render(study(*FINDINGS, id="B"))):
        assert np.abs(first.image - other.image).mean() > 0.01


def test_text_and_images_of_the_report_do_not_matter(renderer, study):
    report = study(*FINDINGS)
    other = replace(report, findings="Large right mass.", impression="Mass.", images=("1", "2"))
    assert same(renderer.render(report), renderer.render(other))


def test_other_process_same_picture(renderer, study):
    code = f"""
import hashlib
from rrg_utils.data.mesh import parse_mesh
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import Report
report = Report("A", "", "", "", "", tuple(map(parse_mesh, {FINDINGS})), ())
film = PhantomRenderer(64, patients=3).render(report)
print(hash("seeded"), film.image.tobytes().hex(), [lesion.box for lesion in film.lesions])
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    film = renderer.render(study(*FINDINGS))
    assert run.stdout.split(maxsplit=1)[1].strip() == f"{film.image.tobytes().hex()} {[x.box for x in film.lesions]}"


def test_threads_do_not_disturb_each_other(renderer, study):
    studies = [study(*FINDINGS, id=f"{number}") for number in range(12)]
    alone = [renderer.render(report) for report in studies]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(renderer.render, studies))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_findings_do_not_choose_patient_pose_or_exposure(renderer, study):
    """The same id with and without drawn findings is the same person in the same pose: nothing gives them away."""
    plain = renderer.render(study(id="X"))
    ill = renderer.render(study("Nodule/lung/left", "Sutures", id="X"))
    assert all(np.array_equal(plain.regions[name], ill.regions[name]) for name in REGIONS)
    assert np.array_equal(plain.image == np.float32(0.97), ill.image == np.float32(0.97))  # marker


# --- the counterfactual -----------------------------------------------------------------------------------------------


def test_nothing_left_is_the_film_of_an_empty_annotation(renderer, study):
    report = study(*FINDINGS, "Pneumothorax/left", "Scoliosis/thoracic vertebrae/mild")
    assert same(renderer.render(report, without=report.mesh), renderer.render(replace(report, mesh=())))


def test_a_finding_is_left_out_by_itself_by_its_text_or_by_its_class(renderer, study):
    report = study(*FINDINGS)
    nodule = report.mesh[1]
    films = [renderer.render(report, without=[which]) for which in (nodule, str(nodule), "nodule")]
    assert same(films[0], films[1])
    assert same(films[0], films[2])
    assert [lesion.name for lesion in films[0].lesions] == ["edema", "cardiomegaly", "catheter"]


def test_a_class_leaves_out_all_its_findings(renderer, study):
    report = study("Nodule/lung/left", "Pleural Effusion/right", "Nodule/lung/right")
    assert [lesion.name for lesion in renderer.render(report, without=["nodule"]).lesions] == ["pleural effusion"]
    one = renderer.render(report, without=["Nodule/lung/left"])
    assert [str(lesion.finding) for lesion in one.lesions] == ["Pleural Effusion/right", "Nodule/lung/right"]


def test_unknown_names_are_refused(renderer, study):
    with pytest.raises(RRGError, match=r"'mass effect'.*A"):
        renderer.render(study("Mass/lung/left"), without=["mass effect"])
    with pytest.raises(RRGError, match=r"oblique.*frontal, lateral"):
        renderer.render(study(), view="oblique")
    with pytest.raises(RRGError, match=r"'clinic'.*standard, portable"):
        PhantomRenderer(64, patients=3, hospital="clinic")
    with pytest.raises(RRGError, match="size=16"):
        PhantomRenderer(16)
    with pytest.raises(RRGError, match="conspicuity=-1"):
        PhantomRenderer(64, -1)


DRAWN = [name for name in ABNORMALITIES if name in lesions.DRAWINGS and name not in lesions.BENDS]


@pytest.mark.parametrize("name", DRAWN)
def test_leaving_out_a_drawn_finding_moves_no_other(renderer, study, annotations, name):
    others = [parse_mesh(text) for text in (*FINDINGS, "Cicatrix/lung/apex/left")]
    report = study(annotations[name][0], *(finding for finding in others if finding != annotations[name][0]))
    film = renderer.render(report)
    without = renderer.render(report, without=[report.mesh[0]])
    assert len(without.lesions) == len(film.lesions) - 1
    for before, after in zip(film.lesions[1:], without.lesions, strict=True):
        assert before.finding == after.finding
        assert np.array_equal(before.mask, after.mask)
    assert all(np.array_equal(film.regions[region], without.regions[region]) for region in REGIONS)


# The film subtracts a share of its own blur (sigma 28 mm, cut off at 2.5 sigma: 14 pixels here) and adds scatter
# (18 mm: 9 pixels). So a finding dims its surroundings a little, as automatic exposure does; nothing reaches further
# than 23 pixels along rows or columns. One and a half sigma from a finding of a few cm, a tenth of it is left.
BLUR_PIXELS = 14 + 9


@pytest.mark.parametrize(
    "finding", ["Nodule/lung/base/left", "Calcified Granuloma/lung/upper lobe/right", "Mass/lung/right"]
)
@pytest.mark.parametrize("id", ["A", "B", "C"])
def test_far_from_a_lesion_nothing_changes(renderer, study, finding, id):
    film, difference = change(renderer, study(finding, id=id))
    away = ndimage.distance_transform_cdt(~film.lesions[0].mask, metric="chessboard")
    far = away > BLUR_PIXELS + 4  # the mask ends where a fifth of the peak remains; the lesion a few pixels further on
    assert far.sum() > 400
    assert difference[far].max() == 0


COMPACT = [name for name in DRAWN if name not in ("pleural effusion", "pneumothorax", "edema", "pacemaker")]


@pytest.mark.parametrize("name", COMPACT)
def test_a_lesion_dims_its_surroundings_only_a_little(renderer, study, annotations, name):
    for number, finding in enumerate(annotations[name][:3]):
        film, difference = change(renderer, study(finding, id=f"{number}"))
        away = ndimage.distance_transform_edt(~film.lesions[0].mask) * MM
        assert difference[away > 40].max(initial=0) < 0.02


# --- what the classes look like ---------------------------------------------------------------------------------------


WIRES = ("catheter", "tube", "surgical hardware")
DEVICES = (*WIRES, "pacemaker")  # their regions are where they work; wires lead there from outside


@pytest.mark.parametrize("name", ABNORMALITIES)
def test_every_class_shows(renderer, study, annotations, name):
    """The most visible of a few annotations is easily seen, the least still measurable (wires fill little of 5 mm).

    Each lies in the regions of its class.
    """
    peaks = []
    for number, finding in enumerate(annotations[name][:6]):
        film, difference = change(renderer, study(finding, id=f"{number}"))
        (lesion,) = film.lesions
        assert (lesion.finding, lesion.name) == (finding, name)
        rows, columns = np.nonzero(lesion.mask)
        assert lesion.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert difference[lesion.mask].max() > 0.5 * difference.max()
        region = np.any([film.regions[part] for part in REGION_OF[name]], axis=0)
        assert name in DEVICES or (lesion.mask & region).sum() > 0.5 * lesion.mask.sum()
        peaks.append(difference.max())
    assert min(peaks) > 0.01
    assert max(peaks) > (0.025 if name in WIRES else 0.03)


SIDED = [name for name in DRAWN if name not in ("degenerative spine", "surgical hardware")]  # those sit at the midline


@pytest.mark.parametrize("name", SIDED)
def test_sided_findings_lie_on_their_side(renderer, study, annotations, name):
    sided = [finding for finding in annotations[name] if finding.side in ("left", "right")][:8]
    for number, finding in enumerate(sided):
        film = renderer.render(study(finding, id=f"{number}"))
        x, _ = centre(film.lesions[0].box)
        assert (x < midline(film)) == (finding.side == "right"), finding
    mirror = {"left": "right", "right": "left"}
    if not sided or {"lingula", "middle lobe"} & set(sided[0].anatomy):
        return
    film = renderer.render(study(replace(sided[0], side=mirror[sided[0].side])))
    assert (centre(film.lesions[0].box)[0] < midline(film)) == (sided[0].side == "left")


@pytest.mark.parametrize("lobe", LOBES)
@pytest.mark.parametrize("name", ["Consolidation", "Pneumonia", "Nodule"])
def test_a_lesion_stays_in_its_lobe(renderer, study, name, lobe):
    side, where = lobe.split(" ", 1)
    for number in range(5):
        film = renderer.render(study(f"{name}/lung/{where}/{side}", id=f"{number}"))
        mask = film.lesions[0].mask
        assert mask.any()
        assert (mask & film.lobes[lobe]).sum() > 0.85 * mask.sum()  # the edges blur over the border on pixels of 5 mm


@pytest.mark.parametrize("side", ["left", "right"])
def test_effusion_fills_the_bottom_of_its_lung(fine, study, side):
    film = fine.render(study(f"Pleural Effusion/{side}/small"))
    lung = np.any([film.lobes[lobe] for lobe in LOBES if lobe.startswith(side)], axis=0)
    rows = np.nonzero(lung.any(1))[0]
    lower = rows[0] + (rows[-1] - rows[0]) * 2 / 3
    mask = film.lesions[0].mask
    assert np.argwhere(mask)[:, 0].mean() > lower
    assert (mask & lung).sum() > 0.9 * mask.sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_pneumothorax_darkens_the_apex(renderer, study, side):
    report = study(f"Pneumothorax/{side}/severe")
    film = renderer.render(report)
    darker = renderer.render(report, without=report.mesh).image - film.image
    upper = film.lobes[f"{side} upper lobe"] & film.lesions[0].mask
    top = upper & (np.arange(64)[:, None] < np.nonzero(upper.any(1))[0][0] + 6)
    assert darker[top].mean() > 0.02


@pytest.mark.parametrize("name", ["calcified aorta", "calcified lymph node", "granuloma", "nodule", "mass", "valve"])
def test_what_is_dense_is_bright(renderer, study, annotations, name):
    for number, finding in enumerate(annotations[name][:4]):
        report = study(finding, id=f"{number}")
        film = renderer.render(report)
        brighter = film.image - renderer.render(report, without=[name]).image
        assert brighter[film.lesions[0].mask].mean() > 0


def test_emphysema_darkens_the_lungs(renderer, study):
    """Compared at one depth of the lungs, away from the lowered diaphragm."""
    report = study("Pulmonary Emphysema/severe")
    film = renderer.render(report)
    darker = renderer.render(report, without=report.mesh).image - film.image
    upper = (film.lobes["right upper lobe"] | film.lobes["left upper lobe"]) & ~film.regions["mediastinum"]
    assert darker[upper & (np.arange(64)[:, None] < 25)].mean() > 0.01


@pytest.mark.parametrize("id", ["A", "B", "C", "D"])
def test_severity_shows(renderer, study, id):
    def area(finding, of=lambda film: film.lesions[0].mask):
        return of(renderer.render(study(finding, id=id))).sum()

    def heart(film):
        return film.regions["heart"]

    grades = [area(f"Cardiomegaly/{grade}", heart) for grade in ("mild", "moderate", "severe")]
    assert renderer.render(study(id=id)).regions["heart"].sum() < grades[0] < grades[1] < grades[2]
    for finding in ("Pleural Effusion/left", "Pleural Effusion/right", "Pneumothorax/left"):
        assert area(f"{finding}/mild") * 1.3 < area(f"{finding}/severe")
    for finding in ("Pulmonary Edema", "Cardiomegaly", "Scoliosis/thoracic vertebrae", "Pleural Effusion/left"):
        mild, severe = (change(renderer, study(f"{finding}/{grade}", id=id))[1].mean() for grade in ("mild", "severe"))
        assert mild * 1.2 < severe


def test_hyperinflation_and_hypoinflation_move_the_diaphragm_apart(renderer, study):
    def base(*findings):
        lungs = renderer.render(study(*findings)).regions["lungs"]
        return np.nonzero(lungs.any(1))[0][-1]

    assert base("Lung/hypoinflation") < base() < base("Lung/hyperdistention")


def test_a_strongly_bent_patient_still_shows_its_lesions(renderer, study):
    bent = ("Lung/hyperdistention", "Lung, Hyperlucent", "Pulmonary Emphysema", "Diaphragm/bilateral/flattened")
    for number in range(30):
        film = renderer.render(study("Cicatrix/lung/middle lobe/right", *bent, id=f"{number}"))
        assert film.lesions[0].box is not None


# --- conspicuity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ABNORMALITIES)
def test_conspicuity_makes_findings_easier_to_see(renderer, study, annotations, name):
    means = []
    for conspicuity in (0.0, 0.5, 1.0, 1.5):
        other = PhantomRenderer(64, conspicuity, patients=3)
        changes = [change(other, study(f, id=f"{n}"))[1] for n, f in enumerate(annotations[name][:4])]
        means.append(np.mean(changes))
    assert means[0] == 0
    assert 0 < means[1] < means[2] <= means[3] * 1.02  # a filled voxel cannot be filled more


# --- two views --------------------------------------------------------------------------------------------------------

SOLID = ("Consolidation/lung/lower lobe/left", "Nodule/lung/upper lobe/right", "Pleural Effusion/right/moderate")


def test_views_are_those_rendered_alone(renderer, study):
    report = study(*SOLID)
    films = renderer.render_views(report)
    assert list(films) == ["frontal", "lateral"]
    assert all(same(film, renderer.render(report, view)) for view, film in films.items())


def test_a_lateral_film_faces_left(renderer, study):
    for number in range(5):
        film = renderer.render(study(id=f"{number}"), "lateral")
        heart, spine = (np.argwhere(film.regions[name])[:, 1].mean() for name in ("heart", "vertebrae"))
        assert heart < spine - 8
        lung = film.regions["lungs"] & ~film.regions["heart"] & ~film.regions["vertebrae"]
        assert film.image[film.regions["heart"]].mean() > film.image[lung].mean()


@pytest.mark.parametrize("annotation", [*SOLID, "Implanted Medical Device/left", "Mass/lung/middle lobe/right"])
def test_both_views_show_a_finding_at_one_height(fine, study, annotation):
    """Seen from front and side, a thing keeps its height but for the pose of each film."""
    for number in range(4):
        films = fine.render_views(study(annotation, id=f"{number}"))
        plain = fine.render_views(study(annotation, id=f"{number}"), without=[annotation])
        heights = {}
        for view, film in films.items():
            (lesion,) = film.lesions
            assert lesion.box is not None
            assert np.abs(film.image - plain[view].image)[lesion.mask].max() > 0.01
            top, bottom = (np.flatnonzero(film.regions["lungs"].any(1))[k] for k in (0, -1))
            heights[view] = (np.argwhere(lesion.mask)[:, 0].mean() - top) / (bottom - top)
        assert abs(heights["frontal"] - heights["lateral"]) < 0.15


def test_line_integrals_of_a_finding_have_one_volume(renderer):
    """What a finding adds, summed over the film and times the area of a pixel, is its mass in both projections."""
    patient = renderer.patients[1]
    mass = {}
    for view, across in (("frontal", patient.pitch), ("lateral", patient.spacing[2])):
        film = np.zeros(patient.seen(view)[0].shape, np.float32)
        for annotation, name in (("Consolidation/lung/lower lobe/left", "consolidation"), ("Tube, Inserted", "tube")):
            for insert in lesions.DRAWINGS[name](patient, parse_mesh(annotation), np.random.default_rng(0), 1.0):
                phantom._project(insert, film, patient, view, 1.0)
            mass[view, name] = film.sum() * patient.pitch * across
    for name in ("consolidation", "tube"):
        assert mass["lateral", name] == pytest.approx(mass["frontal", name], rel=0.02)


def test_lateral_lesions_lie_in_their_lobe(fine, study):
    for lobe in ("right upper lobe", "left lower lobe"):
        side, where = lobe.split(" ", 1)
        for number in range(4):
            film = fine.render(study(f"Nodule/lung/{where}/{side}", id=f"{number}"), "lateral")
            mask = film.lesions[0].mask
            assert (mask & film.lobes[lobe]).sum() > 0.8 * mask.sum()


# --- the other hospital -----------------------------------------------------------------------------------------------


def test_the_other_hospital_magnifies_the_heart(study):
    """The same patients in bed: the heart is wider against the chest, the diaphragm higher."""
    wide, high = {}, {}
    for name in ("standard", "portable"):
        room = PhantomRenderer(64, patients=8, hospital=name)
        films = [room.render(study(id=f"{k}")) for k in range(12)]
        wide[name] = np.mean(
            [np.divide(*(np.ptp(np.flatnonzero(f.regions[r].any(0))) for r in ("heart", "lungs"))) for f in films]
        )
        high[name] = np.mean([np.argwhere(f.regions["diaphragm"])[:, 0].mean() for f in films])
    assert wide["portable"] > 1.02 * wide["standard"]
    assert high["portable"] < high["standard"]


@pytest.mark.parametrize("name", lesions.BENDS)
def test_a_bend_never_folds_the_body(renderer, annotations, name):
    """Along each axis, points of the bent patient keep their order: a fold would show anatomy twice."""
    nodes = anatomy.NODE_MM
    for number, finding in enumerate(annotations[name][:25]):
        patient = renderer.patients[number % len(renderer.patients)]
        field = lesions.bend(name, patient, finding, np.random.default_rng(number), 1.0)
        for axis in range(3):
            assert (1 + np.diff(field[..., axis], axis=axis) / nodes).min() > 0.2
