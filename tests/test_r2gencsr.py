"""R2GenCSR: its prompts and residuals against plain computations, its contexts, training, storage, bad input."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_llm import make_llm

from rrg_utils.data import anatomy, datasets
from rrg_utils.data.phantom import PhantomRenderer
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, prompt_loss
from rrg_utils.retrieval import global_features, standardised
from rrg_utils.systems import r2gencsr
from rrg_utils.systems.r2gencsr import (
    RESIDUAL,
    RETRIEVAL,
    SIGNS,
    Context,
    Example,
    R2GenCSR,
    R2GenCSRConfig,
    context_rows,
    examples,
    released,
)

TEXTS = ["The heart is enlarged. No effusion.", "There is a left effusion.", "The lungs are clear.", "Clear lungs."]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """R2GenCSR over a random language model of the tiny one's kind, with an untrained projector."""
    llm = make_llm(tmp_path_factory.mktemp("llm"), [*TEXTS, "note: normal. with disease. image: findings:"])
    return R2GenCSRConfig(llm=llm, pairs=2, align_studies=0, epochs=1)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)

    def context(name):
        return Context(name, rng.standard_normal((64, 192)).astype(np.float16))

    return [
        Example(
            context("q").seen,
            text,
            (context(f"n{i}a"), context(f"n{i}b")),
            (context(f"p{i}a"), context(f"p{i}b")),
        )
        for i, text in enumerate(TEXTS)
    ]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A small course of its own: (training, validation) splits of 40 and 6 real studies, rendered in an empty cache."""
    every = datasets.indiana()
    noted = [r for r in every.train if "note" in r.findings][:5]
    normal = [r for r in every.train if r.normal][:14]
    same = [r for r in every.train if r.normal and r.findings == normal[0].findings][:3]
    train = list(dict.fromkeys([*noted, *normal, *same, *every.train[:12]]))
    few = replace(every, train=tuple(train), val=every.val[:6])
    PhantomRenderer(128, patients=1)  # made in the reader's cache, and stays in memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRG_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(anatomy, "PATIENTS", 1)
        for module in (datasets, r2gencsr):
            patch.setattr(module, "indiana", lambda: few)
        yield datasets.load_dataset("phantom", "train", 128), datasets.load_dataset("phantom", "val", 128)


# --- the prompt ---


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, "note:[1]normal. note:[1]with disease. note:[1]normal. note:[1]with disease. image:[16]findings:"),
        (
            {"grid": 2},
            "note:[4]normal. note:[4]with disease. note:[4]normal. note:[4]with disease. image:[16]findings:",
        ),
        (
            {"context_first": False},
            "image:[16]note:[1]normal. note:[1]with disease. note:[1]normal. note:[1]with disease. findings:",
        ),
        (
            {"wording": "paper"},
            "Note: <Img>[1]</Img> normal. Note: <Img>[1]</Img> with disease. Note: <Img>[1]</Img> normal. "
            "Note: <Img>[1]</Img> with disease. Human: <Img>[16]</Img> Generate a comprehensive and detailed diagnosis "
            "report for this chest xray image. \nAssistant:",
        ),
    ],
)
def test_the_prompt(config, batch, switches, expected):
    (first, second) = R2GenCSR(replace(config, **switches)).prompts([batch[0], batch[1]._replace(prefix="The heart.")])
    assert first.text == expected
    assert second.text == f"{expected} The heart."


def test_contexts_can_be_of_one_sign_and_differ_in_number(config, batch):
    mixed = [batch[0]._replace(negative=()), batch[1]._replace(positive=batch[1].positive[:1]), batch[2]]
    model = R2GenCSR(config)
    texts = [prompt.text for prompt in model.prompts(mixed)]
    assert texts[0] == "note:[1]with disease. note:[1]with disease. image:[16]findings:"
    assert texts[1] == "note:[1]normal. note:[1]with disease. note:[1]normal. image:[16]findings:"
    for alone, together in zip(mixed, model.prompts(mixed), strict=True):  # the batch changes nothing
        (prompt,) = model.prompts([alone])
        for a, b in zip(prompt.segments, together.segments, strict=True):
            assert a == b if isinstance(a, str) else torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", RESIDUAL)
def test_a_study_without_contexts_can_share_a_batch(config, batch, kind):
    bare = batch[0]._replace(negative=(), positive=())
    model = R2GenCSR(replace(config, residual=kind))
    assert model.prompts([bare, batch[1]])[0].text == "image:[16]findings:"


def test_no_pairs_are_no_context(config, batch):
    """Without pairs the model is a frozen language model with a projected film, whatever the other switches say."""
    bare = [example._replace(negative=(), positive=()) for example in batch]
    for residual in RESIDUAL:
        model = R2GenCSR(replace(config, residual=residual, pairs=0)).eval()
        films = model.projector(torch.from_numpy(np.stack([e.seen for e in batch])).float())
        prompts = [Prompt("image:", film, "findings:") for film in films]
        expected = prompt_loss(model.llm, prompts, [e.text for e in batch]).mean
        torch.testing.assert_close(model.loss(bare), expected)


# --- residuals ---


def blocks(model, seen):
    """The projector's input (4, 4, 4 * d) by hand: tokens as deviations from the mean film, joined two by two."""
    relative = ((torch.from_numpy(seen).float() - model.projector.mean) / model.projector.spread).reshape(8, 8, -1)
    return torch.stack(
        [
            torch.stack(
                [
                    torch.cat([relative[r, c], relative[r, c + 1], relative[r + 1, c], relative[r + 1, c + 1]])
                    for c in range(0, 8, 2)
                ]
            )
            for r in range(0, 8, 2)
        ]
    )


