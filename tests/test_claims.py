"""Claims, verdicts and result files."""

import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils import claims
from rrg_utils.errors import RRGError
from rrg_utils.metrics import over_seeds

UP, DOWN = "trrg.dci_helps", "llava_ta.narrative_bias"  # claims of a rise and of a fall
EFFECTS = st.lists(st.integers(-400, 400).map(lambda i: i / 1000), min_size=2, max_size=6)
HALVES = st.lists(st.integers(0, 300).map(lambda i: i / 1000), min_size=6, max_size=6)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty results folder."""
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    """The verdict on effects, one per seed, with half-widths over reports or without."""

    def verdict(effects, halves=None, name=UP):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "RESULTS", tmp_path_factory.mktemp("pooled"))
            if halves is None:
                claims.record_seeds(name, "cpu", dict(enumerate(effects)))
            else:
                for seed, (effect, half) in enumerate(zip(effects, halves, strict=False)):
                    claims.record(name, "cpu", seed, effect, (effect - half, effect + half))
            return claims.verdict(name)

    return verdict


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


def test_results_are_written_and_read_back(results):
    for seed in (10, 0, 2):
        claims.record(DOWN, "cpu", seed, -0.2, (-0.3, -0.1), reports=250)
    found = claims.measured(DOWN)
    assert [entry["seed"] for entry in found] == [0, 2, 10], "in order of seed, not of name"
    assert found[0]["verdict"] == "reproduced"
    assert found[0]["reports"] == 250
    assert claims.measured(DOWN, "smoke") == []
    assert not list(results.rglob("*.tmp"))


def test_seeds_are_written_one_file_each_and_without_interval(results):
    paths = claims.record_seeds(UP, "cpu", {0: 0.1, 3: 0.2}, reports=9)
    assert [path.name for path in paths] == ["cpu-seed0.json", "cpu-seed3.json"]
    for entry in claims.measured(UP):
        assert not {"interval", "verdict"} & set(entry), "one seed decides nothing"
        assert entry["reports"] == 9


# --- the verdict over seeds ---


def test_nothing_measured_is_not_tested_and_says_why(results):
    found = claims.verdict(UP)
    assert (found.verdict, found.seeds, found.reason) == ("not tested", 0, "run notebook 06")
    assert math.isnan(found.effect)
    assert claims.verdict("llava_ta.small_beats_large").reason.startswith("needs an 84 B model")


def test_what_is_measured_counts_even_where_nothing_was_expected(results):
    claims.record("llava_ta.small_beats_large", "cpu", 0, 0.2, (0.1, 0.3))
    assert claims.verdict("llava_ta.small_beats_large").verdict == "reproduced"


def test_one_seed_with_an_interval_counts_as_it_stands(results):
    claims.record(DOWN, "cpu", 4, -0.2, (-0.35, -0.1))
    assert claims.verdict(DOWN) == claims.Verdict(-0.2, -0.35, -0.1, "reproduced", 1)


def test_one_seed_without_an_interval_is_not_tested(results):
    claims.record_seeds(UP, "cpu", {0: 0.3})
    found = claims.verdict(UP)
    assert (found.verdict, found.effect, found.seeds, found.reason) == ("not tested", 0.3, 1, "one seed has no spread")


def test_a_notebook_of_one_seed_stands_beside_those_that_are_kept(results, monkeypatch):
    monkeypatch.setenv("RRG_RECORD", str(results / "elsewhere"))
    claims.record_seeds(UP, "cpu", {0: 0.3}, arms={"BASE": [0.1]})
    assert claims.arms(UP) == {}, "what is recorded elsewhere is not kept"
    line = claims.beside_kept(UP, [0.3])
    assert line.splitlines() == [claims.claim(UP).statement, "    here +0.300; in results/: run notebook 06"]
    monkeypatch.delenv("RRG_RECORD")
    claims.record_seeds(UP, "cpu", {0: 0.1, 1: 0.2, 2: 0.15}, arms={"BASE": [0.1, 0.2, 0.3]})
    claims.record_seeds(UP, "cpu", {0: 0.1}, arms={"BASE": [0.1]})  # a later run over fewer seeds
    assert claims.arms(UP) == {"BASE": [0.1, 0.2, 0.3]}
    assert "not measured here; in results/: reproduced" in claims.beside_kept(UP, [])
    assert claims.beside_kept(UP, [0.2, 0.4]).splitlines()[1].startswith("    here +0.300; in")
    beside = "within -0.0984 to +0.3984 (one more seed); in results/: reproduced, +0.150 [+0.026, +0.274] (3 seeds)"
    assert claims.beside_kept(UP, [0.3]).endswith(f"here +0.300, {beside}")
    assert claims.beside_kept(UP, [0.4]).endswith(f"here +0.400, not {beside}")


def test_a_run_again_stands_beside_where_one_more_seed_was_expected(results, monkeypatch):
    """By hand: .1, .2 and .3 have a standard deviation of .1; Student's 4.303 * .1 * sqrt(1 + 1/3) is .4969."""
    claims.record_seeds(UP, "cpu", {0: 0.1, 1: 0.2, 2: 0.3})
    assert claims.rerun(UP) is None, "nothing was run again"
    for folder, effect in (("rerun", 0.69), ("mine", -0.3)):
        monkeypatch.setenv("RRG_RECORD", str(results / folder))
        claims.record_seeds(UP, "cpu", {0: effect})
        claims.record_seeds(DOWN, "cpu", {0: effect})
    found = claims.rerun(UP)
    assert (found.effect, found.inside) == (0.69, True)
    assert (found.low, found.high) == pytest.approx((0.2 - 0.4969, 0.2 + 0.4969), abs=1e-4)
    assert not claims.rerun(UP, results=results / "mine").inside
    assert claims.rerun(DOWN) is None, "nothing can be expected where nothing is kept"
    assert claims.rerun(UP, "smoke") is None


