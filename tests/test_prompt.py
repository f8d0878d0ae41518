"""Prompts: tokens at the seam, loss against transformers' own, and decoding with and without a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rrg_utils.data.cohort import cohort
from rrg_utils.data.reports import clean, load_indiana, sentences
from rrg_utils.errors import RRGError
from rrg_utils.language import LanguageModel, Prompt, generate, normalise, prompt_loss
from rrg_utils.language.prompt import _tokenise
from rrg_utils.language.tiny import train_tokenizer

SPLIT = cohort(load_indiana())
TEXTS = [clean(report.findings) for report in SPLIT.test]
WIDTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((clean(report.findings) for report in SPLIT.train[:400]), 600)


def random_llm(tokenizer, kind: str = "llama", dtype: torch.dtype = torch.float64) -> LanguageModel:
    """A small model with random weights: large ones, so that its greedy text is not one token repeated."""
    Config, Model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[kind]
    config = Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=kind == "llama",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LanguageModel(kind, Model(config).to(dtype).eval().requires_grad_(False), tokenizer)


@pytest.fixture(scope="module")
def llm(tokenizer):
    return random_llm(tokenizer)


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def varied_prompts() -> list[Prompt]:
    """Different lengths and structures: text only, embeddings first, in the middle and last, several of them."""
    return [
        Prompt("findings:"),
        Prompt(tokens(5), "findings:"),
        Prompt("image:", tokens(9, 1), " indication: chest pain. findings: the heart is normal."),
        Prompt("image:", tokens(3, 2), "and", tokens(4, 3), "findings:"),
        Prompt(tokens(7, 4)),
    ]


# --- Prompt ---


def test_prompt_is_a_sequence_of_segments():
    image = tokens(4)
    prompt = Prompt("image: ", image) + " find" + "ings:"
    assert prompt.segments[0] == "image: "
    assert prompt.segments[1] is image
    assert prompt.segments[2] == " findings:"
    assert prompt.text == "image: [4] findings:"
    assert ("a " + Prompt("b")).text == "a b"
    assert Prompt("", Prompt("a"), "").segments == ("a",)
    with pytest.raises(AttributeError):
        prompt.segments = ()


# --- Tokens at the seam ---


def test_tokens_of_prefix_and_target_are_those_of_the_whole(llm):
    """For every sentence boundary of every test report."""
    prompts, targets, wholes = [], [], []
    for text in TEXTS:
        parts = sentences(text)
        for k in range(len(parts)):
            prompts.append(Prompt(tokens(2), "findings: " + " ".join(parts[:k])))
            targets.append(" ".join(parts[k:]))
            wholes.append("findings: " + " ".join(parts))
    assert len(wholes) > 2000
    expected = llm.tokenizer(wholes, add_special_tokens=False)["input_ids"]
    alone = _tokenise(llm, prompts)
    for row, prefix, whole, target in zip(_tokenise(llm, prompts, targets), alone, expected, targets, strict=True):
        assert [i for i in row.prompt[1:] if i >= 0] + row.target == whole
        assert row.prompt == prefix.prompt  # generation continues from what the loss was computed after
        assert llm.tokenizer.decode(row.target).strip() == normalise(target)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip))
def test_any_text_round_trips(llm, text):
    if any(special in text.lower() for special in ("<pad>", "<bos>", "<eos>")) or text.lower() != text:
        return  # lower-casing may change the number of characters; checked on the reports above
    (row,) = _tokenise(llm, [Prompt("findings:")], [text])
    decoded = llm.tokenizer.decode(row.target)
    assert " ".join(decoded.split()) == normalise(text)


def test_offsets_are_the_words_of_the_target(llm):
    target = "  Heart size is  normal. No EFFUSION"
    loss = prompt_loss(llm, [Prompt("findings:"), Prompt(tokens(3))], [target, target])
    for offsets in loss.offsets:
        pieces = [target[a:b] for a, b in offsets]
        assert "".join(pieces) == "".join(target.split())
        assert not any(piece[:1].isspace() for piece in pieces)
        assert offsets[-1] == (len(target), len(target))
    assert loss.mask.sum(1).tolist() == [len(offsets) for offsets in loss.offsets]


# --- Loss ---


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_loss_equals_the_model_s_own_one_by_one(tokenizer, kind):
    """A mixed batch gives each target the loss that transformers computes for it alone, over all positions."""
    llm = random_llm(tokenizer, kind)
    prompts, targets = varied_prompts(), TEXTS[:5]
    loss = prompt_loss(llm, prompts, targets)
    assert loss.nll.dtype == torch.float32
    for i, row in enumerate(_tokenise(llm, prompts, targets)):
        pieces, embeddings = [], iter(row.embeddings)
        ids, k = row.prompt + row.target, 0
        while k < len(ids):
            if ids[k] < 0:
                pieces.append(next(embeddings))
                k += len(pieces[-1])
            else:
                pieces.append(llm.model.get_input_embeddings()(torch.tensor([ids[k]])))
                k += 1
        logits = llm.model(inputs_embeds=torch.cat(pieces)[None]).logits[0]
        labels = torch.tensor([*row.target, tokenizer.eos_token_id])
        expected = F.cross_entropy(logits[len(row.prompt) - 1 :], labels, reduction="none").float()
        assert loss.mask[i].sum() == len(labels)
        assert torch.allclose(loss.nll[i, : len(labels)], expected, atol=1e-5)
        assert not loss.nll[i, len(labels) :].any()
    assert loss.mean.item() == pytest.approx((loss.nll.sum() / loss.mask.sum()).item())


def test_gradient_reaches_embeddings_only(llm):
    image = tokens(6).requires_grad_()
    loss = prompt_loss(llm, [Prompt("image:", image, "findings:"), Prompt("findings:")], TEXTS[:2])
    loss.mean.backward()
    assert image.grad.abs().sum(1).min() > 0
    assert all(p.grad is None for p in llm.model.parameters())
    # Gradients are those of the function itself.
    step = 1e-4 * torch.randn(image.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def value(x):
        nll = prompt_loss(llm, [Prompt("image:", x, "findings:"), Prompt("findings:")], TEXTS[:2])
        return nll.nll.double().sum() / nll.mask.sum()

    with torch.no_grad():
        numeric = value(image + step) - value(image - step)
    assert numeric.item() == pytest.approx(2 * (image.grad * step).sum().item(), rel=0.05)


def test_word_dropout_changes_inputs_not_labels(llm):
    prompts, targets = [Prompt(tokens(4), "findings:")] * 2, TEXTS[:2]
    plain = prompt_loss(llm, prompts, targets)

    def dropped(p, seed):
        return prompt_loss(llm, prompts, targets, word_dropout=p, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(dropped(0.0, 0).nll, plain.nll)
    assert torch.equal(dropped(0.5, 0).nll, dropped(0.5, 0).nll)
    assert not torch.equal(dropped(0.5, 0).nll, dropped(0.5, 1).nll)
    assert dropped(0.5, 0).offsets == plain.offsets
    # The first target token is predicted from the prompt alone, which is never touched.
    assert torch.allclose(dropped(0.9, 0).nll[:, 0], plain.nll[:, 0])
    changed = [(dropped(0.3, s).nll[:, 1] - plain.nll[:, 1]).abs() > 1e-6 for s in range(100)]
    assert 0.2 < torch.stack(changed).double().mean() < 0.4


# --- Generation ---


def uncached(llm: LanguageModel, prompt: Prompt, new: int) -> tuple[str, float]:
    """Greedy text by whole forward passes without a cache, and the smallest margin between best and second token."""
    (row,) = _tokenise(llm, [prompt])
    table = llm.model.get_input_embeddings()
    pieces, embeddings, k = [], iter(row.embeddings), 0
    while k < len(row.prompt):
        pieces.append(next(embeddings).to(table.weight) if row.prompt[k] < 0 else table(torch.tensor([row.prompt[k]])))
        k += len(pieces[-1])
    ids, margin = [], float("inf")
    for _ in range(new):
        best = llm.model(inputs_embeds=torch.cat(pieces)[None], use_cache=False).logits[0, -1].topk(2)
        margin = min(margin, (best.values[0] - best.values[1]).item())
        if best.indices[0] == llm.eos:
            break
        ids.append(best.indices[0].item())
        pieces.append(table(best.indices[:1]))
    return llm.tokenizer.decode(ids, skip_special_tokens=True).strip(), margin


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cached_batch_equals_uncached_single(tokenizer, kind, dtype):
    llm = random_llm(tokenizer, kind, dtype)
    with torch.no_grad():
        expected = [uncached(llm, prompt, 24) for prompt in varied_prompts()]
    assert min(margin for _, margin in expected) > 1e-4  # far above rounding, or the comparison would be luck
    texts = [text for text, _ in expected]
    assert generate(llm, varied_prompts(), max_new_tokens=24) == texts
    assert generate(llm, varied_prompts()[::-1], max_new_tokens=24, batch_size=2) == texts[::-1]
    assert len(set(texts)) > 1


def test_rows_end_at_different_times(tokenizer):
    """A model drawn towards the end of text: rows stop one by one, and the others go on as if alone."""
    llm = random_llm(tokenizer)
    prompts = [Prompt(tokens(1 + i % 4, seed=i), "findings:" if i % 2 else "impression: no") for i in range(16)]
    table = llm.model.get_input_embeddings().weight  # tied, so this is the output layer too
    table[llm.eos] = table[3:40].mean(0) * 4
    with torch.no_grad():
        expected = [uncached(llm, prompt, 40)[0] for prompt in prompts]
    lengths = {len(tokenizer(text)["input_ids"]) for text in expected}
    assert len(lengths) > 3
    assert generate(llm, prompts, max_new_tokens=40) == expected


def test_generate_of_nothing_and_order(llm):
    assert generate(llm, []) == []
    long, short = Prompt(tokens(60), "findings:"), Prompt("findings:")
    a, b = generate(llm, [long, short], max_new_tokens=8)
    assert generate(llm, [short, long], max_new_tokens=8) == [b, a]


# --- Mistakes ---


@pytest.mark.parametrize(
    ("prompt", "target", "words"),
    [
        (Prompt("findings:"), " \n", "target 0 is empty"),
        (Prompt(torch.zeros(2, WIDTH + 1)), "normal", f"width {WIDTH + 1}, but llama expects {WIDTH}"),
        (Prompt(torch.full((2, WIDTH), float("nan"))), "normal", "not finite"),
        (Prompt(torch.zeros(300, WIDTH)), "normal", r"take 30\d tokens, but llama has a context of 256"),
    ],
)
def test_bad_input(llm, prompt, target, words):
    with pytest.raises(RRGError, match=words):
        prompt_loss(llm, [prompt], [target])


def test_more_bad_input(llm):
    with pytest.raises(RRGError, match="got 1 prompts and 2 targets"):
        prompt_loss(llm, [Prompt("a")], ["b", "c"])
    with pytest.raises(RRGError, match=r"word_dropout is 1\.5"):
        prompt_loss(llm, [Prompt("a")], ["b"], word_dropout=1.5)
    with pytest.raises(RRGError, match=r"float tensor \(n, d\): got torch.int64 \(3,\)"):
        Prompt(torch.arange(3))
    with pytest.raises(RRGError, match="not of int"):
        Prompt(3)
    with pytest.raises(RRGError, match="prompt 0 is a str"):
        generate(llm, ["findings:"])
    with pytest.raises(RRGError, match="context of 256"):
        generate(llm, [Prompt("findings:")], max_new_tokens=300)
