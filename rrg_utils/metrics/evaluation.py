"""All scores of a set of generated reports, each with its number of reports, interval and signature."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

from rrg_utils import __version__
from rrg_utils.errors import RRGError
from rrg_utils.metrics.clinical import Cell, clinical_grid, fact_f1
from rrg_utils.metrics.conventions import Convention, convention
from rrg_utils.metrics.statistics import Interval, Statistic
from rrg_utils.metrics.text import bleu, check_pairs, cider, meteor, rouge_l


@dataclass(frozen=True)
class Score:
    """One score. `reason` says why where `value` is None: it could not be computed here."""

    name: str
    value: float | None
    interval: Interval | None
    n: int
    signature: str
    statistic: Statistic | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name:<18} unavailable: {self.reason}"
        return f"{self.name:<18} {self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}]  {self.signature}"


@dataclass(frozen=True)
class Scores:
    """The scores of one system on one set of reports, in the order they are printed."""

    scores: tuple[Score, ...]

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise RRGError(f"no score {name!r}: choose from {', '.join(score.name for score in self.scores)}")

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)

    def __str__(self) -> str:
        return "\n".join(map(str, self.scores))


@lru_cache
def _versions() -> str:
    return f"pycocoevalcap:{version('pycocoevalcap')}|v{__version__}"


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[str],
    xxxx_policy: str = "unstated",
    preset: str | Convention = "plain",
    section: str = "findings",
    uncertain: str = "positive",
    meteor_score: bool = True,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score generated reports against one reference each.

    xxxx_policy: what was done with the XXXX marks of the reports before they came here: say it where you know it.
    section: which section of the report the references are. Both are recorded in every signature.
    preset: how texts become tokens: "plain", "r2gen_iu", "r2gen_mimic" or a `Convention`. Observations and facts are
    read from the texts as they are given.
    uncertain: how the observation labels treat -1: "positive", "negative" or "ignore".
    meteor_score: False leaves METEOR out (it takes seconds). Where there is no Java it has no value but a reason.
    Intervals are 95 % percentile bootstrap over reports.
    """
    check_pairs(hypotheses, references)
    how = convention(preset)
    for option, value in (("xxxx_policy", xxxx_policy), ("section", section)):
        if not isinstance(value, str) or not re.fullmatch(r"\w+(?:\+\w+)*", value):
            raise RRGError(f"{option} must be a word such as 'mask' or 'findings+impression', got {value!r}")
    n = len(hypotheses)
    tail = f"section:{section}|xxxx:{xxxx_policy}|refs:1|n:{n}|{_versions()}"
    tokens = f"{how.signature}|{tail}"

    rows: list[tuple[str, Statistic | RRGError, str]] = [
        (f"BLEU-{order}", statistic, f"bleu{order}|corpus|closest|{tokens}")
        for order, statistic in enumerate(bleu(hypotheses, references, how), start=1)
    ]
    if meteor_score:
        try:
            found = meteor(hypotheses, references, how)
        except RRGError as error:
            found = error
        rows.append(("METEOR", found, f"meteor|1.5|corpus|{tokens}"))
    rows.append(("ROUGE-L", rouge_l(hypotheses, references, how), f"rouge-l|coco|beta:1.2|{tokens}"))
    rows.append(("CIDEr", cider(hypotheses, references, how), f"cider|pycocoevalcap|idf:references|{tokens}"))
    cells = [Cell("f1", average, of, uncertain) for of in ("14", "5") for average in ("micro", "macro")]
    for cell, statistic in clinical_grid(hypotheses, references, cells).items():
        how_counted = f"f1-rule|{cell.average}|obs:{cell.observations}|uncertain:{uncertain}|0/0:out"
        rows.append((f"F1-rule {cell.average}-{cell.observations}", statistic, f"{how_counted}|text:given|{tail}"))
    rows.append(("fact F1", fact_f1(hypotheses, references), f"fact-f1-rule|micro|level:finding|text:given|{tail}"))
    return Scores(tuple(_score(*row, n, resamples, seed) for row in rows))


def _score(name: str, found: Statistic | RRGError, signature: str, n: int, resamples: int, seed: int) -> Score:
    if isinstance(found, RRGError):
        return Score(name, None, None, n, signature, reason=str(found))
    return Score(name, found.value, found.bootstrap(resamples, seed), n, signature, found)