def cells(grid, side):
    """Means over side x side cells of a grid (4, 4, d), in row-major order."""
    step = 4 // side
    return torch.stack(
        [grid[r : r + step, c : c + step].mean((0, 1)) for r in range(0, 4, step) for c in range(0, 4, step)]
    )


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("kind", ["none", "after", "before"])
def test_residuals_are_what_they_say(config, batch, kind, side):
    model = R2GenCSR(replace(config, residual=kind, grid=side))
    model.projector.mean.normal_()
    model.projector.spread.uniform_(0.5, 2)
    layers = model.projector.layers
    example = batch[0]
    (prompt,) = model.prompts([example])
    images = [segment for segment in prompt.segments if not isinstance(segment, str)][:-1]
    order = [example.negative[0], example.positive[0], example.negative[1], example.positive[1]]
    for image, context in zip(images, order, strict=True):
        q, c = blocks(model, example.seen), blocks(model, context.seen)
        expected = {
            "none": lambda q=q, c=c: cells(layers(c), side),
            "after": lambda q=q, c=c: cells(layers(q), side) - cells(layers(c), side),
            "before": lambda q=q, c=c: cells(layers(q - c), side),
        }[kind]()
        torch.testing.assert_close(image, expected, atol=1e-4, rtol=1e-4)


