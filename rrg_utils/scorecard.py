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
    """The scorecard as a Markdown table with one line for each claim, seen from the repository's root."""
    lines = ["| verdict | claim | the paper's numbers | here: effect [95 % interval] |", "|---|---|---|---|"]
    folder = claims.RESULTS.parent
    for heading, group in by_paper().items():
        lines.append(f"| | **{heading}** | | |")
        for claim in group:
            found = claims.verdict(claim.id, profile)
            path = f"notebooks/{claim.notebook}.ipynb"
            where = f" ([{claim.notebook[:2]}]({path}))" if claim.notebook and (folder / path).is_file() else ""
            sign = f"{SIGNS[found.verdict]} {found.verdict}"
            lines.append(f"| {sign} | {claim.statement}{where} | {claim.rests_on} | {measurement(found)} |")
    return "\n".join([*lines, "", counts(profile)])


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
