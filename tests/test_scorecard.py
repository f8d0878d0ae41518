"""The scorecard, and that README.md shows it, and the committed figures, as they are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rrg_utils import claims, readme, scorecard
from rrg_utils.errors import RRGError

README = Path(__file__).parents[1] / "README.md"
SHOWN = readme.pictures(README.read_text(), README.parent)


def test_every_claim_has_one_line_and_its_verdict():
    rows = [line for line in scorecard.markdown().splitlines() if line.startswith("| ") and "**" not in line]
    rows = [line for line in rows if not line.startswith(("| verdict |", "| claim |"))]
    assert len(rows) == len(claims.CLAIMS)
    for claim in claims.CLAIMS.values():
        (line,) = (line for line in rows if claim.statement in line and claim.rests_on in line)
        verdict = claims.verdict(claim.id).verdict
        assert line.startswith(f"| {scorecard.SIGNS[verdict]} {verdict} |") == (verdict != "not tested")
        assert line.count("|") == (4 if verdict == "not tested" else 6), "a bar in a text would break the table"


def test_the_text_names_every_claim_and_what_decides_it():
    text = scorecard.text()
    for claim in claims.CLAIMS.values():
        assert claim.id in text
        assert (claim.effect in text) == (claims.verdict(claim.id).seeds > 0)


def test_counts_add_up_and_verdicts_are_told_apart_without_colour():
    assert len(set(scorecard.SIGNS.values())) == len(claims.VERDICTS)
    words = scorecard.counts().split()
    assert int(words[0]) == len(claims.CLAIMS) == sum(int(word) for word in words[1:] if word.isdigit())


def test_a_profile_without_results_tests_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    assert f"· {len(claims.CLAIMS)} not tested" in scorecard.counts()
    claims.record("trrg.dci_helps", "cpu", 0, 0.1, (0.05, 0.2))
    claims.record_seeds("trrg.cmci_helps", "cpu", {0: 0.1})
    table = scorecard.markdown()
    assert "+0.100 [+0.050, +0.200], 1 seed |" in table
    assert "| +0.100, 1 seed: one seed has no spread |" in table
    assert "(notebooks/" not in table, "no link to a notebook that is not there"
    assert "Run again" not in table, "nothing was run again"


def test_a_run_again_is_shown_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    for name, effects in {"trrg.dci_helps": (0.1, 0.11, 0.12), "trrg.cmci_helps": (-0.1, 0.1, 0.2)}.items():
        claims.record_seeds(name, "cpu", dict(enumerate(effects)))
    monkeypatch.setenv("RRG_RECORD", str(tmp_path / "mine"))
    claims.record_seeds("trrg.dci_helps", "cpu", {0: 0.9})
    claims.record_seeds("trrg.cmci_helps", "cpu", {0: 0.3})
    assert "again:" not in scorecard.text()
    text = scorecard.text(rerun=tmp_path / "mine")
    assert f"again: +0.900, {scorecard.OUTSIDE} outside of where one more seed was expected [+0.0603, +0.1597]" in text
    assert "again: +0.300, where one more seed was expected" in text
    counted = "1 of 2 effects over training seeds lie where one more seed was expected, and of the 1 that are decided 1"
    assert counted in text
    table = scorecard.markdown(rerun=tmp_path / "mine")
    assert f"| +0.900 {scorecard.OUTSIDE} |" in table
    assert "| +0.300 |" in table
    assert counted in table


# --- README.md ---


def test_the_scorecard_of_the_readme_is_that_of_the_results():
    text = README.read_text()
    assert readme.renewed(text) == text, "make readme"


@pytest.mark.parametrize("name", SHOWN)
def test_each_picture_of_the_readme_is_that_of_the_committed_notebook(name):
    path, original = SHOWN[name], readme.committed(name)
    assert readme.source(path) == readme.digest(original), "make readme"
    assert path.stat().st_size <= readme.LARGEST
    shown = Image.open(path).convert("RGB")
    whole = Image.open(io.BytesIO(original)).convert("RGB").resize(shown.size, Image.Resampling.LANCZOS)
    off = np.abs(np.asarray(shown, float) - np.asarray(whole, float)).max(axis=2)
    assert off.mean() < 3
    assert (off > 60).mean() < 1e-3, "a colour was lost"


def test_docs_holds_the_pictures_of_the_readme_and_no_others():
    assert set((README.parent / "docs").glob("*.png")) == set(SHOWN.values())


def test_the_readme_lists_every_notebook():
    table = [line for line in README.read_text().splitlines() if line.startswith("| [")]
    for path in (README.parent / "notebooks").glob("[0-9][0-9]_*.ipynb"):
        assert any(f"(notebooks/{path.name})" in line for line in table), path.name


def test_renewing_writes_only_what_is_stale(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(f"before\n{readme.BEGIN}\nstale words\n{readme.END}\n![x](docs/scores.constant.png)\n")
    said = readme.renew(copy)
    assert [line.split("/")[-1] for line in said] == ["README.md", "scores.constant.png"]
    text = copy.read_text()
    assert text.startswith("before\n")
    assert "stale words" not in text
    assert text.endswith(f"{readme.END}\n![x](docs/scores.constant.png)\n")
    assert readme.renew(copy)[0].endswith("README.md is up to date")
    (tmp_path / "docs" / "scores.constant.png").write_bytes(b"")
    assert [line.split("/")[-1] for line in readme.renew(copy)] == ["scores.constant.png"]


@pytest.mark.parametrize("text", ["", readme.BEGIN, f"{readme.END}{readme.BEGIN}", 2 * (readme.BEGIN + readme.END)])
def test_a_text_without_the_two_marks_is_refused(text):
    with pytest.raises(RRGError, match="goes between two lines"):
        readme.renewed(text)


def test_an_unknown_picture_is_refused(tmp_path):
    (tmp_path / "README.md").write_text(f"{readme.BEGIN}{readme.END}![x](docs/scores.constent.png)")
    with pytest.raises(RRGError, match=r"unknown figure 'scores\.constent' \(did you mean scores\.constant\?\)"):
        readme.renew(tmp_path / "README.md")


def test_a_thin_outline_keeps_its_colour():
    """Grey noise fills every palette; the one coloured line must stay."""
    noise = np.random.default_rng(0).integers(0, 255, (600, 600, 1), dtype=np.uint8).repeat(3, axis=2)
    noise[300:302, 100:500] = (213, 94, 0)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    small = readme.small(file.getvalue())
    assert len(small) <= readme.LARGEST
    found = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), int)
    assert (np.ptp(found, axis=2) > 100).any()
