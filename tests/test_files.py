"""Files that are whole or not there, and arrays that have their space on disk."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from rrg_utils import processes
from rrg_utils.files import array_on_disk, write_all, write_atomically


@pytest.mark.parametrize(
    ("content", "expected"),
    [("ä\n", "ä\n".encode()), (b"\0\1", b"\0\1"), (lambda file: file.write(b"by itself"), b"by itself")],
)
def test_a_file_is_written_or_replaced(tmp_path, content, expected):
    path = tmp_path / "a.json"
    for _ in range(2):
        assert write_atomically(path, content) == path
        assert path.read_bytes() == expected
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_files_and_nothing_else(tmp_path, error):
    def fails(file):
        file.write(b"half")
        raise error

    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("old")
    with pytest.raises(type(error)):
        write_all({one: "new", two: fails})
    assert one.read_text() == "old", "none is replaced before all are written"
    assert os.listdir(tmp_path) == ["one"]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "a", "text")


def test_what_is_written_is_never_seen_in_parts(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def slowly(file):
        file.write(b"ne")
        file.flush()
        assert path.read_text() == "old"
        file.write(b"w")

    write_atomically(path, slowly)
    assert path.read_text() == "new"


def test_an_array_is_kept_and_mapped_again(tmp_path):
    path = tmp_path / "a.npy"
    array = array_on_disk(path, np.float16, (3, 5))
    assert not array.any()
    array[1] = 2
    array.flush()
    again = array_on_disk(path, np.float16, (3, 5))
    assert again[1].tolist() == [2] * 5
    again[2] = 3
    again.flush()
    assert np.load(path).sum() == 25


@pytest.mark.skipif(sys.platform != "linux", reason="the number of blocks is told by Linux")
def test_an_array_has_its_space_from_the_start(tmp_path):
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (4_000_000,))
    assert path.stat().st_blocks * 512 < 1_000_000, "made so it has none here"
    for _ in range(2):  # one that is there, then a new one
        array_on_disk(path, np.uint8, (4_000_000,))
        assert path.stat().st_blocks * 512 >= 4_000_000
        path.unlink()


def test_an_array_without_space_leaves_no_file(tmp_path, monkeypatch):
    number = errno.ENOSPC

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(OSError, match="No space left"):
        array_on_disk(tmp_path / "a.npy", np.uint8, (100,))
    assert os.listdir(tmp_path) == []
    number = errno.EOPNOTSUPP  # of a file system that cannot say beforehand
    assert array_on_disk(tmp_path / "a.npy", np.uint8, (100,)).shape == (100,)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_are_those_of_this_process(monkeypatch):
    before = os.sched_getaffinity(0)
    quota = Path("/sys/fs/cgroup/cpu.max")  # of a container
    if not quota.exists() or quota.read_text().startswith("max"):
        assert processes.cores() == len(before)
    assert 1 <= processes.cores() <= len(before)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert processes.cores() == 1
    finally:
        os.sched_setaffinity(0, before)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert processes.cores() == 1
