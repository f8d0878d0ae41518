"""Abnormalities drawn in three dimensions: what each adds to a patient's density, or how it bends the anatomy.

A drawing function takes (patient, finding, rng, strength) and yields what it inserts: `Blob`s (a change of density in a
box of voxels) or `Wire`s (thin metal along a line). A bending function returns a displacement field. Where
radiologists' boxes are at hand (`rrg_utils.data.priors`), size, aspect and place are those of a box drawn at random
among those whose centre projects into the annotated lobe and side; how deep in the lung is random. The other sizes and
all contrasts are ours (mm, and density with water = 1000), chosen by looking at the rendered films.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy import ndimage

from rrg_utils.data import anatomy, priors
from rrg_utils.data.anatomy import (
    AIRWAY,
    AORTA,
    BONE,
    FILM_MM,
    LEFT_LUNG,
    LLL,
    LUL,
    RIB,
    RIGHT_LUNG,
    RLL,
    RML,
    RUL,
    VERTEBRA,
    Patient,
)
from rrg_utils.data.mesh import Finding

SIDES = ("right", "left")
_SEVERITY = {"mild": 0.75, "small": 0.75, "borderline": 0.55, "moderate": 1.15, "severe": 1.4, "large": 1.4}


@dataclass(frozen=True)
class Blob:
    """A change of density (float32, water = 1000) in the box of voxels that starts at `origin`."""

    origin: tuple[int, int, int]
    change: np.ndarray


@dataclass(frozen=True)
class Wire:
    """Thin metal along a polyline: points (n, 3) in mm, thickness in mm of water that it equals on the film."""

    points: np.ndarray
    water_mm: float
    radius: float


def union(inserts: Iterable[Blob | Wire]) -> Iterator[Blob | Wire]:
    """The inserts of one finding, overlapping blobs joined: where two overlap the stronger change counts, not the sum,
    because tissue cannot be filled twice."""
    blobs: list[Blob] = []
    for insert in inserts:
        if isinstance(insert, Wire):
            yield insert
            continue
        apart = []
        for other in blobs:
            if _overlap(insert, other):
                insert = _joined(insert, other)
            else:
                apart.append(other)
        blobs = [*apart, insert]
    yield from blobs


def _overlap(one: Blob, other: Blob) -> bool:
    return all(
        a < b + m and b < a + n
        for a, n, b, m in zip(one.origin, one.change.shape, other.origin, other.change.shape, strict=True)
    )


def _joined(one: Blob, other: Blob) -> Blob:
    origin = tuple(map(min, one.origin, other.origin))
    stop = [
        max(a + n, b + m)
        for a, n, b, m in zip(one.origin, one.change.shape, other.origin, other.change.shape, strict=True)
    ]
    change = np.zeros([z - a for a, z in zip(origin, stop, strict=True)], np.float32)
    for blob in (one, other):
        there = change[
            tuple(slice(b - a, b - a + n) for a, b, n in zip(origin, blob.origin, blob.change.shape, strict=True))
        ]
        np.copyto(there, blob.change, where=np.abs(blob.change) > np.abs(there))
    return Blob(origin, change)


Drawing = Callable[[Patient, Finding, np.random.Generator, float], Iterator[Blob | Wire]]


def severity(finding: Finding) -> float:
    """A factor on size and contrast: below 1 for mild or small, above 1 for moderate, severe or large."""
    words = [finding.severity, *finding.qualifiers]
    return next((_SEVERITY[word] for word in words if word in _SEVERITY), 1.0)


def part(finding: Finding) -> tuple[float, float]:
    """Which part of the radiologists' boxes, by size, a severity stands for (0 smallest, 1 largest): ours."""
    grade = severity(finding)
    return (0.0, 0.3) if grade < 1 else (0.0, 1.0) if grade == 1 else (0.4, 0.7) if grade < 1.3 else (0.75, 1.0)


def sides(finding: Finding, rng: np.random.Generator) -> tuple[str, ...]:
    """The sides to draw on; a side that the annotation leaves open is drawn at random."""
    drawn = SIDES[rng.integers(2)]  # always drawn, so that the random stream does not depend on the annotation
    if finding.side == "bilateral":
        return SIDES
    return (finding.side,) if finding.side in SIDES else (drawn,)


# --- places -----------------------------------------------------------------------------------------------------------

_LOBES = {
    ("upper lobe", "right"): (RUL,),
    ("upper lobe", "left"): (LUL,),
    ("lower lobe", "right"): (RLL,),
    ("lower lobe", "left"): (LLL,),
    ("middle lobe", "right"): (RML,),
    ("middle lobe", "left"): (LUL,),
    ("lingula", "left"): (LUL,),
    ("retrocardiac", "left"): (LLL,),
}
# Heights within a lung, from 0 (apex) to 1 (costophrenic recess), for words that are not lobes.
_HEIGHTS = {"apex": (0.03, 0.22), "base": (0.6, 0.88), "hilum": (0.32, 0.55), "lingula": (0.5, 0.75)}


def zone(
    finding: Finding, side: str, height: tuple[float, float] = (0.1, 0.8)
) -> tuple[tuple[int, ...], tuple[float, float]]:
    """Tissue classes and range of heights (0 apex, 1 base) in which the annotation places a lung finding.

    `height` is the range where the annotation names none.
    """
    words = {*finding.anatomy, *finding.qualifiers}
    classes = RIGHT_LUNG if side == "right" else LEFT_LUNG
    for word in sorted(words):
        classes = _LOBES.get((word, side), classes)
        height = _HEIGHTS.get(word, height)
    return classes, height


def lung_side(finding: Finding, rng: np.random.Generator) -> tuple[str, ...]:
    """As `sides`, but lobes that only one lung has decide the side."""
    words = {*finding.anatomy, *finding.qualifiers}
    drawn = sides(finding, rng)
    if "middle lobe" in words and finding.side is None:
        return ("right",)
    if words & {"lingula", "retrocardiac"}:
        return ("left",)
    return drawn


