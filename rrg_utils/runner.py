"""Runs the notebooks in order with papermill, each in a fresh kernel of this interpreter, and resumes where it stopped.

A finished notebook leaves `<output>/NN_name.ipynb` and beside it `NN_name.json`, which records the hash of all that
went in (cells, parameters, package source, weights). While both are there and the hash is the same, it is up to date.
"""

import ast
import base64
import difflib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import nbformat
import psutil
import yaml
from filelock import FileLock, Timeout

from rrg_utils.errors import RRGError

PACKAGE = Path(__file__).parent
FIGURE_TAG = "figure:"


def project_dir() -> Path:
    """The folder that holds `notebooks/profiles.yml`: the current one, one above it, or the package's checkout."""
    for folder in (Path.cwd(), *Path.cwd().parents, PACKAGE.parent):
        if (folder / "notebooks" / "profiles.yml").is_file():
            return folder
    raise RRGError("no notebooks/profiles.yml here or above: run rrg inside a checkout of the course")


def notebooks(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks so named, or all, in course order; "3", "03", "narrative_bias" and the stem are names."""
    known = sorted((project_dir() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not known:
        raise RRGError(f"no notebooks in {project_dir() / 'notebooks'}")
    by_name = {}
    for path in known:
        number, slug = path.stem.split("_", 1)
        by_name |= {path.stem: path, slug: path, number: path, str(int(number)): path}
    chosen = set()
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        if stem not in by_name:
            raise unknown("notebook", name, [path.stem for path in known], by_name)
        chosen.add(by_name[stem])
    return sorted(chosen) or known


def profiles() -> dict[str, dict[str, dict]]:
    """profile -> notebook stem -> parameter -> value; "cpu" is the committed defaults."""
    return _settings()["profiles"]


def minutes(stem: str) -> float | None:
    """Minutes that a notebook takes on two cores at the cpu profile once its shared pieces exist."""
    return (_settings().get("minutes") or {}).get(stem)


def declared_parameters(path: Path) -> dict[str, object]:
    """name -> default, from the one cell tagged `parameters`."""
    cells = [cell for cell in _read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise RRGError(f"{path.name}: {len(cells)} cells are tagged `parameters`, there must be one")
    declared = {}
    for statement in ast.parse(cells[0].source).body:
        try:
            (target,) = statement.targets
            declared[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            raise RRGError(
                f"{path.name}: the parameters cell may hold only lines `name = literal`, not `{ast.unparse(statement)}`"
            ) from None
    return declared


def run(
    names: Sequence[str] = (),
    profile: str = "cpu",
    settings: Sequence[str] = (),
    output: Path | None = None,
    fresh: bool = False,
    commit: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run notebooks at a profile and return the executed copies.

    `settings` are "name=value" texts that override the profile in every chosen notebook that declares the name.
    `commit` writes the executed notebooks back over their sources, without traces of the machine.
    Raises RRGError, before anything runs, for an unknown notebook, profile or parameter or a value of another type,
    and when a notebook fails; KeyboardInterrupt once the kernel is gone.
    """
    root = project_dir()
    paths = notebooks(names)
    plan = _plan(paths, profile, settings)
    if commit and (profile != "cpu" or settings):
        raise RRGError("--commit writes the committed outputs: it takes the cpu profile and no -p")
    output = Path(output) if output else root / "runs" / profile
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", timeout=0).acquire()
    except Timeout:
        raise RRGError(f"another rrg run is writing to {show(output)}: wait, or choose another --output") from None
    except OSError as error:
        raise RRGError(f"cannot write to the output folder {show(output)} ({error.strerror})") from None

    made = []
    source = _source_digest(root)
    with lock:
        for number, path in enumerate(paths, 1):
            label = f"[{number}/{len(paths)}] {path.stem}"
            result = output / path.name
            record = result.with_suffix(".json")
            key = _hash([_cells(path), plan[path], profile, source])
            if not fresh and result.exists() and _recorded(record) == key:
                say(f"{label} ... up to date -> {show(result)}")
            else:
                seconds = _execute(path, result, plan[path], label)
                _write(record, json.dumps({"key": key, "parameters": plan[path], "seconds": round(seconds)}, indent=1))
                say(f"{label} ... ok {seconds:.0f} s -> {show(result)}")
            if commit:
                _write(path, nbformat.writes(without_machine(_read(result))) + "\n")
            made.append(result)
    return made


def figures() -> dict[str, Path]:
    """figure id -> the notebook that has the cell tagged `figure:<id>`."""
    return {
        tag.removeprefix(FIGURE_TAG): path
        for path in notebooks()
        for cell in _read(path).cells
        for tag in cell.metadata.get("tags", [])
        if tag.startswith(FIGURE_TAG)
    }


def figure(name: str, profile: str = "cpu", say: Callable[[str], None] = print) -> Path:
    """Run the notebook that makes a figure, unless its run is up to date, and save the picture under `figures/`."""
    known = figures()
    if name not in known:
        raise unknown("figure", name, known)
    (executed,) = run([known[name].stem], profile, say=say)
    pictures = [
        out.data["image/png"]
        for cell in _read(executed).cells
        if FIGURE_TAG + name in cell.metadata.get("tags", [])
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    if not pictures:
        raise RRGError(f"{show(executed)}: the cell tagged {FIGURE_TAG}{name} drew no picture")
    target = project_dir() / "figures" / (f"{name}.png" if profile == "cpu" else f"{name}.{profile}.png")
    target.parent.mkdir(exist_ok=True)
    _write(target, base64.b64decode(pictures[-1]))
    return target


def without_machine(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what depends on who ran it and when: timings, paths, versions, kernel names."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        for field in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(field, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def unknown(what: str, name: str, known: Sequence[str], also: Sequence[str] = ()) -> RRGError:
    """The refusal of a name, with the known ones and the closest match."""
    close = difflib.get_close_matches(name, [*known, *also], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return RRGError(f"unknown {what} {name!r}{hint}; known: {', '.join(known) or 'none'}")


def show(path: Path) -> str:
    """A path as a reader types it: relative to where they are, if it lies below."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _settings() -> dict:
    path = project_dir() / "notebooks" / "profiles.yml"
    try:
        content = yaml.safe_load(path.read_text())
        content["profiles"] = {
            profile: {stem: overrides or {} for stem, overrides in (per_notebook or {}).items()}
            for profile, per_notebook in content["profiles"].items()
        }
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RRGError(f"{show(path)} is damaged ({str(error).splitlines()[0]}): it needs `profiles:`") from None
    return content


def _plan(paths: Sequence[Path], profile: str, settings: Sequence[str]) -> dict[Path, dict]:
    """notebook -> the parameters to inject, every name and type checked."""
    if profile not in profiles():
        raise unknown("profile", profile, list(profiles()))
    declared = {path: declared_parameters(path) for path in paths}
    plan = {path: {} for path in paths}
    for path in paths:
        for name, value in profiles()[profile].get(path.stem, {}).items():
            if name not in declared[path]:
                raise unknown(f"parameter of {path.stem} in profiles.yml, profile {profile},", name, declared[path])
            plan[path][name] = _checked(name, value, declared[path][name])
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RRGError(f"-p {setting}: write it as name=value")
        takers = [path for path in paths if name in declared[path]]
        if not takers:
            raise unknown("parameter", name, sorted({known for path in paths for known in declared[path]}))
        for path in takers:
            plan[path][name] = _checked(name, _parsed(text, declared[path][name]), declared[path][name])
    return plan


def _parsed(text: str, default: object) -> object:
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _checked(name: str, value: object, default: object) -> object:
    """The value, if its type is the default's; a default of None takes anything, a float takes a whole number."""
    if type(default) is float and type(value) is int:
        return float(value)
    if default is not None and type(value) is not type(default):
        raise RRGError(
            f"parameter {name}: {value!r} is {type(value).__name__}, not {type(default).__name__} "
            f"like the default {default!r}"
        )
    return value


def _execute(path: Path, result: Path, parameters: dict, label: str) -> float:
    """Run one notebook into `result`, which is replaced only when it is complete. Returns seconds."""
    import papermill  # takes seconds to import, and a refused command does not need it
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError

    class ThisPython(AsyncKernelManager):
        """ipykernel of this very interpreter, whatever kernels the machine has registered."""

        @property
        def kernel_spec(self) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="Python 3", language="python")

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is reported here, in one line
    partial = result.with_suffix(".partial.ipynb")
    status = _Status(label, len(_read(path).cells))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    start = time.monotonic()
    # Not in the main thread: there, nbclient takes Ctrl-C for itself and reports it as a dead kernel.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            papermill.execute_notebook,
            path,
            partial,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=path.parent,  # where nbval and a reader's Jupyter run it too
            kernel_manager_class=ThisPython,
            on_cell_start=status.cell_started,
        )
        try:
            while not _done(future):
                status.draw(time.monotonic() - start)
            future.result()
        except KeyboardInterrupt:
            while not future.done():
                for child in psutil.Process().children(recursive=True):
                    child.kill()
                time.sleep(0.1)
            status.clear()
            print(f"{label} ... interrupted; the same command starts again here", file=sys.stderr)
            raise
        except papermill.PapermillExecutionError as error:
            status.clear()
            reason = f"{error.ename}: {error.evalue}".strip().splitlines()[0]
            raise RRGError(
                f"{label} failed in cell [{error.exec_count}]: {reason} (partial output: {show(partial)})"
            ) from error
        except DeadKernelError as error:
            status.clear()
            raise RRGError(
                f"{label} failed: its Python died, most often for lack of memory (partial output: {show(partial)})"
            ) from error
    status.clear()
    partial.replace(result)
    return time.monotonic() - start


class _Status:
    """The line that shows, on a terminal only, which cell is running."""

    def __init__(self, label: str, cells: int):
        self.label, self.cells, self.cell = label, cells, 0
        self.visible = sys.stderr.isatty()

    def cell_started(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        self.cell = cell_index + 1

    def draw(self, seconds: float) -> None:
        if self.visible:
            print(f"\r\x1b[K{self.label} ... cell {self.cell}/{self.cells}, {seconds:.0f} s", end="", file=sys.stderr)
            sys.stderr.flush()

    def clear(self) -> None:
        if self.visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _done(future: Future) -> bool:
    """Wait a second for the result; a wait with a limit is one that Ctrl-C can break."""
    try:
        future.exception(timeout=1)
    except NotYet:
        return False
    return True


def _recorded(record: Path) -> str | None:
    try:
        return json.loads(record.read_text())["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _source_digest(root: Path) -> str:
    files = [path for ending in ("*.py", "*.yml") for path in PACKAGE.rglob(ending)]
    files += (root / "weights").rglob("*.safetensors")
    return _hash([[os.path.relpath(path, root), _file_hash(path)] for path in sorted(files)])


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cells(path: Path) -> list:
    return [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in _read(path).cells]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, UnicodeDecodeError):
        raise RRGError(f"{show(path)} is not a readable notebook: restore it, or delete an output") from None


def _write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, so that an interruption leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
