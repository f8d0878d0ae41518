"""The cache: one build per key, nothing half-made taken for whole, damage found and mended, clear refusals."""

import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType

import launch
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from radiographs import no_rights
from safetensors import SafetensorError

from rrg_utils import artifacts, processes
from rrg_utils.artifacts import artifact, cache_dir, key_of
from rrg_utils.errors import RRGError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RRG_CACHE", str(folder))
    return folder


class Maker:
    """Writes two files and counts how often it had to."""

    def __init__(self):
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "deep").mkdir()
        (folder / "a.txt").write_text("alpha")
        (folder / "deep" / "b.bin").write_bytes(bytes(range(256)))


def run_python(code, **environment):
    """A fresh interpreter that has imported `artifact`, so that it can be killed."""
    code = "import os, sys, time, signal\nfrom rrg_utils.artifacts import artifact\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )


def test_made_once_then_read_back(cache):
    make = Maker()
    first = artifact("kind", {"size": 3, "seed": 0}, make)
    second = artifact("kind", {"seed": 0, "size": 3}, make)  # the order of the inputs does not matter
    assert make.calls == 1
    assert first == second
    assert first.parent == cache / "kind"
    assert (first / "a.txt").read_text() == "alpha"
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["inputs"] == {"size": 3, "seed": 0}
    assert manifest["files"]["deep/b.bin"]["size"] == 256


def test_other_kind_inputs_or_code_is_another_entry(tmp_path):
    def module(source):
        path = tmp_path / f"m{abs(hash(source))}.py"
        path.write_text(source)
        result = ModuleType("m")
        result.__file__ = str(path)
        return result

    make = Maker()
    one, same, other = module("x = 1\n"), module("x  =  1  # why\n"), module("x = 2\n")
    paths = [
        artifact("kind", {"size": 3}, make),
        artifact("other", {"size": 3}, make),
        artifact("kind", {"size": 4}, make),
        artifact("kind", {"size": 3}, make, code=[one]),
        artifact("kind", {"size": 3}, make, code=[other]),
    ]
    assert len(set(paths)) == make.calls == 5
    assert artifact("kind", {"size": 3}, make, code=[same]) == paths[3], "comments and layout must not cost a rebuild"


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.integers() | st.text() | st.booleans() | st.lists(st.floats(allow_nan=False, allow_infinity=False)),
    )
)
def test_key_depends_on_content_alone(inputs):
    shuffled = dict(reversed(inputs.items()))
    assert artifacts.key_of("kind", inputs, ()) == artifacts.key_of("kind", shuffled, ())
    assert artifacts.key_of("kind", inputs | {"one more": 1}, ()) != artifacts.key_of("kind", inputs, ())


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "no manifest"])
def test_damage_is_found_and_mended_with_one_warning(damage, caplog):
    make = Maker()
    entry = artifact("kind", {}, make)
    target = entry / "deep" / "b.bin"
    match damage:
        case "flip":
            target.write_bytes(bytes(range(255)) + b"\0")
        case "truncate":
            target.write_bytes(b"")
        case "remove":
            target.unlink()
        case "manifest":
            (entry / "manifest.json").write_text('{"files"')
        case "no manifest":
            (entry / "manifest.json").unlink()
    assert artifact("kind", {}, make) == entry
    assert make.calls == 2
    assert target.read_bytes() == bytes(range(256))
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "damaged" in warnings[0].getMessage()


def test_failed_build_leaves_nothing(cache):
    def make(folder):
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifact("kind", {}, make)
    assert [path.suffix for path in (cache / "kind").iterdir()] == [".lock"]
    entry = artifact("kind", {}, Maker())
    assert not (entry / "half.txt").exists()


FULL = """
import resource

import numpy as np
import torch
from safetensors.torch import save_file

from rrg_utils.errors import RRGError
from rrg_utils.files import array_on_disk

resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # no file can grow beyond: as on a full disk
for make in (
    lambda folder: (folder / "a").write_bytes(bytes(300_000)),
    lambda folder: array_on_disk(folder / "a.npy", np.uint8, (300_000,)),
    lambda folder: save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors"),
):
    try:
        artifact("kind", {}, make)
    except RRGError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(cache):
    """Whoever notices it: Python, numpy, or the writer of safetensors with an error of its own."""
    process = run_python(FULL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    line = f"no space left in the cache folder {cache} while building kind: free some, or set RRG_CACHE to a folder"
    assert printed.splitlines() == [f"{line} on a larger disk"] * 3
    assert [path.suffix for path in (cache / "kind").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("cannot write: No space left on device"), True),
        (OSError(errno.EIO, "No space left on device"), False),
        (SafetensorError("invalid header"), False),
    ],
)
def test_errors_of_a_full_disk_are_told_from_others(error, full):
    def make(folder):
        raise error

    with pytest.raises(RRGError if full else type(error)) as caught:
        artifact("kind", {}, make)
    assert caught.value.__cause__ is error if full else caught.value is error


def test_what_cannot_be_read_is_named_and_left_alone(monkeypatch):
    """It may be another user's, and whole."""
    with no_rights() as folder:
        monkeypatch.setenv("RRG_CACHE", str(folder / "cache"))
        make = Maker()
        entry = artifact("kind", {}, make)
        for path in (entry / "a.txt", entry / "manifest.json"):
            path.chmod(0)
            with pytest.raises(RRGError, match=rf"^cannot read {path} in the cache \(Permission denied\).*RRG_CACHE"):
                artifact("kind", {}, make)
            path.chmod(0o600)
        assert artifact("kind", {}, make) == entry
        assert make.calls == 1