def place(
    patient: Patient,
    finding: Finding,
    side: str,
    rng: np.random.Generator,
    margin: float = 6.0,
    near: tuple[float, float] | None = None,
) -> tuple[np.ndarray, tuple[int, ...]]:
    """A lung voxel where the annotation puts the finding, at least `margin` mm inside; and the classes of its lobe.

    near: (row, column) in mm on the film: of 400 voxels drawn from the lobe the nearest in projection is taken, so that
    its depth is random; without it the first.
    """
    classes, (high, low) = zone(finding, side)
    marks = patient.marks
    top, bottom = marks.lung_top[side], marks.lung_bottom[side]
    voxels = patient.voxels(classes)
    draws = voxels[rng.integers(len(voxels), size=400)]
    at = np.stack(np.unravel_index(draws, patient.tissue.shape), axis=1)
    height = (at[:, 0] - top) / (bottom - top)
    good = (height >= high) & (height <= low) & (patient.wall.reshape(-1)[draws] >= margin)
    if not good.any():  # a thin lobe: the deepest voxel of the draw that lies highest in the list
        good = patient.wall.reshape(-1)[draws] >= patient.wall.reshape(-1)[draws].max()
    if near is None:
        row, column, depth = at[good.argmax()]
    else:
        away = ((at[:, :2] * patient.pitch - near) ** 2).sum(1)
        row, column, depth = at[np.where(good, away, np.inf).argmin()]
    # A finding that bends the anatomy may have moved the lobe, or the lung, away from this voxel.
    lung = RIGHT_LUNG if side == "right" else LEFT_LUNG
    if patient.tissue[row, column, depth] not in classes:
        classes = lung
        rows = np.flatnonzero(np.isin(patient.tissue[:, column, depth], lung))
        if len(rows):
            row = rows[np.abs(rows - row).argmin()]
    return np.array([row, column, depth]) * patient.spacing, classes


def lung_frame(patient: Patient) -> tuple[float, float, float, float]:
    """Top, left, height and width (mm) of both lungs on the film, before findings bent the anatomy."""
    lungs = (_plain(patient).seen("frontal")[1] >> anatomy.MASKS.index("lungs")) & 1 == 1
    rows, cols = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    pitch = patient.pitch
    return rows[0] * pitch, cols[0] * pitch, (rows[-1] + 1 - rows[0]) * pitch, (cols[-1] + 1 - cols[0]) * pitch


def _plain(patient: Patient) -> Patient:
    return patient if patient.straight is None else patient.straight


