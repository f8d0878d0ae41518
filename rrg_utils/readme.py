"""Keeps what README.md shows as it is measured: the scorecard, and pictures taken from the committed notebooks."""

import base64
import hashlib
import io
import re
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rrg_utils import runner, scorecard
from rrg_utils.errors import RRGError
from rrg_utils.files import write_all

BEGIN, END = "<!-- scorecard -->", "<!-- end of scorecard -->"
WIDTH = 1000  # pixels
LARGEST = 150_000  # bytes


def renew(path: Path, profile: str = "cpu") -> list[str]:
    """Write the scorecard between its two marks in a file, and the pictures that it shows; says what was renewed."""
    try:
        before = path.read_text()
    except OSError as error:
        raise RRGError(f"cannot read {path} ({error.strerror})") from None
    text = renewed(before, profile)
    content = {path: text.encode()} if text != before else {}
    for name, target in pictures(text, path.parent).items():
        original = committed(name)
        if source(target) != digest(original):
            content[target] = small(original)
    for target in content:
        target.parent.mkdir(exist_ok=True)
    write_all(content)
    return [f"renewed {runner.show(target)}" for target in content] or [f"{runner.show(path)} is up to date"]


def renewed(text: str, profile: str = "cpu") -> str:
    """The text with the present scorecard. RRGError if it does not have the two marks once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise RRGError(f"the scorecard goes between two lines, {BEGIN} and {END}: put them in")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{scorecard.markdown(profile)}\n{END}{rest.split(END)[1]}"


def pictures(text: str, folder: Path) -> dict[str, Path]:
    """figure id -> the file that a README in `folder` shows of it, `docs/<id>.png`."""
    return {name: folder / "docs" / f"{name}.png" for name in re.findall(r"\]\(docs/([\w.]+)\.png\)", text)}


def committed(name: str) -> bytes:
    """The PNG of a tagged figure as it stands in the committed notebook."""
    known = runner.figures()
    if name not in known:
        raise runner.unknown("figure", name, list(known))
    for cell in runner.read(known[name]).cells:
        if runner.FIGURE_TAG + name in cell.metadata.get("tags", []):
            found = [out.data["image/png"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
            if found:
                return base64.b64decode(found[-1])
    raise RRGError(f"{known[name].name} holds no picture of {name}: run it with rrg run --commit")


def small(original: bytes) -> bytes:
    """A picture of at most `WIDTH` pixels and `LARGEST` bytes that carries the digest of the one it was made from."""
    note = PngInfo()
    note.add_text("source", digest(original))
    whole = Image.open(io.BytesIO(original)).convert("RGB")
    for width in range(min(WIDTH, whole.width), 200, -50):
        picture = whole.resize((width, round(whole.height * width / whole.width)), Image.Resampling.LANCZOS)
        # The palette starts from the colours farthest apart: the commonest alone would drop a thin coloured outline.
        palette = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        for one in (picture, palette):
            file = io.BytesIO()
            one.save(file, "PNG", optimize=True, pnginfo=note)
            if file.tell() <= LARGEST:
                return file.getvalue()
    raise RRGError(f"a picture of {whole.width} x {whole.height} pixels does not fit into {LARGEST:,} bytes")


def source(path: Path) -> str | None:
    """The digest of the picture that a file was made from; None if there is no such file or note."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("source")
    except OSError:
        return None


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
