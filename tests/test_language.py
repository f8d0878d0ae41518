"""Language models by name, LoRA, and the tiny model trained from the reports."""

from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save
from tiny_llm import make_llm
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rrg_utils.data.cohort import cohort
from rrg_utils.data.reports import load_indiana
from rrg_utils.errors import RRGError
from rrg_utils.language import LoraOptions, Prompt, generate, load_llm, normalise, prompt_loss
from rrg_utils.language import tiny as tiny_module
from rrg_utils.language.tiny import (
    TinyOptions,
    build_tiny,
    documents,
    train_tiny,
    train_tokenizer,
    training_documents,
)
from rrg_utils.training import FitOptions

SPLIT = cohort(load_indiana())
SMALL = TinyOptions(
    vocabulary=500,
    width=32,
    layers=1,
    heads=2,
    composed=100,
    fit=FitOptions(epochs=2, batch_size=32, lr=5e-3, precision="fp32"),
)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    """A checkpoint with random weights in transformers' format."""
    tokenizer = train_tokenizer((text for _, text in documents(SPLIT.train[:200])), 500)
    Config, Model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}[request.param]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Model(Config(vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=128, **sizes))
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_local_folder_is_frozen(folder):
    llm = load_llm(folder)
    assert (llm.width, llm.context, llm.bos, llm.eos) == (32, 128, [1], 2)
    assert not llm.model.training
    assert not any(p.requires_grad for p in llm.model.parameters())
    stored = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(llm.model.parameters(), stored.parameters(), strict=True))
    assert load_llm(str(folder), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_lora_starts_unchanged_and_trains_adapters_only(folder):
    plain, llm = load_llm(folder), load_llm(folder, lora=LoraOptions(rank=4, dropout=0.1))
    prompts, targets = [Prompt(torch.ones(3, 32), "findings:")], ["The heart is normal."]
    assert torch.allclose(prompt_loss(plain, prompts, targets).nll, prompt_loss(llm, prompts, targets).nll)
    assert generate(plain, prompts, max_new_tokens=5) == generate(llm, prompts, max_new_tokens=5)
    trainable = {n for n, p in llm.model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 7 * 2  # A and B of seven linear layers in two blocks
    assert all("lora_" in n for n in trainable)
    prompt_loss(llm, prompts, targets).mean.backward()
    assert {n for n, p in llm.model.named_parameters() if p.grad is not None} == trainable
    again = load_llm(folder, lora=4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.model.state_dict().values(), llm.model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt", "unknown language model 'gpt': give tiny, smollm2, an existing folder, or a hub id"),
        ("./nowhere", "unknown language model './nowhere'"),
        ("no-such-org/no-such-model", "hf download no-such-org/no-such-model"),
    ],
)
def test_unknown_model(monkeypatch, name, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RRGError, match=words) as error:
        load_llm(name)
    assert "\n" not in str(error.value)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(RRGError, match=r"cannot load language model .*: check that the folder holds") as error:
        load_llm(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_whose_weights_are_not_whole(tmp_path):
    """Cut files, files of another size, and files that lack a matrix, which would be random."""
    name = make_llm(tmp_path / "llm", ["The heart is normal.", "No effusion."])
    file = tmp_path / "llm" / "model.safetensors"
    whole = file.read_bytes()
    weights = load_file(file)
    lacking = {key: value for key, value in weights.items() if "down_proj" not in key}
    narrow = {key: value[..., :3].contiguous() if "down_proj" in key else value for key, value in weights.items()}
    for content in (
        b"",
        b"{",
        whole[: len(whole) // 2],
        save(lacking, {"format": "pt"}),
        save(narrow, {"format": "pt"}),
    ):
        file.write_bytes(content)
        with pytest.raises(RRGError, match=r"language model .*check that") as error:
            load_llm(name)
        assert "\n" not in str(error.value)
    file.write_bytes(whole)
    assert load_llm(name)


def test_rank_of_lora():
    with pytest.raises(RRGError, match="lora rank is 0"):
        LoraOptions(rank=0)


# --- The tiny model ---


def test_documents_are_described_reports():
    documents_ = documents(SPLIT.train)
    assert len(documents_) == len(SPLIT.train)
    assert all(document.text.strip() for document in documents_)
    assert all(d.prompt.startswith("image: ") and d.prompt.endswith(" findings:") for d in documents_)


def test_training_documents_are_real_composed_and_some_undescribed():
    options = replace(SMALL, composed=400, undescribed=0.25)
    found = training_documents(SPLIT.train, options)
    assert found == training_documents(SPLIT.train, options)
    assert [d.text for d in found[: len(SPLIT.train)]] == [d.text for d in documents(SPLIT.train)]
    assert len(found) == len(SPLIT.train) + 400
    assert 0.22 < sum(d.prompt == "findings:" for d in found) / len(found) < 0.28
    of_others = {d.text for d in documents(SPLIT.val) + documents(SPLIT.test)} - {
        d.text for d in documents(SPLIT.train)
    }
    assert not of_others & {d.text for d in found}


def test_tokenizer_writes_back_normalised_text():
    tokenizer = train_tokenizer((text for _, text in documents(SPLIT.train)), 1000)
    assert len(tokenizer) == 1000
    for _, text in documents(SPLIT.test):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == normalise(text)
    # Also what the training text never held.
    assert (
        tokenizer.decode(tokenizer("Ünïcode ☃ 3.5 cm")["input_ids"], skip_special_tokens=True).strip()
        == "ünïcode ☃ 3.5 cm"
    )
    assert tokenizer("findings:")["input_ids"] == tokenizer(" Findings:")["input_ids"]


def test_tiny_trains_is_cached_and_the_same_again(tmp_path, monkeypatch):
    """With small sizes: from the reports to a frozen model, twice the same bits; a killed build is taken up again."""
    monkeypatch.setenv("RRG_CACHE", str(tmp_path / "cache"))
    few = replace(SPLIT, train=SPLIT.train[:300], val=SPLIT.val[:30])
    monkeypatch.setattr(tiny_module, "cohort", lambda _: few)

    calls = 0

    def dying_fit(module, loss, *args, **kwargs):
        def dying_loss(*inputs):
            nonlocal calls
            calls += 1
            if calls > 25:
                raise KeyboardInterrupt
            return loss(*inputs)

        return tiny_fit(module, dying_loss, *args, **kwargs)

    tiny_fit = tiny_module.fit
    monkeypatch.setattr(tiny_module, "fit", dying_fit)
    with pytest.raises(KeyboardInterrupt):
        build_tiny(SMALL)
    monkeypatch.setattr(tiny_module, "fit", tiny_fit)
    path = build_tiny(SMALL)
    assert build_tiny(SMALL) == path
    history = train_tiny(training_documents(few.train, SMALL), documents(few.val), tmp_path / "again", SMALL)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not (path / "checkpoints").exists()

    llm = load_llm(path)
    prompts, texts = zip(*documents(few.val), strict=True)
    loss = prompt_loss(llm, [Prompt(prompt) for prompt in prompts], texts)
    assert loss.mean.item() == pytest.approx(min(history.validation), rel=1e-4)
    assert loss.mean.item() < 5.5  # a uniform guess would be log(500) = 6.2
    assert asdict(SMALL)["fit"]["epochs"] == 2