def place_box(
    patient: Patient, finding: Finding, side: str, rng: np.random.Generator, name: str, margin: float = 6.0
) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """As `place`, at the centre of a radiologist's box of class `name`; also the (height, width) of the box in mm."""
    plain = _plain(patient)
    top, left, tall, wide = lung_frame(patient)
    marks, pitch = plain.marks, patient.pitch
    # A box knows its height; only a word of the annotation narrows it.
    classes, (high, low) = zone(finding, side, height=(0.0, 1.0))
    lobes = np.bitwise_or.reduce(anatomy.CLASS_BITS[list(classes)]) & ~np.uint32(1 << anatomy.MASKS.index("lungs"))

    def inside(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        row, col = ((top + y * tall) / pitch).astype(int), ((left + x * wide) / pitch).astype(int)
        height = (row - marks.lung_top[side]) / (marks.lung_bottom[side] - marks.lung_top[side])
        last = len(plain.seen("frontal")[1]) - 1
        bits = plain.seen("frontal")[1][np.clip(row, 0, last), np.clip(col, 0, last)]
        return (bits & lobes != 0) & (height >= high) & (height <= low)

    found = priors.sample(name, side, rng, inside, part(finding))
    x, y = found.centre
    near = (top + y * tall, left + x * wide) if found.placed else None
    centre, classes = place(patient, finding, side, rng, margin, near)
    return centre, classes, np.array([found.height * tall, found.width * wide])


def box(patient: Patient, centre: np.ndarray, reach: np.ndarray | float) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """The voxels within `reach` mm of a point, and their offsets from it in mm (three broadcastable arrays)."""
    spacing = patient.spacing
    low = np.maximum(np.floor((centre - reach) / spacing), 0).astype(int)
    high = np.minimum(np.ceil((centre + reach) / spacing) + 1, patient.tissue.shape).astype(int)
    high = np.maximum(high, low + 1)
    window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    offsets = []
    for axis in range(3):
        line = np.arange(low[axis], high[axis], dtype=np.float32) * spacing[axis] - np.float32(centre[axis])
        offsets.append(line.reshape([-1 if a == axis else 1 for a in range(3)]))
    return window, offsets


@lru_cache(maxsize=1)
def _noise() -> np.ndarray:
    """Periodic smooth noise (64, 64, 64) with unit variance and a correlation length of about 4 voxels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal((64, 64, 64)), 2.0, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


def texture(shape: tuple[int, ...], rng: np.random.Generator, coarse: int = 1) -> np.ndarray:
    """A random window of smooth unit-variance noise; `coarse` repeats voxels to make it coarser."""
    start = rng.integers(64, size=3)
    index = [((np.arange(n) // coarse) + s) % 64 for n, s in zip(shape, start, strict=True)]
    return _noise()[np.ix_(*index)]


def _fill(patient: Patient, window: tuple[slice, ...], alpha: np.ndarray, target: float) -> Blob:
    """Replace tissue by density `target` with the share `alpha`; what is denser already stays as it is."""
    density = patient.density[window].astype(np.float32)
    change = alpha * np.maximum(target - density, 0)
    return Blob(tuple(s.start for s in window), change.astype(np.float32))


def _within(patient: Patient, window: tuple[slice, ...], classes: tuple[int, ...]) -> np.ndarray:
    table = np.zeros(16, bool)
    table[list(classes)] = True
    return table[patient.tissue[window]]


def _step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


# --- lung findings ----------------------------------------------------------------------------------------------------


def _cloud(patient, centre, radii, classes, rng, share) -> Blob:
    """An ill-defined cloud: an ellipsoid whose edge is broken up by noise, inside the given lobes."""
    window, (r, c, d) = box(patient, centre, radii * 1.4)
    far = np.sqrt((r / radii[0]) ** 2 + (c / radii[1]) ** 2 + (d / radii[2]) ** 2)
    far = far + 0.28 * texture(far.shape, rng)
    alpha = _step((1.2 - far) / 0.7) * share * _within(patient, window, classes)
    return _fill(patient, window, alpha, 1000)


def consolidation(patient, finding, rng, strength, share=0.75, name="consolidation") -> Iterator[Blob]:
    """Airspace filled with fluid: a cloud as large as the radiologist's box with one to three denser ones inside it,
    confined to the lobe."""
    grade = severity(finding) ** 0.5
    for side in lung_side(finding, rng):
        centre, classes, size = place_box(patient, finding, side, rng, name)
        depth = np.clip(rng.uniform(0.6, 1.0) * np.sqrt(size.prod()) / 2, 10, 40)
        half = np.array([*size / 2, depth]) * 1.1  # a cloud is seen to a little inside its radii
        yield _cloud(patient, centre, half, classes, rng, min(1.0, 0.8 * share * strength * grade))
        for _ in range(rng.integers(1, 4)):
            scale = rng.uniform(0.4, 0.7)
            shift = rng.uniform(-1, 1, 3) * (1 - scale) * half * 0.8
            dense = min(1.0, 1.2 * share * strength * grade)
            yield _cloud(patient, centre + shift, half * scale, classes, rng, dense)


def opacity(patient, finding, rng, strength) -> Iterator[Blob]:
    """A nonspecific opacity: a fainter cloud, a streak, or a diffuse interstitial veil, as the annotation says."""
    words = {*finding.anatomy, *finding.qualifiers}
    if words & {"streaky", "linear"}:
        yield from atelectasis(patient, finding, rng, strength * 0.8)
    elif "interstitial" in words or "diffuse" in words:
        yield from markings(patient, finding, rng, strength * 1.2)
    elif words & {"round", "nodular"}:
        yield from nodule(patient, finding, rng, strength)
    else:
        yield from consolidation(patient, finding, rng, strength, share=0.5, name="opacity")


def _plate(patient, centre, length, thick, tilt, classes, rng, share) -> Blob:
    """A plate of collapsed or scarred lung, nearly edge-on; half its length and thickness in mm, tilt in radians."""
    window, (r, c, d) = box(patient, centre, length + thick)
    lean = rng.uniform(-0.25, 0.25)
    across = r * np.cos(tilt) + c * np.sin(tilt) + d * lean
    along = -r * np.sin(tilt) + c * np.cos(tilt)
    bend = across + 0.6 * thick * texture(np.broadcast_shapes(r.shape, c.shape, d.shape), rng, coarse=2)
    alpha = _step(1.5 - np.abs(bend) / thick) * _step((1.1 - np.hypot(along, d) / length) / 0.3)
    return _fill(patient, window, alpha * share * _within(patient, window, classes), 1000)


def _plates(patient, centre, size, thick, count, classes, rng, share) -> Iterator[Blob]:
    """Plates that fill a box of (height, width) mm: the first from corner to corner, the others shorter within it."""
    height, width = np.maximum(1.25 * size - 2 * thick, 2 * thick)  # the ends of a plate fade
    steep = np.arctan2(height, width)
    for number in range(count):
        sign = 1 - 2 * rng.integers(2)
        tilt, length = sign * steep, np.hypot(height, width) / 2
        shift = np.zeros(3)
        if number:
            tilt, length = tilt * rng.uniform(0.2, 1), length * (scale := rng.uniform(0.4, 0.75))
            shift[:2] = rng.uniform(-0.5, 0.5, 2) * (height, width) * (1 - scale)
        yield _plate(patient, centre + shift, length, thick, tilt, classes, rng, share)


def atelectasis(patient, finding, rng, strength) -> Iterator[Blob]:
    """Subsegmental collapse: one to three plates 7-13 mm thick, at the bases unless the annotation says otherwise."""
    if not finding.anatomy:
        finding = Finding(finding.name, ("lung", "base"), finding.side, finding.severity, finding.qualifiers)
    for side in lung_side(finding, rng):
        centre, classes, size = place_box(patient, finding, side, rng, "atelectasis")
        thick = rng.uniform(3.5, 6.5) * severity(finding) ** 0.5
        yield from _plates(patient, centre, size, thick, rng.integers(1, 4), classes, rng, min(1.0, 0.9 * strength))


def scar(patient, finding, rng, strength) -> Iterator[Blob]:
    """A scar: one or two thin bands."""
    for side in lung_side(finding, rng):
        centre, classes, size = place_box(patient, finding, side, rng, "scar", margin=4)
        thick = rng.uniform(2.5, 4.0)
        yield from _plates(patient, centre, size, thick, rng.integers(1, 3), classes, rng, min(1.0, strength))


def _sphere(patient, centre, radius, density, share, rng=None) -> Blob:
    """A ball; with three radii (row, column, depth) an ellipsoid, with `rng` a knobbly one."""
    radii = np.broadcast_to(np.float32(radius), 3)
    mean = float(radii.prod() ** (1 / 3))
    window, (r, c, d) = box(patient, centre, radii * 1.5 + 2 * patient.pitch)
    far = np.sqrt((r / radii[0]) ** 2 + (c / radii[1]) ** 2 + (d / radii[2]) ** 2) * mean
    if rng is not None:
        far = far * (1 + 0.12 * texture(far.shape, rng))
    soft = max(patient.pitch, 0.25 * mean)
    return _fill(patient, window, _step((mean - far) / soft + 0.5) * share, density)


def _radii(size: np.ndarray) -> np.ndarray:
    """Half axes (row, column, depth) of a body that fills a box of (height, width) mm."""
    return np.array([*size, min(np.sqrt(size.prod()), 60.0)]) / 2


def nodule(patient, finding, rng, strength) -> Iterator[Blob]:
    """Roundish, up to 3 cm across, of soft-tissue density."""
    words = {*finding.anatomy, *finding.qualifiers}
    for side in lung_side(finding, rng):
        for _ in range(rng.integers(2, 5) if "multiple" in words else 1):
            centre, _, size = place_box(patient, finding, side, rng, "nodule", margin=10)
            yield _sphere(patient, centre, _radii(size), 1080, min(1, strength), rng)


def mass(patient, finding, rng, strength) -> Iterator[Blob]:
    """As a nodule, more than 3 cm across and lobulated."""
    for side in lung_side(finding, rng):
        centre, _, size = place_box(patient, finding, side, rng, "mass", margin=14)
        radii = _radii(size) * 1.1
        for _ in range(3):
            scale = rng.uniform(0.65, 0.95)
            shift = rng.uniform(-1, 1, 3) * (1 - scale) * radii
            yield _sphere(patient, centre + shift, radii * scale, 1040, strength, rng)


def granuloma(patient, finding, rng, strength) -> Iterator[Blob]:
    """A calcified speck of 6-12 mm; where the radiologist's box is larger, several that fill it."""
    words = {*finding.anatomy, *finding.qualifiers}
    for side in lung_side(finding, rng):
        for _ in range(rng.integers(3, 7) if words & {"multiple", "scattered"} else 1):
            centre, _, size = place_box(patient, finding, side, rng, "granuloma", margin=5)
            radius = float(np.clip(size.min() / 2, 3.2, rng.uniform(4.0, 6.0)))
            room = np.maximum(size / 2 - radius, 0)
            if room.max() < radius:
                yield _sphere(patient, centre, radius, 2900, strength)
                continue
            # Two at opposite corners, the others anywhere between them.
            corner = np.array([1, 1 - 2 * rng.integers(2)])
            for at in (corner, -corner, *rng.uniform(-1, 1, (rng.integers(0, 3), 2))):
                shift = np.array([*at * room, rng.uniform(-1, 1) * room.mean()])
                yield _sphere(patient, centre + shift, radius, 2900, strength)


def lymph_node(patient, finding, rng, strength) -> Iterator[Blob]:
    """A cluster of calcified nodes at the hilum, or beside the trachea when the annotation says mediastinum."""
    words = {*finding.anatomy, *finding.qualifiers}
    for side in sides(finding, rng):
        hilum = np.array(patient.marks.hilum[side]) * patient.spacing
        if "mediastinum" in words or "trachea, carina" in words:
            hilum[0] -= 25
            hilum[1] = patient.marks.spine[int(hilum[0] / patient.pitch), 0] * patient.pitch + (
                -14 if side == "right" else 14
            )
        for _ in range(rng.integers(2, 6)):
            yield _sphere(patient, hilum + rng.normal(0, (8, 6, 8)), rng.uniform(2.5, 5.0), 2700, strength)


def _lungs(patient: Patient, which: tuple[str, ...]) -> tuple[tuple[slice, ...], np.ndarray]:
    """The bounding box of the named lungs and the mask of their voxels in it."""
    boxes = [patient.lungs[side] for side in which]
    window = tuple(slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))
    classes = [k for side in which for k in (RIGHT_LUNG if side == "right" else LEFT_LUNG)]
    return window, _within(patient, window, tuple(classes))


