"""When two sentences cannot stand in one report."""

import pytest

from rrg_utils.labels.contradiction import contradictions, stance

CLASHES = [
    ("there is a small left pleural effusion.", "no pneumothorax or pleural effusion."),
    ("the heart is enlarged.", "the heart is normal in size."),
    ("there is mild cardiomegaly.", "cardiomediastinal silhouette is normal."),
    ("there is a right apical pneumothorax.", "no pneumothorax."),
    ("possible left lower lobe pneumonia.", "no pneumonia."),
    ("patchy opacity in the right base.", "the lungs are clear."),
    ("there is a nodule in the left lung.", "the lungs are clear."),
]
PEACE = [
    ("there is a small left pleural effusion.", "no pneumothorax."),
    ("the heart is enlarged.", "the lungs are clear."),
    ("no pneumothorax.", "no pleural effusion."),
    ("there is mild scoliosis.", "the heart is normal in size."),
    ("", "the lungs are clear."),
]


@pytest.mark.parametrize(("one", "other"), CLASHES)
def test_contradictions_are_found_both_ways(one, other):
    assert contradictions(one, other)
    assert contradictions(one, other) == contradictions(other, one)


@pytest.mark.parametrize(("one", "other"), PEACE)
def test_what_can_stand_together_is_left_alone(one, other):
    assert contradictions(one, other) == set()
    assert contradictions(one, one) == set()


def test_stance_of_a_sentence():
    asserted, denied = stance("the heart is enlarged. no effusion.")
    assert {"cardiomegaly", "Cardiomegaly", "any finding: heart"} <= asserted
    assert {"pleural effusion", "Pleural Effusion"} <= denied
    assert not asserted & denied
