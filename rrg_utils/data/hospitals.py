"""Where a film is taken: what differs between two radiology departments and says nothing about a patient's findings.

"standard" is a department with a wall stand: posterior-anterior films at 1.8 m of patients who breathe in and stand
straight. "portable" is a ward: anterior-posterior films in bed at 1 m, so the heart is magnified and the diaphragm
high, patients lie askew, and another detector gives softer contrast, more scatter and noise. Its reports are the
impression sections. A system that has learned its films and reports from the first is tested on the second. All values
are ours.
"""

from dataclasses import dataclass
from typing import Literal

from rrg_utils.data.anatomy import Acquisition
from rrg_utils.errors import RRGError


@dataclass(frozen=True)
class Response:
    """From line integrals to grey. An S curve of the given middle and width maps attenuation to grey after slow
    densities (the bulk of the mediastinum against the lungs) have been compressed, as digital systems do."""

    middle: float  # attenuation that becomes half grey
    width: float
    bulk_share: float = 0.6  # how much of the slow densities is taken away
    scatter_share: float = 0.10
    quanta: float = 60000.0  # per pixel of 2.5 mm behind no tissue: fewer, more noise


@dataclass(frozen=True)
class Hospital:
    """One department. Spreads are standard deviations."""

    name: str
    taken: Acquisition
    frontal: Response
    lateral: Response
    tilt_deg: float = 1.5
    shift_mm: float = 5.0
    zoom: tuple[float, float] = (0.94, 1.07)
    penetration: float = 0.10
    contrast: tuple[float, float] = (0.9, 1.12)
    collimated: float = 0.25  # share of edges that the collimator cuts
    section: Literal["findings", "impression"] = "findings"  # of the report that goes with the film


HOSPITALS = {
    hospital.name: hospital
    for hospital in (
        Hospital("standard", Acquisition("PA"), frontal=Response(2.8, 0.58), lateral=Response(3.9, 0.75)),
        Hospital(
            "portable",
            Acquisition("AP", 870.0, inspiration_mm=-10.0, heart=1.08),
            frontal=Response(3.0, 0.78, bulk_share=0.45, scatter_share=0.22, quanta=20000.0),
            lateral=Response(4.2, 0.95, bulk_share=0.45, scatter_share=0.22, quanta=20000.0),
            tilt_deg=4.0,
            shift_mm=10.0,
            zoom=(0.9, 1.02),
            penetration=0.18,
            contrast=(0.85, 1.05),
            collimated=0.5,
            section="impression",
        ),
    )
}


def hospital(name: str) -> Hospital:
    """A hospital by its name."""
    if name not in HOSPITALS:
        raise RRGError(f"unknown hospital {name!r}; known are: {', '.join(HOSPITALS)}")
    return HOSPITALS[name]