def _grid(patient: Patient, window: tuple[slice, ...], centre: np.ndarray) -> list[np.ndarray]:
    return [
        (np.arange(s.start, s.stop, dtype=np.float32) * patient.spacing[a] - np.float32(centre[a])).reshape(
            [-1 if k == a else 1 for k in range(3)]
        )
        for a, s in enumerate(window)
    ]


def edema(patient, finding, rng, strength) -> Iterator[Blob]:
    """Fluid spreading from the hila: a veil on both sides that fades outwards, heavier at the bases."""
    congestion = 0.6 if finding.name == "Pulmonary Congestion" else 1.0
    share = 0.27 * severity(finding) * congestion * strength
    for side in SIDES:
        window, lung = _lungs(patient, (side,))
        r, c, d = _grid(patient, window, np.array(patient.marks.hilum[side]) * patient.spacing + [15, 0, 0])
        fade = np.exp(-(((r / 75) ** 2) + (c / 48) ** 2 + (d / 70) ** 2))
        alpha = share * fade * np.clip(1 + 0.55 * texture(lung.shape, rng), 0.1, 2.5) * lung
        yield _fill(patient, window, alpha, 1000)


def markings(patient, finding, rng, strength) -> Iterator[Blob]:
    """Prominent interstitial or bronchovascular markings: a net of thin dense strands through the radiologist's box."""
    words = {*finding.anatomy, *finding.qualifiers}
    if "bronchovascular" in words:
        finding = Finding(finding.name, ("lung", "hilum"), finding.side, finding.severity, finding.qualifiers)
    drawn = sides(finding, rng)
    for side in drawn if finding.side in SIDES else SIDES:
        centre, _, size = place_box(patient, finding, side, rng, "interstitial markings")
        half = 0.56 * size  # fades within the box's edge
        window, (r, c, _) = box(patient, centre, np.array([*half * 1.15, 1000.0]))
        lung = _within(patient, window, RIGHT_LUNG if side == "right" else LEFT_LUNG)
        fade = _step((1.1 - np.abs(r) / half[0]) / 0.4) * _step((1.1 - np.abs(c) / half[1]) / 0.4)
        strands = _step(1 - np.abs(texture(lung.shape, rng)) / 0.28)
        yield _fill(patient, window, 0.5 * severity(finding) * strength * fade * strands * lung, 1000)


def emphysema(patient, finding, rng, strength) -> Iterator[Blob]:
    """Destroyed lung: patchy loss of density in both lungs, mostly in the upper halves."""
    drawn = sides(finding, rng)
    for side in drawn if finding.side in SIDES else SIDES:
        window, lung = _lungs(patient, (side,))
        density = patient.density[window].astype(np.float32)
        loss = np.clip(0.42 + 0.25 * texture(lung.shape, rng, coarse=2), 0, 0.8) * severity(finding) * strength
        yield Blob(tuple(s.start for s in window), -np.minimum(loss, 0.85) * np.minimum(density, 350) * lung)


# --- pleura -----------------------------------------------------------------------------------------------------------


def effusion(patient, finding, rng, strength, name="pleural effusion") -> Iterator[Blob]:
    """Free fluid of an upright patient: in the outer lower corner of the lung, as high and as far inwards as the
    radiologist's box, rising towards the chest wall (meniscus)."""
    _, _, tall, wide = lung_frame(patient)
    for side in sides(finding, rng):
        found = priors.sample(name, side, rng, part=part(finding))
        # Floors of ours: less fluid than that would not have been reported from a film.
        depth = max(1.3 * found.height * tall, 18.0)
        reach = max(1.1 * found.width * wide, 0.75 * depth, 14.0)  # fluid finds its level: no steep edge
        window, lung = _lungs(patient, (side,))
        shadow = lung.any(2)
        cols = np.arange(shadow.shape[1], dtype=np.float32)
        inwards = (cols if side == "right" else cols[::-1].copy()) * patient.pitch  # mm from the outermost lung
        corner = np.flatnonzero(shadow[:, inwards <= reach].any(1))[-1] + 1
        level = _step(1.15 - inwards / reach) * (1 - 0.2 * np.minimum(inwards / reach, 1))
        surface = (corner * patient.pitch - depth * level).reshape(1, -1, 1)
        rows = (np.arange(len(lung), dtype=np.float32) * patient.pitch).reshape(-1, 1, 1)
        climb = 0.15 * depth * np.exp(patient.wall[window].astype(np.float32) / -9.0)
        wet = _step((rows - surface + climb) / 6 + 0.5) * _step(level / 0.1).reshape(1, -1, 1)
        yield _fill(patient, window, wet * lung * min(1, strength), 1005)


def blunting(patient, finding, rng, strength) -> Iterator[Blob]:
    """A blunted costophrenic angle: so little fluid or scar that only the sharp corner is lost."""
    yield from effusion(patient, finding, rng, strength, name="blunted costophrenic angle")


