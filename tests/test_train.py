"""`rrg train`: what it refuses, and a system trained by two processes under accelerate's launcher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_course import shrink
from tiny_llm import make_llm

from rrg_utils.artifacts import cache_dir
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.errors import RRGError
from rrg_utils.systems.llava_ta import LlavaTAConfig
from rrg_utils.systems.narrative import NarrativeConfig
from rrg_utils.systems.r2gencsr import R2GenCSRConfig
from rrg_utils.systems.radscr import RadSCRConfig
from rrg_utils.systems.trrg import TRRGConfig
from rrg_utils.train import CONFIGS, Trained, configuration, described, summary, train
from rrg_utils.training import History


def test_fields_are_those_of_the_configuration():
    assert configuration("r2gencsr", ["llm=smoke", "pairs=1", "lr=1", "context_gradient=False"]) == R2GenCSRConfig(
        llm="smoke", pairs=1, lr=1.0, context_gradient=False
    )
    assert configuration("narrative", ["lora_rank=None", "train_reports=40"]) == NarrativeConfig(
        lora_rank=None, train_reports=40
    )
    assert configuration("llava_ta", ["model=T"]) == LlavaTAConfig(model="T")
    assert configuration("trrg", ["k=2", "k=3", "template=Clue: {disease}=x"]) == TRRGConfig(
        k=3, template="Clue: {disease}=x"
    )
    assert configuration("radscr", ["critiques=('abn', 'neg')"]) == RadSCRConfig(critiques=("abn", "neg"))


def test_every_system_is_listed_with_its_fields():
    for name in CONFIGS:
        assert "llm='tiny'" in described(name)
        assert "seed=0" in described(name)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("r2gen", "seed=0", r"unknown system 'r2gen' \(did you mean r2gencsr\?\); known: narrative, r2gencsr, trrg"),
        ("trrg", "quries=4", r"unknown parameter of trrg 'quries' \(did you mean queries\?\); known: stage1, dci"),
        ("trrg", "queries", "-p queries: write it as field=value"),
        ("trrg", "queries=four", "parameter queries: 'four' is str, not int"),
        ("trrg", "queries=2.5", "parameter queries: 2.5 is float, not int"),
        ("trrg", "dci=1", "parameter dci: 1 is int, not bool"),
        ("trrg", "seed=None", "parameter seed: None is NoneType, not int"),
        ("trrg", "lora_rank=x", "parameter lora_rank: 'x' is str, not int or None"),
        ("trrg", "k=99", "k is 99"),
        ("radscr", "critiques=('abn', 3)", r"parameter critiques: .* is tuple, not tuple.str, ...."),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(name, setting, message):
    with pytest.raises(RRGError, match=message):
        configuration(name, [setting])


def test_what_is_printed():
    text = summary(Trained(Path("cache/radscr/key"), History(train=[2.0, 1.25], seconds=61.26)))
    assert text == "cache/radscr/key\ntraining loss by epoch: 2.0000 1.2500\n61.3 s of training"
    assert "validation loss by epoch: 3.5000\n" in summary(Trained(Path("x"), History([1.0], [3.5], 0)))


# --- several processes ------------------------------------------------------------------------------------------------

LLM = ["llm={llm}", "align_studies=0"]
SYSTEMS = {
    "narrative": [*LLM, "epochs=2"],
    "r2gencsr": [*LLM, "pairs=1", "epochs=2"],
    "trrg": [*LLM, "stage1_composed=0", "composed_epochs=0", "epochs=2"],
    "llava_ta": [*LLM, "epochs=2"],
    "radscr": ["composed=0", "epochs=2"],
}
CONTRASTED = {"radscr"}  # the loss contrasts the examples of a batch: each process has fewer to contrast
LAUNCHER = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_processes_train_a_system_as_one_does(name, tmp_path, monkeypatch):
    """By the command under accelerate's launcher: one entry, made and printed once, with the losses of one process.

    Losses are means over tokens, which two processes weight by reports: equal but for that, and but for `CONTRASTED`.
    """
    PhantomRenderer(128, patients=1)  # made in the reader's cache
    (tmp_path / "together").mkdir()
    for kind in ("patients", "lung_outlines"):
        (tmp_path / "together" / kind).symlink_to(cache_dir() / kind)
    texts = ["The heart is enlarged. No effusion.", "Clear lungs. note: normal. with disease. image: findings:"]
    llm = make_llm(tmp_path / "llm", texts)
    settings = [setting.format(llm=llm) for setting in SYSTEMS[name]]
    environment = {"RRG_CACHE": str(tmp_path / "together"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *(sys.executable, *LAUNCHER, "--main_process_port=0", Path(__file__).with_name("small_course.py")),
            *("train", name, *(word for setting in settings for word in ("-p", setting))),
        ],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kind = name.replace("_", "-")  # of the cache entry
    (entry,) = (path for path in (tmp_path / "together" / kind).iterdir() if path.is_dir())
    assert done.stdout.startswith(f"{entry}\n")
    assert done.stdout.count("s of training\n") == 1
    assert done.stderr.count(f"building {kind} ") == 1
    assert not (entry / "fit").exists()
    two = History(**json.loads((entry / "history.json").read_text()))

    entry.parent.rename(tmp_path / "elsewhere")  # all the rest stays
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "together"))
    shrink(monkeypatch.setattr)
    made = train(name, settings)
    assert made.folder.name == entry.name
    assert two.train[0] > two.train[-1]
    if name not in CONTRASTED:
        assert two.train == pytest.approx(made.history.train, rel=0.01)
        assert two.validation == pytest.approx(made.history.validation, rel=0.01)
