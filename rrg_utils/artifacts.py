"""Content-addressed cache: what is slow is made once, kept under the hash of all that made it, and checked on opening.

An entry is the folder `<cache>/<kind>/<key>` with a `manifest.json` that lists size and SHA-256 of every file. It is
built beside its final place and renamed when it is complete, so an entry that exists under its final name is whole;
if it is damaged later, the manifest shows it and the entry is rebuilt.
"""

import ast
import errno
import hashlib
import inspect
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from filelock import FileLock, Timeout

from rrg_utils import processes
from rrg_utils.errors import RRGError

log = logging.getLogger("rrg")
T = TypeVar("T")

MANIFEST = "manifest.json"
LOOK = 30.0  # seconds between two looks at a lock that another launch holds
SHARED = 120.0  # seconds until a folder made on one machine must be seen on the others
RESUMABLE = 30  # days that checkpoints of an interrupted call are kept
_kept_out: ContextVar[frozenset[str]] = ContextVar("kept_out", default=frozenset())


class NotBuilt(RRGError):
    """An entry is not in the cache, and the caller wished it not to be made (`only_from_cache`)."""

    def __init__(self, kind: str, key: str) -> None:
        super().__init__(f"{kind} {key} is not in the cache")
        self.kind, self.key = kind, key


@contextmanager
def only_from_cache(kinds: Sequence[str]) -> Iterator[None]:
    """Within, an entry of these kinds that is not in the cache raises `NotBuilt`: for those who ask, not make."""
    token = _kept_out.set(_kept_out.get() | frozenset(kinds))
    try:
        yield
    finally:
        _kept_out.reset(token)


def cache_dir() -> Path:
    """The cache folder: `RRG_CACHE`, or `~/.cache/rrg`. Not created here."""
    return Path(os.environ.get("RRG_CACHE") or Path.home() / ".cache" / "rrg").expanduser().absolute()


def artifact(
    kind: str,
    inputs: Mapping,
    make: Callable[[Path], None],
    code: Sequence[ModuleType] = (),
    *,
    resume: bool = False,
    together: bool = False,
) -> Path:
    """Folder made by `make(folder)`, from the cache if it is there.

    The key (`key_of`) is the SHA-256 of `kind`, `inputs` (anything JSON can write: sizes, seed, digests of the rest)
    and the source of the modules in `code`, comments, layout and docstrings aside. Processes that ask for the same
    entry build it once: the others wait.

    `make` gets an empty folder. With `resume=True` it may instead get what an interrupted call left there, and must
    continue from its own checkpoints (or overwrite them); what it leaves when it returns is the entry.

    Under `accelerate launch` or `torchrun` one process makes an entry and the others wait, as any processes do. With
    `together=True` all processes of the launch call `make` on the same folder, which must lie on a disk that they
    share: for a `make` that trains (`rrg_utils.training.fit` meets the other processes at every step). All processes
    must ask for such an entry, and write their files in the main process only:

        def make(folder):
            history = fit(model, ..., folder=folder / "fit")          # in every process
            if is_main_process():
                save_file(model.state_dict(), folder / "model.safetensors")
                shutil.rmtree(folder / "fit")

    A process in which `make` fails ends with its error, and the launcher ends the others. Without a launch `together`
    changes nothing.

    Nothing is printed: progress goes to the logger "rrg" (see `log_to`).

    Raises RRGError if the cache folder cannot be written or the disk is full, or is not shared by the machines of a
    launch; whatever `make` raises passes through.
    """
    key = key_of(kind, inputs, code)
    entry = cache_dir() / kind / key
    if together and processes.count() > 1 and processes.alone() is None:
        return _made_together(entry, kind, inputs, make, resume)
    if _fault(entry) is None:
        return entry
    if kind in _kept_out.get():
        raise NotBuilt(kind, key)
    if together and (maker := processes.alone()):
        raise RRGError(
            f"{kind} {key} is made by all processes of a launch, but is not in the cache while one of them makes "
            f"{maker}: ask for it before, or run once without a launcher"
        )
    _ensure_writable(entry.parent)
    lock = FileLock(f"{entry}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that builds %s %s", kind, key)
        lock.acquire()
    try:
        return _build(entry, kind, inputs, make, resume)
    finally:
        lock.release()


def log_to(stream) -> None:
    """Write the progress that artifacts and training log to `stream`, one line each: for the command line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("  %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _build(entry: Path, kind: str, inputs: Mapping, make: Callable[[Path], None], resume: bool) -> Path:
    """Make the entry while its lock is held."""
    folder = _folder_to_fill(entry, kind, resume)
    if folder is None:  # another process finished it while this one waited
        return entry
    start = time.monotonic()
    with _tidied(folder, kind, resume):
        with processes.one_makes(kind):
            make(folder)
        _finish(folder, entry, kind, inputs, start)
    return entry


def _made_together(entry: Path, kind: str, inputs: Mapping, make: Callable[[Path], None], resume: bool) -> Path:
    """The entry, made by all processes of the launch; the main one looks, locks and renames for all."""
    if _by_main(lambda: _fault(entry) is None):
        _seen(entry)
        return entry
    if kind in _kept_out.get():
        raise NotBuilt(kind, entry.name)
    _by_main(lambda: _ensure_writable(entry.parent))
    lock = FileLock(f"{entry}.lock")  # acquired by the main process only
    try:
        # The others hear from it now and then, or they would take it for dead.
        if not _by_main(lambda: _locked(lock, 0)):
            log.info("waiting for another process that builds %s %s", kind, entry.name)
            while not _by_main(lambda: _locked(lock, LOOK)):
                pass
        folder = _by_main(lambda: _folder_to_fill(entry, kind, resume))
        if folder is not None:
            _seen(folder)
            start = time.monotonic()
            with _tidied(folder, kind, resume) if processes.is_main_process() else nullcontext():
                make(folder)
                processes.wait_for_everyone()
                _by_main(lambda: _finish(folder, entry, kind, inputs, start))
    finally:
        lock.release()
    _seen(entry)
    return entry


def _by_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, in every process; where it raises, all do."""
    result = error = None
    if processes.is_main_process():
        try:
            result = call()
        except Exception as caught:
            error = caught
    result, said = processes.from_main((result, None if error is None else str(error)))
    if error is not None:
        raise error
    if said is not None:
        raise RRGError(said)
    return result


