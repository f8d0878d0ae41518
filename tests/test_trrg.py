"""TRRG: the contrastive loss, the clue prompts, each module against a plain computation, and what is trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import make_bert
from tiny_llm import make_llm
from torch import nn

from rrg_utils.data import ABNORMALITIES
from rrg_utils.errors import RRGError
from rrg_utils.labels import OBSERVATIONS
from rrg_utils.systems import contrastive, trrg
from rrg_utils.systems.contrastive import ContrastConfig, ImageText, info_nce
from rrg_utils.systems.trrg import (
    CLUES,
    NAMES,
    TRRG,
    ClueInteraction,
    Clues,
    Example,
    TRRGConfig,
    clue_prompts,
    consistency_loss,
    shown,
    top_k,
)
from rrg_utils.training import FitOptions, fit

TEXTS = [
    "The heart is enlarged. No effusion.",
    "There is a left pleural effusion. The heart is normal.",
    "The lungs are clear. No pneumothorax.",
    "A pacemaker is present. The lungs are clear.",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """TRRG over a random language model of the tiny one's kind and a random BERT."""
    llm = make_llm(tmp_path_factory.mktemp("llm"), TEXTS)
    text = make_bert(tmp_path_factory.mktemp("bert"), [text.lower() for text in clue_prompts()])
    return TRRGConfig(llm=llm, text=str(text), queries=4)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.standard_normal((64, 192)).astype(np.float16), text) for text in TEXTS]


@pytest.fixture(scope="module")
def model(config):
    return TRRG(config).eval()


def unit(rng, *shape):
    x = torch.from_numpy(rng.standard_normal(shape))
    return x / x.norm(dim=-1, keepdim=True)


# --- stage 1 ----------------------------------------------------------------------------------------------------------


def loop(images, texts, tau, same):
    """Eq. 1 as printed, term by term; where several are right, the sum of their probabilities."""
    n, total = len(images), 0.0
    for i in range(n):
        right = [j for j in range(n) if same[i][j]]
        to_image = [torch.exp(texts[i] @ images[j] / tau) for j in range(n)]
        to_text = [torch.exp(images[i] @ texts[j] / tau) for j in range(n)]
        for found in (to_image, to_text):
            total -= torch.log(sum(found[j] for j in right) / sum(found))
    return total / n


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 99), tau=st.sampled_from([0.05, 0.5, 1.0]))
def test_the_loss_is_equation_1(n, seed, tau):
    rng = np.random.default_rng(seed)
    images, texts = unit(rng, n, 5), unit(rng, n, 5)
    torch.testing.assert_close(info_nce(images, texts, tau), loop(images, texts, tau, np.eye(n, dtype=bool)))
    kinds = rng.integers(0, 3, n)
    same = kinds[:, None] == kinds
    found = info_nce(images, texts, tau, torch.from_numpy(same))
    torch.testing.assert_close(found, loop(images, texts, tau, same))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_the_loss_is_symmetric_and_blind_to_the_order(seed):
    rng = np.random.default_rng(seed)
    images, texts = unit(rng, 6, 4), unit(rng, 6, 4)
    torch.testing.assert_close(info_nce(images, texts, 0.1), info_nce(texts, images, 0.1))
    order = rng.permutation(6)
    torch.testing.assert_close(info_nce(images[order], texts[order], 0.1), info_nce(images, texts, 0.1))


def test_without_duplicates_both_losses_are_one(config):
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 5, 4), unit(rng, 5, 4)
    torch.testing.assert_close(info_nce(images, texts, 0.1, torch.eye(5, dtype=bool)), info_nce(images, texts, 0.1))


def test_equal_sentences_are_told_apart_only_by_the_printed_loss():
    """Three films with one and the same sentence: the printed loss cannot be won, the other has nothing to ask."""
    rng = np.random.default_rng(0)
    texts = unit(rng, 1, 4).expand(3, 4)
    images = unit(rng, 3, 4).requires_grad_()
    everything = torch.ones(3, 3, dtype=bool)
    loss = info_nce(images, texts, 0.1, everything)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert images.grad.abs().max() < 1e-6
    assert float(info_nce(texts, texts, 0.1)) == pytest.approx(2 * np.log(3))
    printed = info_nce(images, texts, 0.1)
    assert float(printed.detach()) > 2 * np.log(3)


