"""Does the evidence lie where the finding is? Scores of masks and heat maps against the known outline.

Where there is nothing to find (an empty mask) a score is NaN, and means leave it out; evidence that points nowhere
where there is something scores 0.
"""

from collections.abc import Sequence

import numpy as np

from rrg_utils.errors import RRGError
from rrg_utils.metrics.statistics import Statistic, ratio


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice overlap of two boolean masks (H, W): 2 |a and b| / (|a| + |b|); NaN if both are empty."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != bool or b.dtype != bool:
        raise RRGError(f"masks must be boolean and of one shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Pixels in both boolean masks (H, W) over pixels in either; NaN if both are empty. It follows from `dice`."""
    overlap = dice(a, b)
    return overlap / (2 - overlap)


def pointing_game(heat: np.ndarray, mask: np.ndarray) -> float:
    """1 if the hottest pixel of a map (H, W) lies in the mask, else 0 (Zhang et al. 2018, without their margin).

    Of several hottest pixels the share that lies inside counts, so that a flat map gets what guessing would.
    """
    heat, mask = _map_and_mask(heat, mask)
    if not mask.any():
        return float("nan")
    return float(mask[heat == heat.max()].mean())


def energy_inside(heat: np.ndarray, mask: np.ndarray) -> float:
    """Share of a map's energy inside the mask (Wang et al. 2020, Score-CAM); the map (H, W) must not be negative."""
    heat, mask = _map_and_mask(heat, mask)
    if (heat < 0).any():
        raise RRGError("a heat map with negative values has no energy: pass its positive part, np.maximum(heat, 0)")
    if not mask.any():
        return float("nan")
    total = heat.sum()
    return float(heat[mask].sum() / total) if total else 0.0


def grounding(heats: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> dict[str, Statistic]:
    """Means over films of "pointing game", "energy inside" and "chance", the share of the film that the mask covers.

    A map that knows nothing scores about "chance" in both, so the scores are read against it.
    """
    if len(heats) != len(masks) or not len(heats):
        raise RRGError(f"{len(heats)} heat maps but {len(masks)} masks: give one of each per film, at least one")
    rows = {"pointing game": [], "energy inside": [], "chance": []}
    for heat, mask in zip(heats, masks, strict=True):
        rows["pointing game"].append(pointing_game(heat, mask))
        rows["energy inside"].append(energy_inside(heat, mask))
        rows["chance"].append(energy_inside(np.ones(np.shape(mask)), mask))
    return {name: mean_of_defined(values) for name, values in rows.items()}


def mean_of_defined(values: Sequence[float]) -> Statistic:
    """The mean of one value per film, NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    return Statistic(np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1), ratio)


def _map_and_mask(heat: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heat, mask = np.asarray(heat, dtype=np.float64), np.asarray(mask)
    if heat.ndim != 2 or heat.shape != mask.shape or mask.dtype != bool:
        raise RRGError(
            f"expected a map (H, W) and a boolean mask of its shape, got {heat.shape} and {mask.dtype} {mask.shape}: "
            "resize the map to the film first"
        )
    if not np.isfinite(heat).all():
        raise RRGError("the heat map holds NaN or infinity")
    return heat, mask
