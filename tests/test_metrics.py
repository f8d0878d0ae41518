"""Scores against pycocoevalcap and scikit-learn, and their defined edges."""

import importlib.util
import math
import shutil
from importlib.metadata import version

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sklearn.metrics import f1_score, precision_recall_fscore_support

from rrg_utils import __version__
from rrg_utils.data import clean, indiana
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS, label_report
from rrg_utils.metrics import (
    PRESETS,
    bleu,
    cider,
    clinical_f1,
    clinical_grid,
    clinical_score,
    evaluate,
    fact_f1,
    film_fact_f1,
    meteor,
    paired_difference,
    rouge_l,
    tokenise,
)
from rrg_utils.metrics.clinical import CE_PRESETS, TOP_FIVE, Cell, clinical_cells
from rrg_utils.metrics.models import model_scores
from rrg_utils.metrics.text import _meteor_jar, _rouge

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


def coco(scorer, hypotheses, references, tokens=tokenise, **options):
    gts = {i: [tokens(text)] for i, text in enumerate(references)}
    return scorer.compute_score(gts, {i: [tokens(text)] for i, text in enumerate(hypotheses)}, **options)


def test_tokens():
    assert tokenise("Well-expanded lungs; 2.5 cm nodule.") == "well-expanded lungs ; 2.5 cm nodule ."


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=25, deadline=None)
@given(drawn=pairs)
def test_equal_to_pycocoevalcap(preset, drawn):
    hypotheses, references = (list(side) for side in zip(*drawn, strict=True))
    tokens = PRESETS[preset]
    if not tokens(references[0]).strip():
        references[0] = "Clear."  # its CIDEr fails where no reference has a token; blanks are none either
    theirs, _ = coco(Bleu(4), hypotheses, references, tokens, verbose=0)
    assert [s.value for s in bleu(hypotheses, references, preset)] == pytest.approx(theirs, rel=1e-9, abs=1e-9)
    for ours, scorer in ((rouge_l, Rouge()), (cider, Cider())):
        theirs, each = coco(scorer, hypotheses, references, tokens)
        found = ours(hypotheses, references, preset)
        assert found.value == pytest.approx(theirs, abs=1e-9)
        assert found.score(found.counts) == pytest.approx(each, abs=1e-9)


words = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=80).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(words, words)
def test_rouge_of_any_words_even_empty_ones(hyp, ref):
    assert _rouge(hyp, ref) == pytest.approx(Rouge().calc_score([hyp], [ref]), abs=1e-12)


def test_golden_scores_of_real_reports():
    """Corpus scores of 200 reports against pycocoevalcap, run here and compared to 1e-9."""
    texts = [clean(report.findings) for report in indiana().val[:201]]
    hypotheses, references = texts[1:], texts[:-1]
    for preset, tokens in PRESETS.items():
        scores = evaluate(hypotheses, references, "mask", preset, meteor_score=False, resamples=2)
        theirs, _ = coco(Bleu(4), hypotheses, references, tokens, verbose=0)
        assert [scores[f"BLEU-{k}"].value for k in (1, 2, 3, 4)] == pytest.approx(theirs, abs=1e-9)
        assert scores["ROUGE-L"].value == pytest.approx(coco(Rouge(), hypotheses, references, tokens)[0], abs=1e-9)
        assert scores["CIDEr"].value == pytest.approx(coco(Cider(), hypotheses, references, tokens)[0], abs=1e-9)


def test_resampled_bleu_is_the_bleu_of_the_resample():
    four = bleu(HYPOTHESES, REFERENCES)[3]
    rows = [0, 0, 1, 2, 2]
    again = bleu([HYPOTHESES[i] for i in rows], [REFERENCES[i] for i in rows])[3]
    assert float(four.score(four.counts[rows].sum(axis=0))) == pytest.approx(again.value, rel=1e-12)


@pytest.mark.parametrize("average", ["micro", "macro", "example"])
@pytest.mark.parametrize("observations", ["14", "5"])
@pytest.mark.parametrize("uncertain", ["positive", "negative"])
@pytest.mark.parametrize(("undefined", "division"), [("omit", np.nan), ("zero", 0)])
def test_clinical_f1_equals_scikit_learn(average, observations, uncertain, undefined, division):
    names = OBSERVATIONS if observations == "14" else TOP_FIVE
    positive = (1, -1) if uncertain == "positive" else (1,)
    hyp, ref = (
        np.array([[label_report(text)[name] in positive for name in names] for text in side])
        for side in (HYPOTHESES, REFERENCES)
    )
    kind = "samples" if average == "example" else average
    expected = f1_score(ref, hyp, average=kind, zero_division=division)
    found = clinical_score(HYPOTHESES, REFERENCES, "f1", average, observations, uncertain, undefined)
    assert found.value == pytest.approx(expected)


