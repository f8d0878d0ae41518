import logging
from dataclasses import replace

import numpy as np
import pytest

from rrg_utils.artifacts import cache_dir
from rrg_utils.data import anatomy, datasets
from rrg_utils.data.abnormalities import ABNORMALITIES, present
from rrg_utils.data.anatomy import LOBES, REGIONS
from rrg_utils.data.datasets import CELLS, label_vector, load_dataset, render_films
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.data.reports import clean, study_views
from rrg_utils.errors import RRGError

SIZE = 64
CELL = SIZE // CELLS


@pytest.fixture
def small(monkeypatch, tmp_path, renderer):
    """An empty cache, the three patients of the shared renderer, and chunks small enough to stop between them."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    monkeypatch.setattr(anatomy, "PATIENTS", 3)
    monkeypatch.setattr(datasets, "_CHUNK", 8)


@pytest.fixture
def studies(reports):
    """Forty studies, most of them with findings."""
    return [report for report in reports if not report.normal][:35] + [r for r in reports if r.normal][:5]


@pytest.fixture
def rendered(monkeypatch):
    """The ids of the studies rendered so far."""
    ids = []
    render = PhantomRenderer.render

    def recorded(self, report, *args, **kwargs):
        ids.append(report.id)
        return render(self, report, *args, **kwargs)

    monkeypatch.setattr(PhantomRenderer, "render", recorded)
    return ids


@pytest.fixture
def cohort(monkeypatch, small, studies):
    """A cohort whose validation split is small, in place of that of the archive."""
    few = replace(datasets.indiana(), val=tuple(studies))
    monkeypatch.setattr(datasets, "indiana", lambda: few)
    return few


def contents(films):
    every = slice(None)
    return films.images[every], films.lesions(every), films.regions(every)


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(contents(one), contents(other), strict=True))


def share(mask):
    """(16, 16): how much of each cell a mask covers."""
    return mask.reshape(CELLS, CELL, CELLS, CELL).mean((1, 3))


# --- films ------------------------------------------------------------------------------------------------------------


def test_films_are_what_the_renderer_renders(small, renderer, studies):
    films = render_films(studies, SIZE, progress=False)
    assert len(films) == 40
    assert films.images.dtype == np.uint8
    assert films.images.shape == (40, SIZE, SIZE)
    drawn = 0
    for index, report in enumerate(studies):
        film = renderer.render(report)
        assert np.abs(films.images[index] / 255 - film.image).max() <= 0.5 / 255 + 1e-6
        expected = np.zeros((len(ABNORMALITIES), CELLS, CELLS), bool)
        for lesion in film.lesions:
            expected[ABNORMALITIES.index(lesion.name)] |= share(lesion.mask) >= 0.1
        assert np.array_equal(films.lesions(index), expected)
        masks = film.regions | film.lobes
        assert tuple(masks) == (*REGIONS, *LOBES)
        assert np.array_equal(films.regions(index), [share(mask) >= 0.5 for mask in masks.values()])
        drawn += expected.any((1, 2)).sum()
    assert drawn > 40


def test_every_lesion_touches_a_cell(small, study):
    films = render_films([study("Calcified Granuloma/lung/left", id=f"{n}") for n in range(40)], SIZE, progress=False)
    assert films.lesions(slice(None)).any((1, 2, 3)).all()


def test_grids_of_several_films(small, studies):
    films = render_films(studies, SIZE, progress=False)
    assert films.lesions(slice(3, 9)).shape == (6, len(ABNORMALITIES), CELLS, CELLS)
    assert films.regions(np.array([5, 2])).shape == (2, len(REGIONS) + len(LOBES), CELLS, CELLS)
    assert np.array_equal(films.lesions(np.array([5, 2]))[1], films.lesions(2))


def test_films_are_rendered_once(small, rendered, studies):
    first = render_films(studies, SIZE, progress=False)
    assert sorted(rendered) == sorted(report.id for report in studies)
    again = render_films(studies, SIZE, progress=False)
    assert len(rendered) == 40
    assert again.key == first.key
    assert equal(first, again)


@pytest.mark.parametrize("options", [{"seed": 1}, {"conspicuity": 0.5}])
def test_other_options_other_films(small, studies, options):
    first, other = render_films(studies, SIZE, progress=False), render_films(studies, SIZE, progress=False, **options)
    assert first.key != other.key
    assert not np.array_equal(first.images, other.images)


def test_the_key_is_that_of_the_annotations(small, studies):
    few = studies[:4]
    key = render_films(few, SIZE, progress=False).key
    assert render_films([replace(report, findings="") for report in few], SIZE, progress=False).key == key
    assert render_films(few[::-1], SIZE, progress=False).key != key
    assert render_films([replace(few[0], mesh=()), *few[1:]], SIZE, progress=False).key != key


def test_an_interrupted_rendering_goes_on_where_it_stopped(small, monkeypatch, tmp_path, rendered, studies):
    count = PhantomRenderer.render

    def stop(self, report, *args, **kwargs):
        if len(rendered) >= 20:
            raise KeyboardInterrupt
        return count(self, report, *args, **kwargs)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(PhantomRenderer, "render", stop)
        with pytest.raises(KeyboardInterrupt):
            render_films(studies, SIZE, progress=False)
    (partial_folder,) = (cache_dir() / "films").glob("*.partial")
    done = np.load(partial_folder / "done.npy")
    assert 1 <= done.sum() < 5  # chunks of eight
    finished = {report.id for number in np.flatnonzero(done) for report in studies[number * 8 : number * 8 + 8]}
    rendered.clear()
    films = render_films(studies, SIZE, progress=False)
    assert sorted(rendered) == sorted({report.id for report in studies} - finished)
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "other"))
    whole = render_films(studies, SIZE, progress=False)
    assert len(rendered) == 80 - len(finished)
    assert equal(films, whole)


def test_damaged_films_are_rendered_again(small, rendered, caplog, studies):
    first = render_films(studies, SIZE, progress=False)
    images = first.images.copy()
    path = cache_dir() / "films" / first.key / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 255
    path.unlink()  # the open file above stays as it was
    path.write_bytes(data)
    rendered.clear()
    with caplog.at_level(logging.WARNING, logger="rrg"):
        again = render_films(studies, SIZE, progress=False)
    assert "images.npy has changed" in caplog.text
    assert len(rendered) == 40
    assert np.array_equal(again.images, images)


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_studies(cohort):
    data = load_dataset("phantom", "val", SIZE)
    assert len(data) == 40
    assert data.images.shape == (40, SIZE, SIZE)
    assert data.labels.shape == (40, len(ABNORMALITIES))
    for index, report in enumerate(cohort.val):
        study = data[index]
        assert (study.id, study.view, study.report) == (report.id, "frontal", report)
        assert study.text == clean(report.findings) == data.texts[index]
        assert study.image.dtype == np.float32
        assert np.array_equal(np.round(study.image * 255), data.images[index])
        assert study.labels.dtype == bool
        assert tuple(np.array(ABNORMALITIES)[study.labels]) == present(report.mesh)
        assert np.array_equal(study.labels, data.labels[index])
    assert [study.id for study in data] == [report.id for report in cohort.val]  # iteration ends
    assert data[-1].id == data[39].id
    for index in (40, -41):
        with pytest.raises(IndexError):
            data[index]


def test_a_limit_keeps_the_first_and_renders_nothing_new(cohort, rendered):
    whole = load_dataset("phantom", "val", SIZE)
    rendered.clear()
    data = load_dataset("phantom", "val", SIZE, limit=7)
    assert rendered == []
    assert [study.id for study in data] == [report.id for report in cohort.val[:7]]
    assert np.array_equal(data.images, whole.images[:7])
    assert data[-1].id == cohort.val[6].id
    assert len(data.labels) == len(data.texts) == 7
    assert len(load_dataset("phantom", "val", SIZE, limit=1000)) == 40


def test_a_study_can_be_rendered_again_without_a_finding(cohort):
    data = load_dataset("phantom", "val", SIZE)
    index = next(i for i, report in enumerate(cohort.val) if "opacity" in present(report.mesh))
    film = data.phantom(index)
    assert np.abs(film.image - data[index].image).max() <= 0.5 / 255 + 1e-6
    without = data.phantom(index, without=["opacity"])
    assert "opacity" in [lesion.name for lesion in film.lesions]
    assert "opacity" not in [lesion.name for lesion in without.lesions]
    assert np.abs(film.image - without.image).max() > 0.01


def test_label_vector(study):
    assert not label_vector(study("normal")).any()
    labels = label_vector(study("Nodule/lung/left", "Cardiomegaly", "Nodule/lung/right"))
    assert [ABNORMALITIES[i] for i in np.flatnonzero(labels)] == ["cardiomegaly", "nodule"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "chexpert"}, "data source 'chexpert'.*phantom"),
        ({"split": "dev"}, "split 'dev'.*train, val, test"),
        ({"root": "/data"}, "root='/data'.*leave root out"),
        ({"limit": 0}, "limit=0"),
        ({"limit": -3}, "limit=-3"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_rendered(options, message):
    with pytest.raises(RRGError, match=message):
        load_dataset(**options)


def test_wrong_size_is_refused(cohort):
    with pytest.raises(RRGError, match="size=8"):
        load_dataset("phantom", "val", 8)


def test_views_and_hospitals_are_options_of_the_phantom(cohort):
    lateral = load_dataset("phantom", "val", SIZE, view="lateral")
    assert 0 < len(lateral) <= len(load_dataset("phantom", "val", SIZE))
    assert all("lateral" in study_views(report) for report in lateral.reports)
    assert lateral[0].view == "lateral"
    assert np.abs(lateral.phantom(0).image - lateral[0].image).max() < 0.01
    portable = load_dataset("phantom", "val", SIZE, hospital="portable")
    assert portable.texts == [clean(report.impression) for report in portable.reports]
    assert portable.films.key != load_dataset("phantom", "val", SIZE).films.key
    with pytest.raises(RRGError, match=r"'clinic'.*standard, portable"):
        load_dataset("phantom", "val", SIZE, hospital="clinic")
    with pytest.raises(RRGError, match=r"'axial'.*frontal, lateral"):
        load_dataset("phantom", "val", SIZE, view="axial")
    with pytest.raises(RRGError, match=r"options of the phantom"):
        load_dataset("iu_xray", "val", SIZE, root="somewhere", view="lateral")
