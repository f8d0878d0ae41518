"""Planted errors do what their name says, to one place of a report."""

import re

import numpy as np
import pytest

from rrg_utils.data import clean, indiana
from rrg_utils.labels import facts, label_report
from rrg_utils.metrics.injection import ERRORS, HARMLESS, SERIOUS


def inject(name: str, text: str, seed: int = 0) -> str | None:
    return ERRORS[name](text, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("name", "text", "changed"),
    [
        ("flip the side", "Left effusion.", "Right effusion."),
        ("change the severity", "Mild edema.", "Severe edema."),
        ("negate", "No pneumothorax.", "Pneumothorax."),
        ("negate", "The lungs are clear.", "The lungs are not clear."),
        ("negate", "There is a nodule.", "There is no nodule."),
        ("drop a finding", "Left effusion. Lungs are clear.", "Lungs are clear."),
        ("reorder sentences", "A. B.", "B. A."),
        ("paraphrase", "Heart size is normal.", "The heart is not enlarged."),
    ],
)
def test_by_hand(name: str, text: str, changed: str):
    assert inject(name, text) == changed


@pytest.mark.parametrize("name", ERRORS)
def test_no_place_for_it_is_none(name: str):
    assert inject(name, "") is None
    if name != "add a finding":
        assert inject(name, "Two views were obtained.") is None


def test_on_real_reports():
    texts = [clean(report.findings) for report in indiana().val]
    done = {name: [(t, c) for i, t in enumerate(texts) if (c := inject(name, t, i)) is not None] for name in ERRORS}
    assert min(map(len, done.values())) >= 25, {name: len(pairs) for name, pairs in done.items()}
    assert set(SERIOUS) | set(HARMLESS) == set(ERRORS)
    for name, pairs in done.items():
        assert all(text != changed for text, changed in pairs), name
    for text, changed in done["reorder sentences"]:
        assert sorted(re.findall(r"\w+", text)) == sorted(re.findall(r"\w+", changed))
        assert facts(text) == facts(changed)
    assert all(label_report(text) == label_report(changed) for text, changed in done["paraphrase"])
    assert all(facts(text) != facts(changed) for text, changed in done["negate"] + done["add a finding"])
    assert all(len(changed) < len(text) for text, changed in done["drop a finding"])
    for name in ("flip the side", "change the severity"):
        assert all(len(text.split()) == len(changed.split()) for text, changed in done[name])
        assert all(
            sum(a != b for a, b in zip(text.split(), changed.split(), strict=True)) == 1 for text, changed in done[name]
        )
