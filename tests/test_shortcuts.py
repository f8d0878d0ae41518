"""No shortcuts: what varies from film to film besides the findings says nothing about the findings.

A linear probe is asked for every class on films from which all findings were left out. What it may reach by luck is
told by permutations: the label rows are dealt to other studies and the probe is fitted again.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from rrg_utils.data import ABNORMALITIES, indiana
from rrg_utils.data.datasets import label_vector
from rrg_utils.data.synthetic import balanced_studies

STUDIES, SIZE = 600, 64
PERMUTATIONS = 499
FEWEST = 10  # positives of a class


class Probe(NamedTuple):
    """AUROC of each class on studies that the probe was not fitted on, and the same for labels dealt at random."""

    auroc: np.ndarray  # (classes,)
    luck: np.ndarray  # (permutations, classes)

    @property
    def p_mean(self) -> float:
        """Two-sided p of the mean over classes being what luck gives."""
        far = np.abs(np.append(self.luck.mean(1), self.auroc.mean()) - 0.5)
        return float((far >= far[-1]).mean())

    @property
    def p_best(self) -> float:
        """p of the class that stands out most, each in units of its own luck: corrected for the number of classes."""
        spread = self.luck.std(0)
        best = np.append(((self.luck - 0.5) / spread).max(1), ((self.auroc - 0.5) / spread).max())
        return float((best >= best[-1]).mean())


def features(images: np.ndarray) -> np.ndarray:
    """What a careless model would pick up: 40 principal components, grey levels, profiles, sharpness, edges, marker."""
    flat = images.reshape(len(images), -1)
    half = SIZE // 2
    parts = [
        PCA(40, random_state=0).fit_transform(flat),
        np.quantile(flat, (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99), axis=1).T,
        flat.mean(1, keepdims=True),
        flat.std(1, keepdims=True),
        images.reshape(len(images), 8, -1, SIZE).mean((2, 3)),
        images.reshape(len(images), SIZE, 8, -1).mean((1, 3)),
        np.abs(np.diff(images, 2, axis=1)).mean((1, 2))[:, None],  # noise
        np.abs(np.diff(images, 2, axis=2)).mean((1, 2))[:, None],
        images[:, [0, -1]].mean(2),  # collimation
        images[:, :, [0, -1]].mean(1),
        (images[:, :half, half:] == np.float32(0.97)).sum((1, 2))[:, None],  # the letter
    ]
    return StandardScaler().fit_transform(np.hstack(parts))


def probe(images: np.ndarray, labels: np.ndarray) -> Probe:
    """Ridge regression of the labels on one half of the films, AUROC on the other, both ways round, averaged.

    Scores of ridge regression are linear in the labels, so a permutation costs a product of matrices. AUROC is taken
    within each half: pooled over halves it would lie below 0.5 by chance, as what one half has too much of the other
    has too little.
    """
    x = features(images)
    halves = np.arange(len(x)) % 2 == 0, np.arange(len(x)) % 2 == 1
    hats = []
    for fit, judge in (halves, halves[::-1]):
        centred = x[fit] - x[fit].mean(0)
        gram = centred.T @ centred + 30 * np.eye(x.shape[1])
        hats.append((x[judge] - x[fit].mean(0)) @ np.linalg.solve(gram, centred.T))

    def auroc(y: np.ndarray) -> np.ndarray:
        found = []
        for hat, (fit, judge) in zip(hats, (halves, halves[::-1]), strict=True):
            ranks = rankdata(hat @ y[fit], axis=0)
            positives = y[judge].sum(0)
            wins = (ranks * y[judge]).sum(0) - positives * (positives + 1) / 2
            found.append(wins / np.maximum(positives * (len(ranks) - positives), 1))
        return np.mean(found, axis=0)

    rng = np.random.default_rng(0)
    luck = [auroc(labels[rng.permutation(len(labels))]) for _ in range(PERMUTATIONS)]
    return Probe(auroc(labels), np.array(luck))


@pytest.fixture(scope="module")
def studies():
    return balanced_studies(indiana().train, STUDIES)


@pytest.fixture(scope="module")
def labels(studies):
    every = np.stack([label_vector(study) for study in studies]).astype(float)
    enough = np.minimum(every[::2].sum(0), every[1::2].sum(0)) >= FEWEST / 2
    assert enough.mean() > 0.8, "too few classes have enough studies"
    return np.hstack([every[:, enough], every.any(1, keepdims=True)])  # the last: whether anything was found


@pytest.fixture(scope="module")
def bare(renderer, studies):
    return np.stack([renderer.render(study, without=ABNORMALITIES).image for study in studies])


def test_films_without_findings_tell_nothing_of_them(bare, labels):
    found = probe(bare, labels)
    assert found.p_mean > 0.01, f"mean AUROC {found.auroc.mean():.3f}"
    assert found.p_best > 0.01, f"best class {found.auroc.max():.3f}"
    low, high = np.quantile(found.luck.mean(1), (0.005, 0.995))
    assert 0.46 < low <= found.auroc.mean() <= high < 0.54  # luck's range, and it is narrow enough to mean something


def test_the_same_probe_reads_films_with_findings(renderer, studies, labels):
    found = probe(np.stack([renderer.render(study).image for study in studies]), labels)
    assert found.auroc.mean() > found.luck.mean(1).max() + 0.05
    assert found.p_best < 0.01


@pytest.mark.parametrize("planted", ["exposure", "noise", "shift"])
def test_a_planted_shortcut_is_found(bare, labels, planted):
    """One class gets another exposure, more noise or another pose: less than these vary from film to film anyway."""
    rng = np.random.default_rng(1)
    images, chosen = bare.copy(), labels[:, labels[:, :-1].sum(0).argmax()] > 0
    if planted == "exposure":
        images[chosen] += 0.02
    elif planted == "noise":
        images[chosen] += rng.normal(0, 0.01, images[chosen].shape).astype(np.float32)
    else:
        images[chosen] = np.roll(images[chosen], 2, axis=2)
    assert probe(images, labels).p_best < 0.01


def test_a_film_without_findings_does_not_depend_on_the_annotation_at_all(renderer, studies):
    """Exact where the probe is statistical: other findings, or none, give the same film to the last bit."""
    for study, other in zip(studies[:20], studies[20:40], strict=True):
        bare = renderer.render(study, without=ABNORMALITIES).image
        for mesh in ((), other.mesh):
            assert np.array_equal(bare, renderer.render(replace(study, mesh=mesh), without=ABNORMALITIES).image)
