"""All scores of a set of generated reports, each with its number of reports, interval and signature."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rrg_utils import __version__
from rrg_utils.errors import RRGError
from rrg_utils.metrics.clinical import clinical_f1, fact_f1
from rrg_utils.metrics.statistics import Interval, Statistic
from rrg_utils.metrics.text import bleu, check_pairs, cider, meteor, rouge_l

PRESETS = ("plain",)


@dataclass(frozen=True)
class Score:
    """One score. `reason` says why where `value` is None (could not be computed) or `interval` is None."""

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
        spread = f"[{self.interval.low:.3f}, {self.interval.high:.3f}]" if self.interval else f"({self.reason})"
        return f"{self.name:<18} {self.value:.3f} {spread}  {self.signature}"


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


def evaluate(
    hypotheses: Sequence[str],
    references: Sequence[str],
    xxxx_policy: str,
    preset: str = "plain",
    meteor_score: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Score generated reports against one reference each.

    xxxx_policy: what was done with the XXXX marks of the reports before they came here; recorded in every signature.
    preset: how texts become tokens; "plain" is described in `rrg_utils.metrics.text`.
    meteor_score: also run METEOR (needs Java, seconds); where there is none the score is None with the reason.
    Intervals are 95 % percentile bootstrap over reports.
    """
    check_pairs(hypotheses, references)
    if preset not in PRESETS:
        raise RRGError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if not isinstance(xxxx_policy, str) or not xxxx_policy.isidentifier():
        raise RRGError(f"xxxx_policy must be one word such as 'drop', got {xxxx_policy!r}: name how XXXX was treated")
    n = len(hypotheses)
    tail = f"xxxx:{xxxx_policy}|n:{n}|v{__version__}"
    tokens = f"clean:{preset}|case:lc|tok:punct|{tail}"
    rows: list[tuple[str, Statistic, str]] = [
        (f"BLEU-{order}", statistic, f"bleu{order}|corpus|closest|{tokens}")
        for order, statistic in enumerate(bleu(hypotheses, references), start=1)
    ]
    rows.append(("ROUGE-L", rouge_l(hypotheses, references), f"rouge-l|coco|beta:1.2|{tokens}"))
    rows.append(("CIDEr", cider(hypotheses, references), f"cider|pycocoevalcap|idf:references|{tokens}"))
    for average in ("micro", "macro"):
        statistic = clinical_f1(hypotheses, references, average=average)
        rows.append((f"F1-rule {average}-14", statistic, f"f1-rule|{average}|obs:14|uncertain:positive|0/0:out|{tail}"))
    rows.append(("fact F1", fact_f1(hypotheses, references), f"fact-f1-rule|micro|level:finding|{tail}"))
    scores = [Score(name, s.value, s.bootstrap(resamples, seed), n, signature, s) for name, s, signature in rows]
    if meteor_score:
        signature = f"meteor|1.5|corpus|{tokens}"
        try:
            value, reason = meteor(hypotheses, references), "no interval: the corpus score is made inside the jar"
        except RRGError as error:
            value, reason = None, str(error)
        scores.insert(6, Score("METEOR", value, None, n, signature, reason=reason))
    return Scores(tuple(scores))
