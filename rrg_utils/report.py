"""One image, one system, one report, with what the report rests on drawn over the image (`rrg report`).

What can be drawn depends on the system: RadSCR gives patches for each sentence, LLaVA-TA the region of each topic, TRRG
weights of its clues, R2GenCSR the training films that it compared with. A narrative model gives nothing, and says so.
"""

import io
import json
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rrg_utils.artifacts import NotBuilt, only_from_cache
from rrg_utils.data.pictures import read_picture
from rrg_utils.errors import RRGError
from rrg_utils.files import write_all
from rrg_utils.readers import TRAINED, LlavaReader, R2GenCSRReader, Reader, System, minutes, system
from rrg_utils.systems.base import GeneratedReport

WARNING = (
    "NOT FOR CLINICAL USE: research software. Its models learnt from rendered films, not from films of patients, and "
    "may be wrong in any sentence."
)


class Made(NamedTuple):
    """What `report` leaves: the text, the warning that goes with it, and the files."""

    text: str
    warning: str
    content: Path
    picture: Path


def report(
    image: str | Path,
    name: str,
    output: str | Path | None = None,
    *,
    seed: int = 0,
    profile: str = "cpu",
    train: bool = False,
) -> Made:
    """Write the report of a PNG, JPEG or DICOM file; `report.json` and `evidence.png` go into the folder `output`
    (left out: `reports/<file>-<system>`).

    The image becomes a film as a data set's real images do: padded to a square and resampled, nothing cut off.
    RRGError for a file that is missing or no radiograph, an unknown system, one that must be told more than a film, and
    one that is not trained yet, unless `train`.
    """
    it = system(name)
    if it.told:
        raise RRGError(
            f"{name} must be told the annotation of a study, which an image has not: choose "
            f"{'llava_ta' if name.startswith('llava') else 'another system'}"
        )
    config = it.config(seed, profile)
    film = np.round(read_picture(image, config.size) * 255).astype(np.uint8)
    reader = _opened(it, config, seed, profile, train)
    (made,) = reader.write(film[None])  # everything that is trained was opened before
    content = {
        "warning": WARNING,
        "image": Path(image).name,
        "system": name,
        "seed": seed,
        "profile": profile,
        "report": made.text,
        "evidence": made.evidence,
    }
    picture = draw(it, reader, film, made)
    target = Path(output) if output is not None else Path("reports") / f"{Path(image).stem}-{name}"
    files = target / "report.json", target / "evidence.png"
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_all(dict(zip(files, (json.dumps(content, indent=1) + "\n", picture), strict=True)))
    except OSError as error:
        raise RRGError(f"cannot write to {target} ({error.strerror or error})") from error
    return Made(made.text, WARNING, *files)


def _opened(it: System, config, seed: int, profile: str, train: bool) -> Reader:
    if train:
        return it.open(config, profile=profile)
    try:
        with only_from_cache(TRAINED):
            return it.open(config, profile=profile)
    except NotBuilt:
        known = minutes(it.notebook)
        about = f"about {known:g} min" if known else "some minutes"
        raise RRGError(
            f"{it.name} with seed {seed} is not trained yet: `rrg run {it.notebook}` trains what its notebook needs "
            f"({about} on two cores, up to half an hour more for what the course shares), or --train this system alone"
        ) from None


# --- evidence ---------------------------------------------------------------------------------------------------------


def draw(it: System, reader: Reader, film: np.ndarray, made: GeneratedReport) -> bytes:
    """The film (H, W) uint8 and the evidence of its report as a PNG."""
    import matplotlib

    kept = matplotlib.rcParams.copy()
    try:
        from rrg_utils import plots

        plots.style()
        matplotlib.rcParams["axes.grid"] = False
        figure = _DRAWN.get(it.name, _nothing)(reader, film / 255, made)
        figure.suptitle(f"{it.title}: not for clinical use", fontsize=12)
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()
    finally:
        matplotlib.rcParams.update(kept)


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # not pyplot: nothing is shown, so no window and no backend is needed

    return Figure(figsize=(width, height), layout="constrained")