def pneumothorax(patient, finding, rng, strength) -> Iterator[Blob]:
    """Air outside the lung, widest at the apex and along the side; the lung's edge shows as a thin line.

    The air takes the share of the lung's projected area, and its extent downwards and inwards, from a
    radiologist's mask.
    """
    top, start, tall, wide = lung_frame(patient)
    for side in sides(finding, rng):
        found = priors.sample("pneumothorax", side, rng, part=part(finding))
        window, lung = _lungs(patient, (side,))
        shadow = lung.any(2) if side == "right" else lung.any(2)[:, ::-1]  # the chest wall is at column 0
        # Distance (mm) from the apex and the side wall: what lies inwards of or below the lung counts as lung.
        inner = np.logical_or.accumulate(shadow, axis=1) | np.logical_or.accumulate(shadow, axis=0)
        wall = ndimage.distance_transform_edt(np.pad(inner, ((1, 0), (1, 0))))[1:, 1:] * patient.pitch
        y = ((np.arange(window[0].start, window[0].stop) + 0.5).reshape(-1, 1) * patient.pitch - top) / tall
        x = ((np.arange(window[1].start, window[1].stop) + 0.5) * patient.pitch - start) / wide
        x, inner_edge = (x, found.x1) if side == "right" else (1 - x[::-1], 1 - found.x0)
        lower_edge = max(found.height, 0.1)  # where the air ends: it rises to the apex of an upright patient
        profile = (1 - 0.6 * np.clip(y / lower_edge, 0, 1)) * _step((lower_edge - y) / (0.25 * found.height))
        profile = profile * _step((inner_edge - x) / (0.25 * found.width))
        with np.errstate(divide="ignore"):
            needed = np.where(profile > 0, wall / np.maximum(profile, 1e-6), np.inf)  # width that bares a pixel
        width = np.quantile(needed[shadow], min(found.share, 0.9), method="lower")
        edge = (width * profile if np.isfinite(width) else tall * profile).astype(np.float32)
        wall = wall.astype(np.float32)
        air, line = _step((edge - wall) / 3 + 0.5) * (edge > 1), np.exp(-(((wall - edge - 1) / 2.0) ** 2)) * (edge > 3)
        if side == "left":
            air, line = air[:, ::-1], line[:, ::-1]
        density = patient.density[window].astype(np.float32)
        change = 30 * strength * line[:, :, None] - air[:, :, None] * density * min(1.0, strength)
        yield Blob(tuple(s.start for s in window), (change * lung).astype(np.float32))


def thickening(patient, finding, rng, strength) -> Iterator[Blob]:
    """Thickened pleura: a dense rind of 5-9 mm in the radiologist's box, most often at the apex."""
    for side in sides(finding, rng):
        rind = rng.uniform(5, 9)
        centre, _, size = place_box(patient, finding, side, rng, "pleural thickening", margin=1)
        window, (r, c, _) = box(patient, centre, np.array([*size / 2 + 4, 1000.0]))
        lung = _within(patient, window, RIGHT_LUNG if side == "right" else LEFT_LUNG)
        here = _step((size[0] / 2 - np.abs(r)) / 4 + 0.5) * _step((size[1] / 2 - np.abs(c)) / 4 + 0.5)
        alpha = _step((rind - patient.wall[window].astype(np.float32)) / 3 + 0.5) * here * lung
        yield _fill(patient, window, 0.85 * strength * alpha, 1000)


# --- skeleton, vessels, hernia ----------------------------------------------------------------------------------------


def _on_rib(patient: Patient, place: np.ndarray) -> np.ndarray:
    """The point (mm) on a rib that is nearest to a place: a finding that bends the anatomy may have moved the rib."""
    for reach in (13.0, 40.0, 400.0):
        window, _ = box(patient, place, reach)
        points = (np.argwhere(patient.tissue[window] == RIB) + [s.start for s in window]) * patient.spacing
        if len(points):
            return points[((points - place) ** 2).sum(1).argmin()]
    return place


def rib_fracture(patient, finding, rng, strength) -> Iterator[Blob]:
    """A break in one to three ribs: a gap, or a knob of callus where it has healed."""
    words = {*finding.anatomy, *finding.qualifiers}
    healed = bool(words & {"healed", "chronic"}) or finding.name == "Deformity"
    voxels = patient.voxels((RIB,))
    at = np.stack(np.unravel_index(voxels, patient.tissue.shape), axis=1)
    middle = patient.marks.spine[:, 0].mean()
    for side in sides(finding, rng):
        outward = (middle - at[:, 1]) if side == "right" else (at[:, 1] - middle)
        rows = (at[:, 0] > 0.15 * len(patient.tissue)) & (at[:, 0] < 0.75 * len(patient.tissue))
        pool = at[(outward * patient.pitch > 60) & rows]
        for _ in range(rng.integers(2, 4) if "multiple" in words else 1):
            centre = _on_rib(patient, pool[rng.integers(len(pool))] * patient.spacing)
            window, (r, c, d) = box(patient, centre, 13.0)
            rib = patient.tissue[window] == RIB
            points = np.argwhere(rib) * patient.spacing
            axis = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
            along = r * axis[0] + c * axis[1] + d * axis[2]
            far = np.sqrt(r**2 + c**2 + d**2)
            density = patient.density[window].astype(np.float32)
            gap = 0 if healed else _step(1.5 - np.abs(along) / 1.8) * rib * np.minimum(1000 - density, 0)
            knob = _step((7.5 - far) / 2.5) * (1300 if healed else 900)
            yield Blob(tuple(s.start for s in window), ((gap + knob) * strength).astype(np.float32))


def degenerative_spine(patient, finding, rng, strength) -> Iterator[Blob]:
    """Bony spurs at the edges of several vertebral bodies."""
    spacing = patient.spacing
    for level in rng.choice(np.linspace(0.38, 0.8, 9), size=rng.integers(3, 6), replace=False):
        row = int(level * len(patient.tissue))
        column, depth = patient.marks.spine[row]
        for sign in rng.permutation((-1, 1))[: rng.integers(1, 3)]:
            centre = np.array([row, column, depth]) * spacing + [0, sign * rng.uniform(17, 22), 12]
            window, (r, c, d) = box(patient, centre, 12.0)
            far = np.sqrt((r / 3.5) ** 2 + (c / 8.0) ** 2 + (d / 9.0) ** 2)
            grade = severity(finding) * strength
            yield Blob(tuple(s.start for s in window), (_step((1.3 - far) / 0.6) * 1500 * grade).astype(np.float32))