@pytest.mark.parametrize(
    ("images", "texts", "tau", "message"),
    [
        (torch.ones(1, 4), torch.ones(1, 4), 0.1, "at least two pairs"),
        (torch.ones(3, 4), torch.ones(2, 4), 0.1, "one pair a row"),
        (torch.ones(3, 4), torch.ones(3, 4), 0.0, "positive"),
    ],
)
def test_bad_batches_of_the_contrastive_loss_are_refused(images, texts, tau, message):
    with pytest.raises(RRGError, match=message):
        info_nce(images, texts, tau)


def test_bad_options_of_stage_1_are_refused():
    with pytest.raises(RRGError, match="choose sentence or report"):
        ContrastConfig(target="word")
    with pytest.raises(RRGError, match="at least two pairs"):
        ContrastConfig(batch_size=1)
    with pytest.raises(RRGError, match="only our own can start from random weights"):
        ContrastConfig(encoder="timm:resnet50", pretrained=False)


def test_one_random_sentence_is_drawn_from_each_report():
    assert contrastive.sentence_parts(["One. Two.  THREE."]) == [["one.", "two.", "three."]]
    assert contrastive.sentence_parts(["One. Two."], "report") == [["one. two."]]


def test_stage_1_trains_what_it_says_and_its_starts_differ(config):
    stage1 = replace(config.contrast, composed=0)
    model = ImageText(stage1)
    assert all(p.requires_grad for p in model.parameters())
    frozen = ImageText(replace(stage1, train_encoder=False))
    assert {n.split(".")[0] for n, p in frozen.named_parameters() if p.requires_grad} == {"space"}
    random = ImageText(replace(stage1, pretrained=False))
    same = [torch.equal(a, b) for a, b in zip(model.encoder.parameters(), random.encoder.parameters(), strict=True)]
    assert not all(same)
    again = ImageText(replace(stage1, pretrained=False))
    assert all(torch.equal(a, b) for a, b in zip(random.parameters(), again.parameters(), strict=True))


def test_stage_1_can_match_films_and_sentences(config):
    """Four kinds of films, four sentences: after a few steps each finds its own."""
    torch.manual_seed(0)
    stage1 = replace(config.contrast, train_encoder=False, composed=0)
    model = ImageText(stage1)
    pooled = np.random.default_rng(0).standard_normal((4, 192)).astype(np.float32)
    pairs = contrastive.Pairs([], pooled, [np.array([i]) for i in range(4)], torch.eye(4, 32))
    fit(
        model,
        lambda m, batch: contrastive.batch_loss(m, pairs, batch),
        list(range(4)) * 8,
        options=FitOptions(epochs=10, batch_size=16, lr=1e-2),
    )
    v, t = model.space.see(torch.from_numpy(pooled)), model.space.read(pairs.vectors)
    assert (v @ t.T).argmax(1).tolist() == [0, 1, 2, 3]


# --- clue prompts -----------------------------------------------------------------------------------------------------


def test_the_clues_are_the_fourteen_observations():
    assert NAMES == OBSERVATIONS
    prompts = clue_prompts()
    assert len(set(prompts)) == len(NAMES) == 14
    assert prompts[NAMES.index("Cardiomegaly")] == "Clue: mild cardiomegaly at the heart"
    assert all(prompt.startswith("Clue: ") and " at " in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["Cardiomegaly", "Gout"]}, "unknown disease 'Gout'; clues are: Enlarged"),
        ({"template": "Clue: something"}, r"needs the slot \{disease\}"),
        ({"template": "{severity} at {location}"}, r"needs the slot \{disease\}"),
        ({"template": "{disease} {colour}"}, "may have"),
        ({"template": "{disease"}, "clue template"),
    ],
)
def test_bad_clues_and_templates_are_refused(arguments, message):
    with pytest.raises(RRGError, match=message):
        clue_prompts(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 15}, "there are 14 clues, so give 0 to 14"),
        ({"k": -1}, "give 0 to 14"),
        ({"injection": "all"}, "choose from top-k, hadamard"),
        ({"clues": "best"}, "choose from zero-shot"),
        ({"template": "no slot"}, r"needs the slot \{disease\}"),
        ({"queries": 0}, "at least 1"),
        ({"clue_temperature": 0.0}, "positive"),
    ],
)
def test_bad_configurations_are_refused(config, change, message):
    with pytest.raises(RRGError, match=message):
        replace(config, **change)


