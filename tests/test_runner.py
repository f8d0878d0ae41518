"""The runner on a tiny course with real kernels: order, resuming, killing, failing, figures, committed outputs."""

import json
import os
import signal
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import tiny_course
from tiny_course import rrg, start_rrg, write_course, write_notebook

from rrg_utils import runner
from rrg_utils.errors import RRGError


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A fresh course, as the current folder."""
    root = write_course(tmp_path / "course")
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A course that was run once at the cpu profile, and what that printed."""
    root = write_course(tmp_path_factory.mktemp("finished"))
    return root, rrg(root, "run", "-p", "word=ho ho")


# A cell that says which process runs it, then takes its time.
SLOW = "import os, pathlib, time\n\npathlib.Path({marker!r}).write_text(str(os.getpid()))\ntime.sleep(pause)"


def text(path):
    notebook = nbformat.read(path, as_version=4)
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds=40):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


# --- names, profiles, parameters: refused before anything runs ---


@pytest.mark.parametrize("name", ["02", "2", "second", "02_second", "02_second.ipynb", "notebooks/02_second.ipynb"])
def test_names_of_a_notebook(course, name):
    assert [path.stem for path in runner.notebooks([name])] == ["02_second"]


def test_notebooks_come_in_course_order_and_once(course):
    assert [path.stem for path in runner.notebooks(["second", "1", "02"])] == ["01_first", "02_second"]
    assert runner.notebooks() == runner.notebooks(["1", "2"])


def test_project_is_found_from_below(course, monkeypatch):
    monkeypatch.chdir(course / "notebooks")
    assert runner.project_dir() == course


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": ["frist"]}, ["unknown notebook 'frist'", "did you mean first", "01_first, 02_second"]),
        ({"profile": "smok"}, ["unknown profile 'smok'", "did you mean smoke", "smoke, cpu"]),
        ({"profile": "full"}, ["unknown profile 'full'", "smoke, cpu"]),
        ({"settings": ["step=1"]}, ["unknown parameter 'step'", "did you mean steps", "flag, pause, rate"]),
        ({"names": ["2"], "settings": ["steps=1"]}, ["unknown parameter 'steps'", "known: pause"]),
        ({"settings": ["steps"]}, ["-p steps", "name=value"]),
        ({"settings": ["steps=many"]}, ["parameter steps", "'many' is str, not int", "default 3"]),
        ({"settings": ["steps=1.5"]}, ["parameter steps", "1.5 is float, not int"]),
        ({"settings": ["steps=True"]}, ["parameter steps", "True is bool, not int"]),
        ({"settings": ["flag=1"]}, ["parameter flag", "1 is int, not bool"]),
        ({"settings": ["rate=fast"]}, ["parameter rate", "'fast' is str, not float"]),
        ({"commit": True, "profile": "smoke"}, ["--commit", "cpu profile"]),
    ],
)
def test_refusals_are_one_line_that_names_the_field(course, arguments, words):
    with pytest.raises(RRGError) as caught:
        runner.run(**arguments)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (course / "runs").exists(), "nothing may be written before the request is understood"


def test_plan_takes_profile_then_settings(course):
    first, second = runner.notebooks()
    assert runner._plan([first, second], "smoke", []) == {first: {"steps": 1}, second: {}}
    assert runner._plan([first], "smoke", ["steps=5", "rate=2", "word=3"]) == {
        first: {"steps": 5, "rate": 2.0, "word": "3"}
    }


def test_profile_that_names_no_parameter_is_refused(course):
    (course / "notebooks" / "profiles.yml").write_text("profiles: {smoke: {01_first: {stepz: 1}}}")
    with pytest.raises(RRGError, match=r"unknown parameter of 01_first in profiles\.yml"):
        runner.run(profile="smoke")
    (course / "notebooks" / "profiles.yml").write_text("profiles: [")
    with pytest.raises(RRGError, match=r"profiles\.yml is damaged"):
        runner.run()


