"""Facts with their attributes, counts of agreement, and spans."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.labels import Fact, fact_counts, facts, finding_spans


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Small right pleural effusion.", Fact("pleural effusion", "pleura", "right", "mild", "present")),
        ("Moderate bilateral effusions.", Fact("pleural effusion", "pleura", "bilateral", "moderate", "present")),
        ("Left lower lobe opacity.", Fact("opacity", "lower lobe", "left", None, "present")),
        ("Opacity in the right upper lobe.", Fact("opacity", "upper lobe", "right", None, "present")),
        ("No pneumothorax or large effusion.", Fact("pneumothorax", "pleura", None, None, "absent")),
        ("Possible left basilar atelectasis.", Fact("atelectasis", "base", "left", None, "uncertain")),
        ("The aorta is tortuous and calcified.", Fact("calcified aorta", "aorta", None, None, "present")),
        ("Calcified granuloma in the left lung.", Fact("calcified granuloma", "lung", "left", None, "present")),
        ("Mild scoliosis.", Fact("scoliosis", "spine", None, "mild", "present")),
        ("Degenerative changes of the spine.", Fact("degenerative change", "spine", None, None, "present")),
        ("Low lung volumes.", Fact("low lung volumes", "lung", None, None, "present")),
        ("Lung volumes are low.", Fact("low lung volumes", "lung", None, None, "present")),
        ("Lungs are hyperexpanded.", Fact("hyperinflation", "lung", None, None, "present")),
        ("Elevated right hemidiaphragm.", Fact("elevated diaphragm", "diaphragm", "right", None, "present")),
        ("Healed left rib fractures.", Fact("fracture", "rib", "left", None, "present")),
        ("Small hiatal hernia.", Fact("hiatal hernia", "mediastinum", None, "mild", "present")),
        ("Lungs are clear.", Fact("clear lungs", "lung", None, None, "present")),
        ("No acute cardiopulmonary abnormality.", Fact("acute abnormality", "chest", None, None, "absent")),
    ],
)
def test_fact(text: str, fact: Fact):
    assert fact in facts(text)


def test_attributes_stay_with_their_finding():
    found = facts("Small right effusion and left lower lobe atelectasis.")
    assert found == {
        Fact("pleural effusion", "pleura", "right", "mild", "present"),
        Fact("atelectasis", "lower lobe", "left", None, "present"),
    }


def test_counts_by_level():
    hypothesis, reference = "Small right effusion. No pneumothorax.", "Large left effusion. Heart size is normal."
    assert fact_counts(hypothesis, reference) == (1, 1, 1)
    assert fact_counts(hypothesis, reference, level="full") == (0, 2, 2)
    assert fact_counts("", reference) == (0, 0, 2)
    assert fact_counts("No effusion.", "Effusion.") == (0, 1, 1)


def test_bad_input():
    with pytest.raises(RRGError, match="level"):
        fact_counts("a", "b", level="partial")
    with pytest.raises(RRGError, match="must be a string"):
        facts(None)


def test_spans_carry_the_finding_and_its_modifiers():
    text = "Comparison 2012.  No LARGE pleural\neffusion. Heart size is normal."
    assert [text[a:b] for a, b in finding_spans(text)] == ["No", "LARGE", "pleural\neffusion", "Heart size", "normal"]
    assert finding_spans("Two views of the chest were obtained.") == []


@given(st.text(max_size=100), st.sampled_from(["No effusion.", "Mild right basilar opacity, heart is enlarged."]))
def test_spans_are_disjoint_and_inside(prefix: str, sentence: str):
    text = f"{prefix}. {sentence} İ"
    spans = finding_spans(text)
    assert spans
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


@given(st.lists(st.sampled_from(["No effusion.", "Lungs are clear.", "Left nodule.", "Scoliosis."]), max_size=6))
def test_facts_ignore_order_and_repetition(sentences: list[str]):
    assert facts(" ".join(sentences)) == facts(" ".join(sorted(set(sentences))))
