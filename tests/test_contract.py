"""The public names that others rely on: they are there, and can be called as the contract says."""

import subprocess
import sys
from dataclasses import fields, is_dataclass
from inspect import signature

import pytest
from typer.testing import CliRunner

from rrg_utils import cli, data, labels, language, metrics, systems, vision

SYSTEMS = ("R2GenCSR", "TRRG", "LlavaTA", "RadSCR")


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        (data.load_indiana, [], {}),
        (data.parse_mesh, ["Opacity/lung/upper lobe/right"], {}),
        (data.cohort, [[]], {}),
        (data.PhantomRenderer, [], {"size": 64, "conspicuity": 1.0}),
        (data.PhantomRenderer.render, [None, "report"], {"view": "frontal", "seed": 0, "without": ()}),
        (data.load_dataset, ["phantom", "test", 128], {"limit": None, "root": None}),
        (labels.label_report, ["Clear lungs."], {}),
        (labels.decompose, ["Clear lungs."], {}),
        (language.load_llm, ["tiny"], {}),
        (
            vision.selective_scan,
            list("udABC"),
            {"D": None, "z": None, "delta_bias": None, "delta_softplus": False, "backend": "auto"},
        ),
        (metrics.evaluate, [["a"], ["b"]], {}),
    ],
)
def test_functions_take_what_the_contract_gives_them(function, given, named):
    bound = signature(function).bind(*given, **named)
    defaults = {name: of.default for name, of in signature(function).parameters.items()}
    for name, value in named.items():
        if name not in ("size", "conspicuity"):
            assert defaults[name] == value, f"the default of {name}"
    bound.apply_defaults()
    if function is vision.selective_scan:  # by position as in mamba-ssm
        assert list(bound.arguments)[:9] == [*("u", "delta", *"ABCD"), "z", "delta_bias", "delta_softplus"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (data.Report, "id findings impression indication comparison mesh images"),
        (data.Finding, "name anatomy side severity qualifiers"),
        (data.Cohort, "train val test flow"),
        (data.Phantom, "image regions lobes lesions"),
        (data.Lesion, "finding mask box"),
        (data.Study, "id image text labels report"),
        (labels.TopicSentence, "topic sentence polarity"),
    ],
)
def test_what_is_given_back_has_the_fields(kind, names):
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else set(kind._fields)
    assert set(names.split()) <= known | set(dir(kind))


def test_values():
    assert len(data.ABNORMALITIES) == 37
    assert set(labels.label_report("No pleural effusion. The heart may be enlarged.").values()) <= {1, 0, -1, None}
    assert language.Prompt("a", "b")


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_are_built_from_their_configuration_and_have_the_methods(name):
    system, config = getattr(systems, name), getattr(systems, f"{name}Config")
    assert is_dataclass(config)
    signature(system).bind(config())
    for method in ("prepare", "loss", "generate", "save"):
        signature(getattr(system, method)).bind("self", "data or folder")
    signature(system.load).bind("folder")


def test_systems_are_imported_when_they_are_asked_for():
    code = (
        "import sys, rrg_utils.systems as systems; print('torch' in sys.modules, *dir(systems));"
        "from rrg_utils.systems import TRRG; print(TRRG.__module__, 'rrg_utils.systems.radscr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("False ")
    assert {*SYSTEMS} <= {*first.split()}
    assert second == "rrg_utils.systems.trrg False"
    assert {*SYSTEMS} <= {*systems.__all__}
    with pytest.raises(ImportError, match="cannot import name 'R2Gen'"):
        from rrg_utils.systems import R2Gen  # noqa: F401


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "run 03 --profile smoke -p seed=1",
        "figure llava_ta.fig1",
        "data build",
        "data check",
        "report film.png --system radscr",
        "scorecard",
    ],
)
def test_the_command_line_knows_the_commands(command):
    done = CliRunner().invoke(cli.app, [*command.split(), "--help"])
    assert done.exit_code == 0, done.output