def test_heads_that_do_not_divide_the_width_are_refused(config):
    with pytest.raises(RRGError, match="5 heads do not divide the width 32"):
        TRRG(replace(config, heads=5))


def test_what_a_film_shows_is_said_in_the_names_of_the_clues():
    rows = np.zeros((3, len(ABNORMALITIES)), bool)
    rows[0, [ABNORMALITIES.index("cardiomegaly"), ABNORMALITIES.index("pleural effusion")]] = True
    rows[1, ABNORMALITIES.index("pacemaker")] = True
    found = [{NAMES[i] for i in np.flatnonzero(row)} for row in shown(rows)]
    assert found == [{"Cardiomegaly", "Pleural Effusion"}, {"Support Devices", "No Finding"}, {"No Finding"}]


# --- clue choice ------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(0, 14))
def test_top_k_is_the_head_of_a_sort(seed, k):
    weights = torch.from_numpy(np.random.default_rng(seed).random((5, 14)))
    assert top_k(weights, k) == [sorted(range(14), key=lambda i: -row[i])[:k] for row in weights.tolist()]


def test_weights_are_the_softmax_of_dot_products(model, examples):
    v_e = torch.from_numpy(np.stack([example.seen for example in examples])).float()
    found = model.clue_weights(v_e)
    c_cls = model.space.read(model.clues.pooled)
    for row, tokens in zip(found, v_e, strict=True):
        v_cls = model.space.see(tokens.mean(0, keepdim=True))[0]
        raw = torch.exp(torch.stack([v_cls @ c for c in c_cls]) / model.config.clue_temperature)
        torch.testing.assert_close(row, raw / raw.sum(), atol=1e-6, rtol=1e-4)
    assert found.shape == (len(examples), 14)


def test_temperature_moves_no_rank(config, examples):
    v_e = torch.from_numpy(np.stack([example.seen for example in examples])).float()
    found = [TRRG(replace(config, clue_temperature=t)).eval().clue_weights(v_e) for t in (0.07, 1.0)]
    assert top_k(found[0], 14) == top_k(found[1], 14)


def test_clue_tokens_are_the_words_of_the_chosen_prompts_in_order(model):
    clues = model.clues
    lengths = clues.real.sum(1)
    tokens = clues.tokens([3, 1])
    assert len(tokens) == lengths[3] + lengths[1]
    torch.testing.assert_close(tokens[: lengths[3]], clues.words[3][clues.real[3]])
    torch.testing.assert_close(
        clues.tokens([3, 1], torch.tensor([0.5, 2.0]))[lengths[3] :], 2 * clues.words[1][clues.real[1]]
    )
    assert clues.tokens([]).shape == (0, clues.words.shape[-1])


def test_words_in_the_slots_reach_the_prompts(config):
    plain = Clues("{disease}", config.text)
    assert plain.real.sum() < Clues(config.template, config.text).real.sum()


# --- clue interaction -------------------------------------------------------------------------------------------------


