"""Files that are whole or not there, and arrays on disk that have their space."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np

Content = str | bytes | Callable[[BinaryIO], object]


def write_atomically(path: Path, content: Content) -> Path:
    """Put a text, bytes, or what `content(file)` writes, in the place of a file, in one step; returns the path.

    Whenever it is stopped, the old file is there or the new one, and only a kill leaves a hidden `.tmp` beside it. The
    folder must exist; OSError where the file cannot be written.
    """
    write_all({path: content})
    return path


def write_all(contents: Mapping[Path, Content]) -> None:
    """`write_atomically` for files that belong together: none is replaced before all of them are written."""
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            with temporaries[path].open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
        for path, temporary in temporaries.items():
            temporary.replace(path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def array_on_disk(path: Path, dtype: "np.typing.DTypeLike", shape: tuple[int, ...]) -> "np.memmap":
    """The array in an `.npy` file, or zeros in a new one, mapped into memory to be written.

    All its space is taken now, so that a full disk is an OSError: one that fills up under a mapped file would end the
    process with a signal (SIGBUS). macOS cannot do that.
    """
    import numpy as np

    new = not path.exists()
    try:
        array = np.lib.format.open_memmap(path, "w+" if new else "r+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                _take_space(file)
    except OSError:
        if new:
            path.unlink(missing_ok=True)
        raise
    return array


def _take_space(file: BinaryIO) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot say beforehand
            raise