def test_a_notebook_that_someone_has_opened_changes_nothing_that_is_kept(results, monkeypatch):
    opened = type("IPython", (), {"get_ipython": staticmethod(lambda: object())})
    monkeypatch.setitem(sys.modules, "IPython", opened)
    path = claims.record(UP, "cpu", 0, 0.1)
    assert path == results.parent / "runs" / "jupyter" / "results" / UP / "cpu-seed0.json"
    assert not claims.measured(UP)
    monkeypatch.setenv("RRG_RECORD", str(results))
    assert claims.record(UP, "cpu", 0, 0.1).parents[1] == results
    monkeypatch.delenv("RRG_RECORD")
    opened.get_ipython = staticmethod(lambda: None)
    assert claims.destination() == results


def test_seeds_without_intervals_get_student_s(results):
    claims.record_seeds(UP, "cpu", {0: 0.1, 1: 0.2, 2: 0.4})
    found, wanted = claims.verdict(UP), over_seeds([0.1, 0.2, 0.4])
    assert (found.effect, found.low, found.high) == (wanted.mean, wanted.low, wanted.high)
    assert (found.verdict, found.seeds) == ("inconclusive", 3)


def test_seeds_with_intervals_get_both_spreads(pooled):
    """By hand: effects .1 and .3 have Student's half-width 12.706 * .1414 / 1.414 = 1.2706; .3 and .5 mean .4."""
    found = pooled([0.1, 0.3], [0.3, 0.5])
    assert found.effect == pytest.approx(0.2)
    assert found.high - found.effect == pytest.approx((1.2706**2 + 0.4**2) ** 0.5, abs=1e-4)
    assert found.effect - found.low == pytest.approx(found.high - found.effect)
    assert (found.verdict, found.seeds) == ("inconclusive", 2)


def test_an_interval_that_already_holds_its_seeds_keeps_them(results):
    claims.record(UP, "cpu", 0, 0.1, (0.05, 0.15), seeds=[0, 1, 2], arms={})
    assert claims.verdict(UP) == claims.Verdict(0.1, 0.05, 0.15, "reproduced", 3)
    claims.record(UP, "cpu", 0, 0.1, (0.05, 0.15), seeds={"Swin": 5, "Vim": 3})
    assert claims.verdict(UP).seeds == 3


@given(EFFECTS, st.integers(0, 300))
def test_the_verdict_is_monotone_in_the_effect(pooled, effects, shift):
    order = {"contradicted": 0, "inconclusive": 1, "reproduced": 2}
    before, after = pooled(effects), pooled([effect + shift / 1000 for effect in effects])
    assert after.effect >= before.effect
    assert order[after.verdict] >= order[before.verdict]


@given(EFFECTS, HALVES, st.booleans())
def test_turned_over_effects_of_a_turned_over_claim_get_the_same_verdict(pooled, effects, halves, with_halves):
    halves = halves if with_halves else None
    rise, fall = pooled(effects, halves, UP), pooled([-effect for effect in effects], halves, DOWN)
    assert rise.verdict == fall.verdict
    assert (rise.low, rise.high) == pytest.approx((-fall.high, -fall.low))


