"""The study cohort: which reports take part, and a split into training, validation and test that does not leak."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import get_args

from rrg_utils.data.reports import Report, XXXXPolicy, clean, id_order
from rrg_utils.errors import RRGError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True)
class Cohort:
    """Reports by split, in numeric id order, and how they were chosen."""

    flow: tuple[tuple[str, int, int], ...]  # (step, reports, images), from the archive to the cohort
    train: tuple[Report, ...] = field(repr=False)
    val: tuple[Report, ...] = field(repr=False)
    test: tuple[Report, ...] = field(repr=False)
    digest: str  # first 16 hex digits of the sha256 of the id lists

    def __str__(self) -> str:
        """A small table of the flow and the splits."""
        total = len(self.train) + len(self.val) + len(self.test)
        lines = [f"{'step':<28}{'reports':>9}{'images':>9}"]
        lines += [f"{step:<28}{reports:>9,}{images:>9,}" for step, reports, images in self.flow]
        for name in SHARES:
            part = getattr(self, name)
            lines.append(f"  {name:<26}{len(part):>9,}{_images(part):>9,}{len(part) / total:>8.1%}")
        return "\n".join([*lines, f"split digest {self.digest}"])


def cohort(reports: Iterable[Report]) -> Cohort:
    """Reports with FINDINGS and at least two images, split 70/10/20: for the archive 3,955 -> 3,425 -> 2,955 reports.

    The counts differ by one at most from R2Gen's IU X-Ray split (2,069, 296, 590), but that split's ids were never
    published outside its data, so this one is our own. Each patient has one report here. Many reports share their text
    word for word, which would leak it from training to test: reports whose findings say the same go to one split, as a
    group. "The same" ignores case, punctuation and spaces, and holds if it holds under any XXXX policy, so that one
    split serves them all (2,172 groups, the largest of 73 reports).

    Groups are dealt largest first, each to the split furthest behind its share of what has been dealt so far; groups of
    one size come in the order of a hash of their text. Groups mostly of normal-indexed reports and the others are dealt
    apart. So duplicates and normal reports are spread evenly, and the outcome depends on no random generator and not on
    the order of the input. Impressions are not looked at: short ones ("No acute disease.") recur in every split.

    Raises RRGError for a repeated report id or when too few reports remain to fill three splits.
    """
    archive = sorted(reports, key=lambda report: id_order(report.id))
    for one, other in pairwise(archive):
        if one.id == other.id:
            raise RRGError(f"report id {one.id} occurs twice; ids must be unique")
    with_findings = [report for report in archive if report.findings.strip()]
    members = [report for report in with_findings if len(report.images) >= 2]
    splits: dict[str, list[Report]] = {name: [] for name in SHARES}
    groups = sorted(_same_text_groups(members), key=_deal_order)
    for normal in (True, False):
        dealt, have = 0, dict.fromkeys(SHARES, 0)
        for group in (group for group in groups if _normal(group) == normal):
            dealt += len(group)
            behind = {name: share * dealt - have[name] for name, share in SHARES.items()}
            name = max(behind, key=behind.get)
            have[name] += len(group)
            splits[name] += group
    for name, part in splits.items():
        if not part:
            raise RRGError(
                f"split {name!r} is empty: {len(members)} reports with findings and two images, too few texts"
            )
        part.sort(key=lambda report: id_order(report.id))
    ids = "\n".join(f"{name}: {' '.join(report.id for report in part)}" for name, part in splits.items())
    return Cohort(
        flow=(
            ("archive", len(archive), _images(archive)),
            ("with FINDINGS", len(with_findings), _images(with_findings)),
            ("and at least two images", len(members), _images(members)),
        ),
        **{name: tuple(part) for name, part in splits.items()},
        digest=hashlib.sha256(ids.encode()).hexdigest()[:16],
    )


def _images(reports: Iterable[Report]) -> int:
    return sum(len(report.images) for report in reports)


def _texts(report: Report) -> set[str]:
    """The report's normalised findings under each XXXX policy; two reports that share one say the same."""
    cleaned = (clean(report.findings, policy).lower() for policy in get_args(XXXXPolicy))
    texts = {" ".join(re.findall(r"[^\W_]+", text)) for text in cleaned} - {""}
    return texts or {f"only {report.id}"}


def _same_text_groups(reports: Iterable[Report]) -> list[list[Report]]:
    """Groups of reports linked by a shared text, directly or through others (union-find over the texts)."""
    leader: dict[str, str] = {}

    def find(text: str) -> str:
        while (above := leader.setdefault(text, text)) != text:
            text = above
        return text

    texts = {report: _texts(report) for report in reports}
    for first, *others in texts.values():
        for other in others:
            leader[find(other)] = find(first)
    groups = defaultdict(list)
    for report, (text, *_) in texts.items():
        groups[find(text)].append(report)
    return list(groups.values())


def _normal(group: list[Report]) -> bool:
    return 2 * sum(report.normal for report in group) > len(group)


def _deal_order(group: list[Report]) -> tuple[int, str]:
    text = min(text for report in group for text in _texts(report))
    return -len(group), hashlib.sha256(text.encode()).hexdigest()