@pytest.mark.parametrize("folder", ["{tmp}/a-file", "{tmp}/a-file/below", "/proc/nowhere"])
def test_unwritable_cache_names_the_setting(folder, tmp_path, monkeypatch):
    (tmp_path / "a-file").write_text("")
    monkeypatch.setenv("RRG_CACHE", folder.format(tmp=tmp_path))
    with pytest.raises(RRGError, match=r"cannot write to the cache folder.*RRG_CACHE") as caught:
        artifact("kind", {}, Maker())
    assert "\n" not in str(caught.value)


def test_cache_folder_default(monkeypatch, tmp_path):
    monkeypatch.delenv("RRG_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "rrg"


KILLED = """
def make(folder):
    (folder / "half.txt").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
artifact("kind", {}, make, resume=%s)
"""


def test_killed_build_is_not_taken_for_whole_and_is_cleaned(cache):
    process = run_python(KILLED % False)
    left = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert os.path.isdir(left), "kill -9 leaves the working folder behind"
    artifact("kind", {"another": "entry"}, Maker())  # any later build of this kind clears it away
    assert not os.path.exists(left)
    make = Maker()
    entry = artifact("kind", {}, make)
    assert make.calls == 1
    assert not (entry / "half.txt").exists()


def test_killed_build_of_the_same_entry_starts_clean_or_resumes(cache):
    for resume, expected in ((False, []), (True, ["half.txt"])):
        process = run_python(KILLED % resume)
        process.stdout.readline()
        process.kill()
        process.wait()
        seen = []

        def make(folder, seen=seen):
            seen.extend(path.name for path in folder.iterdir())
            (folder / "whole.txt").write_text("whole")

        entry = artifact("kind", {}, make, resume=resume)
        assert seen == expected
        assert (entry / "whole.txt").exists()
        for path in entry.iterdir():
            path.unlink()  # spoil it for the second round


def test_old_checkpoints_that_nobody_builds_are_removed(cache):
    """Of interrupted trainings under keys that no code asks for any more; young ones may still be resumed."""
    old, young, held = (cache / "kind" / f"{name}.partial" / "fit" for name in ("old", "young", "held"))
    for folder in (old, young, held):
        folder.mkdir(parents=True)
        (folder / "step").write_text("")
        for path in (folder / "step", folder, folder.parent):
            os.utime(path, (0, time.time() - 31 * 86400))
    (young / "step-2").write_text("")
    with FileLock(cache / "kind" / "held.lock"):
        artifact("kind", {}, Maker(), resume=True)
    assert [folder.exists() for folder in (old, young, held)] == [False, True, True]


def test_a_running_build_is_left_alone(cache):
    process = run_python(KILLED % False)
    working = process.stdout.readline().strip()
    try:
        artifact("kind", {"another": "entry"}, Maker())
        assert os.path.isdir(working)
    finally:
        process.kill()
        process.wait()


def test_two_processes_build_once(tmp_path):
    log = tmp_path / "built.txt"
    code = """
    def make(folder):
        with open(os.environ["BUILT"], "a") as file:
            file.write("built\\n")
        time.sleep(0.5)
        (folder / "a.txt").write_text("alpha")
    print(artifact("kind", {}, make))
    """
    processes = [run_python(code, BUILT=str(log)) for _ in range(3)]
    paths = {process.communicate(timeout=30)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert len(paths) == 1
    assert log.read_text() == "built\n"


def test_progress_goes_to_the_log_not_to_stdout(capfd):
    stream = io.StringIO()
    logger = logging.getLogger("rrg")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        artifact("kind", {"silent": True}, Maker())
        assert capfd.readouterr() == ("", "")
        artifacts.log_to(stream)
        artifact("kind", {"silent": False}, Maker())
    finally:
        logger.handlers[:], level, logger.propagate = before
        logger.setLevel(level)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == ["building", "built"]


def test_every_python_reads_the_same_program():
    """As Python 3.11 writes it: 3.12 added type_params, 3.13 leaves empty lists out. Keys of the cache rest on it."""
    arguments = "arguments(posonlyargs=[], args=[arg(arg='x')], kwonlyargs=[], kw_defaults=[], defaults=[])"
    body = "[Return(value=Call(func=Name(id='g', ctx=Load()), args=[], keywords=[]))]"
    function = f"FunctionDef(name='f', args={arguments}, body={body}, decorator_list=[])"
    assert artifacts._program("def f(x):\n    return g()\n") == f"Module(body=[{function}], type_ignores=[])"


# --- several processes of one launch ----------------------------------------------------------------------------------


def met(folder) -> None:
    """As a training does: the processes meet before anything is written, and the main one writes."""
    met_by = processes.from_all(processes.is_main_process())
    with (folder / f"made-{os.environ['RANK']}.txt").open("a") as file:
        file.write("made\n")
    if processes.is_main_process():
        (folder / "met.json").write_text(json.dumps(met_by))


def one_process() -> list:
    """What a process of the launch is given and told."""
    said = [artifact("both", {"n": 1}, met, resume=resume, together=True).name for resume in (False, True)]
    made = Maker()
    artifact("either", {"n": 1}, made)  # one makes it, the other waits
    said.append(sum(processes.from_all(made.calls)))

    def nested(folder):
        artifact("both", {"n": 1}, met, together=True)  # is there: no meeting
        artifact("both", {"n": 2}, met, together=True)

    def trains(folder):
        fit(nn.Linear(1, 1), None, [0], name="alone")

    for make in (nested, trains):
        try:  # whoever is second in line fails as well
            artifact("either", {"make": make.__name__}, make)
        except RRGError as error:
            said.append(str(error))
    with artifacts.only_from_cache(["both"]):
        try:
            artifact("both", {"n": 3}, met, together=True)
        except artifacts.NotBuilt as error:
            said.append(str(error))
    processes.wait_for_everyone()
    held = FileLock(cache_dir() / "both" / f"{key_of('both', {'n': 4})}.lock", thread_local=False)
    if processes.is_main_process():  # as if another launch were at it
        held.acquire()
        threading.Timer(0.6, held.release).start()
    artifacts.LOOK = 0.1
    said.append(artifact("both", {"n": 4}, met, together=True).name)
    full = cache_dir() / "full"
    if processes.is_main_process():
        full.write_text("a file where a folder is needed")
    processes.wait_for_everyone()
    try:
        artifact("full", {}, met, together=True)
    except RRGError as error:
        said.append(str(error))
    return said


def test_the_processes_of_a_launch_make_an_entry_together(cache, tmp_path):
    workers = launch.start(2, __file__, tmp_path)
    printed = launch.outputs(workers)
    assert [worker.returncode for worker in workers] == [0, 0], printed
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    key, again, made, nested, trains, missing, waited, refused = first
    assert key == again
    assert made == 1
    assert "both" in nested
    assert "is made by all processes of a launch, but is not in the cache while one of them makes either" in nested
    assert trains.startswith("alone: one process makes either while the others of the launch wait")
    assert missing.endswith("is not in the cache")
    assert "cannot write to the cache folder" in refused
    for name in (key, waited):
        entry = cache / "both" / name
        assert json.loads((entry / "met.json").read_text()) == [True, False]
        assert [(entry / f"made-{rank}.txt").read_text() for rank in range(2)] == ["made\n"] * 2
        assert {*json.loads((entry / "manifest.json").read_text())["files"]} == {
            "met.json",
            "made-0.txt",
            "made-1.txt",
        }
    assert not [*(cache / "both").glob("*.tmp"), *(cache / "both").glob("*.partial")]


def test_a_cache_that_the_machines_do_not_share_is_refused(cache, monkeypatch):
    monkeypatch.setattr(artifacts, "SHARED", 0.2)
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(RRGError, match=r"not seen by process 3: set RRG_CACHE to a folder that all machines"):
        artifacts._seen(cache / "kind" / "key.partial")


def test_together_without_a_launch_is_as_ever():
    make = Maker()
    folders = {artifact("kind", {"together": True}, make, together=together) for together in (True, False)}
    assert (len(folders), make.calls) == (1, 1)


def test_a_process_that_fails_leaves_no_other_waiting(cache, tmp_path):
    """Process 1 fails within `make`; process 0, which waits for it there, hears of it and ends too."""
    workers = launch.start(2, __file__, tmp_path, "fail", RRG_CACHE=cache)
    printed = launch.outputs(workers)
    assert [worker.returncode for worker in workers] == [1, 1]
    assert "RRGError: no film" in printed[1]
    assert not [*(cache / "both").glob("*.tmp"), *(cache / "both").glob("*[0-9a-f]")]


if __name__ == "__main__":
    from torch import nn

    from rrg_utils.training import fit

    def fails(folder):
        if not processes.is_main_process():
            raise RRGError("no film")
        met(folder)

    if "fail" in sys.argv:
        artifact("both", {"fails": True}, fails, together=True)
    (Path(sys.argv[1]) / f"{os.environ['RANK']}.json").write_text(json.dumps(one_process()))
    processes.state().destroy_process_group()
