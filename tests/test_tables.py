"""Tables of scores kept in results/tables."""

import pytest

from rrg_utils import claims, tables
from rrg_utils.errors import RRGError

ROWS = {"BASE": {"BLEU-4": 0.061234567, "METEOR": None}, "TRRG": {"BLEU-4": 0.07, "METEOR": 0.2}}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    return tmp_path


def test_rows_are_kept_for_each_seed_and_profile(results):
    path = tables.keep("trrg.table2", "cpu", 0, ROWS)
    assert path == results / "tables" / "trrg.table2" / "cpu-seed0.json"
    assert tables.kept("trrg.table2", "cpu", 0)["BASE"] == {"BLEU-4": 0.06123, "METEOR": None}
    assert list(tables.kept("trrg.table2", "cpu", 0)) == ["BASE", "TRRG"], "in the order of the table"
    assert tables.kept("trrg.table2", "cpu", 1) == tables.kept("trrg.table2", "smoke", 0) == {}
    assert not list(results.rglob("*.tmp"))


def test_what_is_recorded_elsewhere_is_not_kept(results, monkeypatch):
    monkeypatch.setenv("RRG_RECORD", str(results / "elsewhere"))
    tables.keep("trrg.table2", "cpu", 0, ROWS)
    assert tables.kept("trrg.table2", "cpu", 0) == {}


def test_a_table_is_completed_from_what_is_kept(results):
    few = {"TRRG": {"BLEU-4": 0.08, "METEOR": 0.3}}
    assert tables.completed("trrg.table2", "cpu", 0, few, whole=False) == few, "nothing is kept yet"
    assert tables.completed("trrg.table2", "cpu", 0, ROWS, whole=True) == ROWS
    found = tables.completed("trrg.table2", "cpu", 0, few, whole=False)
    assert list(found) == ["BASE", "TRRG"], "in the order of the table"
    assert found["TRRG"] == few["TRRG"], "what was made here counts"
    assert found["BASE"]["BLEU-4"] == 0.06123
    assert tables.kept("trrg.table2", "cpu", 0)["TRRG"]["BLEU-4"] == 0.07, "a few rows do not replace the table"


@pytest.mark.parametrize("content", ["{", "[1]", '{"BASE": 0.1}'])
def test_a_damaged_table_is_one_line(results, content):
    path = tables.keep("trrg.table2", "cpu", 0, ROWS)
    path.write_text(content)
    with pytest.raises(
        RRGError, match=r"^results/tables/trrg.table2/cpu-seed0.json is damaged \(.*\): restore or delete"
    ):
        tables.kept("trrg.table2", "cpu", 0)
