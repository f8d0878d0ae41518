"""From a report's annotation to a radiograph whose every finding is known exactly.

CT -> patient variant -> findings inserted in 3-D -> Beer-Lambert projection -> film.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage

from rrg_utils.data import abnormalities, anatomy, lesions
from rrg_utils.data.anatomy import DEPTH_MM, FILM_MM, LOBES, MASKS, REGIONS, Patient
from rrg_utils.data.mesh import Finding
from rrg_utils.data.reports import Report
from rrg_utils.errors import RRGError

WATER_PER_MM = 0.0195  # attenuation of water at the effective energy of a chest film (about 65 keV)
VIEWS = ("frontal",)


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
    """A rendered radiograph: `image` float32 (H, W) in [0, 1], white is dense, the patient's left on the right;
    `regions` seven and `lobes` five boolean masks (H, W); `lesions` in the order of the annotation."""

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

    patient: int
    matrix: np.ndarray  # (2, 3): film pixel (row, column, 1) to projected pixel
    penetration: float
    contrast: float
    noise: np.ndarray
    collimation: np.ndarray  # (4,) mm cut at top, bottom, left, right
    marker: tuple[int, int]


def _setup(key: str, seed: int, size: int, patients: int) -> _Setup:
    rng = _rng("film", key, seed)
    angle, zoom = np.deg2rad(rng.normal(0, 1.5)), rng.uniform(0.94, 1.07)
    shift = rng.normal(0, 5.0, 2) * size / FILM_MM
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    middle = (size - 1) / 2
    matrix = np.column_stack([turn, middle - turn @ (middle + shift)]).astype(np.float32)
    return _Setup(
        patient=int(rng.integers(patients)),
        matrix=matrix,
        penetration=rng.normal(0, 0.10),
        contrast=rng.uniform(0.9, 1.12),
        noise=rng.standard_normal((size, size), dtype=np.float32),
        collimation=np.where(rng.random(4) < 0.25, rng.uniform(2, 10, 4), 0),
        marker=(int(rng.uniform(0.03, 0.10) * size), int(rng.uniform(0.86, 0.93) * size)),
    )


class PhantomRenderer:
    """Renders studies at one film size.

    size: rows and columns of the film in pixels, 32 to 512. conspicuity: contrast and extent of the findings, 1 is the
    default, smaller is harder to see. patients: how many deformed patients there are (cached per size).
    """

    def __init__(self, size: int = 128, conspicuity: float = 1.0, patients: int = anatomy.PATIENTS):
        if not 32 <= size <= 512:
            raise RRGError(f"size={size}: a film has between 32 and 512 pixels a side")
        if conspicuity < 0:
            raise RRGError(f"conspicuity={conspicuity}: must not be negative")
        self.size, self.conspicuity = size, conspicuity
        self.patients = anatomy.patients(size, patients)

    def render(
        self,
        report: Report,
        view: str = "frontal",
        seed: int = 0,
        without: Iterable[Finding | str] = (),
    ) -> Phantom:
        """The film of a report's annotation.

        without: findings to leave out, as `Finding`s, annotation strings or class names: everything else, noise
        included, stays as it was (the counterfactual). The same report, seed and options give the same picture.
        """
        if view not in VIEWS:
            raise RRGError(f"unknown view {view!r}; known are: {', '.join(VIEWS)}")
        setup = _setup(report.id, seed, self.size, len(self.patients))
        patient = self.patients[setup.patient]
        drawn = self._drawn(report, seed, without)

        bends: dict[str, np.ndarray] = {}
        for name, finding, key in drawn:
            if name in lesions.BENDS:
                bend = lesions.bend(name, patient, finding, _rng("bend", key), self.conspicuity)
                what = lesions.BENDS_THE_SAME.get(name, f"{name} {finding.side}")
                bends[what] = max(bends.get(what, bend), bend, key=lambda field: np.abs(field).max())
        if bends:
            patient = patient.bent(sum(bends.values()))
        changes = np.zeros((len(drawn), self.size, self.size), np.float32)
        for change, (name, finding, key) in zip(changes, drawn, strict=True):
            if name in lesions.DRAWINGS:
                for insert in lesions.DRAWINGS[name](patient, finding, _rng("draw", key), self.conspicuity):
                    _project(insert, change, patient, self.conspicuity)
        return self._expose(setup, patient, changes, drawn)

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

    def _expose(self, setup: _Setup, patient: Patient, changes: np.ndarray, drawn: list) -> Phantom:
        """Put the projected patient on film: pose, scatter, film response, noise, collimation, side marker."""
        water = np.maximum(patient.projection + changes.sum(0), 0) if len(changes) else patient.projection
        stack = np.concatenate([water[None], changes])
        posed, bits = _pose(stack, patient.masks, setup.matrix)
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


def _project(insert: lesions.Blob | lesions.Wire, film: np.ndarray, patient: Patient, strength: float) -> None:
    """Add the line integrals of an insert (mm of water) to a film (rows, columns) that is changed in place."""
    if isinstance(insert, lesions.Blob):
        r, c, _ = insert.origin
        rows, cols, _ = insert.change.shape
        film[r : r + rows, c : c + cols] += insert.change.sum(2) * np.float32(DEPTH_MM / 1000)
        return
    at = insert.points[:, :2] / patient.pitch
    keep = ((at >= 0) & (at < len(film) - 1)).all(1)
    at = at[keep]
    step = np.linalg.norm(np.gradient(insert.points[:, :2], axis=0), axis=1)[keep] / patient.pitch
    low = at.astype(int)
    share = at - low
    line = np.zeros_like(film)
    # A wire of diameter 2 r covers 2 r / pitch pixels across and `step` pixels along the line at each sample.
    weight = strength * insert.water_mm * step * min(1.0, 2 * insert.radius / patient.pitch)
    for dr in (0, 1):
        for dc in (0, 1):
            portion = np.abs(1 - dr - share[:, 0]) * np.abs(1 - dc - share[:, 1])
            np.add.at(line, (low[:, 0] + dr, low[:, 1] + dc), weight * portion)
    film += ndimage.gaussian_filter(line, max(0.35, 0.5 * insert.radius / patient.pitch))


@numba.njit(nogil=True, cache=True)
def _pose(stack, bits, matrix):
    """Move projections to their pose on the film: `stack` (N, H, W) bilinearly, `bits` (H, W) by nearest neighbour."""
    count, rows, cols = stack.shape
    out = np.empty_like(stack)
    out_bits = np.empty_like(bits)
    for r in range(rows):
        for c in range(cols):
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


# Film. The response spends its range on the lungs: slow densities (the bulk of the mediastinum against the lungs) are
# compressed as a digital system does, and an S curve maps what is left to grey.
_BULK_MM, _BULK_SHARE = 28.0, 0.6
_MIDDLE, _WIDTH = 2.8, 0.58
_SCATTER_MM, _SCATTER_SHARE = 18.0, 0.10
_QUANTA = 60000.0  # per pixel of 2.5 mm behind no tissue


def _develop(water_mm: np.ndarray, setup: _Setup, pitch: float) -> np.ndarray:
    """Line integrals in mm of water to a film in [0, 1]."""
    primary = np.exp(-WATER_PER_MM * water_mm, dtype=np.float32)
    scattered = ndimage.gaussian_filter(primary, _SCATTER_MM / pitch, truncate=2.5, mode="nearest")
    signal = primary + _SCATTER_SHARE * scattered
    quanta = _QUANTA * (pitch / 2.5) ** 2
    signal = signal + setup.noise * np.sqrt(signal / quanta)
    absorbed = -np.log(np.maximum(signal, 1e-4)) + setup.penetration
    bulk = ndimage.gaussian_filter(absorbed, _BULK_MM / pitch, truncate=2.5, mode="nearest")
    flat = absorbed - _BULK_SHARE * (bulk - _MIDDLE)
    film = 1 / (1 + np.exp(-(flat - _MIDDLE) * (setup.contrast / _WIDTH)))
    film = _mark(film.astype(np.float32), setup, pitch)
    return film


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
    if name == "elevated diaphragm" and finding.side in lesions.SIDES:
        half = np.any([masks[lobe] for lobe in LOBES if lobe.startswith(finding.side)], axis=0)
        mask = mask & half.any(axis=0)
    return mask


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
