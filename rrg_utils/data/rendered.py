"""Rendered studies with composed reports, with the fields of a data set: training material as plentiful as wanted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrg_utils.data.composed import Composer
from rrg_utils.data.datasets import Films, indiana, label_vector, render_films
from rrg_utils.data.reports import Report


@dataclass(frozen=True)
class RenderedStudies:
    """Studies of no split: `reports` hold only annotations, `texts` are composed, `labels` (N, C) bool."""

    reports: list[Report]
    texts: list[str]
    films: Films
    labels: np.ndarray
    size: int
    conspicuity: float = 1.0
    split: None = None

    def __len__(self) -> int:
        return len(self.reports)


def rendered_studies(reports: Sequence[Report], size: int, seed: int = 0) -> RenderedStudies:
    """The films of annotations and a report composed for each from sentences of the training split."""
    composer, rng = Composer(indiana().train), np.random.default_rng([11, seed])
    texts = [composer.compose(report, rng) for report in reports]
    labels = np.stack([label_vector(report) for report in reports])
    return RenderedStudies(list(reports), texts, render_films(reports, size), labels, size)