def vertebral_deformity(patient, finding, rng, strength) -> Iterator[Blob]:
    """One to three vertebral bodies that have lost height in front: a wedge of soft tissue above impacted bone."""
    words = {*finding.anatomy, *finding.qualifiers}
    low, high = (0.8, 0.92) if "lumbar vertebrae" in words else (0.42, 0.78)
    for level in rng.uniform(low, high, size=rng.integers(2, 4) if "multiple" in words else 1):
        row = int(level * len(patient.tissue))
        column, depth = patient.marks.spine[row]
        centre = np.array([row, column, depth]) * patient.spacing + [0, 0, 12]
        window, (r, c, d) = box(patient, centre, np.array([16.0, 24.0, 24.0]))
        bone = _within(patient, window, (VERTEBRA,)) * (np.abs(c) < 22)
        lost = severity(finding) * rng.uniform(6, 10) * np.clip((d + 8) / 26, 0, 1)  # mm, growing to the front
        density = patient.density[window].astype(np.float32)
        gap = _step((lost - np.abs(r + 4)) / 2 + 0.5) * np.minimum(1030 - density, 0)
        dense = _step(1.3 - np.abs(r - 5) / 5) * 380
        yield Blob(tuple(s.start for s in window), ((gap + dense) * bone * strength).astype(np.float32))


def osteopenia(patient, finding, rng, strength) -> Iterator[Blob]:
    """Bone that has lost mineral: all of the skeleton on the film is less dense."""
    lost = min(0.9, rng.uniform(0.35, 0.5) * severity(finding) * strength)
    bone = _within(patient, (slice(None),) * 3, (VERTEBRA, RIB, BONE))
    change = np.where(bone, np.minimum(1030 - patient.density, 0), 0).astype(np.float32)
    yield Blob((0, 0, 0), change * np.float32(lost))


def hilar_enlargement(patient, finding, rng, strength) -> Iterator[Blob]:
    """A lobulated hilum: enlarged vessels or nodes where they enter the lung, on both sides unless annotated."""
    drawn = sides(finding, rng)
    for side in drawn if finding.side in SIDES else SIDES:
        sign = -1 if side == "right" else 1
        hilum = np.array(patient.marks.hilum[side]) * patient.spacing + [8, sign * 8, 0]
        for _ in range(rng.integers(3, 6)):
            centre = hilum + rng.normal(0, (9, 5, 9))
            yield _sphere(patient, centre, rng.uniform(8, 13) * severity(finding) ** 0.5, 1045, min(1, strength), rng)


def calcified_aorta(patient, finding, rng, strength) -> Iterator[Blob]:
    """Plaques of calcium in the wall of the aortic arch."""
    centre = np.array(patient.marks.arch) * patient.spacing + [12, 0, 0]
    window, (_, c, _) = box(patient, centre, np.array([32.0, 45.0, 60.0]))
    vessel = patient.tissue[window] == AORTA
    shell = vessel & ~ndimage.binary_erosion(vessel, iterations=1)
    plaque = _step((texture(shell.shape, rng) + 0.35) / 0.5)
    left = _step((np.broadcast_to(c, shell.shape) + 5) / 15)
    yield Blob(tuple(s.start for s in window), (shell * plaque * left * 1000 * strength).astype(np.float32))


def hiatal_hernia(patient, finding, rng, strength) -> Iterator[Blob]:
    """Stomach above the diaphragm: a round shadow behind the heart with a bubble of gas."""
    row = patient.marks.dome["left"] - 8 / patient.pitch
    column, depth = patient.marks.spine[int(row)]
    centre = np.array([row, column, depth]) * patient.spacing + [0, rng.uniform(4, 18), 38]
    radii = rng.uniform((20, 26, 22), (32, 42, 32)) * severity(finding) ** 0.5
    window, (r, c, d) = box(patient, centre, radii * 1.2)
    far = np.sqrt((r / radii[0]) ** 2 + (c / radii[1]) ** 2 + (d / radii[2]) ** 2)
    yield _fill(patient, window, _step((1.1 - far) / 0.2) * strength, 1030)
    bubble = _step((0.75 - far) / 0.2) * _step((-r - 0.1 * radii[0]) / 4)
    yield Blob(tuple(s.start for s in window), (-bubble * 900 * strength).astype(np.float32))


# --- devices ----------------------------------------------------------------------------------------------------------


def _path(*points: tuple[float, float, float]) -> np.ndarray:
    """A smooth curve through points in mm, sampled about every millimetre."""
    from scipy.interpolate import make_interp_spline

    points = np.array(points, float)
    knots = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    curve = make_interp_spline(knots, points, k=min(3, len(points) - 1))
    return curve(np.arange(0, knots[-1], 1.0))


def _trunk(patient: Patient) -> dict[str, np.ndarray]:
    """Places (mm) that devices refer to."""
    marks, spacing = patient.marks, patient.spacing
    arch = np.array(marks.arch) * spacing
    heart = np.array(marks.heart) * spacing
    middle = marks.spine[int(marks.arch[0]), 0] * patient.pitch
    top = min(marks.lung_top.values()) * patient.pitch
    vein = np.array([arch[0] + 15, middle - 17, heart[2] - 5])
    return {"arch": arch, "heart": heart, "vein": vein, "neck": np.array([top - 12, middle, arch[2]])}


