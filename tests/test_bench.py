"""The bench: readers of films, what is measured of them, files that are kept, the table and the pairwise tests."""

import ast
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_course import write_course
from tiny_readers import TEXTS, Data, make_readers
from typer.testing import CliRunner

from rrg_utils import bench, claims, cli, readers
from rrg_utils.bench import Sizes, cases, counterfactual, image_dependence, measured, pairs, rerun, table, without
from rrg_utils.data.abnormalities import present
from rrg_utils.data.annotation import film_facts
from rrg_utils.data.datasets import indiana
from rrg_utils.data.rendered import RenderedStudies
from rrg_utils.errors import RRGError
from rrg_utils.labels.ontology import TOPICS
from rrg_utils.metrics.clinical import f1
from rrg_utils.readers import SYSTEMS, BaselineConfig, BaselineReader, Told, system
from rrg_utils.systems import r2gencsr

HOW = Sizes(None, 20, 4, 30, meteor=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield make_readers(tmp_path_factory.mktemp("models"), patch)


@pytest.fixture(scope="module")
def data(made):
    """Test studies, of which some have findings."""
    test = indiana().test
    return Data([r for r in test if film_facts(r)][:5] + [r for r in test if r.normal][:2])


@pytest.fixture(scope="module")
def drawn_studies(made):
    """Studies of findings that each caption names alone."""
    from rrg_utils.data.mesh import parse_mesh
    from rrg_utils.data.reports import Report

    lines = (
        ("Cardiomegaly/mild", "Pleural Effusion/left", "Scoliosis"),
        ("Scoliosis", "Pneumothorax/right"),
        ("Cardiomegaly",),
        ("normal",),
    )
    reports = [Report(f"T{i}", "", "", "", "", tuple(map(parse_mesh, line)), ()) for i, line in enumerate(lines)]
    return Data(reports, TEXTS[:4])


def baseline(how, **known):
    reader = BaselineReader(BaselineConfig(), how)
    reader.__dict__.update(known)  # what would be read from the training split
    return reader


CONSTANT = {"best": "The heart is enlarged. No pleural effusion."}


# --- readers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("narrative", "config"),
        ("r2gencsr", "idea"),
        ("trrg", "full"),
        ("llava_ta", "base"),
        ("llava_ta_truth", "base"),
        ("radscr", "full"),
    ],
)
@pytest.mark.parametrize("profile", ["cpu", "smoke"])
def test_configurations_are_those_of_the_notebooks(name, variable, profile):
    it = system(name)
    known = readers.parameters(it.notebook, profile)
    for cell in nbformat.read(readers.notebook(it.notebook), 4).cells:
        if cell.cell_type == "code" and f"{variable} = {it.Config.__name__}(" in cell.source:
            (made,) = (
                node.value
                for node in ast.parse(cell.source).body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable
            )
    theirs = eval(compile(ast.Expression(made), "cell", "eval"), {it.Config.__name__: it.Config} | known)
    assert it.config(0, profile) == theirs
    assert it.config(3, profile) == replace(theirs, seed=3)


def test_llava_t_is_the_arm_with_lora():
    base, arm = system("llava_ta").config(), system("llava_t").config()
    assert arm == replace(base, model="T", lora_rank=16)


@pytest.mark.parametrize("name", ["narrative", "r2gencsr", "trrg", "llava_t", "llava_ta_truth", "llava_ta", "radscr"])
def test_the_same_films_give_the_same_reports(made, data, name):
    reader, told = made[name], Told(data.reports[:3], data.reports[:3])
    first, again = (reader.write(data.images[:3], told) for _ in range(2))
    assert first == again
    assert len(first) == 3
    json.dumps([report.evidence for report in first])
    assert reader.write(data.images[:0]) == []
    assert reader.parameters > 0
    if not SYSTEMS[name].told:  # nothing but the film counts
        assert reader.write(data.images[:3]) == first
        with pytest.raises(RRGError, match=r"expected uint8 \(N, 128, 128\)"):
            reader.write(data.images[:3, :64])
    else:
        with pytest.raises(RRGError, match="needs true masks"):
            reader.write(data.images[:3])