@pytest.mark.parametrize("line", ["size = 2 * 64", "import os", "a = b = 1", "size: int = 3", "print(1)"])
def test_parameters_are_literals(course, line):
    path = course / "notebooks" / "01_first.ipynb"
    write_notebook(path, line, [])
    with pytest.raises(RRGError, match="may hold only lines `name = literal`"):
        runner.declared_parameters(path)


def test_damaged_notebook_is_named(course):
    (course / "notebooks" / "01_first.ipynb").write_text('{"cells": [')
    with pytest.raises(RRGError, match=r"01_first\.ipynb is not a readable notebook"):
        runner.run()


def test_output_folder_that_is_a_file(course):
    (course / "taken").write_text("")
    with pytest.raises(RRGError, match="cannot write to the output folder taken"):
        runner.run(output=course / "taken")


# --- runs with real kernels ---


def test_run_in_order_in_this_python_with_parameters(finished):
    root, done = finished
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first.startswith("[1/2] 01_first ... ok ")
    assert first.endswith("-> runs/cpu/01_first.ipynb")
    assert second.startswith("[2/2] 02_second ... ok ")
    assert last == "Made 2 notebooks in runs/cpu"
    printed = text(root / "runs" / "cpu" / "01_first.ipynb")
    assert f"python {tiny_course.sys.executable}\n" in printed
    assert "words ['ho ho', 'ho ho', 'ho ho'] 0.5 False" in printed
    assert not list((root / "runs" / "cpu").glob("*.partial.ipynb"))


def test_up_to_date_until_something_changes(finished, monkeypatch):
    root, _ = finished
    monkeypatch.chdir(root)
    said = []
    runner.run(settings=["word=ho ho"], say=said.append)
    assert all("... up to date -> runs/cpu/" in line for line in said)
    assert len(said) == 2

    ran = []
    monkeypatch.setattr(runner, "_execute", lambda path, result, *rest: ran.append(path.stem) or 0.0)
    keep = {path: path.read_bytes() for path in (root / "runs" / "cpu").glob("*.json")}

    def rerun(**options):
        ran.clear()
        runner.run(**({"settings": ["word=ho ho"], "say": said.append} | options))
        for path, content in keep.items():
            path.write_bytes(content)
        return ran[:]

    assert rerun() == []
    assert rerun(fresh=True) == ["01_first", "02_second"]
    assert rerun(settings=["word=hey"]) == ["01_first"], "only the notebook that declares the parameter"
    source = root / "notebooks" / "02_second.ipynb"
    before = source.read_text()
    source.write_text(before.replace("second done", "second DONE"))
    assert rerun() == ["02_second"]
    source.write_text(before)
    (root / "weights").mkdir()
    (root / "weights" / "new.safetensors").write_bytes(b"1")
    assert rerun() == ["01_first", "02_second"], "other weights, other results"
    (root / "weights" / "new.safetensors").unlink()
    (root / "runs" / "cpu" / "02_second.json").write_text("{")
    assert rerun() == ["02_second"]


@pytest.fixture
def measuring(course, monkeypatch):
    """A course in which 02 records and 03 shows what is kept, and the names of what was run; no kernel is started."""
    write_notebook(course / "notebooks" / "02_second.ipynb", "seed = 0", ["claims.record(comparison.runs(), seed)"])
    write_notebook(course / "notebooks" / "03_third.ipynb", "n = 1", ["bench.table(), claims.verdict()"])
    ran = []

    def execute(path, result, parameters, label, notebook):
        if path.stem == "02_second" and os.environ["RRG_RECORD"] == str(course / "results"):
            put(course, f"trrg.dci_helps/cpu-seed{parameters.get('seed', 0)}.json", len(ran))
        ran.append(result.stem)
        nbformat.write(notebook, result)
        return 0.0

    monkeypatch.setattr(runner, "_execute", execute)
    return course, ran


def put(course, name, value):
    """A file in the course's results, of other content for another value."""
    path = course / "results" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"effect": value}))


