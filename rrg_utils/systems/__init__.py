"""The systems that write reports, each imported when it is asked for: one brings torch and transformers with it."""

from importlib import import_module

_MODULES = {
    "R2GenCSR": "r2gencsr",
    "R2GenCSRConfig": "r2gencsr",
    "TRRG": "trrg",
    "TRRGConfig": "trrg",
    "LlavaTA": "llava_ta",
    "LlavaTAConfig": "llava_ta",
    "RadSCR": "radscr",
    "RadSCRConfig": "radscr",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
