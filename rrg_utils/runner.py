"""Runs the notebooks in order with papermill, each in a fresh kernel of this interpreter, and resumes where it stopped.

A finished notebook leaves `<output>/NN_name.ipynb` and beside it `NN_name.json`, which records the hash of all that
went in (cells, parameters, package source, weights, and what it reads in `results/`). While both are there and the hash
is the same, it is up to date.
"""

import ast
import difflib
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
import psutil
import yaml
from filelock import FileLock, Timeout

from rrg_utils.errors import RRGError
from rrg_utils.files import write_atomically

PACKAGE = Path(__file__).parent
FIGURE_TAG, TABLE_TAG = "figure:", "table:"
# How the code of a notebook says that it reads in results/, and that it writes measurements.
_READS = re.compile(r"\b(claims|tables|bench|scorecard|comparison)\b|results/")
_RECORDS = re.compile(r"\b(claims\.record|tables\.(completed|keep)\b)")
# Folders in results/ that no notebook writes, and the word by which one reads them.
_MADE_BEFORE = {"encoders": "comparison.", "benchmarks": "results/benchmarks"}


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


def cold_minutes(stem: str) -> float | None:
    """Minutes more for each training seed whose models are not in the cache, where `profiles.yml` knows them."""
    return (_settings().get("cold_minutes") or {}).get(stem)


def trainings(stem: str) -> tuple[int, int, int]:
    """How many systems with the language model a notebook trains: for every training seed, once, and in all where it
    trains a few (`arms`)."""
    for_each_seed, once, *few = (_settings().get("trainings") or {}).get(stem, (0, 0))
    return for_each_seed, once, *(few or [for_each_seed + once])


def lacks(profile: str) -> list[str]:
    """What a profile is meant to have and the notebooks have no parameter for."""
    return (_settings().get("lacks") or {}).get(profile, [])


def declared_parameters(path: Path) -> dict[str, object]:
    """name -> default, from the one cell tagged `parameters`."""
    cells = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
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
    Measurements go to `results/` below the output folder. `commit` puts the executed notebooks over their sources,
    without traces of the machine, and measurements into the course's `results/`; but those of a notebook that trains
    systems, one seed and a few rows by default, come from `run_seeds`, which makes all.
    Raises RRGError, before anything runs, for an unknown notebook, profile or parameter or a value of another type,
    and when a notebook fails; KeyboardInterrupt once the kernel is gone.
    """
    root = project_dir()
    paths = notebooks(names)
    plan = _plan(paths, profile, settings)
    if commit and (profile != "cpu" or settings):
        raise RRGError("--commit writes the committed outputs: it takes the cpu profile and no -p")
    output = Path(output) if output else root / "runs" / profile
    made = []
    source = _source_digest(root)
    with _writing_to(output):
        for number, path in enumerate(paths, 1):
            # What takes minutes more for each seed (profiles.yml) trains by seed, also where it declares a single one.
            by_seeds = "seeds" in declared_parameters(path) or cold_minutes(path.stem) is not None
            kept = root / "results" if commit and not by_seeds else output / "results"
            job = _Job(path, output / path.name, plan[path], read(path), kept)
            _bring_up_to_date(job, profile, source, fresh, f"[{number}/{len(paths)}] {path.stem}", say)
            if commit:
                write_atomically(path, nbformat.writes(without_machine(read(job.result))) + "\n")
            made.append(job.result)
    return made


def planned(
    names: Sequence[str] = (), profile: str = "cpu", settings: Sequence[str] = (), output: Path | None = None
) -> list[tuple["_Job", bool]]:
    """What `run` would run with the same arguments, and whether it is up to date. Raises RRGError as it does."""
    root = project_dir()
    plan = _plan(notebooks(names), profile, settings)
    output, source = Path(output) if output else root / "runs" / profile, _source_digest(root)
    kept = output / "results"
    jobs = [_Job(path, output / path.name, parameters, read(path), kept) for path, parameters in plan.items()]
    return [(job, _is_up_to_date(job, profile, source)) for job in jobs]


def run_seeds(
    names: Sequence[str] = (),
    profile: str = "cpu",
    seeds: int = 5,
    only_claims: bool = False,
    output: Path | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Run notebooks over the training seeds 0 to `seeds` - 1, so that verdicts have a spread; returns what was made.

    A notebook with a parameter `seed` is run once for each, one with `seeds` once with all, any other once; where some
    rows of an ablation are read by default (`arms`), all are trained. Outputs go
    to `runs/<profile>-seeds`, measurements to `results/`. The expected time is said first. Each run is kept as soon as
    it is done, so the same command goes on after a stop; a notebook that fails does not keep the others, and raises
    RRGError at the end. `only_claims` leaves out the notebooks that test no claim.
    """
    from rrg_utils.claims import CLAIMS

    root = project_dir()
    paths = notebooks(names)
    if only_claims:
        testing = {claim.notebook for claim in CLAIMS.values() if not claim.not_here}
        paths = [path for path in paths if path.stem in testing]
        if not paths:
            raise RRGError("none of these notebooks tests a claim")
    output = Path(output) if output else root / "runs" / f"{profile}-seeds"
    jobs = [job for path in paths for job in _seed_jobs(path, profile, seeds, output)]
    source = _source_digest(root)
    with _writing_to(output):
        for path in paths:
            if command := (_settings().get("seeds_from") or {}).get(path.stem):
                say(f"{path.stem} takes its training seeds from `{command} {seeds}`: run that first")
        say(_expected(jobs, profile, [job for job in jobs if fresh or not _is_up_to_date(job, profile, source)]))
        failed = []
        for number, job in enumerate(jobs, 1):
            label = f"[{number}/{len(jobs)}] {job.result.stem}"
            try:
                _bring_up_to_date(job, profile, source, fresh, label, say)
            except RRGError as error:
                say(str(error))
                failed.append(job.result.stem)
    if failed:
        raise RRGError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}; the same command tries them again"
        )
    return [job.result for job in jobs]


