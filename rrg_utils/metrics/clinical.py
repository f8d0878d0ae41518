"""Clinical agreement of two texts: precision, recall and F1 over CheXpert observations and over facts, by our rules.

Name it `F1-rule` in a table: it is neither CheXbert F1 nor RadGraph F1. "CE F1" has no single meaning: `clinical_grid`
gives every combination of average, set of observations and treatment of uncertain ones, and `CE_PRESETS` names those
that code and papers use.

0/0 (an observation positive in neither side, a report with nothing to find) is left out of a mean, as scikit-learn
does with `zero_division=nan`; a score with nothing to count at all is NaN. The code behind published numbers counts it
as 0 (scikit-learn's default), which `CE_PRESETS` does too. It matters most for macro precision: who names one
observation alone is measured on that one, or on all.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from rrg_utils.data.abnormalities import REGION_OF
from rrg_utils.data.annotation import asserted_facts, film_facts
from rrg_utils.data.reports import Report
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS, fact_counts, label_report
from rrg_utils.metrics.statistics import Statistic, ratio
from rrg_utils.metrics.text import check_pairs

TOP_FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
_SETS = {"14": OBSERVATIONS, "5": TOP_FIVE}
MEASURES = ("precision", "recall", "f1")
AVERAGES = ("micro", "macro", "example")
POLICIES = ("positive", "negative", "ignore")
UNDEFINED = ("omit", "zero")


class Cell(NamedTuple):
    """One cell of the grid: which number a "clinical efficacy" is."""

    measure: str = "f1"
    average: str = "micro"
    observations: str = "14"
    uncertain: str = "positive"
    undefined: str = "omit"  # what becomes of 0/0

    def __str__(self) -> str:
        zero = ", 0/0 as 0" if self.undefined == "zero" else ""
        return f"{self.measure} {self.average}-{self.observations}, uncertain {self.uncertain}{zero}"


# Who computes which cells, all with 0/0 as 0. Where a source does not say, the choice is ours and the comment says so.
CE_PRESETS: dict[str, tuple[Cell, ...]] = {
    # R2Gen, compute_ce.py: blank and uncertain become 0; micro and macro over 14
    "r2gen": tuple(Cell(m, a, "14", "negative", "zero") for a, m in product(("micro", "macro"), MEASURES)),
    # f1chexbert and RadEval: uncertain counts as positive; micro and macro, 14 and 5
    "f1chexbert": tuple(Cell("f1", a, o, "positive", "zero") for o, a in product(("14", "5"), ("micro", "macro"))),
    # LLaVA-Rad's line of tables: micro and macro, 14 and 5, once with uncertain negative, once positive
    "llava_rad": tuple(
        Cell("f1", a, o, policy, "zero")
        for policy, o, a in product(("negative", "positive"), ("14", "5"), ("micro", "macro"))
    ),
    # RGRG's code: example-based over 14, where only positive counts; micro over 5 after Miura, uncertain positive
    "rgrg": (
        *(Cell(m, "example", "14", "negative", "zero") for m in MEASURES),
        *(Cell(m, "micro", "5", "positive", "zero") for m in MEASURES),
    ),
    # The papers of this course. LLaVA-TA: macro over 14, uncertain not stated. TRRG: 14 labels, average and uncertain
    # not stated. R2GenCSR: precision, recall and F1, nothing stated and no code. RadSCR: nothing stated. Not stated is
    # read as in R2Gen's code (negative, macro) for the three that compare with its line of work, as in f1chexbert else.
    "llava_ta": (Cell("f1", "macro", "14", "positive", "zero"),),
    "trrg": tuple(Cell(m, "macro", "14", "negative", "zero") for m in MEASURES),
    "r2gencsr": tuple(Cell(m, "macro", "14", "negative", "zero") for m in MEASURES),
    "radscr": (Cell("f1", "micro", "14", "positive", "zero"),),
}


def observation_labels(texts: Sequence[str]) -> np.ndarray:
    """(reports, 14) int8: 1 present, -1 uncertain, 0 absent or not mentioned, which F1 does not tell apart."""
    labels = map(label_report, texts)
    return np.array([[found[name] or 0 for name in OBSERVATIONS] for found in labels], dtype=np.int8)


def clinical_score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    measure: str = "f1",
    average: str = "micro",
    observations: str = "14",
    uncertain: str = "positive",
    undefined: str = "omit",
) -> Statistic:
    """One cell of the grid.

    measure: "precision", "recall" or "f1" of positive observations.
    average: "micro" (all decisions together), "macro" (mean over observations), "example" (mean over reports).
    observations: "14" or "5" (`TOP_FIVE`).
    uncertain: -1 counts as "positive" or "negative", or the decision is left out where either side is -1 ("ignore").
    undefined: 0/0 is left out of a mean ("omit") or counts as 0 ("zero", scikit-learn's default).
    """
    check_pairs(hypotheses, references)
    cell = Cell(measure, average, observations, uncertain, undefined)
    return clinical_cells(observation_labels(hypotheses), observation_labels(references), [cell])[cell]


def clinical_f1(
    hypotheses: Sequence[str],
    references: Sequence[str],
    average: str = "micro",
    observations: str = "14",
    uncertain: str = "positive",
) -> Statistic:
    """`clinical_score` with measure "f1"."""
    return clinical_score(hypotheses, references, "f1", average, observations, uncertain)


def clinical_grid(
    hypotheses: Sequence[str], references: Sequence[str], cells: Sequence[Cell] | None = None
) -> dict[Cell, Statistic]:
    """All 54 cells without 0/0, or the given ones (`CE_PRESETS["r2gen"]`); the texts are labelled once."""
    check_pairs(hypotheses, references)
    wanted = [Cell(*c) for c in product(MEASURES, AVERAGES, _SETS, POLICIES)] if cells is None else cells
    return clinical_cells(observation_labels(hypotheses), observation_labels(references), wanted)


def clinical_cells(hypotheses: np.ndarray, references: np.ndarray, cells: Sequence[Cell]) -> dict[Cell, Statistic]:
    """The same from labels (reports, 14) of 1, -1 and 0, whoever made them: CheXbert, the annotation, a model."""
    for name, labels in (("hypotheses", hypotheses), ("references", references)):
        if np.ndim(labels) != 2 or np.shape(labels)[1] != len(OBSERVATIONS) or not np.isin(labels, (-1, 0, 1)).all():
            raise RRGError(f"{name} must be labels (reports, 14) of 1, 0 and -1, got shape {np.shape(labels)}")
    if len(hypotheses) != len(references):
        raise RRGError(f"labels of {len(hypotheses)} hypotheses but of {len(references)} references")
    return {cell: _cell(np.asarray(hypotheses), np.asarray(references), cell) for cell in cells}


def _cell(hyp: np.ndarray, ref: np.ndarray, cell: Cell) -> Statistic:
    allowed = {"measure": MEASURES, "average": AVERAGES, "observations": tuple(_SETS), "uncertain": POLICIES}
    allowed["undefined"] = UNDEFINED
    for option, values in allowed.items():
        _check(option, getattr(cell, option), values)
    columns = [OBSERVATIONS.index(name) for name in _SETS[cell.observations]]
    hyp, ref = hyp[:, columns], ref[:, columns]
    known = np.ones_like(hyp, dtype=bool)
    if cell.uncertain == "ignore":
        known = (hyp != -1) & (ref != -1)
    hyp, ref = ((side != 0) if cell.uncertain == "positive" else (side == 1) for side in (hyp, ref))
    counts = np.stack([hyp & ref & known, hyp & ~ref & known, ~hyp & ref & known], axis=-1).astype(np.float64)
    score = _SCORE[cell.measure]
    if cell.undefined == "zero":
        score = partial(_zeroed, score)
    if cell.average == "micro":
        return Statistic(counts.sum(axis=1), score)
    if cell.average == "macro":
        return Statistic(counts.reshape(len(counts), -1), _Macro(score))
    scores = score(counts.sum(axis=1))
    return Statistic(np.stack([np.nan_to_num(scores), ~np.isnan(scores)], axis=1), ratio)


def fact_f1(hypotheses: Sequence[str], references: Sequence[str], level: str = "finding") -> Statistic:
    """Micro F1 of facts at level "finding" (finding and polarity) or "full" (anatomy, side and severity too)."""
    check_pairs(hypotheses, references)
    rows = [fact_counts(hyp, ref, level) for hyp, ref in zip(hypotheses, references, strict=True)]
    return Statistic(np.array(rows), f1)


def ce_abn(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """CE-Abn as we define it, for RadSCR does not: micro F1 of the abnormality classes that a text asserts (`VISIBLE`,
    present or uncertain), against those that the reference asserts."""
    return _set_f1(hypotheses, references, lambda text: {fact.name for fact in asserted_facts(text)})


def ce_organ(hypotheses: Sequence[str], references: Sequence[str]) -> Statistic:
    """CE-Organ as we define it: micro F1 of the regions (lungs, heart, ...) in which a text asserts an abnormality,
    against the reference's. A class counts for the first of its regions in `REGION_OF`."""
    return _set_f1(hypotheses, references, lambda text: {REGION_OF[fact.name][0] for fact in asserted_facts(text)})


def _set_f1(hypotheses: Sequence[str], references: Sequence[str], named: Callable[[str], set]) -> Statistic:
    check_pairs(hypotheses, references)
    rows = []
    for said, shown in ((named(hyp), named(ref)) for hyp, ref in zip(hypotheses, references, strict=True)):
        rows.append((len(said & shown), len(said - shown), len(shown - said)))
    return Statistic(np.array(rows), f1)


FILM_LEVELS = {"finding": ("name",), "side": ("name", "side"), "full": ("name", "place", "side", "severity")}


def film_fact_f1(hypotheses: Sequence[str], reports: Sequence[Report], level: str = "finding") -> Statistic:
    """Micro F1 of what texts assert against what the films of `reports` show: the annotation, not another text.

    level: facts are equal by their class ("finding"), also by side ("side"), or by place and severity too ("full").
    Findings that no film shows, and all that a text denies, do not count.
    """
    _check("level", level, tuple(FILM_LEVELS))
    check_pairs(hypotheses, [report.id for report in reports])
    rows = []
    for text, report in zip(hypotheses, reports, strict=True):
        said, shown = (
            {tuple(getattr(fact, field) for field in FILM_LEVELS[level]) for fact in side}
            for side in (asserted_facts(text), film_facts(report))
        )
        rows.append((len(said & shown), len(said - shown), len(shown - said)))
    return Statistic(np.array(rows), f1)


def f1(sums: np.ndarray) -> np.ndarray:
    """F1 from (..., 3) sums of true positives, false positives, false negatives; 0/0 is NaN."""
    return _divide(2 * sums[..., 0], 2 * sums[..., 0] + sums[..., 1] + sums[..., 2])


def precision(sums: np.ndarray) -> np.ndarray:
    """Precision from the same sums as `f1`."""
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 1])


def recall(sums: np.ndarray) -> np.ndarray:
    """Recall from the same sums as `f1`."""
    return _divide(sums[..., 0], sums[..., 0] + sums[..., 2])


_SCORE = {"precision": precision, "recall": recall, "f1": f1}


def _zeroed(score: Callable[[np.ndarray], np.ndarray], sums: np.ndarray) -> np.ndarray:
    """A score with 0/0 as 0."""
    return np.nan_to_num(score(sums))


class _Macro:
    """Mean of a score over classes, from (..., 3 * classes) sums; classes with 0/0 are left out."""

    def __init__(self, score) -> None:
        self.score = score

    def __call__(self, sums: np.ndarray) -> np.ndarray:
        scores = self.score(sums.reshape(*sums.shape[:-1], -1, 3))
        defined = ~np.isnan(scores)
        return _divide(np.where(defined, scores, 0).sum(axis=-1), defined.sum(axis=-1))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return above / below


def _check(option: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RRGError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
