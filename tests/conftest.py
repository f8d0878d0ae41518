"""Fixtures that several test files share. The reader's cache is used as it is: patients made once serve every run."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing in the tests may need the network


@pytest.fixture(scope="session")
def renderer():
    """A small film and few patients: seconds to make, a millisecond or two to render."""
    from rrg_utils.data.phantom import PhantomRenderer

    return PhantomRenderer(64, patients=3)


@pytest.fixture(scope="session")
def reports():
    """All reports of the cohort, by id order within train, validation and test."""
    from rrg_utils.data.datasets import indiana

    cohort = indiana()
    return cohort.train + cohort.val + cohort.test


@pytest.fixture(scope="session")
def annotations(reports):
    """The distinct annotations of the cohort by class: {class: [Finding, ...]}, in order of first occurrence."""
    from rrg_utils.data.abnormalities import ABNORMALITIES, abnormality

    found = {name: {} for name in ABNORMALITIES}
    for report in reports:
        for finding in report.mesh:
            if name := abnormality(finding):
                found[name][finding] = None
    return {name: list(each) for name, each in found.items()}


@pytest.fixture(scope="session")
def study():
    """A report of nothing but an annotation: study("Nodule/lung/left", id="A")."""
    from rrg_utils.data.mesh import Finding, parse_mesh
    from rrg_utils.data.reports import Report

    def make(*findings: Finding | str, id: str = "A") -> Report:
        mesh = tuple(parse_mesh(finding) if isinstance(finding, str) else finding for finding in findings)
        return Report(id, "", "", "", "", mesh, ())

    return make
