"""Tokens of real films by the hundred thousand: sharded, resumable, on as many processes and machines as there are.

Under `accelerate launch` or `torchrun` process r of n makes shards r, r + n, ...; they meet only at the start and
at the end. A shard holds a fixed run of images in fixed batches, so its contents do not depend on the number of
processes; it gets its name only when it is whole, so a killed run is continued by the same command.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rrg_utils import processes
from rrg_utils.data.pictures import read_picture
from rrg_utils.errors import RRGError
from rrg_utils.files import Content, write_atomically

MANIFEST = "manifest.json"
_BATCH = 64


def extract(
    images: Mapping[str, Path], model: nn.Module, folder: str | Path, *, size: int, signature: str, shard: int = 1024
) -> None:
    """Write the patch tokens of `images` (id to file) to `folder`; returns in every process when all are done.

    model: films (B, 1, size, size) in [0, 1] -> `Features`; signature: its name, for instance with a hash of its
    weights. Raises RRGError for a folder that was begun with other images, another model, size or shard length.
    `folder` gets tokens-00000.npy, ... of (n, T, d) float16, ids.txt, manifest.json and, where images cannot be read,
    unreadable-00000.txt, ... with a line each; their rows are NaN. `Tokens` opens it.
    """
    from tqdm.auto import tqdm

    if not images:
        raise RRGError("no images to extract features from")
    if shard < 1:
        raise RRGError(f"shard={shard}: a shard holds at least one image")
    state = processes.state()
    folder = Path(folder)
    ids = "\n".join(images) + "\n"
    manifest = {
        "images": len(images),
        "ids": hashlib.sha256(ids.encode()).hexdigest()[:16],
        "model": signature,
        "size": size,
        "shard": shard,
    }
    _claim(folder, manifest)
    if state.is_main_process:
        for path in folder.glob("*.tmp"):  # what a killed run was writing
            path.unlink()
        _write(folder / "ids.txt", ids)
        _write(folder / MANIFEST, json.dumps(manifest, indent=1))
    state.wait_for_everyone()

    model = model.to(state.device).eval()
    shards = list(enumerate(_split(list(images.items()), shard)))
    own = [
        (k, items) for k, items in shards[state.process_index :: state.num_processes] if not _name(folder, k).exists()
    ]
    show = state.is_main_process and sys.stderr.isatty()
    for number, items in tqdm(own, desc=f"shards of process {state.process_index}", disable=not show):
        _make(folder, number, items, model, size, state.device)
    state.wait_for_everyone()


def _split(items: list, shard: int) -> list[list]:
    return [items[k : k + shard] for k in range(0, len(items), shard)]


def _name(folder: Path, number: int) -> Path:
    return folder / f"tokens-{number:05}.npy"


@torch.no_grad()
def _make(folder: Path, number: int, items: list[tuple[str, Path]], model: nn.Module, size: int, device) -> None:
    faults = []

    def read(item: tuple[str, Path]) -> np.ndarray:
        try:
            return read_picture(item[1], size)
        except RRGError as error:
            faults.append(f"{item[0]}\t{error}\n")
            return np.full((size, size), np.nan, np.float32)

    parts = []
    # The processes of one machine share its cores; the decoders release the interpreter lock.
    with ThreadPoolExecutor(max(1, processes.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))) as pool:
        for k in range(0, len(items), _BATCH):
            films = torch.from_numpy(np.stack(list(pool.map(read, items[k : k + _BATCH]))))[:, None]
            bad = films.isnan().flatten(1).any(1)
            tokens = model(films.nan_to_num().to(device)).tokens.half().cpu()
            tokens[bad] = torch.nan
            parts.append(tokens.numpy())
    told = folder / f"unreadable-{number:05}.txt"
    if faults:
        _write(told, "".join(sorted(faults)))
    else:
        told.unlink(missing_ok=True)  # of a run that was stopped here, before an image was mended
    _write(_name(folder, number), lambda file: np.save(file, np.concatenate(parts)))


def _claim(folder: Path, manifest: dict) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads((folder / MANIFEST).read_text()) if (folder / MANIFEST).exists() else None
        others = found is None and any(path.name != "ids.txt" and path.suffix != ".tmp" for path in folder.iterdir())
    except (OSError, ValueError) as error:
        raise RRGError(f"{folder}: cannot be used for features ({error})") from error
    if others:
        raise RRGError(f"{folder}: holds files but no {MANIFEST}: name an empty folder, or one that extract began")
    if found is not None and (changed := [key for key in manifest if found.get(key) != manifest[key]]):
        then, now = found.get(changed[0]), manifest[changed[0]]
        raise RRGError(f"{folder}: was begun with {changed[0]} {then}, not {now}: name another folder or remove it")


def _write(path: Path, content: Content) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise RRGError(f"{path}: cannot be written ({error.strerror})") from error


class Tokens:
    """Tokens in a folder of `extract`: like an array (N, T, d) float16, memory-mapped, indexed by images.

    `ids` names them in order; `unreadable` gives the reason for each image whose row is NaN. Raises RRGError if shards
    are missing or damaged.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            self.ids = (folder / "ids.txt").read_text().splitlines()
            self._shard, count = manifest["shard"], manifest["images"]
            names = [_name(folder, k) for k in range(-(-count // self._shard))]
            if missing := sum(not name.exists() for name in names):
                raise RRGError(
                    f"{folder}: {missing} of {len(names)} shards are missing: run the same rrg extract again"
                )
            self._parts = [np.load(name, mmap_mode="r") for name in names]
            lines = [line for path in sorted(folder.glob("unreadable-*.txt")) for line in path.read_text().splitlines()]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise RRGError(f"{folder}: not a folder of features, or a damaged one ({error})") from error
        self.unreadable = dict(line.split("\t", 1) for line in lines)
        self.shape = (count, *self._parts[0].shape[1:])
        if len(self.ids) != count or sum(map(len, self._parts)) != count:
            raise RRGError(f"{folder}: damaged, its shards do not hold the {count} images of {MANIFEST}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        """Rows by number, slice or array of numbers."""
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(index)
            index = int(index) % len(self)
            return np.asarray(self._parts[index // self._shard][index % self._shard])
        rows = np.arange(len(self))[index]
        out = np.empty((len(rows), *self.shape[1:]), np.float16)
        for part in np.unique(rows // self._shard):
            here = rows // self._shard == part
            out[here] = self._parts[part][rows[here] % self._shard]
        return out
