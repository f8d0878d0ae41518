"""What every committed notebook must be like, checked without running it."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from rrg_utils.runner import declared_parameters, profiles

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in PATHS]
MACHINE = re.compile(r"(?<![\w.:/])/(?:root|home|work|tmp|Users|private|mnt|opt)/[\w.]|\b[A-Z]:\\\w|site-packages")
HEADINGS = ("what you will learn", "what it needs", "verdict", "limits", "exercises", "where next")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tagged(path, tag):
    return [cell for cell in read(path).cells if tag in cell.metadata.get("tags", [])]


def names_read(source):
    """Names that a cell's code reads; notebook magics are not Python and are left out."""
    code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
    tree = ast.walk(ast.parse(code))
    return {node.id for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def relative_links(markdown):
    """Targets of Markdown links and images that are files of this repository."""
    text = re.sub(r"```.*?```", "", markdown, flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    return [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#|data:", target)]


def outputs_text(path):
    """Everything the outputs hold but pictures."""
    for cell in code_cells(path):
        for output in cell.outputs:
            yield "".join(output.get("text", ""))
            yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def test_there_are_notebooks_and_they_are_numbered():
    assert PATHS, "no notebooks: the tests below would check nothing"
    assert [path.stem for path in PATHS if not re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)] == []
    numbers = [path.stem[:2] for path in PATHS]
    assert len(set(numbers)) == len(numbers)


@each_notebook
def test_is_valid_and_of_one_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_one_parameters_cell_of_commented_literals(path):
    assert declared_parameters(path), "it must declare at least one parameter"  # raises if they are not literals
    (cell,) = tagged(path, "parameters")
    for line in cell.source.splitlines():
        assert not line.strip() or line.startswith("#") or re.search(r"= .+  # \S", line), f"no comment on: {line}"


@each_notebook
def test_parameters_are_of_kinds_that_can_be_injected(path):
    # papermill would inject a tuple as text
    for name, default in declared_parameters(path).items():
        assert isinstance(default, int | float | str | list | dict | None), f"{name} is {type(default).__name__}"


@each_notebook
def test_every_parameter_is_read_later(path):
    cells = code_cells(path)
    (index,) = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    read_later = set().union(*(names_read(cell.source) for cell in cells[index + 1 :]))
    assert sorted(set(declared_parameters(path)) - read_later) == []


@each_notebook
def test_profiles_name_declared_parameters_of_the_same_type(path):
    declared = declared_parameters(path)
    for profile, overrides in profiles().items():
        for name, value in overrides.get(path.stem, {}).items():
            assert name in declared, f"profile {profile}: {path.stem} has no parameter {name}"
            kinds = (int, float) if isinstance(declared[name], float) else type(declared[name])
            assert isinstance(value, kinds), f"profile {profile}: {name} = {value!r}, default {declared[name]!r}"


def test_profiles_name_notebooks_that_exist_and_cpu_is_the_defaults():
    stems = {path.stem for path in PATHS}
    for profile, overrides in profiles().items():
        assert sorted(set(overrides) - stems) == [], f"profile {profile}"
    assert not any(profiles()["cpu"].values())
    assert sorted(profiles()["smoke"]) == sorted(stems), "the smoke profile must shrink every notebook"
    for large in ("full", "paper"):
        assert sorted(profiles()[large]) == sorted(stems), f"the {large} profile must enlarge every notebook"


@each_notebook
def test_every_cell_was_run_in_order(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_outputs_hold_no_errors_and_no_stderr(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text


@each_notebook
def test_no_traces_of_the_machine(path):
    for text in outputs_text(path):
        assert not MACHINE.search(text), MACHINE.search(text)
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not {"papermill", "execution", "ExecuteTime"} & set(cell.metadata)


def test_machine_pattern_finds_paths_and_only_paths():
    for text in ("saved to /home/ann/x", "'/root/.cache'", "(/tmp/a)", r"C:\Users\ann", "lib/site-packages/torch"):
        assert MACHINE.search(text), text
    for text in ("Opacity/lung/upper lobe/right", "and/or", "https://doi.org/home/1", "train/val/test", "mean: \\n"):
        assert not MACHINE.search(text), text


@each_notebook
def test_code_cells_fit_on_a_screen(path):
    assert max(len(cell.source.splitlines()) for cell in code_cells(path)) <= 40


@each_notebook
def test_spine(path):
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    headings = [line.lstrip("#").strip().lower() for line in prose.splitlines() if line.startswith("#")]
    missing = [wanted for wanted in HEADINGS if not any(heading.startswith(wanted) for heading in headings)]
    assert missing == []
    assert prose.startswith("# ")


@each_notebook
def test_three_exercises_with_hidden_solutions_that_are_tested(path):
    solutions = [cell for cell in tagged(path, "solution") if cell.cell_type == "code"]
    assert len(tagged(path, "exercise")) >= 3
    assert len(solutions) >= 3
    for cell in solutions:
        tree = ast.walk(ast.parse(cell.source))
        assert any(isinstance(node, ast.Assert) for node in tree), f"untested solution: {cell.source[:80]}"
        assert cell.metadata.get("jupyter", {}).get("source_hidden"), f"open solution: {cell.source[:80]}"


@each_notebook
def test_nbval_checks_something(path):
    marked = [cell for cell in tagged(path, "nbval-check-output") if cell.outputs]
    assert marked, "no cell with the tag nbval-check-output has an output to compare"
    for cell in marked:
        texts = [out for out in cell.outputs if out.get("text") or "text/plain" in out.get("data", {})]
        assert texts, "nbval compares text only"


@pytest.mark.parametrize("path", [pytest.param(ROOT / "README.md", id="README"), *NOTEBOOKS])
def test_relative_links_lead_somewhere(path):
    if path.suffix == ".md":
        prose = path.read_text()
    else:
        prose = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    missing = [target for target in relative_links(prose) if not (path.parent / target).exists()]
    assert missing == []


def test_links_are_found():
    text = '[a](b.md) ![c](d/e.png "title") [f](#g) [h](https://i) <img src="j.png"> [k](l.md#m)\n```\n[n](o)\n```'
    assert relative_links(text) == ["b.md", "d/e.png", "l.md", "j.png"]
