"""The Indiana radiographs in each published layout give the studies of the phantom, with real films."""

import json
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from radiographs import film, no_rights, write_openi, write_png, write_r2gen

from rrg_utils.data import datasets, iu_xray
from rrg_utils.data.abnormalities import ABNORMALITIES
from rrg_utils.data.datasets import indiana, label_vector, load_dataset
from rrg_utils.data.iu_xray import image_id
from rrg_utils.data.radiographs import check, walk
from rrg_utils.data.reports import clean, load_indiana, projections
from rrg_utils.errors import RRGError

SIZE = 48  # that of the written films: they come back unchanged


@pytest.fixture
def few(monkeypatch):
    """A cohort of the first ten reports of each split."""
    small = indiana()
    small = replace(small, **{split: getattr(small, split)[:10] for split in ("train", "val", "test")})
    monkeypatch.setattr(datasets, "indiana", lambda: small)
    monkeypatch.setattr(iu_xray, "indiana", lambda: small)
    return small


@pytest.fixture
def openi(few, tmp_path):
    """All images of the training reports, as flat PNG files."""
    return write_openi(tmp_path, [image for report in few.train for image in report.images])


def uint8(study):
    return np.round(study.image * 255).astype(np.uint8)


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_image_of_the_archive_is_known_by_each_of_its_names():
    for report in load_indiana():
        for image in report.images:
            bare = image.removeprefix("CXR").replace("1_1_IM", "1_IM") if report.id == "CXR1" else image[3:]
            for name in (f"{image}.png", f"{bare}.dcm", f"{bare}.dcm.png", f"{image}.PNG"):
                assert image_id(name) == image


@pytest.mark.parametrize("name", ["thumb.png", "CXR1_IM-9999-1001.png", "CXR1_1_IM-0001-3001_mask.png", ".png", ""])
def test_other_names_are_of_no_image(name):
    assert image_id(name) is None


# --- the Open-i download ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["png", "dicom", "kaggle"])
def test_every_layout_gives_the_same_studies(few, tmp_path, layout):
    images = [image for report in few.train for image in report.images]
    files = write_openi(tmp_path, images, layout)
    data = load_dataset("iu_xray", "train", SIZE, root=tmp_path)
    assert [study.id for study in data] == [report.id for report in few.train]
    for exam, study, report in zip(data.exams, data, few.train, strict=True):
        assert study.report == report
        assert study.text == clean(report.findings)
        assert np.array_equal(study.labels, label_vector(report))
        image = next(image for image, path in files.items() if path == exam.path)
        assert image in report.images
        assert np.abs(uint8(study).astype(int) - film(images.index(image))).max() <= 1, "not inverted, not another"
    assert data.labels.shape == (10, len(ABNORMALITIES))
    assert data.texts == [study.text for study in data]
    assert np.array_equal(data.images, [uint8(study) for study in data])
    assert data[-1].id == data[9].id
    with pytest.raises(IndexError):
        data[10]


def test_fields_are_those_of_the_phantom(openi, tmp_path, few, monkeypatch, renderer):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.anatomy, "PATIENTS", 3)
    real, phantom = (load_dataset(s, "train", 64, 3, root) for s, root in (("iu_xray", tmp_path), ("phantom", None)))
    for one, other in zip(real, phantom, strict=True):
        assert (one.id, one.text, one.report) == (other.id, other.text, other.report)
        assert (one.image.shape, one.image.dtype) == (other.image.shape, other.image.dtype)
        assert np.array_equal(one.labels, other.labels)
    for name in ("images", "labels", "texts", "reports"):
        assert type(getattr(real, name)) is type(getattr(phantom, name)) or name == "images"
        assert len(getattr(real, name)) == len(getattr(phantom, name)) == 3
    assert real.images.dtype == phantom.images.dtype


def test_the_film_is_a_frontal_one_if_one_is_known(tmp_path):
    views = projections()
    both = next(r for r in indiana().train if [views[i] for i in r.images] == ["lateral", "frontal"])
    lateral = next(r for r in indiana().train if {views[i] for i in r.images} == {"lateral"})
    unknown = next(r for r in indiana().train if [views[i] for i in r.images] == ["lateral", None])
    files = write_openi(tmp_path, [image for report in (both, lateral, unknown) for image in report.images])
    data = load_dataset("iu_xray", "train", SIZE, root=tmp_path)
    chosen = {exam.report.id: (exam.view, exam.path) for exam in data.exams}
    assert chosen == {
        both.id: ("frontal", files[both.images[1]]),
        lateral.id: ("lateral", files[lateral.images[0]]),
        unknown.id: ("unknown", files[unknown.images[1]]),
    }
    assert Counter(study.view for study in data) == {"frontal": 1, "lateral": 1, "unknown": 1}