def test_contexts_are_those_of_the_system(made, data):
    reader = made["r2gencsr"]
    unknown = [replace(report, id=f"film {i}") for i, report in enumerate(data.reports)]
    studies = RenderedStudies(unknown, [""] * len(data), data.films, data.labels, 128)
    theirs = r2gencsr.examples(reader.model.config, studies, reader.train)
    for ours, other in zip(reader.examples(data.images), theirs, strict=True):
        np.testing.assert_array_equal(ours.seen, other.seen)
        for sign in r2gencsr.SIGNS:
            mine, yours = getattr(ours, sign), getattr(other, sign)
            assert [context.id for context in mine] == [context.id for context in yours]


def test_true_topics_are_asked_whatever_the_film(made, data):
    reader = made["llava_ta_truth"]
    dark = np.zeros_like(data.images[:2])
    for films in (data.images[:2], dark):
        for report, text in zip(
            reader.write(films, Told(data.reports[:2], data.reports[:2])), data.texts, strict=False
        ):
            named = {told.topic for told in readers.llava_ta.taken_apart(text)}
            assert {t for t in report.evidence["topics"] if TOPICS[t].level == "disease"} == {
                t for t in named if TOPICS[t].level == "disease"
            }


def test_unknown_names_are_refused():
    with pytest.raises(RRGError, match=r"did you mean radscr\?"):
        system("radscar")
    with pytest.raises(RRGError, match="unknown profile 'huge'"):
        system("radscr").config(0, "huge")
    with pytest.raises(RRGError, match="unknown profile of the bench"):
        bench.sizes("huge")


# --- what is measured -------------------------------------------------------------------------------------------------


def test_a_constant_report_depends_on_no_film(data):
    reader = baseline(BaselineReader.constant, **CONSTANT)
    texts = ["The lungs are hyperinflated."] * len(data)  # the first film shows it
    reader.best = texts[0]
    for found in image_dependence(reader, data, texts, 20).values():
        assert {value for worth in found["worth"].values() for value in list(worth.values())[:3]} <= {0.0, None}
        assert found["unchanged"]["value"] == 1
    found = counterfactual(reader, data, texts, 20, 20)
    assert found["findings"]
    assert found["died"]["value"] == 0


def test_an_oracle_names_what_is_there_and_nothing_else(drawn_studies, monkeypatch):
    monkeypatch.setattr(bench, "FEWEST", 2)
    data, reader = drawn_studies, baseline(BaselineReader.template)
    told = Told(data.reports, data.reports)
    texts = bench.write(reader, data.images, told)
    found = counterfactual(reader, data, texts, 20, 20)
    assert found["findings"] == 6
    assert (found["died"]["value"], found["others stay"]["value"], found["excess"]["value"]) == (1, 1, 1)
    assert image_dependence(reader, data, texts, 20)["black"]["worth"]["film F1"]["value"] == 1


def test_others_of_a_few_studies_have_no_interval(drawn_studies):
    texts = bench.write(baseline(BaselineReader.template), drawn_studies.images, Told(*[drawn_studies.reports] * 2))
    found = counterfactual(baseline(BaselineReader.template), drawn_studies, texts, 20, 20)
    assert found["died"]["value"] == 1
    assert (found["others"] > 0, found["others stay"], found["excess"]) == (True, None, None)


def test_a_report_that_changes_at_random_has_no_excess(drawn_studies, monkeypatch):
    monkeypatch.setattr(bench, "FEWEST", 2)

    class Forgetful(BaselineReader):
        def reports(self, films, told):
            return [readers.GeneratedReport("The lungs are clear.", {}) for _ in films]

    texts = bench.write(baseline(BaselineReader.template), drawn_studies.images, Told(*[drawn_studies.reports] * 2))
    found = counterfactual(Forgetful(BaselineConfig(), None), drawn_studies, texts, 20, 20)
    assert (found["died"]["value"], found["others stay"]["value"], found["excess"]["value"]) == (1, 0, 0)


def test_findings_of_one_study_are_one_unit(study, made):
    """Four studies of which all findings die, or none: the interval is that of four, however many findings each has."""
    lines = ("Cardiomegaly", "Scoliosis", "Pneumothorax/right", "Kyphosis")
    reports = [study(*lines, id=f"{number}") for number in range(4)]
    data, reader = Data(reports), baseline(BaselineReader.template)
    texts = bench.write(reader, data.images, Told(reports, reports))

    class Half(BaselineReader):
        def reports(self, films, told):
            kept = {report.id: text for report, text in zip(reports, texts, strict=True) if report.id in "01"}
            return [readers.GeneratedReport(kept.get(of.id, ""), {}) for of in told.asked]

    found = counterfactual(Half(BaselineConfig(), None), data, texts, 20, 500)
    assert (found["findings"], found["died"]["value"]) == (16, 0.5)
    draws = np.random.default_rng(0).choice([0, 0, 1, 1], (20_000, 4)).mean(1)  # 16 units: 0.25 to 0.75
    assert (found["died"]["low"], found["died"]["high"]) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.01)