def test_a_run_whose_measurements_are_gone_is_made_again(course, monkeypatch):
    write_notebook(course / "notebooks" / "02_second.ipynb", "seed = 0", ["claims.record(seed)"])
    ran = []

    def execute(path, result, parameters, label, notebook):
        time.sleep(0.05)  # the clock of files is coarse
        if path.stem == "02_second":
            found = Path(os.environ["RRG_RECORD"]) / "trrg.dci_helps" / "cpu-seed0.json"
            found.parent.mkdir(parents=True, exist_ok=True)
            found.write_text("{}")
        ran.append(path.stem)
        nbformat.write(notebook, result)
        return 0.0

    monkeypatch.setattr(runner, "_execute", execute)
    runner.run(say=lambda line: None)
    ran.clear()
    runner.run(say=lambda line: None)
    assert ran == []
    (course / "runs" / "cpu" / "results" / "trrg.dci_helps" / "cpu-seed0.json").unlink()
    runner.run(say=lambda line: None)
    assert ran == ["02_second"]


def test_new_results_make_old_what_shows_them(measuring):
    course, ran = measuring

    def run(**options):
        ran.clear()
        runner.run(say=lambda line: None, **options)
        return ran[:]

    assert run() == ["01_first", "02_second", "03_third"]
    assert run() == []
    for name in ("bench/radscr/cpu-seed0.json", "trrg.dci_helps/cpu-seed3.json", "encoders/swin-seed0.npz"):
        for value in (1, 2):
            put(course, name, value)
            assert run() == ["02_second", "03_third"], name
            assert run() == []
    (course / "results" / "README.md").write_text("words")
    assert run() == []


def test_a_run_that_records_in_results_is_not_made_old_by_others_that_do(measuring):
    course, ran = measuring

    def run(**options):
        ran.clear()
        runner.run(say=lambda line: None, commit=True, **options)
        return ran[:]

    assert run() == ["01_first", "02_second", "03_third"]
    assert run() == [], "what 02 recorded was there when 03 was run"
    put(course, "trrg.dci_helps/cpu-seed3.json", 1)
    assert run() == ["03_third"]
    put(course, "encoders/swin-seed0.npz", 1)
    assert run() == ["02_second", "03_third"], "no notebook writes these, and 02 reads them"
    ran.clear()
    runner.run(say=lambda line: None)
    assert ran == [], "what was run for the committed results serves a plain run too"


def test_a_resumed_run_over_seeds_repeats_what_failed_and_what_shows_it(measuring, monkeypatch):
    _, ran = measuring
    execute, fails = runner._execute, ["02_second-seed1"]

    def sometimes(path, result, *rest):
        if result.stem in fails:
            raise RRGError("no")
        return execute(path, result, *rest)

    monkeypatch.setattr(runner, "_execute", sometimes)
    with pytest.raises(RRGError, match="1 of 5 runs failed: 02_second-seed1"):
        runner.run_seeds(seeds=3, say=lambda line: None)
    assert ran == ["01_first", "02_second-seed0", "02_second-seed2", "03_third"]
    for expected in (["02_second-seed1", "03_third"], []):
        fails.clear()
        ran.clear()
        runner.run_seeds(seeds=3, say=lambda line: None)
        assert ran == expected