@given(EFFECTS, HALVES)
def test_the_pooled_interval_is_never_narrower_than_either_part(pooled, effects, halves):
    both = pooled(effects, halves)
    across = over_seeds(effects)
    over_reports = sum(halves[: len(effects)]) / len(effects)
    half = (both.high - both.low) / 2
    assert both.effect == pytest.approx(across.mean)
    assert half >= over_reports - 1e-4  # results are kept with five digits
    assert half >= (across.high - across.low) / 2 - 1e-4
    assert half <= over_reports + (across.high - across.low) / 2 + 1e-4


# --- what cannot be used ---


@pytest.mark.parametrize(
    "content",
    [
        '{"claim": ',
        "[]",
        '{"claim": "trrg.dci_helps", "seed": 0}',
        '{"claim": "trrg.cmci_helps", "seed": 0, "effect": 1}',
        '{"claim": "trrg.dci_helps", "seed": 0, "effect": NaN}',
        '{"claim": "trrg.dci_helps", "seed": 0, "effect": "high"}',
        '{"claim": "trrg.dci_helps", "seed": 0, "effect": 1, "interval": [2, 1]}',
        '{"claim": "trrg.dci_helps", "seed": 0, "effect": 1, "interval": [2]}',
    ],
)
def test_a_damaged_result_is_one_line_that_names_the_file(results, content):
    (results / UP).mkdir()
    (results / UP / "cpu-seed0.json").write_text(content)
    with pytest.raises(
        RRGError, match=r"results/trrg\.dci_helps/cpu-seed0\.json is damaged.*run notebook 06"
    ) as caught:
        claims.verdict(UP)
    assert "\n" not in str(caught.value)


def test_files_with_and_without_intervals_are_not_mixed(results):
    claims.record(UP, "cpu", 0, 0.1, (0.05, 0.15), seeds=[0, 1, 2])
    claims.record_seeds(UP, "cpu", {1: 0.1, 2: 0.2})
    with pytest.raises(RRGError, match="mixes cpu files with and without an interval"):
        claims.verdict(UP)


def test_no_measurement_is_not_recorded(results):
    with pytest.raises(RRGError, match="seed 1: an effect of nan"):
        claims.record_seeds(UP, "cpu", {1: float("nan")})
    with pytest.raises(RRGError, match="no seed"):
        claims.record_seeds(UP, "cpu", {})
    assert not list(results.rglob("*"))


# --- the list ---


def test_unknown_claims_are_refused_by_name():
    with pytest.raises(RRGError, match=r"known are: llava_ta\.narrative_bias"):
        claims.claim("llava_ta.nothing")


@pytest.mark.parametrize("claim", claims.CLAIMS.values(), ids=lambda claim: claim.id)
def test_every_claim_names_a_paper_and_the_notebook_that_records_it(claim):
    assert claim.paper in {*claims.papers(), "common"}
    assert claim.id.startswith(f"{claim.paper}.")
    assert claim.direction in (-1, 1)
    assert claim.notebook or claim.not_here
    notebooks = claims.RESULTS.parent / "notebooks"
    sources = [path.read_text() for path in notebooks.glob(f"{claim.notebook or '-'}.ipynb")]
    assert bool(sources) == bool(claim.notebook)
    if not claim.not_here:
        assert any(claim.id.split(".")[1] in source for source in sources), "no notebook records it: say why not"


def test_committed_results_agree_with_their_verdicts():
    paths = [p for where in ("", "rerun/") for p in sorted(claims.RESULTS.glob(f"{where}*/cpu-seed*.json"))]
    assert {path.parents[1].name for path in paths} == {"results", "rerun"}
    for path in paths:
        entry = json.loads(path.read_text())
        assert path.parent.name == entry["claim"]
        if "interval" in entry:
            low, high = entry["interval"]
            assert entry["verdict"] == claims.judge(claims.claim(entry["claim"]).direction, low, high)
            assert low <= entry["effect"] <= high


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_every_claim_has_a_verdict_and_a_reason_if_it_is_not_tested(name):
    found = claims.verdict(name)
    assert found.verdict in claims.VERDICTS
    assert bool(found.reason) == (found.verdict == "not tested")
    assert math.isnan(found.low) or found.low <= found.effect <= found.high


@pytest.mark.parametrize("name", [claim.id for claim in claims.CLAIMS.values() if claim.published])
def test_a_published_effect_is_read_from_one_table_and_in_score_points(name):
    first, second = claims.claim(name).published
    assert first.table == second.table
    assert 0 < abs(claims.published(name)) < 0.5


def test_published_effects_are_those_of_the_papers():
    assert claims.published("trrg.full_beats_base") == pytest.approx(0.039)
    assert claims.published("llava_ta.mask_needed_when_llm_frozen") == pytest.approx(0.295)  # printed in percent
    assert claims.published("r2gencsr.context_helps") is None