def _locked(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _seen(folder: Path) -> None:
    """Wait until a folder that the main process made is seen here: network file systems take their time."""
    end = time.monotonic() + SHARED
    while not folder.is_dir():
        if time.monotonic() > end:
            raise RRGError(
                f"{folder} was made by the main process and is not seen by process {os.environ.get('RANK')}: "
                "set RRG_CACHE to a folder that all machines of the launch share"
            )
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(folder.parent)  # makes NFS look again


def _folder_to_fill(entry: Path, kind: str, resume: bool) -> Path | None:
    """Where to make an entry whose lock is held, or None if it is whole."""
    fault = _fault(entry)
    if fault is None:
        return None
    if entry.exists():
        log.warning("cache entry %s %s is damaged (%s): rebuilding it", kind, entry.name, fault)
        shutil.rmtree(entry)
    _remove_abandoned(entry.parent)
    folder = entry.with_name(f"{entry.name}.{'partial' if resume else 'tmp'}")
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    with _tidied(folder, kind, resume):
        folder.mkdir(exist_ok=True)
    log.info("%s %s %s", "resuming" if any(folder.iterdir()) else "building", kind, entry.name)
    return folder


@contextmanager
def _tidied(folder: Path, kind: str, resume: bool) -> Iterator[None]:
    """After a failure nothing is left but what can be resumed; a full disk is one clear line."""
    try:
        yield
    except BaseException as error:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        if _no_space(error):
            raise RRGError(
                f"no space left in the cache folder {cache_dir()} while building {kind}: free some, "
                "or set RRG_CACHE to a folder on a larger disk"
            ) from error
        raise


def _no_space(error: BaseException) -> bool:
    """Whether a file could not grow: the disk is full, or a quota or a limit on the size of files is reached.

    safetensors and torch raise errors of their own, in which the operating system's is only quoted.
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in full
    return any(f"(os error {number})" in str(error) or os.strerror(number) in str(error) for number in full)


def _finish(folder: Path, entry: Path, kind: str, inputs: Mapping, start: float) -> None:
    """Write the manifest and give the folder its name."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = {"kind": kind, "inputs": inputs, "seconds": round(time.monotonic() - start, 1), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    folder.rename(entry)
    log.info("built %s %s in %.0f s", kind, entry.name, time.monotonic() - start)


def key_of(kind: str, inputs: Mapping, code: Sequence[ModuleType] = ()) -> str:
    """The key of an entry: 20 hexadecimal digits that change with its kind, its inputs and what its code does."""
    sources = [_program(Path(inspect.getsourcefile(module)).read_text()) for module in code]
    text = json.dumps([kind, inputs, sources], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@lru_cache
def _program(source: str) -> str:
    """What a source does, without comments, layout and docstrings: polishing them must not cost minutes of training."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    # The same text on every Python: 3.12 added a field, empty without generics, and 3.13 leaves out what is empty.
    everything = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **everything).replace(", type_params=[]", "")


def _fault(entry: Path) -> str | None:
    """What is wrong with an entry, or None if it is whole. RRGError where that cannot be told."""
    try:
        files = json.loads((entry / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if (entry / name).stat().st_size != expected["size"] or _sha256(entry / name) != expected["sha256"]:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except PermissionError as error:  # another user's, perhaps, and whole: no reason to delete it
        raise RRGError(
            f"cannot read {error.filename} in the cache ({error.strerror}): let this user read it, "
            "or set RRG_CACHE to another folder"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    return None


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left: their locks died with them, so a lock that is free marks a dead build.

    What can be resumed is left for `RESUMABLE` days after the last checkpoint: its key may never be asked for again.
    """
    for folder in [*parent.glob("*.tmp"), *parent.glob("*.partial")]:
        try:
            with FileLock(folder.with_suffix(".lock"), timeout=0):
                if folder.suffix == ".tmp" or _age(folder) > RESUMABLE:
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            pass  # being built by a living process


def _age(folder: Path) -> float:
    """Days since something in a folder was written."""
    newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    return (time.time() - newest) / 86400


def _ensure_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        reason = "permission denied"
    except OSError as error:
        writable, reason = False, error.strerror
    if not writable:
        raise RRGError(f"cannot write to the cache folder {cache_dir()} ({reason}): set RRG_CACHE to a writable folder")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