def test_with_a_linear_projector_the_mean_is_the_projected_global_vector(config, batch):
    """What the module says of the paper's projector; without a bias, before and after are then the same."""
    found = {}
    for kind in ("after", "before"):
        model = R2GenCSR(replace(config, residual=kind))
        torch.manual_seed(1)
        model.projector.layers = torch.nn.Linear(4 * 192, 32, bias=False)
        query, context = batch[0].seen, batch[0].negative[0].seen
        found[kind] = model.residual(*(torch.from_numpy(x[None]).float() for x in (query, context)), [0])[0, 0]
        v_q, v_c = (blocks(model, x).mean((0, 1)) for x in (query, context))
        torch.testing.assert_close(
            found[kind], model.projector.layers(v_q) - model.projector.layers(v_c), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(found["after"], found["before"], atol=1e-4, rtol=1e-4)


def test_the_released_default_subtracts_every_position_of_the_context(config, batch):
    model = R2GenCSR(released(config))
    (prompt,) = model.prompts(batch[:1])
    assert re.fullmatch(r"\[\d+\]image:\[16\]findings:", prompt.text)  # no word of a context is left
    example = batch[0]
    whole = cells(model.projector.layers(blocks(model, example.seen)), 1)
    rows = []
    for n in range(2):
        for sign, after in (("negative", "normal."), ("positive", "with disease.")):
            # The text between two images is one text to the tokenizer, as it is in any prompt.
            image = cells(model.projector.layers(blocks(model, getattr(example, sign)[n].seen)), 1)
            rows += [words(model, "note:"), image, words(model, after)]
    torch.testing.assert_close(prompt.segments[0], whole - torch.cat(rows), atol=1e-4, rtol=1e-4)


def words(model, text):
    return model.llm.model.get_input_embeddings()(
        torch.tensor(model.llm.tokenizer(text, add_special_tokens=False).input_ids)
    )


def test_a_film_compared_with_itself_leaves_nothing(config, batch):
    itself = batch[0]._replace(negative=(Context("q", batch[0].seen),), positive=(Context("q", batch[0].seen),))
    (prompt,) = R2GenCSR(replace(config, residual="after")).prompts([itself])
    assert all(not image.any() for image in prompt.segments[1:-2:2] if not isinstance(image, str))


@pytest.mark.parametrize("kind", RESIDUAL)
def test_gradient_through_the_contexts_is_a_switch(config, batch, kind):
    for gradient in (True, False):
        model = R2GenCSR(replace(config, residual=kind, context_gradient=gradient))
        query = model.tokens([e.seen for e in batch])
        notes = [s for note in model.notes(query, batch) for s in note.segments if not isinstance(s, str)]
        assert all(note.requires_grad == gradient for note in notes)
        model.loss(batch).backward()  # the query still teaches the projector
        trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        assert trained
        assert all(name.startswith("projector.") for name in trained)


# --- contexts ---


@pytest.mark.parametrize("mode", RETRIEVAL)
def test_contexts_never_give_a_study_away(config, course, mode):
    train, _ = course
    for data in course:
        rows = context_rows(replace(config, retrieval=mode), data, train)
        assert sorted(rows) == sorted(SIGNS)
        for sign in SIGNS:
            assert rows[sign].shape == (len(data), 2)
            for i, line in enumerate(rows[sign]):
                assert len(set(line)) == 2
                for row in line:
                    assert train.reports[row].id != data.reports[i].id
                    assert plain(train.texts[row]) != plain(data.texts[i])


def plain(text):
    return re.findall(r"\w+", text.lower())


def test_contexts_are_of_their_sign(config, course):
    train, val = course
    for mode in ("normal_by_mesh", "nearest", "random", "counterfactual"):
        rows = context_rows(replace(config, retrieval=mode), val, train)
        assert all(train.reports[r].normal for r in rows["negative"].ravel())
        assert train.labels[rows["positive"].ravel()].any(1).all()
    rows = context_rows(replace(config, retrieval="keyword"), val, train)
    assert all("note" in train.reports[r].findings for r in rows["positive"].ravel())
    assert all("note" not in train.reports[r].findings for r in rows["negative"].ravel())
    rows = context_rows(replace(config, retrieval="same_set"), val, train)
    np.testing.assert_array_equal(rows["negative"], rows["positive"])


@pytest.mark.parametrize("mode", ["nearest", "random", "counterfactual"])
def test_contexts_can_be_of_one_sign_alone(config, course, mode):
    train, val = course
    config = replace(config, retrieval=mode)
    both = examples(config, val, train)
    for sign, other in (SIGNS, SIGNS[::-1]):
        for one, all_of_them in zip(examples(replace(config, contexts=sign), val, train), both, strict=True):
            assert not getattr(one, other)
            assert [c.id for c in getattr(one, sign)] == [c.id for c in getattr(all_of_them, sign)]
            for mine, theirs in zip(getattr(one, sign), getattr(all_of_them, sign), strict=True):
                np.testing.assert_array_equal(mine.seen, theirs.seen)


def test_fixed_modes_draw_once_and_random_for_each_study(config, course):
    train, val = course
    for mode, fixed in (("keyword", True), ("normal_by_mesh", True), ("random", False), ("nearest", False)):
        rows = context_rows(replace(config, retrieval=mode), val, train)
        assert (len(np.unique(rows["positive"], axis=0)) == 1) == fixed
    again = context_rows(replace(config, retrieval="random"), val, train)
    np.testing.assert_array_equal(
        again["positive"], context_rows(replace(config, retrieval="random"), val, train)["positive"]
    )


def test_nearest_contexts_are_the_nearest_by_brute_force(config, course):
    train, val = course
    reference = global_features(train.films)
    known, asked = standardised(reference, reference), standardised(global_features(val.films), reference)
    rows = context_rows(config, val, train)["positive"]
    for i, line in enumerate(rows):
        allowed = [
            r for r in range(len(train)) if train.labels[r].any() and plain(train.texts[r]) != plain(val.texts[i])
        ]
        similarity = {r: known[r] @ asked[i] / np.linalg.norm(known[r]) / np.linalg.norm(asked[i]) for r in allowed}
        assert list(line) == sorted(allowed, key=similarity.get, reverse=True)[:2]


def test_the_counterfactual_is_the_same_film_without_its_findings(config, course):
    train, val = course
    films = r2gencsr.without_findings(train)
    renderer = PhantomRenderer(128, patients=1)
    for i in (int(np.flatnonzero(train.labels.any(1))[0]), int(np.flatnonzero(~train.labels.any(1))[0])):
        expected = renderer.render(train.reports[i], without=set(train.reports[i].mesh)).image
        np.testing.assert_array_equal(films.images[i], np.round(expected * 255))
        assert (films.images[i] == train.images[i]).all() == (not train.labels[i].any())
    found = examples(replace(config, retrieval="counterfactual"), val, train)
    assert found[0].negative[0].id == f"{val.reports[0].id} without findings"
    with torch.no_grad():
        healthy = next(i for i in range(len(val)) if not val.labels[i].any())
    np.testing.assert_array_equal(found[healthy].negative[0].seen, found[healthy].seen)


# --- training, use, storage ---


def test_reports_come_with_the_studies_they_were_compared_with(config, course):
    train, val = course
    batch = examples(config, val, train)
    model = R2GenCSR(config)
    reports = model.generate(batch, 6)
    rows = context_rows(config, val, train)
    for i, report in enumerate(reports):
        assert report.evidence == {sign: [train.reports[r].id for r in rows[sign][i]] for sign in SIGNS}
    blind = model.generate([example._replace(text="") for example in batch], 6)
    assert [report.text for report in blind] == [report.text for report in reports]


def test_trained_models_come_from_the_cache(config, course):
    train, val = course
    model = r2gencsr.trained(config)
    batch = examples(config, val, train)
    untrained = R2GenCSR(config)
    untrained.projector.refer_to(np.stack([e.seen for e in examples(config, train, train)]))
    assert model.mean_loss(batch) < untrained.eval().mean_loss(batch)
    r2gencsr.train_all([config, config])  # nothing is left to do
    assert r2gencsr.trained(config).mean_loss(batch) == pytest.approx(model.mean_loss(batch), abs=1e-6)


def test_a_trained_encoder_sees_films_is_trained_and_saved(config, course, tmp_path):
    train, val = course
    config = replace(config, train_encoder=True, pairs=1, residual="after")
    batch = examples(config, val, train)
    assert batch[0].seen.shape == (128, 128)
    frozen = examples(replace(config, train_encoder=False), val, train)
    model = R2GenCSR(config).eval()
    with torch.no_grad():
        tokens = model.tokens([example.seen for example in batch])
    np.testing.assert_allclose(tokens.numpy(), np.stack([e.seen for e in frozen]).astype(np.float32), atol=0.02)
    model.loss(batch[:2]).backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if n.startswith("encoder."))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n.startswith("encoder.body") and p.ndim > 1).add_(0.1)
    model.save(tmp_path)
    assert R2GenCSR.load(tmp_path).mean_loss(batch) == pytest.approx(model.mean_loss(batch), abs=1e-6)