def _panel(axis, film: np.ndarray, title: str = "") -> None:
    from rrg_utils.plots import film as show

    show(axis, film, title)


def _wrapped(text: str, width: int, lines: int | None = None) -> list[str]:
    """At most `lines` lines of a text in characters that every font has: an untrained model may write any."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return textwrap.wrap(plain, width, max_lines=lines, placeholder=" ...") or [""]


def _words(axis, lines: list[tuple[str, str]], width: int = 62) -> None:
    """Lines of (text, colour) from the top of an empty panel, one after the other."""
    axis.axis("off")
    line = 13 / 72 / (axis.figure.get_figheight() - 1)  # the height of a line as a share of the panel's
    at = 1.0
    for text, colour in lines:
        wrapped = _wrapped(text, width)
        shown = axis.text(
            0, at, "\n".join(wrapped), color=colour, fontsize=10, va="top", transform=axis.transAxes, parse_math=False
        )
        shown.set_in_layout(False)  # or the panels would shrink to make room for it
        at -= line * (1.15 * len(wrapped) + 0.5)


def _nothing(reader: Reader, film: np.ndarray, made: GeneratedReport):
    figure = _figure(9, 4.5)
    left, right = figure.subplots(1, 2)
    _panel(left, film, "the film as the system sees it\n(patient's left on the right)")
    _words(
        right, [(made.text or "(an empty report)", "black"), ("This system gives no evidence: none is drawn.", "0.4")]
    )
    return figure


def _small_multiples(count: int, more: float = 0.6):
    """A figure of `count` panels, four in a row, and these panels; `more`: inches for the title and what is below."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = _figure(3.1 * columns, 3.9 * rows + more)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    return figure, panels


def _caption(panel, text: str, lines: int) -> None:
    """A text under a panel, cut after so many lines: `report.json` has the whole."""
    where = {"transform": panel.transAxes, "ha": "center", "va": "top", "fontsize": 9, "parse_math": False}
    panel.text(0.5, -0.02, "\n".join(_wrapped(text, 34, lines)), **where)


def _radscr(reader: Reader, film: np.ndarray, made: GeneratedReport):
    """The film, then one panel per hypothesis: its region outlined, and the sentence it became or why it became none.

    What rests on no region (usual statements of normality, hypotheses without a region) is listed below.
    """
    from rrg_utils.plots import COLOURS

    evidence, probability = made.evidence, made.evidence["hypotheses"]
    shown, listed = [], []
    for line in evidence["sentences"]:
        name = line.get("abnormality")
        if line["kind"] == "Q":
            title = f"{name}\nhypothesis, probability {probability[name]:.2f}"
            shown.append((title, line["region"], COLOURS["orange"], line["text"]))
        elif line["kind"] == "U":
            shown.append((f"{name}\nmissed by the hypotheses", line["region"], COLOURS["sky"], line["text"]))
        else:
            listed.append(f"No region, a usual statement of normality: {line['text']}")
    for line in evidence["withdrawn"]:
        name = line["abnormality"]
        if line["region"]:
            title = f"{name}\nwithdrawn, probability {probability[name]:.2f}"
            because = line["because"] + (f": {line['text']}" if "text" in line else "")
            shown.append((title, line["region"], COLOURS["purple"], because))
        else:
            listed.append(f"Withdrawn: {name} ({line['because']})")
    listed += [f"Left out: {line['abnormality']} ({line['because']})" for line in evidence["dropped"]]

    below = [part for line in listed for part in _wrapped(line, 44 * min(4, 1 + len(shown)))]
    figure, panels = _small_multiples(1 + len(shown), 0.8 + 0.16 * len(below))
    _panel(panels[0], film, "the film as the system sees it\n(patient's left on the right)")
    patches = reader.model.hypotheses.grid
    for panel, (title, region, colour, text) in zip(panels[1:], shown, strict=False):
        _panel(panel, film, title)
        mask = np.zeros(patches * patches, bool)
        mask[region] = True
        _outlined(panel, mask.reshape(patches, patches), film.shape[0] / patches, colour)
        _caption(panel, text, 4)
    if below:
        figure.supxlabel("\n".join(below), fontsize=9, parse_math=False)
    return figure