def test_other_texts_or_another_encoder_are_measured_again(monkeypatch):
    nearest = readers.system("nearest")
    before = bench._key(nearest, 0, "smoke")
    assert bench._key(nearest, 0, "smoke") == before
    with monkeypatch.context() as patch:
        patch.setattr(bench, "weights_hash", lambda *_: "other")
        assert bench._key(nearest, 0, "smoke") != before
    with monkeypatch.context() as patch:
        patch.setattr("rrg_utils.bench.clean", lambda text, *_: text.lower())
        assert bench._key(nearest, 0, "smoke") != before


def test_the_device_is_where_the_weights_are():
    reader = BaselineReader(BaselineConfig(), None)
    assert reader.device == "cpu"
    reader.model = torch.nn.Linear(2, 2, device="meta")
    assert reader.device == "meta"


def test_without_takes_out_one_finding_and_its_like(study):
    report = study("Calcified Granuloma/lung", "Calcinosis/hilum", "Cardiomegaly")
    assert present(without(report, "granuloma").mesh) == ("cardiomegaly",)
    assert present(without(report, "cardiomegaly").mesh) == ("calcified lymph node", "granuloma")
    assert [case.finding for case in cases(["Cardiomegaly. Pneumothorax."], [report], 5)] == ["cardiomegaly"]
    assert cases(["No cardiomegaly."], [report], 5) == []


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(0, 12), seed=st.integers(0, 99))
def test_cases_are_drawn_without_repeats(reports, limit, seed):
    some = [reports[i] for i in np.random.default_rng(seed).integers(len(reports), size=6)]
    texts = readers.baselines.templates(some)
    every, drawn = cases(texts, some, 1000), cases(texts, some, limit)
    assert drawn == cases(texts, some, limit)
    assert len(drawn) == min(limit, len(every))
    assert [case for case in every if case in drawn] == drawn


def test_counts_add_up_and_no_text_is_kept(made, data):
    found = measured(made["radscr"], data, HOW)
    for metric, score in {"fact F1": "fact F1", "CE F1": "F1-rule micro-14", "film F1": "film fact F1"}.items():
        value = f1(np.sum(found["counts"][metric], axis=0))
        assert found["scores"][score]["value"] == pytest.approx(value, abs=1e-6, nan_ok=True)
        assert len(found["counts"][metric]) == found["studies"] == len(data)
    assert len(found["CE grid"]) == 54
    written = bench._json(found)
    assert json.loads(written) == found
    assert not any(sentence in written for text in data.texts for sentence in text.split(". ") if len(sentence) > 20)


def test_diversity():
    found = bench.diversity(["The heart is big. Clear lungs.", "the heart is big. clear lungs.", "Clear lungs.", "X."])
    assert found == {"distinct reports": 0.75, "distinct sentences": 3}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_measurement_is_kept_and_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    path = bench.measure("constant", 0, "smoke")
    assert path == tmp_path / "bench" / "constant" / "smoke-seed0.json"
    found = json.loads(path.read_text())
    assert found["studies"] == 24
    assert found["image dependence"]["another"]["unchanged"]["value"] == 1
    assert found["cost"]["peak memory MB"] > 50
    assert "constant" in bench.summary(path)

    def again(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "ProcessPoolExecutor", again)
    before = path.read_bytes()
    assert bench.measure("constant", 0, "smoke") == path  # it is there
    monkeypatch.setitem(bench.SIZES, "smoke", Sizes(24, 12, 8, 51, meteor=False))
    with pytest.raises(KeyboardInterrupt):  # of other sizes: made again, and interrupted
        bench.measure("constant", 0, "smoke")
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        bench.measure("random", 0, "smoke")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]
    path.write_text("{")
    with pytest.raises(RRGError, match="is damaged"):
        bench.measure("constant", 0, "smoke")


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """The command `rrg bench constant` in a course of its own, where all that takes time is left out: the folders."""
    course, committed = write_course(tmp_path / "course"), tmp_path / "committed"
    monkeypatch.chdir(course)
    monkeypatch.setattr(claims, "RESULTS", committed)
    monkeypatch.delenv("RRG_RECORD", raising=False)
    monkeypatch.setattr(bench, "_key", lambda *_: "key")
    monkeypatch.setattr(bench, "_in_own_process", lambda *_: {"counts": {}})
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench, "summary", lambda path: "measured")
    monkeypatch.setattr(cli, "_show_progress", lambda: None)

    def run(*options):
        done = CliRunner().invoke(cli.app, ["bench", "constant", "--profile", "smoke", *options])
        assert done.exit_code == 0, done.output
        return done.stdout.removeprefix("measured -> ").strip()

    return run, course / "runs" / "smoke" / "results" / "bench", committed / "bench"