def figures() -> dict[str, Path]:
    """figure id -> the notebook that has the cell tagged `figure:<id>`."""
    return _tagged(FIGURE_TAG)


def tables() -> dict[str, Path]:
    """table id -> the notebook that has the cell tagged `table:<id>`, which leaves its data frame in `table`."""
    return _tagged(TABLE_TAG)


def needs(path: Path) -> str:
    """What it takes to run a notebook: minutes, trainings, programs."""
    warm, cold = minutes(path.stem), cold_minutes(path.stem)
    words = [f"about {warm:g} min"] if warm else []
    words += [f"{cold:g} min more for each training seed that is not in the cache"] if cold else []
    words += ["Java for METEOR"] if "with_meteor" in declared_parameters(path) else []
    return "; ".join(words)


def figure(name: str, profile: str = "cpu", say: Callable[[str], None] = print) -> list[Path]:
    """Make a figure (PNG, SVG and the data in CSV) or a table (CSV and Markdown) under `figures/`; returns the files.

    A copy of its notebook is run in `runs/<profile>-figures`, unless that is up to date; it saves all it has.
    """
    known = figures() | tables()
    if name not in known:
        raise unknown("figure", name, known)
    root, path = project_dir(), known[name]
    ending = "" if profile == "cpu" else f".{profile}"
    kinds = (".png", ".svg", ".csv") if name in figures() else (".csv", ".md")
    files = [root / "figures" / f"{name}{ending}{kind}" for kind in kinds]
    output = root / "runs" / f"{profile}-figures"
    saving = _saving(read(path), os.path.relpath(root / "figures", path.parent), ending)
    parameters = _with_all_arms(path, _plan([path], profile, [])[path])
    job = _Job(path, output / path.name, parameters, saving, output / "results")
    with _writing_to(output):
        missing = not all(file.is_file() for file in files)
        _bring_up_to_date(job, profile, _source_digest(root), missing, f"[1/1] {path.stem}", say)
    if lost := [show(file) for file in files if not file.is_file()]:
        raise RRGError(f"{path.name}: the cell tagged with {name} shows no figure with plt.show(), so no {lost[0]}")
    return files


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


@dataclass(frozen=True)
class _Job:
    """One run: the notebook's path and content, the parameters to inject, where the executed copy goes and where its
    measurements.

    new_seeds: training seeds beyond those of the notebook's defaults.
    """

    path: Path
    result: Path
    parameters: dict
    notebook: nbformat.NotebookNode
    measurements: Path
    new_seeds: int = 0