def _outlined(axis, mask: np.ndarray, step: float, colour: str) -> None:
    """The border of a mask of patches (rows, columns) that are `step` pixels wide."""
    padded = np.pad(mask, 1)
    row, column = np.nonzero(np.diff(padded, axis=1)[1:-1])
    axis.vlines(column * step - 0.5, row * step - 0.5, (row + 1) * step - 0.5, color=colour, linewidth=2)
    row, column = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    axis.hlines(row * step - 0.5, column * step - 0.5, (column + 1) * step - 0.5, color=colour, linewidth=2)


def _llava(reader: LlavaReader, film: np.ndarray, made: GeneratedReport):
    """One panel per topic asked: the region looked at, and the sentence written."""
    from rrg_utils.plots import COLOURS, overlay

    (regions,) = reader.regions(np.round(film * 255).astype(np.uint8)[None])
    told = list(zip(*(made.evidence[name] for name in ("topics", "regions", "sentences")), strict=True))
    if not told:
        return _nothing(reader, film, made)
    figure, panels = _small_multiples(len(told))
    for panel, (topic, region, sentence) in zip(panels, told, strict=False):
        _panel(panel, film, f"{topic}\nlooked at: {region if regions else 'whole film'}")
        names = [name for name in region.split(" + ") if name in regions]
        if names:
            overlay(panel, np.any([regions[name] for name in names], axis=0), COLOURS["sky"])
        _caption(panel, sentence, 3)
    return figure


def _trrg(reader: Reader, film: np.ndarray, made: GeneratedReport):
    """Weights of all clues beside the film; the injected ones are coloured."""
    from rrg_utils.plots import COLOURS

    figure = _figure(12, 5.4)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1])
    _panel(left, film, "the film as the system sees it\n(patient's left on the right)")
    weights, injected = made.evidence["weights"], made.evidence["injected"]
    names = sorted(weights, key=weights.get)
    colours = [COLOURS["orange"] if name in injected else COLOURS["grey"] for name in names]
    middle.barh(names, [weights[name] for name in names], color=colours)
    middle.set_xlabel("weight w of the clue (share)")
    middle.set_title("orange: told to the language model")
    _words(right, [(made.text or "(an empty report)", "black")], 42)
    return figure


def _r2gencsr(reader: R2GenCSRReader, film: np.ndarray, made: GeneratedReport):
    """The film and the training films that it was compared with."""
    rows = [(sign, made.evidence[sign]) for sign in made.evidence if made.evidence[sign]]
    if not rows:
        return _nothing(reader, film, made)
    columns = 1 + max(len(ids) for _, ids in rows)
    figure = _figure(2.9 * columns, 3.2 * len(rows) + 1.1)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for panel in panels.ravel():
        panel.axis("off")
    _panel(panels[0, 0], film, "the film\n(patient's left on the right)")
    if len(rows) > 1:
        _words(panels[1, 0], [(made.text or "(an empty report)", "black")], 40)
    for line, (sign, ids) in zip(panels, rows, strict=True):
        for panel, study in zip(line[1:], ids, strict=False):
            kind = {"negative": "normal", "positive": "diseased"}[sign]
            _panel(panel, reader.film_of(study) / 255, f"compared with {study}\n({kind} training study)")
    return figure


_DRAWN = {
    "radscr": _radscr,
    "llava_ta": _llava,
    "llava_t": _llava,
    "trrg": _trrg,
    "r2gencsr": _r2gencsr,
}