def attention(layer, queries, keys):
    """Scaled dot-product attention with heads, one matrix at a time."""
    width, heads = layer.embed_dim, layer.num_heads
    q, k, v = (
        x @ w.T + b
        for x, w, b in zip(
            (queries, keys, keys), layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True
        )
    )
    parts = []
    for h in range(heads):
        own = slice(h * width // heads, (h + 1) * width // heads)
        parts.append((q[:, own] @ k[:, own].T / (width // heads) ** 0.5).softmax(-1) @ v[:, own])
    return torch.cat(parts, 1) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_interaction_is_equations_2_and_3():
    torch.manual_seed(0)
    module = ClueInteraction(16, 3, 8, 0.1).eval()
    tokens = torch.randn(2, 5, 16)
    for stream in ("visual", "clue"):
        found = module(stream, tokens)
        for row, own in zip(found, tokens, strict=True):
            x = module.norms[stream](own)
            inner = x + attention(module.own[stream], x, x)  # Eq. 2
            torch.testing.assert_close(row, module.ffn(attention(module.cross, module.queries, inner)))  # Eq. 3


def test_padding_changes_nothing():
    torch.manual_seed(0)
    module = ClueInteraction(16, 3, 8, 0.1).eval()
    tokens = torch.randn(1, 4, 16)
    padded = torch.cat([tokens, torch.randn(1, 3, 16)], 1)
    mask = torch.tensor([[False] * 4 + [True] * 3])
    torch.testing.assert_close(module("clue", padded, mask), module("clue", tokens), atol=1e-5, rtol=1e-4)


def test_consistency_loss_is_equation_4():
    rng = np.random.default_rng(0)
    e_v, e_c = (torch.from_numpy(rng.standard_normal((3, 4, 5))) for _ in range(2))
    cosines = [
        (a @ b) / (a.norm() * b.norm()) for x, y in zip(e_v, e_c, strict=True) for a, b in zip(x, y, strict=True)
    ]
    torch.testing.assert_close(consistency_loss(e_v, e_c), -sum(cosines) / len(cosines))
    assert float(consistency_loss(e_v, 3 * e_v)) == pytest.approx(-1)


def test_the_loss_is_the_sum_of_equation_5(config, examples):
    model = TRRG(config).eval()
    streams = model.streams(examples)
    with torch.no_grad():
        whole = float(model.loss(examples))
        cross_entropy = model.mean_loss(examples)
        agreement = float(consistency_loss(streams.e_v, streams.e_c))
    assert whole == pytest.approx(cross_entropy + agreement, rel=1e-4)
    model.config = replace(config, dc_weight=0.0)
    assert float(model.loss(examples).detach()) == pytest.approx(cross_entropy, rel=1e-4)


# --- the arms of the ablation -----------------------------------------------------------------------------------------


def prompt_of(config, example, **change):
    (prompt,) = TRRG(replace(config, **change)).eval().prompts([example])
    return prompt


def test_each_arm_reads_what_the_one_before_it_reads_and_more(config, examples):
    first = examples[0]
    assert prompt_of(config, first, dci=False, cmci=False).text == "image:[16]findings:"
    assert prompt_of(config, first).text == "image:[16][4][4]findings:"
    assert prompt_of(config, first, dci=False).text == "image:[16][4]findings:"
    clues = Clues(config.template, config.text)
    plain = prompt_of(config, first, cmci=False)
    sizes = [len(s) for s in plain.segments if not isinstance(s, str)]
    assert sizes[0] == 16
    assert 3 * int(clues.real.sum(1).min()) <= sizes[1] <= 3 * int(clues.real.sum(1).max())
    everything = prompt_of(config, first, cmci=False, injection="hadamard")
    assert len(everything.segments[2]) == int(clues.real.sum())


@pytest.mark.parametrize("cmci", [False, True])
def test_k_0_equals_no_clues(config, examples, cmci):
    none, nothing = (TRRG(replace(config, cmci=cmci, **c)).eval() for c in ({"k": 0}, {"dci": False}))
    nothing.load_state_dict(none.state_dict(), strict=False)
    for a, b in zip(none.prompts(examples), nothing.prompts(examples), strict=True):
        assert a.text == b.text
        for x, y in zip(a.segments, b.segments, strict=True):
            assert x == y if isinstance(x, str) else torch.equal(x, y)
    assert none.mean_loss(examples) == pytest.approx(nothing.mean_loss(examples))


def test_hadamard_weighs_the_clues(config, examples):
    model = TRRG(replace(config, cmci=False, injection="hadamard")).eval()
    streams = model.streams(examples)
    first = model.clues.words[0][model.clues.real[0]] * streams.weights[0, 0]
    torch.testing.assert_close(streams.c_s[0][: len(first)], model.clue_mapper(first))


def test_clues_can_be_forced_study_by_study(model, examples):
    forced = [
        examples[0]._replace(clues=("Edema",)),
        examples[1]._replace(clues=()),
        examples[2]._replace(clues=("Fracture", "Edema", "Atelectasis", "Pneumonia")),
        examples[3],
    ]
    streams = model.streams(forced)
    names = [[NAMES[i] for i in which] for which in streams.injected]
    assert names[:3] == [["Edema"], [], ["Fracture", "Edema", "Atelectasis", "Pneumonia"]]
    assert names[3] == [NAMES[i] for i in top_k(streams.weights, 3)[3]]
    # in a batch of mixed numbers each study reads what it reads alone
    for example, together in zip(forced, model.prompts(forced), strict=True):
        (alone,) = model.prompts([example])
        assert alone.text == together.text
        for a, b in zip(alone.segments, together.segments, strict=True):
            if not isinstance(a, str):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with pytest.raises(RRGError, match="unknown disease 'Gout'"):
        model.streams([examples[0]._replace(clues=("Gout",))])


# --- training, writing, storage ---------------------------------------------------------------------------------------


def touched(model, examples):
    model.zero_grad()
    model.loss(examples).backward()
    assert all(p.grad is None for p in model.language.parameters())
    assert all(p.grad is None for p in model.space.parameters())
    return {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"dci": False, "cmci": False}, {"mapper"}),
        ({"cmci": False}, {"mapper", "clue_mapper"}),
        ({"dc_weight": 0.0}, {"mapper", "clue_mapper", "interaction"}),
        ({}, {"mapper", "clue_mapper", "interaction"}),
    ],
)
def test_gradient_reaches_the_arm_and_nothing_frozen(config, examples, change, parts):
    assert touched(TRRG(replace(config, **change)), examples) == parts


def test_only_what_an_arm_trains_is_trainable(config):
    model = TRRG(replace(config, dci=False, cmci=False))
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"mapper"}