def _front(patient: Patient, row: float, column: float) -> float:
    """Depth (mm) just under the skin of the front of the chest."""
    line = patient.tissue[int(row / patient.pitch), int(column / patient.pitch)]
    body = np.nonzero(line)[0]
    return float((body[-1] if len(body) else len(line) // 2) * patient.spacing[2] - 8)


def pacemaker(patient, finding, rng, strength) -> Iterator[Blob | Wire]:
    """A metal case under the collar bone, on the left unless annotated otherwise, and its leads into the heart."""
    at = _trunk(patient)
    drawn = sides(finding, rng)[0]
    side = drawn if finding.side in SIDES else "left"
    sign = -1 if side == "right" else 1
    centre = np.array([at["neck"][0] + rng.uniform(48, 68), at["neck"][1] + sign * rng.uniform(78, 92), 0.0])
    centre[2] = _front(patient, centre[0], centre[1])
    window, (r, c, d) = box(patient, centre, 26.0)
    far = ((np.abs(r) / 19) ** 3 + (np.abs(c) / 22) ** 3 + (np.abs(d) / 5) ** 3) ** (1 / 3)
    yield Blob(tuple(s.start for s in window), (_step((1.05 - far) / 0.15) * 3800 * strength).astype(np.float32))
    vein, heart = at["vein"], at["heart"]
    entry = np.array([at["neck"][0] + 32, at["neck"][1] + sign * 40, vein[2] + 10])
    tips = [heart + [28, 26 + rng.uniform(-6, 6), 12], heart + [2, -32, 4]]
    for tip in tips[: rng.integers(1, 3)]:
        yield Wire(
            _path(centre, entry, vein + [-20, 3, 0], vein + [12, 0, 0], (vein + tip) / 2 + [22, -12, 0], tip), 16.0, 1.1
        )


def catheter(patient, finding, rng, strength) -> Iterator[Wire]:
    """A central venous line to the lower superior vena cava; half of them end in a port under the skin."""
    at = _trunk(patient)
    for side in sides(finding, rng):
        sign = -1 if side == "right" else 1
        vein = at["vein"]
        start = np.array([at["neck"][0] + rng.uniform(30, 60), at["neck"][1] + sign * rng.uniform(70, 95), 0.0])
        start[2] = _front(patient, start[0], start[1])
        bend = np.array([at["neck"][0] + rng.uniform(5, 20), at["neck"][1] + sign * rng.uniform(28, 40), vein[2] + 10])
        end = vein + [rng.uniform(25, 45), rng.uniform(-4, 4), 0]
        yield Wire(_path(start, bend, vein + [-12, 4 * (sign + 1), 0], end), 16.0, 1.2)
        if rng.random() < 0.5:
            ring = start + np.stack([9 * np.sin(t := np.linspace(0, 2 * np.pi, 60)), 9 * np.cos(t), 0 * t], axis=1)
            yield Wire(ring, 14.0, 2.0)


def tube(patient, finding, rng, strength) -> Iterator[Wire]:
    """An endotracheal tube, a gastric tube (abdomen) or a chest tube (thorax with a side), as annotated."""
    words = {*finding.anatomy, *finding.qualifiers}
    at = _trunk(patient)
    drawn = sides(finding, rng)[0]
    airway = np.argwhere(patient.tissue == AIRWAY) * patient.spacing
    top, carina = airway.min(0), airway.max(0)
    gastric = "abdomen" in words or (not words and rng.random() < 0.5)
    if gastric:
        row = patient.marks.dome["left"] * patient.pitch
        middle = patient.marks.spine[int(row / patient.pitch), 0] * patient.pitch
        depth = at["vein"][2] - 25
        yield Wire(
            _path(
                (2, middle, depth),
                (row * 0.5, middle + 3, depth),
                (row + 5, middle + 10, depth),
                (row + 40, middle + 48, depth + 20),
            ),
            18.0,
            1.6,
        )
    elif "thorax" in words or finding.side in SIDES:
        sign = -1 if drawn == "right" else 1
        row = patient.marks.hilum[drawn][0] * patient.pitch
        middle = at["neck"][1]
        yield Wire(
            _path(
                (row + 75, middle + sign * 125, 130),
                (row + 30, middle + sign * 95, 120),
                (row - 45, middle + sign * 60, 110),
            ),
            16.0,
            2.4,
        )
    else:
        stop = top[0] + (carina[0] - top[0]) * rng.uniform(0.45, 0.75)
        column, depth = airway[:, 1].mean(), airway[:, 2].mean()
        for shift in (-3.5, 3.5):  # the two walls of the tube
            yield Wire(_path((0, column + shift, depth), (stop, column + shift, depth)), 18.0, 1.0)


def surgical(patient, finding, rng, strength) -> Iterator[Wire]:
    """Wire loops along a split sternum (mediastinum), or a few metal clips elsewhere."""
    words = {*finding.anatomy, *finding.qualifiers}
    at = _trunk(patient)
    drawn = sides(finding, rng)[0]
    if finding.name == "Spinal Fusion":
        yield from _fusion(patient, words, at)
    elif finding.name == "Stents" and not words & {"abdomen", "aorta"}:  # in a coronary vessel
        start = at["heart"] + rng.normal((-12, 12, 14), 5)
        way = rng.normal(0, 1, 3)
        way *= rng.uniform(12, 20) / np.linalg.norm(way)
        yield Wire(np.linspace(start, start + way, 20), 14.0, 1.6)
    elif "abdomen" in words or finding.name == "Stents":  # clips where the gall bladder was, or an aortic stent
        row = patient.marks.dome["right"] * patient.pitch
        for _ in range(rng.integers(3, 7)):
            start = np.array([row + 45, at["neck"][1] - 38, at["heart"][2]]) + rng.normal(0, 9, 3)
            yield Wire(np.linspace(start, start + rng.normal(0, 4, 3), 8), 30.0, 1.2)
    elif words & {"mediastinum", "thorax", "sternum", "heart"} or (not words and finding.side is None):
        low = at["heart"][0] + 25
        for row in np.linspace(at["arch"][0] - 12, low, 6):
            column = at["neck"][1] + 4 + rng.normal(0, 1.5)
            t = np.linspace(0, 2 * np.pi, 40)
            ring = np.stack(
                [row + 3.5 * np.sin(t), column + 6.5 * np.cos(t), np.full_like(t, _front(patient, row, column))], axis=1
            )
            yield Wire(ring, 28.0, 0.9)
    else:
        place_finding = Finding(finding.name, finding.anatomy, drawn, None, finding.qualifiers)
        centre, _ = place(patient, place_finding, drawn, rng)
        for _ in range(rng.integers(3, 7)):
            start = centre + rng.normal(0, 11, 3)
            yield Wire(np.linspace(start, start + rng.normal(0, 3.5, 3), 8), 30.0, 1.2)


def _fusion(patient, words, at) -> Iterator[Wire]:
    """Two rods along the spine with screws across: in the neck unless another part of the spine is annotated."""
    top = 2.0
    low, high = (top, at["neck"][0] + 8) if words & {"cervical vertebrae"} or not words else (150.0, 225.0)
    if "lumbar vertebrae" in words:
        low, high = 245.0, 300.0
    rows = np.arange(low, high, 1.0)
    spine = patient.marks.spine[np.minimum(rows / patient.pitch, len(patient.marks.spine) - 1).astype(int)]
    for shift in (-7, 7):
        column, depth = spine[:, 0] * patient.pitch + shift, spine[:, 1] * patient.spacing[2]
        yield Wire(np.stack([rows, column, depth], axis=1), 22.0, 1.6)
    for k in range(0, len(rows), 18):
        middle = np.array([rows[k], spine[k, 0] * patient.pitch, spine[k, 1] * patient.spacing[2]])
        yield Wire(middle + np.linspace((0, -10, 0), (0, 10, 12), 20), 22.0, 1.6)


def foreign_body(patient, finding, rng, strength) -> Iterator[Wire]:
    """A metal object on or in the chest wall (or the belly): a fragment, a rod or a ring of 6 to 20 mm."""
    words = {*finding.anatomy, *finding.qualifiers}
    at = _trunk(patient)
    side = sides(finding, rng)[0]
    sign = -1 if side == "right" else 1
    row = rng.uniform(255, 295) if "abdomen" in words else rng.uniform(0.3, 0.7) * FILM_MM
    column = at["neck"][1] + sign * rng.uniform(45, 105)
    centre = np.array([row, column, _front(patient, row, column)])
    size, kind = rng.uniform(3, 10), rng.integers(3)
    t = np.linspace(0, 2 * np.pi, 40)[:, None]
    if kind == 0:  # a fragment: a short thick piece
        yield Wire(centre + np.linspace(-1, 1, 10)[:, None] * rng.normal(0, 1.5, 3), 45.0, size / 2)
    elif kind == 1:  # a rod
        way = rng.normal(0, 1, 3) * (1, 1, 0.2)
        yield Wire(centre + np.linspace(-size, size, 30)[:, None] * way / np.linalg.norm(way), 30.0, 1.2)
    else:  # a ring, as of a piercing or a button
        yield Wire(centre + size * np.hstack([np.sin(t), np.cos(t), 0.2 * np.sin(t)]), 24.0, 1.0)


def valve(patient, finding, rng, strength) -> Iterator[Wire]:
    """The ring of a prosthetic heart valve."""
    heart = np.array(patient.marks.heart) * patient.spacing
    shift = [8, 4, 0] if "mitral valve" in finding.anatomy else [-8, -8, 0]
    t = np.linspace(0, 2 * np.pi, 70)
    tilt = rng.uniform(0.3, 0.6)
    ring = heart + shift + np.stack([12 * tilt * np.sin(t) + 5 * np.cos(t), 12 * np.cos(t), 10 * np.sin(t)], axis=1)
    yield Wire(ring, 20.0, 1.6)


DRAWINGS: dict[str, Drawing] = {
    "pleural effusion": effusion,
    "blunted costophrenic angle": blunting,
    "edema": edema,
    "consolidation": consolidation,
    "pneumonia": partial(consolidation, name="pneumonia"),
    "atelectasis": atelectasis,
    "opacity": opacity,
    "pneumothorax": pneumothorax,
    "nodule": nodule,
    "mass": mass,
    "hilar enlargement": hilar_enlargement,
    "calcified lymph node": lymph_node,
    "granuloma": granuloma,
    "emphysema": emphysema,
    "calcified aorta": calcified_aorta,
    "vertebral deformity": vertebral_deformity,
    "degenerative spine": degenerative_spine,
    "osteopenia": osteopenia,
    "rib fracture": rib_fracture,
    "scar": scar,
    "interstitial markings": markings,
    "pleural thickening": thickening,
    "hiatal hernia": hiatal_hernia,
    "catheter": catheter,
    "tube": tube,
    "surgical hardware": surgical,
    "foreign body": foreign_body,
    "valve": valve,
    "pacemaker": pacemaker,
}


# --- findings that bend the anatomy -----------------------------------------------------------------------------------


def bend(name: str, patient: Patient, finding: Finding, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The displacement field (mm, on the nodes of the patient's volume) of a finding that moves anatomy."""
    at = anatomy.nodes(patient.tissue.shape, patient.pitch)
    spacing, marks = patient.spacing, patient.marks
    grade = severity(finding) * strength
    wobble = rng.uniform(0.85, 1.15)
    drawn = sides(finding, rng)
    if name == "cardiomegaly":
        # As wide as a radiologist's box relative to this patient's lungs, and always wider than it was.
        heart = np.flatnonzero(((patient.seen("frontal")[1] >> anatomy.MASKS.index("heart")) & 1).any(0))
        now = (heart[-1] + 1 - heart[0]) * patient.pitch
        wanted = priors.sample(name, None, rng, part=part(finding)).width * lung_frame(patient)[3]
        wider = max(wanted / now - 1, 0.12 * severity(finding))
        return anatomy.scale_heart(at, marks, spacing, 1 + 1.5 * wider * strength)  # the warp fades within the heart
    if name == "hyperinflation":
        low = anatomy.move_diaphragm(at, marks, spacing, 20 * grade * wobble, 20 * grade * wobble)
        return low + anatomy.scale_heart(at, marks, spacing, 1 - 0.1 * min(1.0, grade))
    if name == "emphysema":
        return anatomy.move_diaphragm(at, marks, spacing, 12 * grade * wobble, 12 * grade * wobble)
    if name == "hypoinflation":
        return anatomy.move_diaphragm(at, marks, spacing, -20 * grade * wobble, -20 * grade * wobble)
    if name == "elevated diaphragm":
        lift = -24 * grade * wobble
        return anatomy.move_diaphragm(at, marks, spacing, *(lift if side in drawn else 0.0 for side in SIDES))
    if name == "tortuous aorta":
        # The knob reaches as far to the left as in a radiologist's box.
        rows = slice(int(marks.arch[0]), int(marks.arch[0] + 40 / patient.pitch))
        aorta = np.flatnonzero(((patient.seen("frontal")[1][rows] >> anatomy.MASKS.index("aorta")) & 1).any(0))
        _, left, _, wide = lung_frame(patient)
        wanted = left + priors.sample(name, None, rng, part=part(finding)).x1 * wide
        shift = np.clip(wanted - (aorta[-1] + 1) * patient.pitch, 8 * severity(finding), 30)
        # The warp fades from the middle, hence the factor; beyond 26 mm it would fold the lung over.
        return anatomy.widen_aorta(at, marks, spacing, min(1.8 * shift * strength, 26.0))
    if name == "wide mediastinum":
        return anatomy.widen_mediastinum(at, marks, spacing, 15 * grade * wobble)
    if name == "kyphosis":
        return anatomy.bow_spine(at, marks, spacing, 22 * grade * wobble)
    if name == "scoliosis":
        sign = -1 if "left" in drawn else 1
        return anatomy.bend_spine(at, marks, spacing, sign * 15 * grade * wobble, rng.uniform(-0.5, 0.5) - np.pi / 2)
    raise KeyError(name)


# Of findings that bend the same thing only the strongest counts: "hyperinflation, COPD, flattened diaphragm" in one
# annotation is one state of the lungs.
BENDS_THE_SAME = {"hyperinflation": "inflation", "emphysema": "inflation", "hypoinflation": "inflation"}
BENDS = (
    "cardiomegaly",
    "hyperinflation",
    "emphysema",
    "hypoinflation",
    "elevated diaphragm",
    "tortuous aorta",
    "wide mediastinum",
    "kyphosis",
    "scoliosis",
)
