import os
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrg_utils.data.cohort import SHARES, cohort
from rrg_utils.data.mesh import NORMAL
from rrg_utils.data.reports import Report, clean, load_indiana
from rrg_utils.errors import RRGError

DIGEST = "8d43047a06629e20"


@pytest.fixture(scope="module")
def indiana():
    return cohort(load_indiana())


def parts(c):
    return {name: getattr(c, name) for name in SHARES}


def test_flow(indiana):
    assert [step[1:] for step in indiana.flow] == [(3955, 7470), (3425, 6473), (2955, 6091)]


def test_sizes_and_digest(indiana):
    assert {name: len(part) for name, part in parts(indiana).items()} == {"train": 2069, "val": 295, "test": 591}
    assert indiana.digest == DIGEST


def test_splits_are_disjoint_and_complete(indiana):
    ids = [report.id for part in parts(indiana).values() for report in part]
    assert len(ids) == len(set(ids)) == 2955
    assert set(ids) == {r.id for r in load_indiana() if r.findings and len(r.images) >= 2}


@pytest.mark.parametrize("policy", ["drop", "mask", "keep"])
def test_no_text_straddles_two_splits(indiana, policy):
    where = defaultdict(set)
    for name, part in parts(indiana).items():
        for report in part:
            where["".join(c for c in clean(report.findings, policy).lower() if c.isalnum() or c == " ")].add(name)
    where.pop("", None)  # "drop" empties a few reports; nothing of them can leak
    assert len(where) > 2000
    assert [text for text, names in where.items() if len(names) > 1] == []


def test_splits_resemble_each_other(indiana):
    for part in parts(indiana).values():
        assert sum(r.normal for r in part) / len(part) == pytest.approx(1087 / 2955, abs=0.02)
        assert sum(len(r.findings.split()) for r in part) / len(part) == pytest.approx(31, abs=2)


def test_order_of_input_does_not_matter(indiana):
    reports = load_indiana()
    random.Random(0).shuffle(reports)
    assert cohort(reports) == indiana


def test_hash_seed_does_not_matter():
    code = "from rrg_utils.data.cohort import cohort; from rrg_utils.data.reports import load_indiana; "
    code += "print(cohort(load_indiana()).digest)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == DIGEST


def test_prints_a_table(indiana):
    text = str(indiana)
    assert "3,955" in text
    assert "2,955    6,091" in text
    assert DIGEST in text


def report(n: int, text: str) -> Report:
    return Report(f"X{n}", text, "", "", "", (NORMAL,), ("a", "b"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 20), max_size=100))
def test_any_duplicates_stay_together(texts):
    repeated = [report(n, f"Finding number {text}. XXXX.") for n, text in enumerate(texts)]
    alone = [report(1000 + n, f"Alone {n}.") for n in range(200)]
    found = cohort([*repeated, *alone])
    where = defaultdict(set)
    for name, part in parts(found).items():
        for r in part:
            where[r.findings].add(name)
    assert all(len(names) == 1 for names in where.values())
    for name, share in SHARES.items():  # the single reports make up for any group
        assert abs(len(getattr(found, name)) - share * (len(texts) + 200)) <= 1
    assert sum(len(part) for part in parts(found).values()) == len(texts) + 200


def test_same_text_in_other_clothes_stays_together():
    base = [report(n, f"Alone {n}.") for n in range(40)]
    twins = [
        report(100, "Lungs clear. The XXXX are intact."),
        report(101, "LUNGS  clear"),
        report(102, "Lungs: clear. XXXX."),
    ]
    for part in parts(cohort(base + twins)).values():
        assert len({r.id for r in part} & {"X100", "X101", "X102"}) in (0, 3)


def test_bad_input_is_refused():
    reports = [report(n, f"Alone {n}.") for n in range(40)]
    with pytest.raises(RRGError, match="X3 occurs twice"):
        cohort([*reports, replace(reports[3], findings="Another.")])
    with pytest.raises(RRGError, match="'val' is empty: 1 reports"):
        cohort(reports[:1])
    with pytest.raises(RRGError, match=r"0 reports .*, too few texts"):
        cohort([])
