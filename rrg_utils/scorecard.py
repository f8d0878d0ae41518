"""The scorecard: every claim of the papers, its numbers, what was measured here, and the verdict."""

from collections import Counter

from rrg_utils import claims
from rrg_utils.claims import CLAIMS, VERDICTS, Claim, Verdict, papers

SIGNS = dict(zip(VERDICTS, "✓✗~·", strict=True))  # told apart without colour


def by_paper() -> dict[str, list[Claim]]:
    """A paper's heading -> its claims."""
    groups: dict[str, list[Claim]] = {}
    for claim in CLAIMS.values():
        paper = papers().get(claim.paper)
        heading = f"{paper['system']}, {paper['venue']}" if paper else "Across the papers (our questions)"
        groups.setdefault(heading, []).append(claim)
    return groups


def text(profile: str = "cpu") -> str:
    """The scorecard for a terminal: some lines for each claim, counts at the end."""
    lines = []
    for heading, group in by_paper().items():
        lines += [heading, ""]
        for claim in group:
            found = claims.verdict(claim.id, profile)
            lines += [f"  {SIGNS[found.verdict]} {found.verdict:13} {claim.id}", f"      {claim.statement}"]
            lines += [f"      paper: {claim.rests_on}", f"      here:  {measurement(found)}"]
            lines += [f"      what:  {claim.effect}"] if found.seeds else []
            lines += [""]
    return "\n".join([*lines, counts(profile)])


def markdown(profile: str = "cpu") -> str:
    """The scorecard as Markdown, seen from the repository's root: a line for each claim, untested ones folded away."""
    heads = {
        True: ["| verdict | claim | the paper's numbers | here: effect [95 % interval] |", "|---|---|---|---|"],
        False: ["| claim | the paper's numbers | why it is not tested |", "|---|---|---|"],
    }
    lines = {tested: list(head) for tested, head in heads.items()}
    for heading, group in by_paper().items():
        found = {claim: claims.verdict(claim.id, profile) for claim in group}
        for tested, table in lines.items():
            rows = [_row(claim, one) for claim, one in found.items() if (one.verdict != "not tested") == tested]
            table += [f"| **{heading}** {'| ' * (heads[tested][0].count('|') - 2)}|", *rows] if rows else []
    folded = ["<details>", "<summary>The claims that are not tested here, and why</summary>", "", *lines[False]]
    return "\n".join([counts(profile), "", *lines[True], "", *folded, "", "</details>"])


def _row(claim: Claim, found: Verdict) -> str:
    path = f"notebooks/{claim.notebook}.ipynb"
    linked = claim.notebook and (claims.RESULTS.parent / path).is_file()
    statement = f"{claim.statement} ([{claim.notebook[:2]}]({path}))" if linked else claim.statement
    cells = [statement, claim.rests_on, measurement(found)]
    return f"| {' | '.join(cells if found.verdict == 'not tested' else [_signed(found), *cells])} |"


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


def counts(profile: str = "cpu") -> str:
    """How many claims got each verdict, in a sentence."""
    counted = Counter(claims.verdict(name, profile).verdict for name in CLAIMS)
    return f"{len(CLAIMS)} claims: " + ", ".join(f"{SIGNS[v]} {counted[v]} {v}" for v in VERDICTS) + "."
