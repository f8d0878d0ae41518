"""One look for every figure: colour-blind safe, legible in print, films with the patient's left on the right."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette: told apart with any common colour vision.
COLOURS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "red": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#7F7F7F",
}


def style() -> None:
    """Set the look of all figures of a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette=list(COLOURS.values()))
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 160,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "legend.fontsize": 9,
            "axes.grid": True,
            "grid.alpha": 0.4,
            "figure.constrained_layout.use": True,
        }
    )


def film(axis: plt.Axes, image: np.ndarray, title: str = "") -> None:
    """Show a film as a radiologist sees it: white is dense, the patient's right on the viewer's left."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
    axis.set_title(title)
    axis.axis("off")


def outline(axis: plt.Axes, box: Sequence[float], label: str = "", colour: str = COLOURS["orange"]) -> None:
    """Draw a box (x0, y0, x1, y1) in pixels over a film, with a label above it."""
    x0, y0, x1, y1 = box
    axis.add_patch(plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.6))
    if label:
        inside = y0 < 8  # no room above the box
        place = {"va": "top" if inside else "bottom", "path_effects": [withStroke(linewidth=2, foreground="black")]}
        axis.text(x0 + inside, y0 - 1.5 + 3 * inside, label, color=colour, fontsize=9, **place)


def overlay(axis: plt.Axes, mask: np.ndarray, colour: str, alpha: float = 0.35) -> None:
    """Tint a boolean mask (H, W) over a film."""
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*plt.matplotlib.colors.to_rgb(colour), alpha)
    axis.imshow(tint, interpolation="nearest")


def band(
    axis: plt.Axes, x: Sequence[float], values: Sequence[float], intervals: Sequence, label: str, colour: str, **line
):
    """A line with its interval as a shaded band. intervals: (low, high) for each x."""
    low, high = np.array(intervals).T
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, label=f"_{label}")  # kept by rrg figure
    axis.plot(x, values, color=colour, label=label, marker="o", markersize=4, **line)
