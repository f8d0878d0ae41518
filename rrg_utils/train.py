"""Train one system by name (`rrg train`): in this process, or in all processes of a launch."""

import ast
import json
import types
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, Union, get_args, get_origin, get_type_hints

from rrg_utils import readers, runner
from rrg_utils.errors import RRGError
from rrg_utils.training import History

NAMES = ("narrative", "r2gencsr", "trrg", "llava_ta", "radscr")


class Trained(NamedTuple):
    """Where a trained system lies in the cache, and how its training (its last stage) went."""

    folder: Path
    history: History


def train(name: str, settings: Sequence[str] = ()) -> Trained:
    """The system in the cache, trained now if it is not there. `settings`: see `configuration`."""
    config = configuration(name, settings)
    folder = readers.system(name).trained(config)
    return Trained(folder, History(**json.loads((folder / "history.json").read_text())))


def configuration(name: str, settings: Sequence[str] = ()):
    """The configuration of a system: its defaults, and "field=value" texts with values as in Python (a word needs no
    quotes). RRGError, before anything is trained, for an unknown system or field and for a value of another type."""
    if name not in NAMES:
        raise runner.unknown("system", name, NAMES)
    config = readers.system(name).Config
    known = get_type_hints(config)
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise RRGError(f"-p {setting}: write it as field=value")
        if field not in known:
            raise runner.unknown(f"parameter of {name}", field, [each.name for each in fields(config)])
        values[field] = _value(field, text, known[field])
    return config(**values)


def described(name: str) -> str:
    """The fields of a system's configuration with their defaults, in one line."""
    config = readers.system(name).Config
    return " ".join(f"{each.name}={getattr(config, each.name)!r}" for each in fields(config))


def summary(made: Trained) -> str:
    """Folder, losses and seconds for the command line."""
    history = made.history
    losses = {"validation": history.validation, "training": history.train}
    lines = [f"{what} loss by epoch: {' '.join(f'{x:.4f}' for x in of)}" for what, of in losses.items() if of]
    return "\n".join([str(made.folder), *lines, f"{history.seconds:.1f} s of training"])


def _value(field: str, text: str, hint: object) -> object:
    """A text as a value of a type: one of str, int, float, bool, tuple[str, ...], or one of them or None."""
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if text == "None" and type(None) in allowed:
        return None
    if str in allowed:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    for kind in allowed:
        if get_origin(kind) is tuple and isinstance(value, tuple | list) and all(type(each) is str for each in value):
            return tuple(value)
        if type(value) is kind:
            return value
        if kind is float and type(value) is int:
            return float(value)
    wanted = " or ".join(
        "None" if kind is type(None) else str(kind) if get_origin(kind) else kind.__name__ for kind in allowed
    )
    raise RRGError(f"parameter {field}: {value!r} is {type(value).__name__}, not {wanted}")
