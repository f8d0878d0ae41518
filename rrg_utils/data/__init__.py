"""Reports, their annotation, the cohort, and films rendered from it."""

from rrg_utils.data.abnormalities import ABNORMALITIES, abnormality
from rrg_utils.data.cohort import Cohort, cohort
from rrg_utils.data.datasets import Study, indiana, load_dataset
from rrg_utils.data.mesh import Finding, parse_mesh
from rrg_utils.data.phantom import Lesion, Phantom, PhantomRenderer
from rrg_utils.data.reports import XXXX_POLICY, Report, clean, load_indiana, sentences

__all__ = [
    "ABNORMALITIES",
    "XXXX_POLICY",
    "Cohort",
    "Finding",
    "Lesion",
    "Phantom",
    "PhantomRenderer",
    "Report",
    "Study",
    "abnormality",
    "clean",
    "cohort",
    "indiana",
    "load_dataset",
    "load_indiana",
    "parse_mesh",
    "sentences",
]
