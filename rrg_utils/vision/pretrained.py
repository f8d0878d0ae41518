"""Encoders that others pre-trained, by name and behind our interface: timm's, and torchxrayvision's for chest X-rays.

    timm:swin_base_patch4_window7_224         any model of timm whose features lie on a grid; weights from the hub
    timm:swin_base_patch4_window7_224@FILE    the same with the weights in a file: .safetensors, or .pth and .bin
    xrv:densenet121-res224-all                a model of torchxrayvision; weights from where it keeps them
    xrv:densenet121-res224-all@FILE           the same with a state dict in a file

The film is scaled as the model saw its pictures and repeated for each of its channels. (timm can also sum the first
filters over the channels, `in_chans=1`; that has no place for a mean of each channel, saves next to nothing, and does
not work for every model.) It is never resized: a model that cannot take its size is refused.
"""

import difflib
import hashlib
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rrg_utils.errors import RRGError
from rrg_utils.vision.controls import check_films
from rrg_utils.vision.encoder import Features

FAMILIES = {"timm": "timm.list_models() in Python lists them", "xrv": "torchxrayvision's DenseNets and ResNets"}


class Name(NamedTuple):
    """`family:model` or `family:model@file`."""

    family: str
    model: str
    file: Path | None

    def __str__(self) -> str:
        return f"{self.family}:{self.model}"


def is_foreign(name: str) -> bool:
    """Whether an encoder's name is one of these, not of our own."""
    return ":" in name


def parse(name: str) -> Name:
    """The parts of a name; nothing is loaded. RRGError for an unknown family or model (with the closest one), and for
    a file that does not exist."""
    family, _, rest = name.partition(":")
    model, at, file = rest.partition("@")
    if family not in FAMILIES:
        raise RRGError(f"unknown encoder {name!r}: before the colon stands one of {', '.join(FAMILIES)}")
    known = _timm_models(model) if family == "timm" else list(_xrv_models())
    if model not in known:
        close = difflib.get_close_matches(model, known, n=1)
        hint = f" (did you mean {family}:{close[0]}?)" if close else ""
        raise RRGError(f"unknown encoder {family}:{model}{hint}; {FAMILIES[family]}")
    if at and not Path(file).expanduser().is_file():
        raise RRGError(f"encoder {family}:{model}: there is no file {file!r} after the @")
    return Name(family, model, Path(file).expanduser() if at else None)


def locate(name: str, download: bool = False) -> Path:
    """The file with the weights of a name; RRGError, with what to do, if it is not on this machine.

    `download` lets the hub of timm's weights be asked, unless HF_HUB_OFFLINE=1. torchxrayvision's are never fetched.
    """
    parsed = parse(name)
    if parsed.file:
        return parsed.file
    if parsed.family == "timm":
        return _from_hub(parsed, download)
    path = _xrv_path(parsed.model)
    if not path.is_file():
        url = _xrv_models()[parsed.model]["weights_url"]
        raise RRGError(
            f"weights of {parsed} are not on this machine: curl -L --create-dirs -o {_home(path)} {url}, "
            f"or name a state dict: {parsed}@FILE"
        )
    return path


def load_pretrained(name: str, size: int) -> "PretrainedEncoder":
    """An encoder by name, frozen and in eval mode: film (B, 1, size, size) in [0, 1] -> `Features`.

    Raises RRGError, before anything is built, when the model is unknown or its weights are missing; when it cannot take
    films of `size` px; and when a file does not hold the weights of this model. Its classifier may be missing.
    """
    parsed, file = parse(name), locate(name, download=True)
    make = _timm if parsed.family == "timm" else _xrv
    return make(parsed, file, size).eval().requires_grad_(False)


class PretrainedEncoder(nn.Module):
    """Film (B, 1, size, size) in [0, 1] -> `Features`: tokens v_S (B, grid^2, width) in row-major order, pooled v_G.

    v_G is the class token where there is one, else the mean of the tokens.

    Args:
        body: a model with timm's `forward_features`, which gives a map of features or a sequence of tokens.
        mean, std: per channel of the pictures, as fractions of white, that the model was pre-trained with.
    """

    def __init__(self, body: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.body, self.size = body.eval(), size
        for key, values in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        with torch.no_grad():
            count, self.width = self(torch.zeros(1, 1, size, size)).tokens.shape[1:]
        self.grid = math.isqrt(count)
        if self.grid**2 != count:
            raise RRGError(f"{count} tokens are not a square grid of patches")

    def forward(self, films: Tensor) -> Features:
        check_films(films, self.size)
        features = self.body.forward_features((films - self.mean) / self.std)  # (B, 1, ...) less (1, C, 1, 1)
        dims = features.ndim if isinstance(features, Tensor) else 0
        if dims == 4:
            if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
                features = features.permute(0, 3, 1, 2)
            if features.shape[2] != features.shape[3]:
                raise RRGError(f"features of shape {tuple(features.shape)} are not on a square grid")
            tokens = features.flatten(2).mT
            return Features(tokens, tokens.mean(1))
        before = getattr(self.body, "num_prefix_tokens", 0)  # class and register tokens
        if dims != 3 or features.shape[1] - before < 2:  # some models give nothing but class tokens
            raise RRGError("its features are not one map and not one token per patch")
        tokens = features[:, before:]
        has_class = before and getattr(self.body, "cls_token", None) is not None
        return Features(tokens, features[:, 0] if has_class else tokens.mean(1))


def digest(encoder: nn.Module) -> str:
    """SHA-256 of the state of an encoder: names, shapes and bytes of all its weights."""
    found = hashlib.sha256()
    for key, value in sorted(encoder.state_dict().items()):
        found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.cpu().numpy().tobytes())
    return found.hexdigest()


