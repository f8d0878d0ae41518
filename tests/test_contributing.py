"""The examples of CONTRIBUTING.md, run as they are printed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from rrg_utils import claims
from rrg_utils.data import abnormalities, lesions

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def example(heading: str) -> str:
    """The one Python block of a section."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    return block


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an example in an empty folder; what it registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(claims, "RESULTS", claims.RESULTS)
    monkeypatch.setattr(claims, "CLAIMS", dict(claims.CLAIMS))
    monkeypatch.setattr(abnormalities, "CLASSES", abnormalities.CLASSES)
    monkeypatch.setattr(lesions, "DRAWINGS", dict(lesions.DRAWINGS))

    def execute(heading: str) -> dict:
        torch.manual_seed(0)
        names = {"__name__": "example"}
        exec(compile(example(heading), f"CONTRIBUTING.md, {heading}", "exec", dont_inherit=True), names)
        return names

    return execute


def test_a_system(run):
    names = run("A system")
    model, examples = names["model"], names["examples"]
    assert names["history"].best is None
    assert len(names["history"].train) == 5
    assert model.mean_loss(examples) < names["before"], "five steps must lower the loss"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"project.weight", "project.bias"}
    assert sorted(path.name for path in Path("saved").iterdir()) == ["config.json", "model.safetensors"]
    assert names["again"].mean_loss(examples) == pytest.approx(model.mean_loss(examples), abs=1e-6)
    assert names["reports"] == model.generate(examples, max_new_tokens=8)


def test_a_finding(run):
    before = abnormalities.CLASSES
    names = run("A finding")
    film, without, lesion = names["film"], names["without"], names["lesion"]
    assert abnormalities.CLASSES[: len(before)] == before, "earlier classes keep what they cover"
    assert lesion.name == "cavity"
    assert lesion.finding == names["finding"]
    assert without.lesions == []
    # It lies where it is annotated, brightens the film there, and leaves what is far from it as it was.
    assert (lesion.mask & film.lobes["right upper lobe"]).sum() > 0.7 * lesion.mask.sum() > 0
    change = film.image - without.image
    assert change[lesion.mask].mean() > 0.02
    assert np.abs(change[film.regions["abdomen"] & ~lesion.mask]).max() < 0.02


def test_a_claim(run):
    committed = claims.RESULTS
    names = run("A claim")
    assert names["entry"]["verdict"] == "reproduced"
    assert names["path"].resolve().is_relative_to(Path.cwd())
    assert not (committed / "trrg.order_is_idle").exists()
    assert claims.claim("trrg.order_is_idle").paper in claims.papers()


def test_what_the_examples_registered_is_forgotten():
    assert "cavity" not in lesions.DRAWINGS
    assert "trrg.order_is_idle" not in claims.CLAIMS
    assert claims.RESULTS == ROOT / "results"


def test_files_and_tests_that_the_page_names_exist():
    named = re.findall(r"`(?:tests/)?(test_\w+\.py)`", PAGE)
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
    for path in re.findall(r"`((?:rrg_utils|notebooks)/\w+\.\w+)`", PAGE):
        assert (ROOT / path).is_file(), path