def test_figures_and_tables_are_saved_from_a_copy_of_the_notebook(finished, monkeypatch):
    root, _ = finished
    monkeypatch.chdir(root)
    before = {path: path.read_bytes() for path in root.rglob("*.ipynb")}
    said = []
    files = runner.figure("tiny.fig1", say=said.append)
    assert [path.relative_to(root).as_posix() for path in files] == [
        "figures/tiny.fig1.png",
        "figures/tiny.fig1.svg",
        "figures/tiny.fig1.csv",
    ]
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in files[1].read_text()
    data = pd.read_csv(files[2])
    assert data[["kind", "series", "title", "x", "y"]].to_numpy().tolist() == [
        ["line", "rise", "two points", 1, 3],
        ["line", "rise", "two points", 2, 4],
    ]
    csv, markdown = runner.figure("tiny.table1", say=said.append)
    assert "up to date" in said[1], "one run saves all that the notebook has"
    assert pd.read_csv(csv, index_col=0).score.to_dict() == {"ours": 0.25, "theirs": 0.5}
    assert markdown.read_text() == "|  | score |\n| --- | --- |\n| ours | 0.25 |\n| theirs | 0.5 |\n"
    assert {path: path.read_bytes() for path in before} == before
    listed = rrg(root, "figure", "--list").stdout.splitlines()
    assert [line.split() for line in listed] == [
        ["tiny.fig1", "figure", "02_second", "about", "2.5", "min"],
        ["tiny.table1", "table", "02_second", "about", "2.5", "min"],
    ]
    with pytest.raises(RRGError, match=r"unknown figure 'tiny\.fig2'.*did you mean tiny\.fig1"):
        runner.figure("tiny.fig2")
    markdown.unlink()
    monkeypatch.setattr(runner, "_execute", lambda *arguments: 0.0)
    with pytest.raises(RRGError, match=r"tagged with tiny\.table1 .* no figures/tiny\.table1\.md"):
        runner.figure("tiny.table1", say=said.append)


def test_needs_of_a_figure(course):
    (course / "notebooks" / "profiles.yml").write_text(
        "cold_minutes: {02_second: 8}\nminutes: {02_second: 2}\nprofiles: {cpu: {}}"
    )
    write_notebook(course / "notebooks" / "02_second.ipynb", "with_meteor = True  # Java", tiny_course.SECOND)
    said = runner.needs(runner.figures()["tiny.fig1"])
    assert said == "about 2 min; 8 min more for each training seed that is not in the cache; Java for METEOR"
    assert runner.needs(course / "notebooks" / "01_first.ipynb") == ""


def test_a_figure_id_names_one_cell(course):
    write_notebook(course / "notebooks" / "03_third.ipynb", "n = 1  # one", tiny_course.SECOND)
    with pytest.raises(
        RRGError, match=r"two cells are tagged with tiny\.fig1: in 02_second\.ipynb and 03_third\.ipynb"
    ):
        runner.figures()


def test_a_table_cell_without_table_is_refused_before_it_runs(course):
    write_notebook(course / "notebooks" / "02_second.ipynb", "n = 1  # one", ["other_table = 1  # table = "])
    with pytest.raises(RRGError, match=r"tagged table:tiny\.table1 must leave its data frame in `table`"):
        runner.figure("tiny.table1")


# --- runs over seeds ---


@pytest.fixture
def seeded(tmp_path, monkeypatch):
    """Notebooks named like four of the real ones: with `seed`, with seeds made beforehand, with `seeds`, untested."""
    root = write_course(tmp_path / "seeded")
    parameters = {
        "03_narrative_bias": "seed = 0  # of it",
        "04_mamba_vs_swin": "seed = 0  # of the bootstrap",
        "06_clue_injection": "seeds = [0, 1]  # of them\narms = 'few'  # rows that are trained",
    }
    for stem, cell in parameters.items():
        write_notebook(root / "notebooks" / f"{stem}.ipynb", cell, [f"print('{stem}', {cell.split()[0]})"])
    (root / "notebooks" / "profiles.yml").write_text(
        "seeds_from: {04_mamba_vs_swin: make them}\ncold_minutes: {03_narrative_bias: 10, 06_clue_injection: 30}\n"
        "minutes: {03_narrative_bias: 4, 06_clue_injection: 7}\nprofiles: {cpu: {}, smoke: {}}"
    )
    monkeypatch.chdir(root)
    return root


