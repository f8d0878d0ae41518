import gzip
import io
import re
import tarfile
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.data.cohort import cohort
from rrg_utils.data.reports import (
    MASK,
    XXXX_POLICY,
    clean,
    id_order,
    load_indiana,
    projections,
    sentences,
    study_views,
    xxxx_counts,
)
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError


def test_all_reports_in_numeric_order_within_seconds():
    start = time.perf_counter()
    reports = load_indiana()
    assert time.perf_counter() - start < 20  # about 1.2 s on one core; the margin is for a busy machine
    ids = [report.id for report in reports]
    assert len(ids) == len(set(ids)) == 3955
    assert ids[:3] == ["CXR1", "CXR2", "CXR3"]
    assert ids[-1] == "CXR3999"
    assert ids == sorted(ids, key=lambda id: int(id.removeprefix("CXR")))


def test_section_and_image_counts():
    reports = load_indiana()
    assert sum(bool(report.findings) for report in reports) == 3425
    assert sum(bool(report.impression) for report in reports) == 3921
    assert sum(not report.findings and not report.impression for report in reports) == 28
    images = [image for report in reports for image in report.images]
    assert len(images) == len(set(images)) == 7470
    assert sum(not report.images for report in reports) == 104
    assert sum(len(report.mesh) for report in reports) == 8298
    assert all(report.mesh for report in reports)
    assert sum(report.normal for report in reports) == 1391


def test_one_report_as_it_is_in_the_archive():
    report = next(report for report in load_indiana() if report.id == "CXR1001")
    assert report.impression == "Diffuse fibrosis. No visible focal acute disease."
    assert report.comparison == "None"
    assert report.images == ("CXR1001_IM-0004-1001", "CXR1001_IM-0004-1002")
    assert [str(f) for f in report.mesh] == [
        "Markings/lung/bilateral/interstitial/diffuse/prominent",
        "Fibrosis/diffuse",
    ]
    assert not report.normal


def test_callers_cannot_spoil_the_memory():
    load_indiana().clear()
    assert len(load_indiana()) == 3955


def test_projections():
    views = projections()
    assert set(views) == {image for report in load_indiana() for image in report.images}
    assert Counter(views.values()) == {"frontal": 3661, "lateral": 1322, None: 2487}
    # The two known to every user of the collection: the archive's first report has its lateral image first.
    assert (views["CXR1_1_IM-0001-3001"], views["CXR1_1_IM-0001-4001"]) == ("lateral", "frontal")


# --- bad archives -----------------------------------------------------------------------------------------------------

GOOD = """<eCitation><uId id="CXR{n}"/><AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION"/>
<AbstractText Label="FINDINGS">Lungs &amp; heart normal.</AbstractText><AbstractText Label="IMPRESSION"/>
<MeSH><major>{mesh}</major><automatic>ignored</automatic></MeSH><parentImage id="a{n}"/></eCitation>"""


def archive(path, members: dict[str, str]):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_a_small_archive(tmp_path):
    members = {f"r/{n}.xml": GOOD.format(n=n, mesh="normal") for n in (10, 9, 1)} | {"r/readme.txt": "not a report"}
    reports = load_indiana(archive(tmp_path / "r.tgz", members))
    assert [report.id for report in reports] == ["CXR1", "CXR9", "CXR10"]
    assert reports[0].findings == "Lungs & heart normal."
    assert reports[0].images == ("a1",)
    assert reports[0].normal


def test_a_replaced_archive_is_read_again(tmp_path):
    path = archive(tmp_path / "r.tgz", {"r/1.xml": GOOD.format(n=1, mesh="normal")})
    assert load_indiana(path)[0].id == "CXR1"
    archive(path, {"r/2.xml": GOOD.format(n=2, mesh="normal"), "r/3.xml": GOOD.format(n=3, mesh="normal")})
    assert [report.id for report in load_indiana(path)] == ["CXR2", "CXR3"]


@pytest.mark.parametrize(
    ("xml", "why"),
    [
        ("<eCitation><uId id='CXR2'/>", "broken XML"),
        ("", "broken XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><eCitation>&a;</eCitation>', "broken XML"),
        (GOOD.format(n=2, mesh="Opacity//left"), "a part is empty"),
        (GOOD.format(n=2, mesh=""), "a part is empty"),
        (GOOD.format(n=2, mesh="normal").replace("uId", "id"), "uId is missing"),
        (GOOD.format(n=2, mesh="normal").replace("FINDINGS", "FINDING"), "FINDINGS is missing"),
        (GOOD.format(n=2, mesh="normal").replace('id="a2"', ""), "parentImage has no id"),
    ],
)
def test_a_bad_member_is_named(tmp_path, xml, why):
    path = archive(tmp_path / "r.tgz", {"r/1.xml": GOOD.format(n=1, mesh="normal"), "r/2.xml": xml})
    with pytest.raises(RRGError, match=why) as error:
        load_indiana(path)
    assert str(path) in str(error.value)
    assert "r/2.xml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.99])
def test_a_cut_off_archive_is_named(tmp_path, share):
    whole = wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz").read_bytes()
    path = tmp_path / "cut.tgz"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RRGError, match=r"cut\.tgz: the report archive is damaged at or after .*\.xml"):
        load_indiana(path)


