"""The scorecard: every claim of the papers, its numbers, what was measured here, and the verdict."""

from collections import Counter
from pathlib import Path

from rrg_utils import claims
from rrg_utils.claims import CLAIMS, VERDICTS, Claim, Rerun, Verdict, papers

SIGNS = dict(zip(VERDICTS, "✓✗~·", strict=True))  # told apart without colour
OUTSIDE = "≠"  # a second run that is not where one more seed was expected


def by_paper() -> dict[str, list[Claim]]:
    """A paper's heading -> its claims."""
    groups: dict[str, list[Claim]] = {}
    for claim in CLAIMS.values():
        paper = papers().get(claim.paper)
        heading = f"{paper['system']}, {paper['venue']}" if paper else "Across the papers (our questions)"
        groups.setdefault(heading, []).append(claim)
    return groups


def text(profile: str = "cpu", rerun: Path | None = None) -> str:
    """The scorecard for a terminal: some lines for each claim, counts at the end.

    `rerun`: the measurements of another run, such as one's own in `runs/cpu/results`; None: the committed one.
    """
    lines = []
    for heading, group in by_paper().items():
        lines += [heading, ""]
        for claim in group:
            found = claims.verdict(claim.id, profile)
            lines += [f"  {SIGNS[found.verdict]} {found.verdict:13} {claim.id}", f"      {claim.statement}"]
            lines += [f"      paper: {claim.rests_on}", f"      here:  {measurement(found)}"]
            again = claims.rerun(claim.id, profile, rerun)
            lines += [f"      again: {again_in_words(again)}"] if again else []
            lines += [f"      what:  {claim.effect}"] if found.seeds else []
            lines += [""]
    return "\n".join([*lines, counts(profile), *agreement(profile, rerun)])


def markdown(profile: str = "cpu", rerun: Path | None = None) -> str:
    """The scorecard as Markdown, seen from the repository's root: a line for each claim, untested ones folded away."""
    heads = {
        True: [
            "| verdict | claim | the paper's numbers | here: effect [95 % interval] | again |",
            "|---|---|---|---|---|",
        ],
        False: ["| claim | the paper's numbers | why it is not tested |", "|---|---|---|"],
    }
    lines = {tested: list(head) for tested, head in heads.items()}
    for heading, group in by_paper().items():
        found = {claim: claims.verdict(claim.id, profile) for claim in group}
        for tested, table in lines.items():
            rows = [
                _row(claim, one, claims.rerun(claim.id, profile, rerun))
                for claim, one in found.items()
                if (one.verdict != "not tested") == tested
            ]
            table += [f"| **{heading}** {'| ' * (heads[tested][0].count('|') - 2)}|", *rows] if rows else []
    folded = ["<details>", "<summary>The claims that are not tested here, and why</summary>", "", *lines[False]]
    return "\n".join([counts(profile), *agreement(profile, rerun), "", *lines[True], "", *folded, "", "</details>"])


def _row(claim: Claim, found: Verdict, again: Rerun | None) -> str:
    path = f"notebooks/{claim.notebook}.ipynb"
    linked = claim.notebook and (claims.RESULTS.parent / path).is_file()
    statement = f"{claim.statement} ([{claim.notebook[:2]}]({path}))" if linked else claim.statement
    cells = [statement, claim.rests_on, measurement(found)]
    if found.verdict != "not tested":
        second = f"{again.effect:+.3f}{'' if again.inside else f' {OUTSIDE}'}" if again else ""
        cells = [_signed(found), *cells, second]
    return f"| {' | '.join(cells)} |"


def _signed(found: Verdict) -> str:
    return f"{SIGNS[found.verdict]} {found.verdict}"


def measurement(found: Verdict) -> str:
    """Effect, interval and seeds, or why there are none."""
    if not found.seeds:
        return found.reason
    seeds = f"{found.seeds} seed{'s' * (found.seeds != 1)}"
    if found.reason:
        return f"{found.effect:+.3f}, {seeds}: {found.reason}"
    return f"{found.effect:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {seeds}"


def again_in_words(found: Rerun) -> str:
    """The effect of another run, and whether one more seed would have led one to expect it."""
    where = "where" if found.inside else f"{OUTSIDE} outside of where"
    return f"{found.effect:+.3f}, {where} one more seed was expected [{found.low:+.4f}, {found.high:+.4f}]"


def agreement(profile: str = "cpu", rerun: Path | None = None) -> list[str]:
    """How far another run agrees with the kept one, in a sentence; none where there is no such run."""
    found = {name: again for name in CLAIMS if (again := claims.rerun(name, profile, rerun))}
    if not found:
        return []
    verdicts = {name: claims.verdict(name, profile) for name in found}
    decided = [name for name, one in verdicts.items() if one.verdict in ("reproduced", "contradicted")]
    same = sum(found[name].effect * verdicts[name].effect > 0 for name in decided)
    inside = sum(again.inside for again in found.values())
    return [
        f"Run again from the start: {inside} of {len(found)} effects over training seeds lie where one more seed was "
        f"expected, and of the {len(decided)} that are decided {same} keep their direction."
    ]


def counts(profile: str = "cpu") -> str:
    """How many claims got each verdict, in a sentence."""
    counted = Counter(claims.verdict(name, profile).verdict for name in CLAIMS)
    return f"{len(CLAIMS)} claims: " + ", ".join(f"{SIGNS[v]} {counted[v]} {v}" for v in VERDICTS) + "."