def test_each_notebook_gets_its_seeds_and_the_time_is_said_first(seeded, monkeypatch):
    ran, said = [], []
    monkeypatch.setattr(runner, "_execute", lambda path, result, parameters, *rest: ran.append(parameters) or 0.0)
    made = runner.run_seeds(seeds=3, only_claims=True, say=said.append)
    names = ["03_narrative_bias-seed0", "03_narrative_bias-seed1", "03_narrative_bias-seed2"]
    assert [path.stem for path in made] == [*names, "04_mamba_vs_swin", "06_clue_injection-seeds3"]
    assert {path.parent for path in made} == {seeded / "runs" / "cpu-seeds"}
    assert ran == [{"seed": 0}, {"seed": 1}, {"seed": 2}, {}, {"seeds": [0, 1, 2], "arms": "all"}]
    assert said[0] == "04_mamba_vs_swin takes its training seeds from `make them 3`: run that first"
    assert said[1] == (
        "5 runs, 0 up to date; expected: 19 min on two cores, and up to 50 min for models of new seeds; "
        "not known how long: 04_mamba_vs_swin"
    )
    everything = runner.run_seeds(seeds=1, say=said.append)
    assert {"01_first", "02_second"} < {path.stem for path in everything}
    runner.run_seeds(["3"], "smoke", 1, say=said.append)
    assert "1 run, 0 up to date; no times are known for profile smoke" in said


def test_a_failure_stops_no_other_run_and_the_next_command_repeats_only_it(seeded):
    mended = seeded / "mended"
    cell = f"import pathlib\n\nif seed == 1 and not pathlib.Path({str(mended)!r}).exists():\n    raise ValueError('no')"
    write_notebook(seeded / "notebooks" / "03_narrative_bias.ipynb", "seed = 0  # of it", [cell])
    command = ["run", "3", "6", "--seeds", "2", "--claims", "--profile", "smoke"]
    first = rrg(seeded, *command)
    assert first.returncode == 1
    assert first.stderr == ("rrg: 1 of 3 runs failed: 03_narrative_bias-seed1; the same command tries them again\n")
    lines = first.stdout.splitlines()
    assert lines[0].startswith("3 runs, 0 up to date")
    assert lines[1].startswith("[1/3] 03_narrative_bias-seed0 ... ok")
    assert lines[2].startswith("[2/3] 03_narrative_bias-seed1 failed in cell")
    assert lines[3].startswith("[3/3] 06_clue_injection-seeds2 ... ok")
    assert "06_clue_injection [0, 1]" in text(seeded / "runs" / "smoke-seeds" / "06_clue_injection-seeds2.ipynb")
    mended.write_text("")
    second = rrg(seeded, *command)
    assert second.returncode == 0, second.stderr
    assert [line.split(" ... ")[1].split()[0] for line in second.stdout.splitlines()[1:4]] == ["up", "ok", "up"]
    assert second.stdout.splitlines()[-1] == "Made 3 runs in runs/smoke-seeds; rrg scorecard shows the verdicts"


def test_commit_writes_outputs_back_without_traces_of_the_machine(finished, monkeypatch):
    root, _ = finished
    monkeypatch.chdir(root)
    runner.run(["2"], commit=True, say=lambda line: None)
    path = root / "notebooks" / "02_second.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "second done" in text(path)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == [1, 2, 3, 4]
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for trace in ("papermill", 'execution"', "elsewhere", str(root), "duration"):
        assert trace not in path.read_text()
    assert [cell.metadata for cell in notebook.cells[1:]] == [
        {"tags": ["parameters"]},
        {"tags": ["figure:tiny.fig1"]},
        {"tags": ["table:tiny.table1"]},
        {},
    ]
    said = []
    runner.run(["2"], say=said.append)
    assert "up to date" in said[0], "refreshing the outputs must not make the notebook look changed"


