"""Rendered studies with composed reports: they belong together, and serve where a data set does."""

import numpy as np
import pytest

from rrg_utils.data import ABNORMALITIES
from rrg_utils.data.abnormalities import present
from rrg_utils.data.rendered import rendered_studies
from rrg_utils.systems.projector import alignment_studies
from rrg_utils.systems.r2gencsr import without_findings


@pytest.fixture(scope="module")
def studies():
    return rendered_studies(alignment_studies(4), 128)


def test_films_labels_and_texts_are_of_the_same_studies(studies):
    assert len(studies) == len(studies.texts) == len(studies.films) == len(studies.labels) == 4
    for report, labels, text in zip(studies.reports, studies.labels, studies.texts, strict=True):
        assert {ABNORMALITIES[i] for i in np.flatnonzero(labels)} == set(present(report.mesh))
        assert text


def test_texts_follow_from_the_seed(studies):
    again, other = (rendered_studies(studies.reports, 128, seed) for seed in (0, 1))
    assert again.texts == studies.texts
    assert other.texts != studies.texts
    assert other.films.key == studies.films.key


def test_findings_can_be_left_out(studies):
    drawn = np.array([studies.films.lesions(i).any() for i in range(len(studies))])
    changed = (without_findings(studies).images != studies.films.images).any((1, 2))
    assert drawn.any()
    assert changed[drawn].all()