def test_only_commit_puts_measurements_into_the_results_of_the_course(quick, monkeypatch):
    run, own, committed = quick
    assert run() == "runs/smoke/results/bench/constant/smoke-seed0.json"
    assert (own / "constant" / "smoke-seed0.json").is_file()
    assert not committed.exists()
    run("--commit", "--seed", "0", "--seed", "1")
    assert sorted(path.name for path in committed.rglob("*.json")) == ["smoke-seed0.json", "smoke-seed1.json"]
    before = {path: path.stat().st_mtime_ns for path in (*committed.rglob("*.json"), *own.rglob("*.json"))}
    monkeypatch.setattr(bench, "_train", lambda *_: pytest.fail("it was measured again"))
    assert run() == "runs/smoke/results/bench/constant/smoke-seed0.json"
    assert run("--seed", "1") == str(committed / "constant" / "smoke-seed1.json"), "it is there and true"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def keep(folder, name, seed, counts, value=0.5, films="f"):
    interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
    run = {
        "system": name,
        "title": name,
        "seed": seed,
        "studies": len(counts),
        "films": films,
        "scores": {"BLEU-4": interval, "METEOR": {"value": None, "reason": "no Java"}},
        "counts": dict.fromkeys(bench.COUNTED, counts),
        "counterfactual": {"findings": 0, "died": None},
        "cost": {"parameters": 7, "training seconds": None},
    }
    path = folder / "bench" / name / f"cpu-seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run))


def test_table_and_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    with pytest.raises(RRGError, match="nothing is measured"):
        table()
    rng = np.random.default_rng(0)
    good = [[3, 0, 1]] * 30
    bad = [[int(x), 2, 2] for x in rng.integers(0, 2, 30)]
    keep(tmp_path, "trrg", 0, good, 0.4)
    with pytest.raises(RRGError, match="a pair needs two systems"):
        pairs()
    keep(tmp_path, "trrg", 1, good, 0.6)
    keep(tmp_path, "constant", 0, bad)
    keep(tmp_path, "nearest", 0, bad)
    rows = {row["system"]: row for row in table()}
    assert list(rows) == ["trrg", "constant", "nearest"]
    assert rerun() == []
    keep(tmp_path / "rerun", "trrg", 0, bad, 0.9)
    assert [(row["system"], row["BLEU-4"]) for row in rerun()] == [("trrg", pytest.approx(0.9))]
    keep(tmp_path / "rerun", "trrg", 0, bad, 0.9, films="other")
    assert rerun() == []
    first = rows["trrg"]
    assert [first[f"BLEU-4{x}"] for x in ("", " low", " high")] == pytest.approx([0.5, 0.4, 0.6])
    assert first["BLEU-4 sd"] == pytest.approx(0.2 / 2**0.5)
    assert first["seeds"] == 2
    assert np.isnan(first["METEOR"])
    assert np.isnan(first["naming died"])
    assert np.isnan(first["training seconds"])
    found = {(pair.first, pair.second): pair for pair in pairs(metric="CE F1", permutations=500)}
    assert len(found) == 3
    one = found["trrg", "constant"]
    assert one.difference == pytest.approx(f1(np.sum(good, 0)) - f1(np.sum(bad, 0)))
    assert one.p == pytest.approx(1 / 501)
    assert one.p_holm == pytest.approx(3 / 501)
    same = found["constant", "nearest"]
    assert (same.difference, same.low, same.high, same.p_holm) == (0, 0, 0, 1)
    with pytest.raises(RRGError, match="unknown metric with counts"):
        pairs(metric="BLEU-4")
    keep(tmp_path, "random", 0, bad, films="other")
    with pytest.raises(RRGError, match="mixes films"):
        table()
