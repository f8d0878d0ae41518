"""`rrg train`: what it refuses, and a system trained by two processes under accelerate's launcher."""

from pathlib import Path

import pytest

from rrg_utils.errors import RRGError
from rrg_utils.systems.llava_ta import LlavaTAConfig
from rrg_utils.systems.narrative import NarrativeConfig
from rrg_utils.systems.r2gencsr import R2GenCSRConfig
from rrg_utils.systems.radscr import RadSCRConfig
from rrg_utils.systems.trrg import TRRGConfig
from rrg_utils.train import NAMES, Trained, configuration, described, summary
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
    for name in NAMES:
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