@pytest.mark.parametrize("measure", ["precision", "recall", "f1"])
@pytest.mark.parametrize(("undefined", "division"), [("omit", np.nan), ("zero", 0)])
def test_measures_equal_scikit_learn(measure, undefined, division):
    hyp, ref = (
        np.array([[label_report(t)[n] in (1, -1) for n in OBSERVATIONS] for t in s]) for s in (HYPOTHESES, REFERENCES)
    )
    which = ("precision", "recall", "f1").index(measure)
    for average in ("micro", "macro", "example"):
        kind = "samples" if average == "example" else average
        expected = precision_recall_fscore_support(ref, hyp, average=kind, zero_division=division)[which]
        found = clinical_score(HYPOTHESES, REFERENCES, measure, average, undefined=undefined)
        assert found.value == pytest.approx(expected)


def test_who_says_one_thing_has_no_macro_precision_by_published_code():
    """By the mean over what was named it would be perfect; that code, with 0 for 0/0, divides by all 14."""
    labels = np.zeros((4, 14), int)
    labels[:, 0] = 1
    macro = Cell("precision", "macro", "14", "negative")
    zero = macro._replace(undefined="zero")
    found = clinical_cells(labels, labels, [macro, zero])
    assert found[macro].value == 1
    assert found[zero].value == pytest.approx(1 / 14)
    assert zero in CE_PRESETS["r2gen"]


def test_grid_has_every_cell_and_presets_are_cells_of_it():
    grid = clinical_grid(HYPOTHESES, REFERENCES)
    assert len(grid) == 3 * 3 * 2 * 3
    for cell in (Cell(), Cell("recall", "macro", "5", "ignore")):
        alone = clinical_score(HYPOTHESES, REFERENCES, *cell).value
        assert grid[cell].value == pytest.approx(alone, nan_ok=True)
    for preset, cells in CE_PRESETS.items():
        assert cells, preset
        assert {cell._replace(undefined="omit") for cell in cells} <= set(grid), preset
        assert {cell.undefined for cell in cells} == {"zero"}, preset
    assert {cell.uncertain for cell in CE_PRESETS["r2gen"]} == {"negative"}
    assert set(clinical_grid(HYPOTHESES, REFERENCES, CE_PRESETS["r2gen"])) == set(CE_PRESETS["r2gen"])


def test_labels_of_another_labeller():
    labels = np.zeros((3, 14), int)
    labels[:, 1] = 1, -1, 0
    found = clinical_cells(labels, np.abs(labels), [Cell(uncertain="negative"), Cell("recall", uncertain="ignore")])
    assert [s.value for s in found.values()] == pytest.approx([2 / 3, 1])


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


def test_film_facts_are_the_second_reference(study):
    reports = [study("Pleural Effusion/left/small", "Opacity/lung/base/right"), study("normal")]
    exact = ["Small left effusion. Right basilar opacity.", "Heart size is normal. No effusion."]
    for level in ("finding", "side", "full"):
        assert film_fact_f1(exact, reports, level).value == 1
    wrong_side = ["Small right effusion. Right basilar opacity.", ""]
    assert film_fact_f1(wrong_side, reports).value == 1
    assert film_fact_f1(wrong_side, reports, "side").value == pytest.approx(1 / 2)
    assert film_fact_f1(["No effusion.", "Possible nodule."], reports).value == 0
    assert math.isnan(film_fact_f1(["Lungs are clear."], reports[1:]).value)