def test_only_commit_puts_measurements_into_the_results_of_the_course(course):
    cell = 'from rrg_utils import claims\n\nclaims.record("trrg.dci_helps", "cpu", 0, 0.1, (0.05, 0.2))'
    write_notebook(course / "notebooks" / "02_second.ipynb", "pause = 0  # seconds", [cell])
    measured = "results/trrg.dci_helps/cpu-seed0.json"
    rrg(course, "run", "02")
    assert (course / "runs" / "cpu" / measured).is_file()
    assert not (course / measured).exists()
    said = rrg(course, "run", "02", "--commit").stdout
    assert "up to date" not in said, "its measurements are not there yet"
    assert json.loads((course / measured).read_text())["effect"] == 0.1
    write_notebook(course / "notebooks" / "02_second.ipynb", "seeds = [0]", [cell.replace("0.1,", "0.11,")])
    rrg(course, "run", "02", "--commit")
    assert json.loads((course / measured).read_text())["effect"] == 0.1, "what --seeds has measured stays"
    assert json.loads((course / "runs" / "cpu" / measured).read_text())["effect"] == 0.11
    write_notebook(course / "notebooks" / "02_second.ipynb", "seed = 0  # of training", [cell.replace("0.1,", "0.12,")])
    profiles = course / "notebooks" / "profiles.yml"
    profiles.write_text("cold_minutes: {02_second: 5}\n" + profiles.read_text())
    rrg(course, "run", "02", "--commit")
    assert json.loads((course / measured).read_text())["effect"] == 0.1, "nor does one seed of it replace a kept one"
    assert json.loads((course / "runs" / "cpu" / measured).read_text())["effect"] == 0.12


def test_killed_run_goes_on_where_it_stopped(course):
    marker = course / "second_started"
    slow = [SLOW.format(marker=str(marker))]
    write_notebook(course / "notebooks" / "02_second.ipynb", "pause = 0  # seconds", slow)
    profile = course / "notebooks" / "profiles.yml"
    profile.write_text("profiles: {cpu: {02_second: {pause: 60}}}")

    process = start_rrg(course, "run")
    wait_for(lambda: marker.exists() and marker.read_text())
    kernel = int(marker.read_text())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not alive(kernel))  # the kernel follows its parent
    assert (course / "runs" / "cpu" / "01_first.json").exists()
    assert not (course / "runs" / "cpu" / "02_second.ipynb").exists()

    profile.write_text("profiles: {cpu: {}}")
    again = rrg(course, "run")
    assert again.returncode == 0, again.stderr
    first, second, _ = again.stdout.splitlines()
    assert "01_first ... up to date" in first
    assert "02_second ... ok" in second
    assert json.loads((course / "runs" / "cpu" / "02_second.json").read_text())["parameters"] == {}


def test_interrupt_ends_the_kernel_and_exits_130(course):
    marker = course / "started"
    slow = [SLOW.format(marker=str(marker))]
    write_notebook(course / "notebooks" / "02_second.ipynb", "pause = 60  # seconds", slow)
    process = start_rrg(course, "run", "2")
    wait_for(lambda: marker.exists() and marker.read_text())

    with pytest.raises(RRGError, match="another rrg run is writing to runs/cpu"):
        runner.run(["1"])

    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130
    assert complaint == "[1/1] 02_second ... interrupted; the same command starts again here\n"
    assert not alive(int(marker.read_text()))


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (
            'print("before")\nraise ValueError("too small\\nby far")',
            "failed in cell [2]: ValueError: too small (partial",
        ),
        ("import os\n\nos._exit(9)", "failed: its Python died"),
    ],
)
def test_failing_notebook_is_one_line_and_keeps_the_partial_output(course, cell, words):
    write_notebook(course / "notebooks" / "02_second.ipynb", "pause = 0  # seconds", [cell, 'print("never")'])
    done = rrg(course, "run", "2")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    line = done.stderr.strip()
    assert line.startswith("rrg: [1/1] 02_second ")
    assert words in line
    assert "runs/cpu/02_second.partial.ipynb" in line
    assert (course / "runs" / "cpu" / "02_second.partial.ipynb").exists()
    assert not (course / "runs" / "cpu" / "02_second.ipynb").exists()
    assert "never" not in text(course / "runs" / "cpu" / "02_second.partial.ipynb")
