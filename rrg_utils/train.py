"""Train one system by name (`rrg train`): in this process, or in all processes of a launch."""

import ast
import json
import types
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Union, get_args, get_origin, get_type_hints

from rrg_utils.errors import RRGError
from rrg_utils.training import History

# Modules of `rrg_utils.systems`, each imported when it is asked for, and the names of their configurations.
CONFIGS = {
    "narrative": "NarrativeConfig",
    "r2gencsr": "R2GenCSRConfig",
    "trrg": "TRRGConfig",
    "llava_ta": "LlavaTAConfig",
    "radscr": "RadSCRConfig",
}


class Trained(NamedTuple):
    """Where a trained system lies in the cache, and how its training (its last stage) went."""

    folder: Path
    history: History


def train(name: str, settings: Sequence[str] = ()) -> Trained:
    """The system in the cache, trained now if it is not there. `settings`: see `configuration`."""
    config = configuration(name, settings)
    folder = _system(name).trained_folder(config)
    return Trained(folder, History(**json.loads((folder / "history.json").read_text())))


def configuration(name: str, settings: Sequence[str] = ()):
    """The configuration of a system: its defaults, and "field=value" texts with values as in Python (a word needs no
    quotes). RRGError, before anything is trained, for an unknown system or field and for a value of another type."""
    config = getattr(_system(name), CONFIGS[name])
    known = get_type_hints(config)
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise RRGError(f"-p {setting}: write it as field=value")
        if field not in known:
            from rrg_utils.runner import unknown

            raise unknown(f"parameter of {name}", field, [each.name for each in fields(config)])
        values[field] = _value(field, text, known[field])
    return config(**values)


def described(name: str) -> str:
    """The fields of a system's configuration with their defaults, in one line."""
    config = getattr(_system(name), CONFIGS[name])
    return " ".join(f"{each.name}={getattr(config, each.name)!r}" for each in fields(config))


def summary(made: Trained) -> str:
    """Folder, losses and seconds for the command line."""
    history = made.history
    losses = {"validation": history.validation, "training": history.train}
    lines = [f"{what} loss by epoch: {' '.join(f'{x:.4f}' for x in of)}" for what, of in losses.items() if of]
    return "\n".join([str(made.folder), *lines, f"{history.seconds:.1f} s of training"])


def _system(name: str) -> ModuleType:
    if name not in CONFIGS:
        from rrg_utils.runner import unknown

        raise unknown("system", name, list(CONFIGS))
    return import_module(f"rrg_utils.systems.{name}")


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
