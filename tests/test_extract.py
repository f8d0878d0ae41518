"""Feature extraction: shards that do not depend on the number of processes, and a killed run that goes on."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from radiographs import MimicStudy, film, write_mimic, write_openi, write_png, write_r2gen
from torch import nn

from rrg_utils.data.pictures import read_picture
from rrg_utils.data.radiographs import image_files
from rrg_utils.data.reports import load_indiana
from rrg_utils.errors import RRGError
from rrg_utils.vision.encoder import Features
from rrg_utils.vision.extract import Tokens, extract

SIZE, COUNT, SHARD = 32, 37, 4


class Encoder(nn.Module):
    """A small random encoder, the same in every process; `pause` lets a test stop a run before its end."""

    def __init__(self, pause: float = 0):
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 8, 8)
        generator = torch.Generator().manual_seed(0)
        for weights in self.parameters():
            nn.init.normal_(weights, generator=generator)
        self.pause = pause

    def forward(self, films):
        time.sleep(self.pause)
        tokens = self.patches(films).flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1))


def run(root, folder, pause=0.0, **options):
    images = {path.stem: path for path in sorted(Path(root).glob("*.png"))}
    extract(images, Encoder(pause), folder, **({"size": SIZE, "signature": "random", "shard": SHARD} | options))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    for seed in range(COUNT):
        write_png(root / f"{seed:03}.png", film(seed))
    (root / "011.png").write_bytes((root / "011.png").read_bytes()[:400])
    return root


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    """Made by one process."""
    folder = tmp_path_factory.mktemp("features")
    run(root, folder)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(*command) -> subprocess.Popen:
    """This file as a script, as a user would start it."""
    env = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_run_killed_and_continued_by_two_processes_makes_what_one_makes(root, alone, tmp_path):
    folder = tmp_path / "features"
    killed = start(__file__, root, folder, 0.4)
    deadline = time.monotonic() + 250
    while len([*folder.glob("tokens-*.npy")]) < 2:
        assert killed.poll() is None, killed.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("tokens-*.npy")}
    assert 2 <= len(before) < 8
    with pytest.raises(RRGError, match=f"{10 - len(before)} of 10 shards are missing: run the same rrg extract again"):
        Tokens(folder)

    (folder / "tokens-00000.npy.1.tmp").write_bytes(b"half a shard")
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
    again = start(*launcher, "--main_process_port=0", __file__, root, folder, 0)  # without a GPU: gloo
    output = again.communicate(timeout=250)[0]
    assert again.returncode == 0, output
    assert sorted(re.findall(r"process (\d) of 2", output)) == ["0", "1"]
    assert contents(folder) == contents(alone)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"


def test_tokens_are_those_of_the_encoder(root, alone):
    tokens = Tokens(alone)
    assert tokens.shape == (COUNT, 16, 6)
    assert len(tokens) == COUNT
    assert tokens.ids == [f"{seed:03}" for seed in range(COUNT)]
    encoder = Encoder()
    for index in (0, 5, COUNT - 1):
        image = read_picture(root / f"{tokens.ids[index]}.png", SIZE)
        with torch.no_grad():
            expected = encoder(torch.from_numpy(image)[None, None]).tokens[0]
        assert np.abs(tokens[index] - expected.numpy()).max() < 0.01
        assert tokens[index].dtype == np.float16


def test_an_unreadable_film_is_a_row_of_nan_with_its_reason(root, alone):
    tokens = Tokens(alone)
    assert np.flatnonzero(np.isnan(tokens[:]).all((1, 2))).tolist() == [11]
    assert not np.isnan(np.delete(tokens[:], 11, 0)).any()
    assert list(tokens.unreadable) == ["011"]
    assert tokens.unreadable["011"].startswith(f"{root / '011.png'}: damaged picture")


def test_what_was_unreadable_before_a_stop_and_is_mended_is_not_told(root, tmp_path):
    for path in root.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folder = tmp_path / "features"
    run(tmp_path, folder)
    (shard,) = (path for path in folder.glob("tokens-*.npy") if np.isnan(np.load(path)).any())
    shard.unlink()  # as if the run had been killed before it was written
    write_png(tmp_path / "011.png", film(11))
    run(tmp_path, folder)
    tokens = Tokens(folder)
    assert not tokens.unreadable
    assert not np.isnan(tokens[:]).any()


def test_rows_by_slice_and_array(alone):
    tokens = Tokens(alone)
    whole = np.concatenate([np.load(path) for path in sorted(alone.glob("*.npy"))])
    for index in (slice(None), slice(3, 20, 5), np.array([30, 2, 2, 17]), [1], slice(0, 0), -1, np.int64(7)):
        assert np.array_equal(tokens[index], whole[index], equal_nan=True)
    for index in (COUNT, -COUNT - 1):
        with pytest.raises(IndexError):
            tokens[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"signature": "other"}, "begun with model random, not other"),
        ({"size": 40}, "begun with size 32, not 40"),
        ({"shard": 8}, "begun with shard 4, not 8"),
        ({"shard": 0}, "shard=0"),
    ],
)
def test_a_folder_of_another_run_is_refused_and_left_alone(root, alone, options, message):
    before = contents(alone)
    with pytest.raises(RRGError, match=message):
        run(root, alone, **options)
    assert contents(alone) == before


def test_other_images_or_none_are_refused(root, alone, tmp_path):
    with pytest.raises(RRGError, match="begun with images 37, not 1"):
        extract({"000": root / "000.png"}, Encoder(), alone, size=SIZE, signature="random", shard=SHARD)
    with pytest.raises(RRGError, match="no images"):
        run(tmp_path, tmp_path / "features")


def test_folders_that_cannot_be_used(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RRGError, match=r"file: cannot be used for features"):
        run(root, tmp_path / "file")
    with pytest.raises(RRGError, match=r"holds files but no manifest\.json"):
        run(root, tmp_path)
    with pytest.raises(RRGError, match="not a folder of features"):
        Tokens(tmp_path)


def test_damaged_features_are_noticed(root, alone, tmp_path):
    for name, data in contents(alone).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "tokens-00002.npy").write_bytes(b"")
    with pytest.raises(RRGError, match=f"{tmp_path}: not a folder of features, or a damaged one"):
        Tokens(tmp_path)
    (tmp_path / "tokens-00002.npy").write_bytes((tmp_path / "tokens-00009.npy").read_bytes())
    with pytest.raises(RRGError, match="its shards do not hold the 37 images"):
        Tokens(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([]))
    with pytest.raises(RRGError, match="not a folder of features"):
        Tokens(tmp_path)


def test_images_of_each_source(tmp_path):
    ids = list(load_indiana()[0].images)
    files = write_openi(tmp_path / "png", ids)
    assert image_files("iu_xray", tmp_path / "png") == files
    entries = {"train": [{"id": "CXR1_IM-1", "report": "Clear.", "image_path": ["a/0.png", "a/1.png"]}], "val": []}
    root = write_r2gen(tmp_path / "r2gen", entries | {"test": []})
    assert image_files("iu_xray", root) == {name: root / "images" / name for name in ("a/0.png", "a/1.png")}
    study = MimicStudy(90000001, 900011, "test", {"ab": "LATERAL", "aa": "PA"})
    found = image_files("mimic_cxr", write_mimic(tmp_path / "mimic", [study]))
    assert list(found) == ["aa", "ab"], "all views"
    assert all(path.is_file() for path in found.values())


if __name__ == "__main__":
    from accelerate import PartialState

    run(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
    state = PartialState()
    print(f"process {state.process_index} of {state.num_processes}\n", end="", flush=True)
    state.destroy_process_group()
