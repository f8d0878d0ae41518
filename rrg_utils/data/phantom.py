"""From a report's annotation to a radiograph whose every finding is known exactly.

CT -> patient variant -> findings inserted in 3-D -> Beer-Lambert projection -> film.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numba
import numpy as np
from scipy import ndimage

from rrg_utils.data import abnormalities, anatomy, lesions
from rrg_utils.data.anatomy import DEPTH_MM, FILM_MM, LOBES, MASKS, REGIONS, Patient, View
from rrg_utils.data.hospitals import Hospital, Response
from rrg_utils.data.hospitals import hospital as _hospital
from rrg_utils.data.mesh import Finding
from rrg_utils.data.reports import Report
from rrg_utils.errors import RRGError

WATER_PER_MM = 0.0195  # attenuation of water at the effective energy of a chest film (about 65 keV)
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True)
class Lesion:
    """A finding as drawn: where it changes the film. `mask` (H, W) bool; `box` (x0, y0, x1, y1) in pixels, x1 and y1
    exclusive. For a finding that bends the anatomy the mask is the region it bends. A finding that the film's
    edge cuts off has an empty mask and no box.
    """

    finding: Finding
    name: str  # class of `rrg_utils.data.ABNORMALITIES`
    mask: np.ndarray
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class Phantom:
    """A rendered radiograph: `image` float32 (H, W) in [0, 1], white is dense; `regions` seven and `lobes` five boolean
    masks (H, W); `lesions` in the order of the annotation. The patient's left is on the right of a frontal film, the
    front of the chest on the left of a lateral one."""

    image: np.ndarray
    regions: dict[str, np.ndarray]
    lobes: dict[str, np.ndarray]
    lesions: list[Lesion]


def _rng(*parts: object) -> np.random.Generator:
    """A random stream that depends on the text of its key only: the same on every machine."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


@dataclass(frozen=True)
class _Setup:
    """What varies from film to film and must never depend on the findings: patient, pose, exposure, noise."""

    matrix: np.ndarray  # (2, 3): film pixel (row, column, 1) to projected pixel
    response: Response
    penetration: float
    contrast: float
    noise: np.ndarray
    collimation: np.ndarray  # (4,) mm cut at top, bottom, left, right
    marker: tuple[int, int]


def _setup(key: str, seed: int, size: int, view: View, place: Hospital) -> _Setup:
    rng = _rng("film", view, key, seed)
    angle, zoom = np.deg2rad(rng.normal(0, place.tilt_deg)), rng.uniform(*place.zoom)
    shift = rng.normal(0, place.shift_mm, 2) * size / FILM_MM
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    middle = (size - 1) / 2
    matrix = np.column_stack([turn, middle - turn @ (middle + shift)])
    if view == "lateral":  # columns of the projection are depths, from back to front: the film shows the front left
        step = FILM_MM / size / DEPTH_MM
        matrix[1] = [
            -step * matrix[1, 0],
            -step * matrix[1, 1],
            (anatomy.DEPTHS - 1) / 2 + step * (middle - matrix[1, 2]),
        ]
    return _Setup(
        matrix=matrix.astype(np.float32),
        response=getattr(place, view),
        penetration=rng.normal(0, place.penetration),
        contrast=rng.uniform(*place.contrast),
        noise=rng.standard_normal((size, size), dtype=np.float32),
        collimation=np.where(rng.random(4) < place.collimated, rng.uniform(2, 10, 4), 0),
        marker=(int(rng.uniform(0.03, 0.10) * size), int(rng.uniform(0.86, 0.93) * size)),
    )


