"""Trained systems in the cache: what their keys are made of."""

import json
from pathlib import Path

import pytest
from tiny_llm import make_llm

from rrg_utils import artifacts
from rrg_utils.data import datasets
from rrg_utils.language.models import folder_digest
from rrg_utils.systems import stored
from rrg_utils.systems.narrative import NarrativeConfig


class Model:
    def save(self, folder: Path) -> None:
        (folder / "model.txt").write_text("trained")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Folder and key inputs of a "training" over a language model; `made` counts the trainings."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "cache"))
    made = []

    def make(llm: str) -> tuple[str, dict]:
        config = NarrativeConfig(llm=llm, encoder="annotation", align_studies=0)
        folder = stored.training("narrative", config, lambda _: (Model(), made.append(llm)), [])
        return folder.name, json.loads((folder / "manifest.json").read_text())["inputs"]

    return make, made


def test_other_weights_in_the_same_folder_are_another_entry(trained, tmp_path):
    make, made = trained
    llm = make_llm(tmp_path / "llm", ["The heart is enlarged.", "Clear lungs."])
    first, inputs = make(llm)
    assert inputs["language model weights"] == folder_digest(llm) == folder_digest(f"{llm}:4bit:checkpointing")
    assert make(llm)[0] == first
    assert len(made) == 1
    weights = tmp_path / "llm" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert make(llm)[0] != first
    weights.write_bytes(before)
    assert make(llm)[0] == first
    (tmp_path / "llm").rename(tmp_path / "moved")
    assert folder_digest(str(tmp_path / "moved")) == inputs["language model weights"], "the name is in the key as it is"
    assert len(made) == 2


def test_other_films_or_texts_are_another_entry(trained, tmp_path, monkeypatch):
    """When the code that draws films changes, they are made anew: a system that was trained on others is not used."""
    make, made = trained
    llm = make_llm(tmp_path / "llm", ["The heart is enlarged."])
    first, _ = make(llm)
    for name, other in (("DRAWING", datasets.DRAWING[1:]), ("ENCODING", []), ("_texts", artifacts)):
        with monkeypatch.context() as patch:
            patch.setattr(stored, name, other)
            assert make(llm)[0] != first
    assert make(llm)[0] == first
    assert len(made) == 4


@pytest.mark.parametrize("name", ["tiny", "smoke", "smollm2", "smollm2:checkpointing", "org/model-7b:4bit"])
def test_models_of_the_course_and_the_hub_are_known_by_their_names(trained, name, tmp_path, monkeypatch):
    """Also where a folder of that name lies about, as `load_llm` takes it. What is in readers' caches stays valid."""
    make, _ = trained
    monkeypatch.chdir(tmp_path)
    (tmp_path / name.partition(":")[0].split("/")[0]).mkdir()
    assert "language model weights" not in make(name)[1]
    assert folder_digest(name) is None