# --- timm ---


def _timm_models(model: str) -> list[str]:
    """Names to choose from: with the tag of a training ("vit_tiny_patch16_224.augreg_in21k") if `model` has one."""
    import timm

    return timm.list_pretrained() if "." in model else timm.list_models()


def _from_hub(name: Name, download: bool) -> Path:
    import httpx
    from huggingface_hub import constants, hf_hub_download
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name.model)
    if cfg is None or not cfg.hf_hub_id or cfg.custom_load == "hf":
        raise RRGError(f"the hub has no weights of {name} in a usual form: name a file of your own, {name}@FILE")
    repository, file = cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors"
    try:
        return Path(hf_hub_download(repository, file, local_files_only=not download))
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = "they are not in the local cache"
        if constants.HF_HUB_OFFLINE:
            reason += " and HF_HUB_OFFLINE is set"
        elif download:
            reason = _first_line(error)
        raise RRGError(
            f"no weights of {name}: {reason}: hf download {repository} {file}, where there is a network, "
            f"or name a file: {name}@FILE"
        ) from error


def _timm(name: Name, file: Path, size: int) -> PretrainedEncoder:
    import timm
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name.model)
    if cfg is None:
        raise RRGError(f"timm does not say how the pictures of {name} are scaled: choose another model")
    native = cfg.input_size[-1]
    # Where positions are tied to the size, timm makes them for another one and resamples the weights below.
    options = {"img_size": size} if cfg.fixed_input_size and size != native else {}
    try:
        body = timm.create_model(name.model, num_classes=0, **options)
        step = body.feature_info[-1]["reduction"] if getattr(body, "feature_info", None) else 1
        if size != native and size % step:  # some models would leave the rest of the film out without a word
            raise RRGError(f"expected a multiple of {step} px")
        encoder = PretrainedEncoder(body, size, cfg.mean, cfg.std)
    except (RRGError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RRGError(
            f"encoder {name} cannot be used on films of {size} px: {_first_line(error)} "
            f"(it was pre-trained at {native} px)"
        ) from error
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier or ()
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    _fill(body, file, heads, convert)
    return encoder


# --- torchxrayvision ---


def _xrv_module():
    with warnings.catch_warnings():  # importing it silences every warning of the process
        from torchxrayvision import models
    return models


def _xrv_models() -> dict[str, dict]:
    """{name: where its weights are and what they were trained on}, of the classifiers."""
    return {name: entry for name, entry in _xrv_module().model_urls.items() if name.startswith(("densenet", "resnet"))}


def _xrv_path(model: str) -> Path:
    """Where torchxrayvision keeps the weights that it downloads."""
    _xrv_module()
    from torchxrayvision.utils import get_cache_dir

    return Path(get_cache_dir()) / _xrv_models()[model]["weights_url"].rsplit("/", 1)[-1]


class _Convolutions(nn.Sequential):
    """A classifier without its last layers, which timm calls `forward_features`."""

    forward_features = nn.Sequential.forward


def _xrv(name: Name, file: Path, size: int) -> PretrainedEncoder:
    if size % 32:  # both kinds of network halve the film five times
        raise RRGError(f"encoder {name} cannot be used on films of {size} px: expected a multiple of 32 px")
    models = _xrv_module()
    if name.file is None:
        # Its own files are whole pickled models, which only torchxrayvision should load: what is pickled can run code.
        try:
            model = models.get_model(name.model)
        except Exception as error:  # a damaged pickle fails in many ways
            raise RRGError(
                f"{_home(file)}: torchxrayvision cannot load it ({_first_line(error)}): remove it and fetch it again"
            ) from error
    elif name.model.startswith("densenet"):
        model = models.DenseNet()
        _fill(model, file, ("classifier", "op_threshs"))
    else:
        model = _xrv_resnet(name.model)
        _fill(model, file, ("fc", "op_threshs"))
    if name.model.startswith("densenet"):
        body = _Convolutions(model.features, nn.ReLU())
    else:
        body = _Convolutions(*list(getattr(model, "model", model).children())[:-2])  # without average and classifier
    return PretrainedEncoder(body, size, [0.5], [1 / 2048])  # black is -1024, white 1024


def _xrv_resnet(model: str) -> nn.Module:
    """torchxrayvision's ResNet without weights, which its own class does not give."""
    import torchvision

    network = getattr(torchvision.models, model.split("-")[0])(weights=None)
    network.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return network


# --- files ---


def _fill(model: nn.Module, file: Path, heads: Iterable[str], convert=None) -> None:
    """Put the state dict in a file into a model; nothing else may be missing or too much than the classifier `heads`.

    convert: (state, model) -> state, for files of other versions and sizes.
    """
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(file), weights_only=True)
    except Exception as error:  # no file of weights: anything can come up
        raise RRGError(
            f"{_home(file)}: no weights can be read from it ({_first_line(error)}): expected a state dict, "
            "as .safetensors, or as .pth or .bin with nothing but tensors"
        ) from error
    reason = ""
    try:
        state = convert(state, model) if convert else state
        state = {key: value for key, value in state.items() if not _within(key, heads)}
        missing, unexpected = model.load_state_dict(state, strict=False)
        if wrong := [*(key for key in missing if not _within(key, heads)), *unexpected]:
            reason = f"{len(wrong)} names differ, such as {wrong[0]}"
    except Exception as error:  # weights of another model: here too
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".")
    if reason:
        raise RRGError(f"{_home(file)}: not the weights of this encoder ({reason}): name the model that they are of")


def _within(key: str, heads: Iterable[str]) -> bool:
    return any(key == head or key.startswith(f"{head}.") for head in heads)


def _home(path: Path) -> str:
    """A path as a reader types it."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(":. ") if text else type(error).__name__