def test_studies_without_a_film_are_left_out_and_counted(openi, few, tmp_path, caplog):
    for image in few.train[3].images:
        openi[image].unlink()
    with caplog.at_level(logging.WARNING, logger="rrg"):
        data = load_dataset("iu_xray", "train", SIZE, root=tmp_path)
    assert [exam.report for exam in data.exams] == [*few.train[:3], *few.train[4:]]
    assert "1 studies left out" in caplog.text
    assert len(load_dataset("iu_xray", "train", SIZE, limit=2, root=tmp_path)) == 2


def test_a_damaged_film_names_its_file_and_the_rest_loads(openi, tmp_path, caplog):
    data = load_dataset("iu_xray", "train", SIZE, root=tmp_path)
    bad = data.exams[2].path
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(RRGError, match=f"{bad}: damaged picture"):
        data[2]
    with pytest.raises(RRGError, match=str(bad)):
        _ = data.images
    with caplog.at_level(logging.WARNING, logger="rrg"):
        rest = data.readable()
    assert str(bad) in caplog.text
    assert [s.id for s in rest] == [exam.report.id for k, exam in enumerate(data.exams) if k != 2]
    assert np.array_equal(rest.images, [uint8(study) for study in rest])
    for exam in data.exams:
        exam.path.write_bytes(b"")
    with pytest.raises(RRGError, match="none of the 10 films"):
        data.readable()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "folder is empty.*NLMCXR_png.tgz"),
        (lambda root: (root / "a.png").write_bytes(b""), "1 pictures, none with a name like CXR1_1_IM"),
        (lambda root: root.rmdir(), "No such file"),
        (lambda root: (root.rmdir(), root.write_text("")), "Not a directory"),
    ],
)
def test_a_root_that_holds_no_collection(tmp_path, prepare, message):
    root = tmp_path / "root"
    root.mkdir()
    prepare(root)
    for use in (lambda: load_dataset("iu_xray", "val", SIZE, root=root), lambda: check("iu_xray", root)):
        with pytest.raises(RRGError, match=message) as error:
            use()
        assert str(root) in str(error.value)
        assert "\n" not in str(error.value)


def test_no_root():
    with pytest.raises(RRGError, match="needs root=FOLDER: the unpacked NLMCXR_png"):
        load_dataset("iu_xray", "val", SIZE)


def test_a_film_too_small(openi, tmp_path):
    with pytest.raises(RRGError, match="size=8"):
        load_dataset("iu_xray", "train", 8, root=tmp_path)


def test_a_folder_without_read_permission():
    with no_rights() as root:
        (closed := root / "closed").mkdir()
        write_png(root / "open" / "CXR2_IM-0652-1001.png", film(0))
        closed.chmod(0)
        problems = []
        assert [path.name for path in walk(root, problems)] == ["CXR2_IM-0652-1001.png"]
        assert problems == [f"{closed}: cannot read the folder (Permission denied)"]
        with pytest.raises(RRGError, match=f"{closed}: cannot read the folder .Permission denied.. iu_xray needs"):
            load_dataset("iu_xray", root=closed)


# --- R2Gen's folder ---------------------------------------------------------------------------------------------------


def entry(report, split, text=None):
    name = report.images[0].rsplit("-", 1)[0]
    paths = [f"{name}/{number}.png" for number in range(len(report.images))]
    return {"id": name, "report": text or report.findings, "image_path": paths, "split": split}


@pytest.fixture
def entries(few):
    return {split: [entry(r, split) for r in getattr(few, split)[:3]] for split in ("train", "val", "test")}