@pytest.mark.parametrize("switches", [{}, {"residual": "prompt", "context_gradient": False}, {"grid": 2}])
def test_what_is_saved_comes_back(config, batch, switches, tmp_path):
    model = R2GenCSR(replace(config, **switches)).eval()
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save(tmp_path)
    again = R2GenCSR.load(tmp_path)
    assert again.config == model.config
    assert again.mean_loss(batch) == pytest.approx(model.mean_loss(batch), abs=1e-6)
    assert [r.text for r in again.generate(batch, 8)] == [r.text for r in model.generate(batch, 8)]


# --- bad input ---


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"retrieval": "closest"}, "unknown retrieval 'closest'; known are: keyword"),
        ({"residual": "yes"}, "unknown residual 'yes'; known are: none"),
        ({"wording": "ours"}, "unknown wording 'ours'"),
        ({"contexts": "none"}, "unknown contexts 'none'; known are: both, negative, positive"),
        ({"pairs": 6}, "pairs=6"),
        ({"pairs": -1}, "pairs=-1"),
        ({"grid": 3}, "grid=3"),
    ],
)
def test_unknown_switches_are_named(switches, message):
    with pytest.raises(RRGError, match=message):
        R2GenCSRConfig(**switches)


def test_empty_and_small_pools_are_named(config, course):
    train, val = course
    few = datasets.load_dataset("phantom", "train", 128, limit=12)
    diseased = int(few.labels.any(1).sum())
    with pytest.raises(RRGError, match=f"the pool holds {diseased} studies"):
        context_rows(replace(config, pairs=5), train, few)
    with pytest.raises(RRGError, match=r"pairs=5, but only . studies may be shown to"):
        context_rows(replace(config, pairs=5, retrieval="normal_by_mesh"), train, few)
    few.labels[:] = False
    with pytest.raises(RRGError, match="no positive studies among the 12"):
        context_rows(config, val, few)


def test_a_damaged_model_is_named(config, tmp_path):
    with pytest.raises(RRGError, match="no R2GenCSR"):
        R2GenCSR.load(tmp_path)
    R2GenCSR(config).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RRGError, match="no R2GenCSR"):
        R2GenCSR.load(tmp_path)