def test_evaluate_names_everything():
    scores = evaluate(HYPOTHESES, REFERENCES, "drop", meteor_score=False, resamples=50)
    assert scores["BLEU-4"].signature == (
        "bleu4|corpus|closest|preset:plain|clean:none|case:lc|tok:punct|stops:yes|max:no|vocab:no|"
        f"section:findings|xxxx:drop|refs:1|n:5|pycocoevalcap:{version('pycocoevalcap')}|v{__version__}"
    )
    assert [score.name for score in scores] == [
        *(f"BLEU-{k}" for k in (1, 2, 3, 4)),
        "ROUGE-L",
        "CIDEr",
        *(f"F1-rule {cell}" for cell in ("micro-14", "macro-14", "micro-5", "macro-5")),
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


def test_what_is_not_said_of_the_texts_is_unstated_in_the_signature():
    scores = evaluate(HYPOTHESES, REFERENCES, meteor_score=False, resamples=2)
    assert all("|xxxx:unstated|" in score.signature for score in scores)
    stated = evaluate(HYPOTHESES, REFERENCES, "mask", meteor_score=False, resamples=2)
    assert [score.value for score in scores] == [score.value for score in stated], "it is a label, not a setting"


def test_section_and_uncertain_policy_are_in_the_signature():
    scores = evaluate(
        HYPOTHESES, REFERENCES, "keep", "r2gen_iu", "findings+impression", "negative", meteor_score=False, resamples=2
    )
    assert "section:findings+impression|xxxx:keep" in scores["CIDEr"].signature
    assert "preset:r2gen_iu|clean:r2gen_iu|case:lc|tok:space|stops:yes|max:59" in scores["CIDEr"].signature
    assert "uncertain:negative" in scores["F1-rule macro-5"].signature


@pytest.mark.parametrize("preset", PRESETS)
def test_defined_for_long_and_foreign_texts(preset):
    long = "There is a small effusion. " * 2000  # 10,000 words
    odd = ["Épanchement pleural à gauche 5\u00a0cm ||| \u80f8\u6c34 \n\t?", long, ""]
    scores = evaluate(odd, [long, odd[0], "Lungs are clear."], "mask", preset, meteor_score=False, resamples=5)
    assert all(math.isfinite(score.value) or "F1" in score.name for score in scores)
    same = evaluate(odd, odd, "mask", preset, meteor_score=False, resamples=5)
    assert same["BLEU-4"].value == pytest.approx(1, abs=1e-6)
    assert same["ROUGE-L"].value == pytest.approx(1)


def test_meteor_without_java_is_unavailable_never_zero(monkeypatch):
    monkeypatch.setenv("PATH", "")
    score = evaluate(HYPOTHESES, REFERENCES, "keep", resamples=10)["METEOR"]
    assert score.value is None
    assert score.interval is None
    assert "Java" in score.reason
    assert "unavailable" in str(score)


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_equals_the_jar_for_a_corpus_and_for_each_report():
    odd = [*HYPOTHESES, REFERENCES[0], "Xylophone.", "a ||| b\n c", "lungs"]
    refs = [*REFERENCES, REFERENCES[0], REFERENCES[1], "a ||| b", "clear lungs"]
    found = meteor(odd, refs)
    theirs, each = coco(_meteor_jar(), odd, refs)
    assert found.value == pytest.approx(theirs, abs=1e-9)
    assert found.score(found.counts) == pytest.approx(each, abs=1e-9)
    assert found.score(found.counts)[5] == pytest.approx(1)
    low, high = found.bootstrap(100)
    assert low < found.value < high


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_an_interrupted_meteor_leaves_no_answers_for_the_next(monkeypatch):
    class Interrupted:
        def readline(self):
            raise KeyboardInterrupt

    before = meteor(HYPOTHESES, REFERENCES).value
    monkeypatch.setattr(_meteor_jar().meteor_p, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        meteor(REFERENCES, REFERENCES)
    assert meteor(HYPOTHESES, REFERENCES).value == pytest.approx(before)


def test_model_scores_say_what_to_install(monkeypatch):
    monkeypatch.setenv("RRG_CLINICAL_PYTHON", "/no/such/python")
    with pytest.raises(RRGError, match="RRG_CLINICAL_PYTHON=/no/such/python"):
        model_scores(["a"], ["b"])
    if importlib.util.find_spec("radeval") is None:
        monkeypatch.delenv("RRG_CLINICAL_PYTHON")
        with pytest.raises(RRGError, match="RadEval is not installed"):
            model_scores(["a"], ["b"])


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
        (lambda: evaluate(["a"], ["a"], "keep", section=""), "section"),
        (lambda: evaluate(["a"], ["a"], "keep", meteor_score=False)["BERTScore"], "no score"),
        (lambda: clinical_score(["a"], ["a"], "accuracy"), "measure"),
        (lambda: clinical_cells(np.zeros((2, 14)), np.zeros((1, 14)), [Cell()]), "2 hypotheses"),
        (lambda: clinical_cells(np.full((1, 14), 2), np.zeros((1, 14)), [Cell()]), "1, 0 and -1"),
        (lambda: film_fact_f1(["a"], [], "side"), "1 hypotheses but 0"),
        (lambda: model_scores(["a"], ["a"], []), "metrics must be a list"),
    ],
)
def test_bad_input(act, message: str):
    with pytest.raises(RRGError, match=message):
        act()