@contextmanager
def _writing_to(output: Path) -> Iterator[None]:
    """The output folder, for one command at a time."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", timeout=0).acquire()
    except Timeout:
        raise RRGError(f"another rrg run is writing to {show(output)}: wait, or choose another --output") from None
    except OSError as error:
        raise RRGError(f"cannot write to the output folder {show(output)} ({error.strerror})") from None
    with lock:
        yield


def _run_key(job: _Job, profile: str, source: str) -> str:
    return _hash([_cells(job.notebook), job.parameters, profile, source, _read_in_results(job)])


def _read_in_results(job: _Job) -> list | None:
    """Files and hashes of what a notebook reads in the course's results; None where it reads nothing there.

    A run that itself records there must not look old because it, or another that does, has recorded since: of what
    notebooks record nothing counts for it. Its verdicts may be older than those of the runs after it.
    """
    code = "\n".join(cell.source for cell in job.notebook.cells if cell.cell_type == "code")
    if not _READS.search(code):
        return None
    results = _results(job)
    folders = [results]
    if job.measurements == results and _RECORDS.search(code):
        folders = [results / name for name, word in _MADE_BEFORE.items() if word in code]
    files = (path for folder in folders for path in folder.rglob("*") if path.suffix in (".json", ".npz"))
    return [[os.path.relpath(path, results), _file_hash(path)] for path in sorted(files)]


def _results(job: _Job) -> Path:
    """The course's own results, beside its notebooks."""
    return job.path.parents[1] / "results"


def _is_up_to_date(job: _Job, profile: str, source: str) -> bool:
    """Whether it was run from the same, and its measurements (still) are where they are wanted or in the course's
    results."""
    if not job.result.exists():
        return False
    record = _recorded(job.result.with_suffix(".json"))
    for kept in (job.measurements, _results(job)):
        if record.get("measurements") == str(kept):
            if not all((kept / name).exists() for name in record.get("measured", ())):
                return False
            return record.get("key") == _run_key(replace(job, measurements=kept), profile, source)
    return False


def _bring_up_to_date(
    job: _Job, profile: str, source: str, fresh: bool, label: str, say: Callable[[str], None]
) -> None:
    """Run a job if what it is made from has changed since it was run, or anyway if it shall be `fresh`."""
    if not fresh and _is_up_to_date(job, profile, source):
        say(f"{label} ... up to date -> {show(job.result)}")
        return
    key = _run_key(job, profile, source)  # of what it finds: by its end others may have recorded
    start = time.time()
    with _environment(RRG_RECORD=str(job.measurements.absolute())):  # for the kernel: see `claims.record`
        seconds = _execute(job.path, job.result, job.parameters, label, job.notebook)
    record = {
        "key": key,
        "parameters": job.parameters,
        "seconds": round(seconds),
        "measurements": str(job.measurements),
        "measured": _files_since(start, job.measurements),
    }
    write_atomically(job.result.with_suffix(".json"), json.dumps(record, indent=1))
    say(f"{label} ... ok {seconds:.0f} s -> {show(job.result)}")


def _files_since(start: float, folder: Path) -> list[str]:
    """Names of the files below a folder that were written since."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime >= start)
    return sorted(str(path.relative_to(folder)) for path in files)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables for the kernels that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _seed_jobs(path: Path, profile: str, seeds: int, output: Path) -> Iterator[_Job]:
    """The runs of a notebook over training seeds."""
    declared, notebook, kept = declared_parameters(path), read(path), path.parents[1] / "results"
    if "seeds" in declared:
        parameters = _with_all_arms(path, _plan([path], profile, [f"seeds={list(range(seeds))}"])[path])
        new = len({*range(seeds)} - {*declared["seeds"]})
        yield _Job(path, output / f"{path.stem}-seeds{seeds}.ipynb", parameters, notebook, kept, new)
    elif "seed" in declared and path.stem not in (_settings().get("seeds_from") or {}):
        for seed in range(seeds):
            parameters = _with_all_arms(path, _plan([path], profile, [f"seed={seed}"])[path])
            result = output / f"{path.stem}-seed{seed}.ipynb"
            yield _Job(path, result, parameters, notebook, kept, int(seed != declared["seed"]))
    else:
        yield _Job(path, output / path.name, _plan([path], profile, [])[path], notebook, kept)


def _with_all_arms(path: Path, parameters: dict) -> dict:
    """The parameters, with every row of an ablation measured: a notebook's default may be to read some of them."""
    return parameters | ({"arms": "all"} if "arms" in declared_parameters(path) else {})


