"""Scores against pycocoevalcap and scikit-learn, and their defined edges."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sklearn.metrics import f1_score

from rrg_utils import __version__
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS, label_report
from rrg_utils.metrics import (
    bleu,
    cider,
    clinical_f1,
    evaluate,
    fact_f1,
    meteor,
    paired_difference,
    rouge_l,
    tokenise,
)
from rrg_utils.metrics.clinical import TOP_FIVE

HYPOTHESES = [
    "The heart is normal in size. The lungs are clear.",
    "Mild cardiomegaly with small bilateral pleural effusions. No pneumothorax.",
    "Possible right basilar pneumonia, 2.5 cm.",
    "",
    "Lungs are clear.",
]
REFERENCES = [
    "Heart size is normal. Lungs are clear. No pneumothorax or effusion.",
    "Cardiomegaly. Small left pleural effusion and atelectasis. No pneumothorax.",
    "Right basilar opacity, possible atelectasis or pneumonia.",
    "No acute cardiopulmonary abnormality.",
    "",
]
SENTENCES = ("No effusion.", "Lungs are clear.", "Mild cardiomegaly.", "Left base opacity.", "Possible edema!", "")
texts = st.lists(st.sampled_from(SENTENCES), max_size=4).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=2, max_size=8)


def coco(scorer, hypotheses, references):
    gts = {i: [tokenise(text)] for i, text in enumerate(references)}
    return scorer.compute_score(gts, {i: [tokenise(text)] for i, text in enumerate(hypotheses)})


def test_tokens():
    assert tokenise("Well-expanded lungs; 2.5 cm nodule.") == "well-expanded lungs ; 2.5 cm nodule ."


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_equal_to_pycocoevalcap(drawn):
    hypotheses, references = (list(side) for side in zip(*drawn, strict=True))
    references[0] = references[0] or "Clear."  # its CIDEr fails where no reference has a token
    theirs, _ = Bleu(4).compute_score(
        {i: [tokenise(text)] for i, text in enumerate(references)},
        {i: [tokenise(text)] for i, text in enumerate(hypotheses)},
        verbose=0,
    )
    assert [s.value for s in bleu(hypotheses, references)] == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    assert rouge_l(hypotheses, references).value == pytest.approx(coco(Rouge(), hypotheses, references)[0], abs=1e-9)
    assert cider(hypotheses, references).value == pytest.approx(coco(Cider(), hypotheses, references)[0], abs=1e-9)


def test_resampled_bleu_is_the_bleu_of_the_resample():
    four = bleu(HYPOTHESES, REFERENCES)[3]
    rows = [0, 0, 1, 2, 2]
    again = bleu([HYPOTHESES[i] for i in rows], [REFERENCES[i] for i in rows])[3]
    assert float(four.score(four.counts[rows].sum(axis=0))) == pytest.approx(again.value, rel=1e-12)


@pytest.mark.parametrize("average", ["micro", "macro", "example"])
@pytest.mark.parametrize("observations", ["14", "5"])
@pytest.mark.parametrize("uncertain", ["positive", "negative"])
def test_clinical_f1_equals_scikit_learn(average, observations, uncertain):
    names = OBSERVATIONS if observations == "14" else TOP_FIVE
    positive = (1, -1) if uncertain == "positive" else (1,)
    hyp, ref = (
        np.array([[label_report(text)[name] in positive for name in names] for text in side])
        for side in (HYPOTHESES, REFERENCES)
    )
    kind = "samples" if average == "example" else average
    expected = f1_score(ref, hyp, average=kind, zero_division=np.nan)
    assert clinical_f1(HYPOTHESES, REFERENCES, average, observations, uncertain).value == pytest.approx(expected)


def test_uncertain_decisions():
    said, hedged = ["Right pneumonia."], ["Possible right pneumonia."]
    assert clinical_f1(said, hedged, observations="14", uncertain="positive").value == 1
    assert clinical_f1(said, hedged, observations="14", uncertain="negative").value == 0
    assert math.isnan(clinical_f1(said, hedged, observations="5", uncertain="ignore").value)
    # the hedged pneumonia is left out, the missed effusion is not
    said, hedged = ["Cardiomegaly."], ["Cardiomegaly. Possible pneumonia. Left effusion."]
    assert clinical_f1(said, hedged, uncertain="ignore").value == pytest.approx(2 / 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(texts, min_size=1, max_size=6))
def test_a_perfect_output_scores_one(references):
    for score in (
        clinical_f1(references, references),
        clinical_f1(references, references, average="macro"),
        clinical_f1(references, references, average="example"),
        fact_f1(references, references, level="full"),
    ):
        assert score.value == 1 or math.isnan(score.value)
    assert rouge_l(references, references).value == pytest.approx(1)


def test_fact_f1_counts_polarity():
    assert fact_f1(["No effusion."], ["Effusion."]).value == 0
    assert fact_f1(["Left effusion."], ["Right effusion."]).value == 1
    assert fact_f1(["Left effusion."], ["Right effusion."], level="full").value == 0


def test_empty_texts():
    empty, full = [""], ["Lungs are clear."]
    assert rouge_l(empty, full).value == rouge_l(full, empty).value == 0
    assert rouge_l(empty, empty).value == 1
    for left, right in ((empty, full), (full, empty), (empty, empty)):
        assert [score.value for score in bleu(left, right)] == pytest.approx([0] * 4, abs=1e-3)
        assert cider(left, right).value == 0
    assert clinical_f1(empty, full).value == 0
    assert math.isnan(clinical_f1(empty, empty).value)


def test_evaluate_names_everything():
    scores = evaluate(HYPOTHESES, REFERENCES, "drop", resamples=50)
    assert (
        scores["BLEU-4"].signature == f"bleu4|corpus|closest|clean:plain|case:lc|tok:punct|xxxx:drop|n:5|v{__version__}"
    )
    assert [score.name for score in scores] == [
        *(f"BLEU-{k}" for k in (1, 2, 3, 4)),
        "ROUGE-L",
        "CIDEr",
        "F1-rule micro-14",
        "F1-rule macro-14",
        "fact F1",
    ]
    for score in scores:
        assert score.n == 5
        assert "xxxx:drop" in score.signature
        assert score.interval.low <= score.value <= score.interval.high
    assert len({score.signature for score in scores}) == len(scores.scores)
    assert "BLEU-4" in str(scores)
    difference = paired_difference(scores["ROUGE-L"].statistic, rouge_l(REFERENCES, REFERENCES), permutations=99)
    assert difference.value < 0


def test_meteor_without_java_is_unavailable_never_zero(monkeypatch):
    monkeypatch.setenv("PATH", "")
    score = evaluate(HYPOTHESES, REFERENCES, "keep", meteor_score=True, resamples=10)["METEOR"]
    assert score.value is None
    assert "Java" in score.reason
    assert "unavailable" in str(score)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor():
    # one call, because every start of the jar costs seconds: an exact and an unrelated report lie between 0 and 1
    assert 0.1 < meteor([REFERENCES[0], "Xylophone."], REFERENCES[:2]) < 0.9


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: bleu(["a"], ["a", "b"]), "1 hypotheses but 2 references"),
        (lambda: rouge_l([], []), "nothing to score"),
        (lambda: cider(["a", None], ["a", "b"]), r"hypotheses\[1\] must be a string"),
        (lambda: fact_f1("text", ["text"]), "list of strings"),
        (lambda: clinical_f1(["a"], ["a"], average="weighted"), "average"),
        (lambda: clinical_f1(["a"], ["a"], observations="13"), "observations"),
        (lambda: clinical_f1(["a"], ["a"], uncertain="maybe"), "uncertain"),
        (lambda: fact_f1(["a"], ["a"], level="partial"), "level"),
        (lambda: evaluate(["a"], ["a"], "drop", preset="r2gen"), "preset"),
        (lambda: evaluate(["a"], ["a"], "drop|n:5"), "xxxx_policy"),
        (lambda: evaluate(["a"], ["a"], "keep")["BERTScore"], "no score"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()
