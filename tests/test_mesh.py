import tarfile
from collections import Counter
from dataclasses import replace

import pytest
from defusedxml.ElementTree import fromstring
from hypothesis import given
from hypothesis import strategies as st

from rrg_utils.data.mesh import ANATOMY, NAMES, QUALIFIERS, SEVERITIES, SIDES, Finding, parse_mesh
from rrg_utils.data.wheels import wheel_file
from rrg_utils.errors import RRGError

ANATOMY_WORDS = [part for table in ANATOMY.values() for part in table]
QUALIFIER_WORDS = [part for table in QUALIFIERS.values() for part in table]
NAME_WORDS = [part for table in NAMES.values() for part in table]


@pytest.fixture(scope="module")
def annotations() -> Counter:
    """Every <major> string of the archive, read here without the package's own reader."""
    found = Counter()
    with tarfile.open(wheel_file("torchxrayvision", "data", "NLMCXR_reports.tgz"), "r|gz") as archive:
        for member in archive:
            if member.isfile():
                found.update(e.text for e in fromstring(archive.extractfile(member).read()).iter("major"))
    return found


def tidy(part: str) -> str:
    return " ".join(part.lower().split())


def parts_of(finding: Finding) -> Counter:
    optional = [part for part in (finding.side, finding.severity) if part is not None]
    return Counter([finding.name.lower(), *finding.anatomy, *optional, *finding.qualifiers])


def test_counts(annotations):
    assert (len(annotations), annotations.total()) == (1719, 8298)


def test_no_part_is_dropped_or_doubled(annotations):
    for text in annotations:
        assert parts_of(parse_mesh(text)) == Counter(tidy(part) for part in text.split("/")), text


def test_every_part_is_in_a_table(annotations):
    names = {tidy(text.split("/")[0]) for text in annotations}
    parts = {tidy(part) for text in annotations for part in text.split("/")[1:]}
    assert names == {name.lower() for name in NAME_WORDS}
    assert parts == {*ANATOMY_WORDS, *QUALIFIER_WORDS, *SIDES, *SEVERITIES}


def test_tables_do_not_overlap():
    words = [*ANATOMY_WORDS, *QUALIFIER_WORDS, *SIDES, *SEVERITIES]
    assert len(words) == len(set(words))
    assert len(NAME_WORDS) == len(set(NAME_WORDS)) == 119


def test_text_and_back(annotations):
    for text in annotations:
        finding = parse_mesh(text)
        assert parse_mesh(str(finding)) == finding
    # Otherwise only stray spaces, capitals, and places written after the side differ.
    assert sum(str(parse_mesh(text)) != text for text in annotations) == 33


def test_examples():
    assert parse_mesh("Opacity/lung/upper lobe/right") == Finding("Opacity", ("lung", "upper lobe"), "right")
    assert parse_mesh("Cardiomegaly/mild") == Finding("Cardiomegaly", severity="mild")
    assert parse_mesh("Scoliosis/thoracic vertebrae/right/mild") == Finding(
        "Scoliosis", ("thoracic vertebrae",), "right", "mild"
    )
    assert parse_mesh("Calcified Granuloma/lung/hilum/left/multiple") == Finding(
        "Calcified Granuloma", ("lung", "hilum"), "left", None, ("multiple",)
    )
    assert parse_mesh("Technical Quality of Image Unsatisfactory ").name == "Technical Quality of Image Unsatisfactory"
    assert parse_mesh("Fractures, Bone/Thoracic Vertebrae").anatomy == ("thoracic vertebrae",)
    assert parse_mesh("Thoracic vertebrae/degenerative").name == "Thoracic Vertebrae"
    assert parse_mesh("Subcutaneous  Emphysema/right").name == "Subcutaneous Emphysema"


def test_unknown_parts_are_kept():
    assert parse_mesh("Honeycombing/Lung/Subpleural/left") == Finding(
        "Honeycombing", ("lung",), "left", None, ("subpleural",)
    )


words = st.sampled_from([*ANATOMY_WORDS, *QUALIFIER_WORDS, *SIDES, *SEVERITIES])
others = st.text(min_size=1).filter(lambda text: "/" not in text and text.strip())


@given(st.one_of(st.sampled_from(NAME_WORDS), others), st.lists(st.one_of(words, others), max_size=6))
def test_any_annotation_keeps_its_parts_and_survives_a_round_trip(name, parts):
    finding = parse_mesh("/".join([name, *parts]))
    assert parts_of(finding) == Counter(tidy(part) for part in [name, *parts])
    assert parse_mesh(str(finding)) == finding
    assert finding.side in (None, *SIDES)
    assert finding.severity in (None, *SEVERITIES)


@pytest.mark.parametrize("text", ["", "  ", "/", "Opacity//right", "Opacity/", "/lung", None, 3, b"Opacity"])
def test_bad_input_is_refused(text):
    with pytest.raises(RRGError, match="annotation"):
        parse_mesh(text)


def test_findings_are_values():
    finding = parse_mesh("Nodule/lung/left/small")
    assert hash(finding) == hash(parse_mesh(str(finding)))
    assert str(replace(finding, side="right")) == "Nodule/lung/right/small"