def test_r2gen_layout(few, entries, tmp_path):
    entries["val"][1]["report"] = "Heart size is XXXX normal ."
    entries["train"], entries["test"] = entries["test"], entries["train"]  # the split of the file counts, not ours
    root = write_r2gen(tmp_path / "iu_xray", entries)
    assert [study.id for study in load_dataset("iu_xray", "train", SIZE, root=root)] == [r.id for r in few.test[:3]]
    data = load_dataset("iu_xray", "val", SIZE, root=root)
    for study, report, exam in zip(data, few.val, data.exams, strict=False):
        assert study.report == report
        assert np.array_equal(study.labels, label_vector(report))
        views = [projections()[image] or "unknown" for image in report.images]
        assert study.view == ("frontal" if "frontal" in views else views[0])
        assert exam.path.name == f"{views.index(study.view)}.png"
    assert data[1].text == "Heart size is ___ normal ."
    assert data[0].text == clean(few.val[0].findings)
    found = check("iu_xray", root)
    assert found.problems == []
    assert found.counts["images decoded"] == sum(len(e["image_path"]) for split in entries.values() for e in split)


def test_r2gen_missing_image(entries, tmp_path, caplog):
    root = write_r2gen(tmp_path, entries)
    for name in entries["val"][0]["image_path"]:
        (root / "images" / name).unlink()
    (root / "images" / entries["val"][1]["image_path"][0]).unlink()  # the study has another film
    with caplog.at_level(logging.WARNING, logger="rrg"):
        assert len(load_dataset("iu_xray", "val", SIZE, root=root)) == 2
    assert "1 studies left out" in caplog.text
    missing = [*entries["val"][0]["image_path"], entries["val"][1]["image_path"][0]]
    problems = check("iu_xray", root).problems
    assert sorted(line.split(": missing")[0] for line in problems) == sorted(str(root / "images" / m) for m in missing)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(image_path="a/0.png"), "image_path: expected a list of file names"),
        (lambda e: e.update(image_path=[]), "image_path: expected a list"),
        (lambda e: e.update(image_path=[3]), "image_path: expected a list"),
        (lambda e: e.update(report=None), "report: expected text, not NoneType"),
        (lambda e: e.pop("id"), "id: expected text, not NoneType"),
        (lambda e: e.update(id="CXR99999_IM-1"), "id CXR99999_IM-1 is of no report"),
    ],
)
def test_r2gen_wrong_entry(entries, tmp_path, caplog, change, message):
    root = write_r2gen(tmp_path, entries)
    change(entries["val"][1])
    (root / "annotation.json").write_text(json.dumps(entries))
    with caplog.at_level(logging.WARNING, logger="rrg"):
        assert len(load_dataset("iu_xray", "val", SIZE, root=root)) == 2
    assert f"{root / 'annotation.json'}: val[1]: {message}" in caplog.text
    assert [line for line in check("iu_xray", root).problems if message in line]


def test_r2gen_study_in_two_splits(entries, tmp_path):
    entries["test"].append(entries["train"][0])
    assert "occurs in train already" in " ".join(check("iu_xray", write_r2gen(tmp_path, entries)).problems)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"train": {}, "val": [], "test": []}', '{"train": []}', b"\xff\xfe"]
)
def test_r2gen_annotation_of_another_form(tmp_path, content):
    path = tmp_path / "annotation.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for use in (lambda: load_dataset("iu_xray", "val", SIZE, root=tmp_path), lambda: check("iu_xray", tmp_path)):
        with pytest.raises(RRGError, match=str(path)) as error:
            use()
        assert "\n" not in str(error.value)


# --- the check --------------------------------------------------------------------------------------------------------


def test_check_goes_on_after_every_bad_file(openi, few, tmp_path):
    paths = [*openi.values()]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[2].write_bytes(b"")
    (paths[3].parent / "unrelated.png").write_bytes(b"")
    found = check("iu_xray", tmp_path)
    wanted = 7470
    assert found.counts["images that the reports name"] == wanted
    assert found.counts["images of the collection found"] == len(paths) - 1
    assert found.counts["images decoded"] == len(paths) - 3
    assert found.counts["pictures that repeat one or belong to no report"] == 1
    assert sum(line.endswith("is missing") for line in found.problems) == wanted - len(paths) + 1
    assert f"{tmp_path}: {next(iter(openi))} is missing" in found.problems
    assert [line for line in found.problems if line.startswith(f"{paths[1]}: damaged picture")]
    assert f"{paths[2]}: the file is empty" in found.problems
    assert "images decoded" not in check("iu_xray", tmp_path, decode=False).counts
