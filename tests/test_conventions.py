"""R2Gen's cleaning with its accidents, and the switches of a convention."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.metrics import PRESETS, Convention, r2gen_clean, r2gen_vocabulary
from rrg_utils.metrics.conventions import convention

# Worked by hand from the order of steps in R2Gen's modules/tokenizers.py.
CLEANED = [
    ("Lungs are clear. No effusion.", "lungs are clear . no effusion ."),
    ("Well-expanded lungs; heart: normal?", "well-expanded lungs heart normal ."),
    ("A 2.5 cm nodule.", "a 25 cm nodule ."),  # the decimal loses its point
    ("Ratio is 1. Lungs clear.", "ratio is lungs clear ."),  # "1. " goes wherever it stands
    ("1. Clear. 2. Normal. 3. Stable.", "clear . normal . stable ."),
    ("Low volumes 2. Clear lungs", "low volumes . clear lungs ."),
    ('XXXX XXXX. [sic] "quoted" and/or don\'t', "xxxx xxxx . sic quoted andor dont ."),
    ("Clear. ? . Normal.", "clear .  . normal ."),  # sentences of marks alone stay, empty
    ("Clear... Normal.", "clear . normal ."),
    ("(stable )", "stable  ."),  # the space before a deleted mark stays: two in a row
    ("no change\nhere.", "no change\nhere ."),
    ("", " ."),
]


@pytest.mark.parametrize(("raw", "expected"), CLEANED)
def test_iu_cleaning(raw: str, expected: str):
    assert r2gen_clean(raw) == expected


def test_mimic_cleaning_also_collapses_runs():
    assert r2gen_clean("no\nchange    since ____ ....... Clear.", "mimic") == "no change since  . clear ."


@given(st.text(max_size=120))
def test_cleaned_text_is_lower_case_and_free_of_marks(text: str):
    cleaned = r2gen_clean(text)
    assert not set(cleaned) & set(",?;*!%^&_+()[]{}\"'/\\:<=>@")
    assert cleaned == cleaned.lower()
    assert cleaned.endswith(" .")


def test_references_of_r2gen_hold_at_most_59_or_99_words():
    long = "word " * 200
    assert len(PRESETS["r2gen_iu"](long).split()) == 59
    assert len(PRESETS["r2gen_mimic"](long).split()) == 99
    assert PRESETS["r2gen_iu"]("Lungs are clear.") == "lungs are clear ."
    assert PRESETS["r2gen_iu"]("(stable )") == "stable ."  # its vocabulary joins words by single spaces


@pytest.mark.parametrize("preset", PRESETS)
def test_an_empty_text_has_no_tokens(preset: str):
    assert PRESETS[preset]("").split() == PRESETS[preset](" \n ").split() == []


def test_vocabulary_turns_rare_words_into_unk():
    vocabulary = r2gen_vocabulary(["Clear lungs."] * 2 + ["Clear heart."])
    assert vocabulary == {"clear", "."}
    known = PRESETS["r2gen_iu"].with_("with_unk", vocabulary=vocabulary)
    assert known("Clear lungs.") == "clear <unk> ."
    assert "vocab:2" in known.signature


def test_switches():
    plain = PRESETS["plain"]
    assert plain("No 2.5 cm Nodule.") == "no 2.5 cm nodule ."
    assert plain.with_("cased", lower=False)("No Nodule.") == "No Nodule ."
    assert plain.with_("no_stops", full_stops=False)("Clear. Normal.") == "clear normal"
    assert plain.with_("raw", lower=False, tokeniser="space")("No  Nodule.") == "No  Nodule."
    assert plain.with_("short", max_words=2)("one two three") == "one two"
    assert convention("plain") is plain


def test_signatures_tell_conventions_apart():
    plain = PRESETS["plain"]
    others = [plain.with_("plain", **{k: v}) for k, v in (("lower", False), ("full_stops", False), ("max_words", 5))]
    assert len({one.signature for one in (*PRESETS.values(), *others)}) == len(PRESETS) + 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: convention("r2gen"), "preset must be one of plain, r2gen_iu, r2gen_mimic"),
        (lambda: Convention("a", cleaner="spacy"), "cleaner"),
        (lambda: Convention("a", tokeniser="ptb"), "tokeniser"),
        (lambda: Convention("a", max_words=0), "max_words"),
        (lambda: Convention("a|b"), "signatures"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()
