"""The narrative model: its prompt, what each stage trains, its losses, and that it can learn to use its image."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_llm import make_llm

from rrg_utils.errors import RRGError
from rrg_utils.systems.narrative import Example, NarrativeConfig, NarrativeVLM, oracle
from rrg_utils.training import FitOptions, fit

TEXTS = [
    "The heart is enlarged. No effusion.",
    "There is a left pleural effusion. The heart is normal.",
    "The lungs are clear. No pneumothorax.",
    "A pacemaker is present. The lungs are clear.",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A narrative model over a random language model of the tiny one's kind."""
    llm = make_llm(tmp_path_factory.mktemp("llm"), TEXTS, context=256)
    return NarrativeConfig(llm=llm, lora_rank=4)


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    return [Example(rng.standard_normal((64, 192)).astype(np.float16), text) for text in TEXTS]


@pytest.fixture(scope="module")
def model(config):
    return NarrativeVLM(config).eval()


def test_the_prompt_shows_sixteen_visual_tokens(model, examples):
    (first, second) = model.prompts([examples[0], examples[1]._replace(prefix="The heart is enlarged.")])
    assert first.text == "image:[16]findings:"
    assert second.text == "image:[16]findings: The heart is enlarged."


def test_the_oracle_reads_words_and_has_no_projector(config):
    model = NarrativeVLM(oracle(config))
    (prompt,) = model.prompts([Example("the heart is enlarged.", "Cardiomegaly.", "Low volumes.")])
    assert prompt.text == "image: the heart is enlarged. findings: Low volumes."
    assert not any(name.startswith("projector") for name in model.state_dict())


def test_a_prefix_moves_no_token(model, examples):
    """Chain rule: the tokens after a true prefix cost the same whether the prefix is prompt or target."""
    whole = model.token_losses(examples)
    cut = [replace_prefix(example) for example in examples]
    rest = model.token_losses(cut)
    for a, b in zip(whole, rest, strict=True):
        torch.testing.assert_close(a.nll[0, -b.nll.shape[1] :], b.nll[0], atol=1e-4, rtol=1e-4)


def replace_prefix(example):
    first, rest = example.text.split(". ", 1)
    return example._replace(prefix=first + ".", text=rest)


def test_losses_do_not_depend_on_the_batch(model, examples):
    together = model.token_losses(examples)
    for example, loss in zip(examples, together, strict=True):
        (alone,) = model.token_losses([example])
        torch.testing.assert_close(alone.nll, loss.nll, atol=1e-4, rtol=1e-4)
    total = sum(loss.nll.sum() for loss in together) / sum(loss.mask.sum() for loss in together)
    assert model.mean_loss(examples) == pytest.approx(float(total), rel=1e-5)
    assert float(model.loss(examples, word_dropout=0.0).detach()) == pytest.approx(float(total), rel=1e-4)


def trained_parameters(model, examples):
    model.zero_grad()
    model.loss(examples, word_dropout=0.0).backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}


def test_projector_and_lora_are_trained_and_nothing_else(config, examples):
    found = trained_parameters(NarrativeVLM(config), examples)
    assert any("lora_" in name for name in found)
    assert all(name.startswith("projector.") or "lora_" in name for name in found)


def test_without_lora_the_language_model_stays_frozen(config, examples):
    model = NarrativeVLM(replace(config, lora_rank=None))
    assert all(name.startswith("projector.") for name in trained_parameters(model, examples))


def test_it_can_learn_to_read_its_image(config, examples):
    """Four reports, four images: after training, the own image beats another one's and black."""
    model = NarrativeVLM(config)
    model.language.requires_grad_(True)  # the random language model must learn the words as well
    options = FitOptions(epochs=60, batch_size=4, lr=1e-2)
    fit(model, lambda m, batch: m.loss(batch, 0.3), examples, options=options)
    swapped = [e._replace(seen=examples[i - 1].seen) for i, e in enumerate(examples)]
    black = [e._replace(seen=np.zeros_like(e.seen)) for e in examples]
    own = model.mean_loss(examples)
    assert own < model.mean_loss(swapped) - 0.3
    assert own < model.mean_loss(black) - 0.1


def test_what_is_saved_comes_back(config, examples, tmp_path):
    model = NarrativeVLM(config)
    fit(model, lambda m, batch: m.loss(batch), examples, options=FitOptions(epochs=2, batch_size=4))
    model.save(tmp_path)
    again = NarrativeVLM.load(tmp_path)
    assert again.config == config
    assert again.mean_loss(examples) == pytest.approx(model.mean_loss(examples), abs=1e-6)
    assert [r.text for r in again.generate(examples, 12)] == [r.text for r in model.generate(examples, 12)]


def test_what_is_written_does_not_depend_on_the_reference(model, examples):
    blind = [example._replace(text="") for example in examples]
    assert [r.text for r in model.generate(examples, 12)] == [r.text for r in model.generate(blind, 12)]


def test_a_missing_or_damaged_model_is_named(config, tmp_path):
    with pytest.raises(RRGError, match=r"config\.json"):
        NarrativeVLM.load(tmp_path)
    NarrativeVLM(config).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RRGError, match="no NarrativeVLM"):
        NarrativeVLM.load(tmp_path)