def test_it_can_learn_to_write_what_the_clue_says(config, examples):
    """One film, four clues, four reports: only the clue can tell which report is meant."""
    names = ("Cardiomegaly", "Pleural Effusion", "No Finding", "Support Devices")
    same = [Example(examples[0].seen, text, clues=(name,)) for text, name in zip(TEXTS, names, strict=True)]
    model = TRRG(replace(config, cmci=False))
    model.language.requires_grad_(True)  # the random language model must learn the words as well
    fit(model, lambda m, batch: m.loss(batch, 0.8), same, options=FitOptions(epochs=60, batch_size=4, lr=1e-2))
    swapped = [example._replace(clues=same[i - 1].clues) for i, example in enumerate(same)]
    assert model.mean_loss(same) < model.mean_loss(swapped) - 0.05


def test_the_clue_reaches_the_language_model_through_the_interaction(model, examples):
    first, second = (examples[0]._replace(clues=(name,)) for name in ("Cardiomegaly", "Fracture"))
    streams = model.streams([first, second])
    torch.testing.assert_close(streams.e_v[0], streams.e_v[1])
    assert float((streams.e_c[0] - streams.e_c[1]).abs().max().detach()) > 1e-4
    assert model.mean_loss([first]) != model.mean_loss([second])


def test_reports_come_with_their_clues(model, examples):
    found = model.generate(examples, max_new_tokens=5)
    for report, row in zip(found, model.streams(examples).weights, strict=True):
        weights = report.evidence["weights"]
        assert tuple(weights) == NAMES
        assert sum(weights.values()) == pytest.approx(1, abs=1e-2)
        assert report.evidence["injected"] == [NAMES[i] for i in row.topk(3).indices.tolist()]
    blind = model.generate([example._replace(text="") for example in examples], max_new_tokens=5)
    assert [r.text for r in blind] == [r.text for r in found]


def test_what_is_saved_comes_back(config, examples, tmp_path):
    model = TRRG(config)
    nn.init.normal_(model.space.image.weight)  # as if stage 1 had left it so
    fit(model, lambda m, batch: m.loss(batch), examples, options=FitOptions(epochs=2, batch_size=4))
    model.save(tmp_path)
    again = TRRG.load(tmp_path)
    assert again.config == config
    assert again.mean_loss(examples) == pytest.approx(model.mean_loss(examples), abs=1e-6)
    assert again.generate(examples, 8) == model.generate(examples, 8)


def test_a_model_of_another_arm_is_named(config, tmp_path):
    TRRG(replace(config, cmci=False)).save(tmp_path)
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"cmci": false', '"cmci": true')
    )
    with pytest.raises(RRGError, match="does not fit this version: see interaction"):
        TRRG.load(tmp_path)


def test_controls_name_their_clues(config):
    class Data:
        labels = np.zeros((4, len(ABNORMALITIES)), bool)

    Data.labels[0, ABNORMALITIES.index("cardiomegaly")] = True
    oracle = trrg.controls(replace(config, clues="oracle"), Data.labels)
    assert oracle == [("Cardiomegaly",), ("No Finding",), ("No Finding",), ("No Finding",)]
    assert trrg.commonest(Data.labels, 2) == ("No Finding", "Cardiomegaly")
    drawn = trrg.controls(replace(config, clues="random"), Data.labels)
    assert all(len(set(each)) == 3 and set(each) <= set(CLUES) for each in drawn)
    assert trrg.controls(config, Data.labels) is None
    assert trrg.controls(replace(config, clues="oracle", dci=False), Data.labels) is None