class PhantomRenderer:
    """Renders studies at one film size.

    size: rows and columns of the film in pixels, 32 to 512. conspicuity: contrast and extent of the findings, 1 is the
    default, smaller is harder to see. patients: how many deformed patients there are (cached per size). hospital: one
    of `rrg_utils.data.hospitals.HOSPITALS`, how its films are taken.
    """

    def __init__(
        self,
        size: int = 128,
        conspicuity: float = 1.0,
        patients: int = anatomy.PATIENTS,
        hospital: str = "standard",
    ):
        if not 32 <= size <= 512:
            raise RRGError(f"size={size}: a film has between 32 and 512 pixels a side")
        if conspicuity < 0:
            raise RRGError(f"conspicuity={conspicuity}: must not be negative")
        self.size, self.conspicuity, self.hospital = size, conspicuity, _hospital(hospital)
        self.patients = anatomy.patients(size, patients, self.hospital.taken)

    def render(
        self,
        report: Report,
        view: View = "frontal",
        seed: int = 0,
        without: Iterable[Finding | str] = (),
    ) -> Phantom:
        """The film of a report's annotation.

        without: findings to leave out, as `Finding`s, annotation strings or class names: everything else, noise
        included, stays as it was (the counterfactual). The same report, seed and options give the same picture.
        """
        return self.render_views(report, (view,), seed, without)[view]

    def render_views(
        self,
        report: Report,
        views: Sequence[View] = VIEWS,
        seed: int = 0,
        without: Iterable[Finding | str] = (),
    ) -> dict[View, Phantom]:
        """Films of the same patient in several views: cheaper than one by one, because findings are inserted once."""
        for view in views:
            if view not in VIEWS:
                raise RRGError(f"unknown view {view!r}; known are: {', '.join(VIEWS)}")
        patient = self.patients[_rng("patient", report.id, seed).integers(len(self.patients))]
        drawn = self._drawn(report, seed, without)

        bends: dict[str, np.ndarray] = {}
        for name, finding, key in drawn:
            if name in lesions.BENDS:
                bend = lesions.bend(name, patient, finding, _rng("bend", key), self.conspicuity)
                what = lesions.BENDS_THE_SAME.get(name, f"{name} {finding.side}")
                bends[what] = max(bends.get(what, bend), bend, key=lambda field: np.abs(field).max())
        if bends:
            patient = patient.bent(sum(bends.values()))
        changes = {view: np.zeros((len(drawn), *patient.seen(view)[0].shape), np.float32) for view in views}
        for number, (name, finding, key) in enumerate(drawn):
            if name in lesions.DRAWINGS:
                inserts = lesions.DRAWINGS[name](patient, finding, _rng("draw", key), self.conspicuity)
                for insert in lesions.union(inserts):
                    for view in views:
                        _project(insert, changes[view][number], patient, view, self.conspicuity)
        return {
            view: self._expose(_setup(report.id, seed, self.size, view, self.hospital), patient, view, change, drawn)
            for view, change in changes.items()
        }

    def _drawn(self, report: Report, seed: int, without: Iterable[Finding | str]) -> list[tuple[str, Finding, str]]:
        """(class, finding, random key) of each annotation that is drawn."""
        leave = {str(entry) for entry in without}
        known = leave & ({str(finding) for finding in report.mesh} | set(abnormalities.ABNORMALITIES))
        if leave - known:
            raise RRGError(f"without={sorted(leave - known)[0]!r}: neither an annotation of {report.id} nor a class")
        out, seen = [], {}
        for finding in report.mesh:
            name = abnormalities.abnormality(finding)
            number = seen[finding] = seen.get(finding, 0) + 1
            if name and name not in leave and str(finding) not in leave:
                out.append((name, finding, f"{report.id}|{seed}|{finding}|{number}"))
        return out

    def _expose(self, setup: _Setup, patient: Patient, view: View, changes: np.ndarray, drawn: list) -> Phantom:
        """Put the projected patient on film: pose, scatter, film response, noise, collimation, side marker."""
        water, seen = patient.seen(view)
        stack = np.concatenate([np.maximum(water + changes.sum(0), 0)[None], changes])
        posed, bits = _pose(stack, seen, setup.matrix, self.size)
        image = _develop(posed[0], setup, FILM_MM / self.size)
        masks = {name: (bits >> bit) & 1 == 1 for bit, name in enumerate(MASKS)}
        found = []
        for (name, finding, _), change in zip(drawn, posed[1:], strict=True):
            mask = _moved(name, finding, masks) if name in lesions.BENDS else _changed(change)
            found.append(Lesion(finding, name, mask, _box(mask)))
        return Phantom(
            image=image,
            regions={name: masks[name] for name in REGIONS},
            lobes={name: masks[name] for name in LOBES},
            lesions=found,
        )


def _project(
    insert: lesions.Blob | lesions.Wire, film: np.ndarray, patient: Patient, view: View, strength: float
) -> None:
    """Add the line integrals of an insert (mm of water) to a projection (rows, columns or depths), in place."""
    across, along = (1, 2) if view == "frontal" else (2, 1)
    if isinstance(insert, lesions.Blob):
        r, c = insert.origin[0], insert.origin[across]
        shadow = insert.change.sum(along)
        film[r : r + shadow.shape[0], c : c + shadow.shape[1]] += shadow * np.float32(patient.ray_step(view) / 1000)
        return
    pitch = patient.spacing[[0, across]]
    path = insert.points[:, [0, across]]
    at = path / pitch
    keep = ((at >= 0) & (at < np.array(film.shape) - 1)).all(1)
    at = at[keep]
    step = np.linalg.norm(np.gradient(insert.points, axis=0), axis=1)[keep]
    low = at.astype(int)
    share = at - low
    line = np.zeros_like(film)
    # Each sample adds the mass of its piece of wire, of diameter 2 r and length step, to the pixels around it.
    weight = strength * insert.water_mm * step * 2 * insert.radius / np.prod(pitch)
    for dr in (0, 1):
        for dc in (0, 1):
            portion = np.abs(1 - dr - share[:, 0]) * np.abs(1 - dc - share[:, 1])
            np.add.at(line, (low[:, 0] + dr, low[:, 1] + dc), weight * portion)
    film += ndimage.gaussian_filter(line, np.maximum(0.35, 0.8 * insert.radius / pitch))


