"""Study indexes: equal to brute force, leak-safe, saved and loaded, and clear about what does not fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrg_utils.errors import RRGError
from rrg_utils.retrieval import StudyIndex, standardised


def some(n=200, width=16, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return [f"S{i}" for i in range(n)], vectors


def cosine(queries, vectors):
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries.astype(float), vectors.astype(float))]
    return unit[0] @ unit[1].T


def test_flat_search_is_brute_force():
    ids, vectors = some()
    queries = some(30, seed=1)[1]
    found = StudyIndex.build(ids, vectors, "swin").search(queries, 5, "swin")
    expected = cosine(queries, vectors)
    order = np.argsort(-expected, axis=1)[:, :5]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.similarity, np.take_along_axis(expected, order, 1), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 4))
def test_a_query_never_gets_itself_or_its_report(seed, k, texts):
    """Brute force with the rule, for pools with many equal reports and queries from within the pool."""
    rng = np.random.default_rng(seed)
    n = 40
    ids, vectors = some(n, 4, seed)
    reports = [f"report {rng.integers(4 * texts)}" for _ in range(n)]
    chosen = rng.permutation(n)[:8]
    index = StudyIndex.build(ids, vectors, "swin", reports)
    asked = {"ids": [ids[i] for i in chosen], "texts": [reports[i].upper() + "." for i in chosen]}
    allowed = np.array([[reports[j] != reports[i] for j in range(n)] for i in chosen])
    if allowed.sum(1).min() < k + 8:
        return  # too little is left to be sure that no error is due
    found = index.search(vectors[chosen], k, "swin", **asked)
    masked = np.where(allowed, cosine(vectors[chosen], vectors), -np.inf)
    np.testing.assert_allclose(found.similarity, -np.sort(-masked, axis=1)[:, :k], atol=1e-5)
    for row, i in zip(found.rows, chosen, strict=True):
        assert i not in row
        assert all(reports[j] != reports[i] for j in row)


def test_reports_are_the_same_whatever_their_case_and_punctuation():
    _, vectors = some(3)
    texts = ["No acute disease.", "no  acute disease", "Acute disease."]
    index = StudyIndex.build(["a", "b", "c"], vectors, "swin", texts)
    found = index.search(vectors[:1], 1, "swin", texts=["NO ACUTE DISEASE"])
    assert found.rows.tolist() == [[2]]
    # A report without words bars nothing.
    assert (
        len(
            StudyIndex.build(["a", "b"], vectors[:2], "swin", ["", ""])
            .search(vectors[:1], 2, "swin", texts=[""])
            .rows[0]
        )
        == 2
    )


@pytest.mark.parametrize(("factory", "options"), [("IVF8,Flat", "nprobe=8"), ("HNSW16", "efSearch=128")])
def test_approximate_kinds_find_what_flat_finds_when_they_look_everywhere(factory, options):
    ids, vectors = some(500)
    queries = some(40, seed=1)[1]
    exact = StudyIndex.build(ids, vectors, "swin").search(queries, 3, "swin")
    found = StudyIndex.build(ids, vectors, "swin", factory=factory, options=options).search(queries, 3, "swin")
    assert (found.rows == exact.rows).mean() > 0.97


def test_parts_searched_as_one_are_the_whole():
    ids, vectors = some(100)
    texts = [f"report {i % 30}" for i in range(100)]
    whole = StudyIndex.build(ids, vectors, "swin", texts)
    parts = [StudyIndex.build(ids[a:b], vectors[a:b], "swin", texts[a:b]) for a, b in ((0, 30), (30, 31), (31, 100))]
    joined = StudyIndex.joined(parts)
    del parts
    asked = (vectors, 4, "swin", ids, texts)
    for a, b in zip(joined.search(*asked), whole.search(*asked), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(RRGError, match="one encoder"):
        StudyIndex.joined([whole, StudyIndex.build(ids, vectors, "mamba")])
    with pytest.raises(RRGError, match="no parts"):
        StudyIndex.joined([])


@pytest.mark.parametrize("factory", ["Flat", "IVF4,PQ4x4", "HNSW8"])
def test_what_is_saved_comes_back(factory, tmp_path):
    ids, vectors = some()
    texts = [f"report {i % 50}" for i in range(len(ids))]
    index = StudyIndex.build(ids, vectors, "swin", texts, factory, "nprobe=4" if factory.startswith("IVF") else "")
    index.save(tmp_path)
    again = StudyIndex.load(tmp_path, "swin", 16)
    assert again.ids == ids
    for a, b in zip(
        index.search(vectors, 3, "swin", ids, texts), again.search(vectors, 3, "swin", ids, texts), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not any(text in (tmp_path / "studies.json").read_text() for text in texts)  # no copy of a report is written


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    ids, vectors = some()
    with pytest.raises(RRGError, match="no study index"):
        StudyIndex.load(tmp_path, "swin")
    StudyIndex.build(ids, vectors, "swin").save(tmp_path)
    with pytest.raises(RRGError, match="'mamba'"):
        StudyIndex.load(tmp_path, "mamba")
    with pytest.raises(RRGError, match="192 wide"):
        StudyIndex.load(tmp_path, "swin", 192)
    path = tmp_path / "index.faiss"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RRGError, match="cut off"):
        StudyIndex.load(tmp_path, "swin")
    (tmp_path / "studies.json").write_text("{")
    with pytest.raises(RRGError, match="no study index"):
        StudyIndex.load(tmp_path, "swin")


def test_bad_input_is_named():
    ids, vectors = some(10)
    with pytest.raises(RRGError, match="pool is empty"):
        StudyIndex.build([], np.zeros((0, 16)), "swin")
    with pytest.raises(RRGError, match="9 ids"):
        StudyIndex.build(ids[:9], vectors, "swin")
    with pytest.raises(RRGError, match="NaN"):
        StudyIndex.build(ids, np.full((10, 16), np.nan), "swin")
    with pytest.raises(RRGError, match="cannot build a 'Flot' index"):
        StudyIndex.build(ids, vectors, "swin", factory="Flot")
    with pytest.raises(RRGError, match="cannot build a 'IVF64,Flat' index of 10 studies"):
        StudyIndex.build(ids, vectors, "swin", factory="IVF64,Flat")
    index = StudyIndex.build(ids, vectors, "swin", ["the same"] * 4 + [f"report {i}" for i in range(6)])
    with pytest.raises(RRGError, match=r"k=11 .* holds 10 studies"):
        index.search(vectors, 11, "swin")
    with pytest.raises(RRGError, match="4 are the query itself or say the same"):
        index.search(vectors[:1], 7, "swin", texts=["The same."])
    with pytest.raises(RRGError, match="at least one"):
        index.search(vectors, 0, "swin")
    with pytest.raises(RRGError, match="'mamba', 16 wide"):
        index.search(vectors, 1, "mamba")
    with pytest.raises(RRGError, match="'swin', 8 wide"):
        index.search(vectors[:, :8], 1, "swin")
    with pytest.raises(RRGError, match="expected \\(N, d\\)"):
        index.search(vectors[0], 1, "swin")
    with pytest.raises(RRGError, match="2 texts for 10 queries"):
        index.search(vectors, 1, "swin", texts=["a", "b"])


def test_an_approximate_index_that_looks_at_too_little_says_so():
    ids, vectors = some(400)
    index = StudyIndex.build(ids, vectors, "swin", factory="IVF8,Flat")  # nprobe is 1: an eighth of the studies
    with pytest.raises(RRGError, match="raise nprobe"):
        index.search(vectors[:20], 100, "swin")


def test_standardised_columns():
    _, vectors = some()
    vectors = vectors * np.arange(1, 17) + 3
    vectors[:, 3] = 1.5  # a constant column must not divide by zero
    out = standardised(vectors, vectors)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(out.std(0), 3), 1, atol=1e-4)
    assert np.isfinite(out).all()