def test_other_bad_archives_are_named(tmp_path):
    path = tmp_path / "r.tgz"
    with pytest.raises(RRGError, match=r"r\.tgz: cannot read"):
        load_indiana(path)
    path.write_bytes(b"no archive")
    with pytest.raises(RRGError, match=r"r\.tgz: the report archive is damaged at its start"):
        load_indiana(path)
    whole = bytearray(wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 50] = bytes(50)
    path.write_bytes(whole)
    with pytest.raises(RRGError, match=r"r\.tgz"):
        load_indiana(path)
    path.write_bytes(gzip.compress(b""))
    with pytest.raises(RRGError, match=r"r\.tgz"):
        load_indiana(path)
    archive(path, {"a.txt": "x"})
    with pytest.raises(RRGError, match=r"no \.xml report"):
        load_indiana(path)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  ", []),
        ("Heart size normal", ["Heart size normal"]),
        ("A 2.5 cm nodule. No effusion.", ["A 2.5 cm nodule.", "No effusion."]),
        ("1.9 x 1.8 cm density. Stable.", ["1.9 x 1.8 cm density.", "Stable."]),
        ("Called to Dr. Smith at 4 p.m. today. Stable.", ["Called to Dr. Smith at 4 p.m. today.", "Stable."]),
        ("Lungs clear bilaterally.There is scoliosis.", ["Lungs clear bilaterally.", "There is scoliosis."]),
        ("No effusions. heart size is normal.", ["No effusions.", "heart size is normal."]),
        ("1. No acute disease. 2. Old fracture.", ["1. No acute disease.", "2. Old fracture."]),
        ("1.Lucency in the clavicle. 2.No fracture.", ["1.Lucency in the clavicle.", "2.No fracture."]),
        ("1. Low lung volumes 2. Clear lungs", ["1. Low lung volumes", "2. Clear lungs"]),
        ("No process. 2. 1.7 cm nodular opacity.", ["No process.", "2. 1.7 cm nodular opacity."]),
        ("Chest 1. No acute findings.", ["Chest", "1. No acute findings."]),
        ("Fracture of right rib 4. The fluid is small.", ["Fracture of right rib 4.", "The fluid is small."]),
        ("Loss of T10. Unchanged L1.", ["Loss of T10.", "Unchanged L1."]),
        ("No acute disease. .", ["No acute disease. ."]),
        ("No acute disease.. Clear.", ["No acute disease..", "Clear."]),
        ("Edema or atypical infection? 2. Effusion", ["Edema or atypical infection?", "2. Effusion"]),
        ('Read as "normal." Clear (stable.) Heart', ['Read as "normal."', "Clear (stable.)", "Heart"]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


report_like = st.lists(
    st.sampled_from(
        ["1.", "2.", "3.", ".", " ", "  ", "?", "Dr.", "p.m.", "2.5", "XXXX", "heart", "Lungs", "T10", ")", '"']
    )
).map("".join)


@given(st.one_of(st.text(), report_like))
def test_sentences_lose_nothing_but_space(text):
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in found)


def test_sentences_of_the_archive():
    texts = [text for report in load_indiana() for text in (report.findings, report.impression)]
    found = [sentence for text in texts for sentence in sentences(text)]
    assert len(found) == 22849
    assert all("".join(" ".join(sentences(text)).split()) == "".join(text.split()) for text in texts)
    assert max(map(len, found)) < 300  # none swallowed its neighbours
    assert not [sentence for sentence in found if re.fullmatch(r"[\d\W]{1,4}", sentence)]  # nor is one a bare number
    titled = re.compile(r"\b(?:Dr|[ap]\.m)\.")
    inner = [s for s in found if re.search(r"[a-z)]\.\s+[A-Za-z]", s) and not titled.search(s)]
    assert inner == []


def test_clean_policies():
    text = "The lungs  are clear. Calcified lymph XXXX, XXXX and hilum. .\n XXXX XXXX sternotomy."
    assert clean(text, "keep") == "The lungs are clear. Calcified lymph XXXX, XXXX and hilum. XXXX XXXX sternotomy."
    assert clean(text, "mask") == f"The lungs are clear. Calcified lymph {MASK} and hilum. {MASK} sternotomy."
    assert clean(text, "drop") == "The lungs are clear."
    assert clean(text) == clean(text, XXXX_POLICY)
    assert clean("Dual-XXXX pacemaker.", "mask") == "Dual-___ pacemaker."
    with pytest.raises(RRGError, match="xxxx='remove': use one of drop, mask, keep"):
        clean(text, "remove")


@given(st.one_of(st.text(), report_like), st.sampled_from(["drop", "mask", "keep"]))
def test_clean_is_tidy_and_settled(text, policy):
    once = clean(text, policy)
    assert once == " ".join(once.split())
    assert clean(once, policy) == once
    assert policy == "keep" or "XXXX" not in once


def test_xxxx_counts_are_those_of_the_docstring():
    counts = xxxx_counts(load_indiana())
    assert counts["reports"] == 3425
    assert counts["reports with XXXX"] == 1486
    assert (counts["sentences with XXXX"], counts["sentences"]) == (2000, 15954)
    assert round(counts["share of words lost by drop"], 2) == 0.17
    assert counts["reports emptied by drop"] == 8
    assert round(counts["share of abnormal reports' sentences"], 3) == 0.146
    assert round(counts["share of normal reports' sentences"], 3) == 0.073
    for number in ("1,486", "2,000", "15,954", "17 %", "empties 8", "14.6 %", "7.3 %"):
        assert number in clean.__doc__


def test_id_order():
    assert sorted(["CXR10", "CXR9", "CXR1", "A2"], key=id_order) == ["A2", "CXR1", "CXR9", "CXR10"]


def test_views_of_a_study_follow_the_metadata_of_its_images():
    members = [report for split in ("train", "val", "test") for report in getattr(cohort(load_indiana()), split)]
    views = {report.id: study_views(report) for report in members}
    assert {view[0] for view in views.values()} == {"frontal"}
    known = projections()
    for report in members:
        seen = [known[image] for image in report.images]
        if "lateral" in seen:
            assert views[report.id] == ("frontal", "lateral")
        if set(seen) == {"frontal"}:
            assert views[report.id] == ("frontal",)
