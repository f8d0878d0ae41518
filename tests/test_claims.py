"""Claims, verdicts and result files."""

import json

import pytest

from rrg_utils import claims
from rrg_utils.errors import RRGError


@pytest.mark.parametrize(
    ("direction", "low", "high", "verdict"),
    [
        (-1, -0.3, -0.1, "reproduced"),
        (-1, 0.1, 0.3, "contradicted"),
        (-1, -0.1, 0.1, "inconclusive"),
        (1, 0.1, 0.3, "reproduced"),
        (1, -0.3, -0.1, "contradicted"),
        (1, 0.0, 0.2, "inconclusive"),
        (1, float("nan"), 0.2, "not tested"),
    ],
)
def test_verdict_follows_from_the_interval(direction, low, high, verdict):
    assert claims.judge(direction, low, high) == verdict


def test_an_upside_down_interval_is_refused():
    with pytest.raises(RRGError, match="upside down"):
        claims.judge(1, 0.3, 0.1)


def test_results_are_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    name = "llava_ta.narrative_bias"
    for seed in (0, 1):
        claims.record(name, "cpu", seed, -0.2, (-0.3, -0.1), reports=250)
    found = claims.measured(name)
    assert [entry["seed"] for entry in found] == [0, 1]
    assert found[0]["verdict"] == "reproduced"
    assert found[0]["reports"] == 250
    assert claims.measured(name, "smoke") == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_unknown_claims_are_refused_by_name():
    with pytest.raises(RRGError, match=r"known are: llava_ta\.narrative_bias"):
        claims.claim("llava_ta.nothing")


@pytest.mark.parametrize("claim", claims.CLAIMS.values(), ids=lambda claim: claim.id)
def test_every_claim_names_a_paper_and_a_notebook_that_exist(claim):
    assert claim.paper in claims.papers()
    assert claim.id.startswith(claim.paper)
    folders = (claims.RESULTS.parent / name for name in ("notebooks", "drafts"))
    assert any((folder / f"{claim.notebook}.ipynb").is_file() for folder in folders)
    assert claim.direction in (-1, 1)


def test_committed_results_agree_with_their_verdicts():
    paths = sorted(claims.RESULTS.glob("*/cpu-seed*.json"))
    assert paths, "no results are committed"
    for path in paths:
        entry = json.loads(path.read_text())
        direction = claims.claim(entry["claim"]).direction
        assert entry["verdict"] == claims.judge(direction, *entry["interval"])
        assert path.parent.name == entry["claim"]
        low, high = entry["interval"]
        assert low <= entry["effect"] <= high