@numba.njit(nogil=True, cache=True)
def _pose(stack, bits, matrix, size):
    """Move projections to their pose on the film: `stack` (N, H, W) bilinearly, `bits` (H, W) by nearest neighbour."""
    count, rows, cols = stack.shape
    out = np.empty((count, size, size), np.float32)
    out_bits = np.empty((size, size), np.uint32)
    for r in range(size):
        for c in range(size):
            y = matrix[0, 0] * r + matrix[0, 1] * c + matrix[0, 2]
            x = matrix[1, 0] * r + matrix[1, 1] * c + matrix[1, 2]
            y = min(max(y, np.float32(0)), np.float32(rows - 1.001))
            x = min(max(x, np.float32(0)), np.float32(cols - 1.001))
            i, j = int(y), int(x)
            u, v = y - i, x - j
            for n in range(count):
                top = stack[n, i, j] * (1 - v) + stack[n, i, j + 1] * v
                low = stack[n, i + 1, j] * (1 - v) + stack[n, i + 1, j + 1] * v
                out[n, r, c] = top * (1 - u) + low * u
            out_bits[r, c] = bits[int(y + np.float32(0.5)), int(x + np.float32(0.5))]
    return out, out_bits


_BULK_MM = 28.0  # densities that vary more slowly than this are the bulk
_SCATTER_MM = 18.0


def _develop(water_mm: np.ndarray, setup: _Setup, pitch: float) -> np.ndarray:
    """Line integrals in mm of water to a film in [0, 1]."""
    response = setup.response
    primary = np.exp(-WATER_PER_MM * water_mm, dtype=np.float32)
    scattered = ndimage.gaussian_filter(primary, _SCATTER_MM / pitch, truncate=2.5, mode="nearest")
    signal = primary + response.scatter_share * scattered
    quanta = response.quanta * (pitch / 2.5) ** 2
    signal = signal + setup.noise * np.sqrt(signal / quanta)
    absorbed = -np.log(np.maximum(signal, 1e-4)) + setup.penetration
    bulk = ndimage.gaussian_filter(absorbed, _BULK_MM / pitch, truncate=2.5, mode="nearest")
    flat = absorbed - response.bulk_share * (bulk - response.middle)
    film = 1 / (1 + np.exp(-(flat - response.middle) * (setup.contrast / response.width)))
    return _mark(film.astype(np.float32), setup, pitch)


def _mark(film: np.ndarray, setup: _Setup, pitch: float) -> np.ndarray:
    """Collimator edges, and the letter L beside the patient's left shoulder."""
    top, bottom, left, right = np.round(setup.collimation / pitch).astype(int)
    size = len(film)
    film[:top] = film[size - bottom :] = 0.02
    film[:, :left] = film[:, size - right :] = 0.02
    height = max(5, round(14 / pitch))
    width, thick = max(3, round(0.6 * height)), max(1, round(2.2 / pitch))
    r, c = setup.marker
    film[r : r + height, c : c + thick] = 0.97
    film[r + height - thick : r + height, c : c + width] = 0.97
    return film


def _changed(change_mm: np.ndarray) -> np.ndarray:
    """Where a finding changes the film: at least 1 mm of water and a fifth of its peak."""
    change = np.abs(change_mm)
    return change > max(1.0, 0.2 * float(change.max(initial=0)))


def _moved(name: str, finding: Finding, masks: dict[str, np.ndarray]) -> np.ndarray:
    """The region that a finding bends: the whole enlarged heart, the whole raised half of the diaphragm, ..."""
    mask = masks["aorta" if name == "tortuous aorta" else abnormalities.REGION_OF[name][0]]
    if name == "wide mediastinum":  # its upper part: below it the region is as wide as the heart
        mask = mask & ~np.logical_or.accumulate(masks["heart"].any(1))[:, None]
    if name == "tortuous aorta":  # the arch and what swings out below it, as radiologists box it
        mask = mask & (np.cumsum(mask.any(1)) <= 55 / FILM_MM * len(mask))[:, None]
    if name == "elevated diaphragm" and finding.side in lesions.SIDES:
        half = np.any([masks[lobe] for lobe in LOBES if lobe.startswith(finding.side)], axis=0)
        mask = mask & half.any(axis=0)
    return mask


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