def _expected(jobs: Sequence[_Job], profile: str, pending: Sequence[_Job]) -> str:
    """What lies ahead, in words: runs and minutes."""
    words = f"{len(jobs)} run{'s' * (len(jobs) != 1)}, {len(jobs) - len(pending)} up to date"
    if not pending:
        return words
    if profile != "cpu":
        return f"{words}; no times are known for profile {profile}"
    warm = sum(minutes(job.path.stem) or 0 for job in pending)
    cold = sum((cold_minutes(job.path.stem) or 0) * job.new_seeds for job in pending)
    words += f"; expected: {_duration(warm)} on two cores"
    words += f", and up to {_duration(cold)} for models of new seeds" if cold else ""
    stems = dict.fromkeys(job.path.stem for job in pending)
    unknown_times = [stem for stem in stems if minutes(stem) is None]
    untold = [job.path.stem for job in pending if job.new_seeds and cold_minutes(job.path.stem) is None]
    words += f"; not known how long: {', '.join(unknown_times)}" if unknown_times else ""
    words += f"; not known how long new seeds train: {', '.join(dict.fromkeys(untold))}" if untold else ""
    return words


def _duration(number: float) -> str:
    hours, rest = divmod(round(number), 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def _tagged(kind: str) -> dict[str, Path]:
    """id -> notebook for the tags of one kind. RRGError if an id is given twice: its files would be the same."""
    found: dict[str, tuple[str, Path]] = {}
    for path in notebooks():
        for cell in read(path).cells:
            for tag in cell.metadata.get("tags", []):
                if tag.startswith((FIGURE_TAG, TABLE_TAG)):
                    name = tag.split(":", 1)[1]
                    if name in found:
                        raise RRGError(f"two cells are tagged with {name}: in {found[name][1].name} and {path.name}")
                    found[name] = tag, path
    return {name: path for name, (tag, path) in found.items() if tag.startswith(kind)}


def _saving(notebook: nbformat.NotebookNode, folder: str, ending: str) -> nbformat.NotebookNode:
    """The notebook with every tagged figure and table saved into a folder as it is shown."""
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            kind, _, name = tag.partition(":")
            stem = f"{folder}/{name}{ending}"
            use = "from rrg_utils import export as _export"
            if f"{kind}:" == FIGURE_TAG:
                cell.source = f"{use}\n\n_export.save_shown({stem!r})\n{cell.source}"
            elif f"{kind}:" == TABLE_TAG:
                if "table" not in _assigned(cell.source):
                    raise RRGError(f"the cell tagged {tag} must leave its data frame in `table`")
                cell.source = f"{cell.source}\n{use}\n\n_export.save_table(table, {stem!r})"
    return notebook


def _assigned(source: str) -> set[str]:
    tree = ast.walk(ast.parse(source))
    return {node.id for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


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


def _execute(path: Path, result: Path, parameters: dict, label: str, notebook: nbformat.NotebookNode) -> float:
    """Run a notebook as if it lay at `path` into `result`, which is replaced only when complete. Returns seconds."""
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
    status = _Status(label, len(notebook.cells))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    start = time.monotonic()
    # Not in the main thread: there, nbclient takes Ctrl-C for itself and reports it as a dead kernel.
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(
            papermill.execute_notebook,
            notebook,
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
                    with suppress(psutil.NoSuchProcess):  # it ended by itself
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


def _recorded(record: Path) -> dict:
    """What a run left beside its output; empty if there is nothing readable."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _source_digest(root: Path) -> str:
    files = [path for ending in ("*.py", "*.yml") for path in PACKAGE.rglob(ending)]
    files += (root / "weights").rglob("*.safetensors")
    return _hash([[os.path.relpath(path, root), _file_hash(path)] for path in sorted(files)])


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cells(notebook: nbformat.NotebookNode) -> list:
    return [[cell.cell_type, cell.source, cell.metadata.get("tags", [])] for cell in notebook.cells]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook as it lies on disk. RRGError if it is damaged."""
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, UnicodeDecodeError):
        raise RRGError(f"{show(path)} is not a readable notebook: restore it, or delete an output") from None
