"""Any model that transformers loads: families, memory, hub trouble. Checkpoints are random and made here."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from rrg_utils.errors import RRGError
from rrg_utils.language import LoraOptions, Prompt, generate, load_llm, prompt_loss
from rrg_utils.language import models as models_module
from rrg_utils.language.memory import gigabytes, memory_need, need_by_name
from rrg_utils.language.tiny import train_tokenizer

FAMILIES = ("Llama", "Mistral", "Qwen2", "Phi3", "Phi", "GPTNeoX")
TEXTS = ["The heart is normal in size.", "There is a small left pleural effusion.", "No pneumothorax is seen."] * 4
WIDTH = 32


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """family -> folder; large random weights, so that the greedy text is not one token repeated."""
    tokenizer = train_tokenizer(TEXTS, 300)
    folders = {}
    for family in FAMILIES:
        config = getattr(transformers, f"{family}Config")(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=128,
            initializer_range=0.3,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **({} if family == "GPTNeoX" else {"num_key_value_heads": 2}),
        )
        torch.manual_seed(1)
        folders[family] = tmp_path_factory.mktemp(family)
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[family])
        tokenizer.save_pretrained(folders[family])
    return folders


@pytest.fixture(params=FAMILIES)
def folder(request, checkpoints):
    return checkpoints[request.param]


@pytest.fixture
def llama(checkpoints):
    return checkpoints["Llama"]


def embeddings(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts() -> list[Prompt]:
    """Of different lengths and structures."""
    return [
        Prompt("image:", embeddings(5), "findings:"),
        Prompt(embeddings(2, 1), "findings: the heart"),
        Prompt("the image is", embeddings(9, 2), "and", embeddings(3, 3)),
        Prompt("findings:"),
    ]


def uncached(llm, prompt: Prompt, new: int) -> list[int]:
    """Greedy tokens, everything computed anew for each."""
    pieces = [torch.tensor(llm.bos)] if llm.bos else []
    for part in prompt.segments:
        text = isinstance(part, str)
        ids = llm.tokenizer(part.rstrip(" "), add_special_tokens=False)["input_ids"] if text else None
        pieces.append(torch.tensor(ids) if text else part)
    table = llm.model.get_input_embeddings()
    embeds = torch.cat([p if p.is_floating_point() else table(p) for p in pieces])[None]
    tokens = []
    with torch.no_grad():
        for _ in range(new):
            token = int(llm.model(inputs_embeds=embeds, use_cache=False).logits[0, -1].argmax())
            if token == llm.eos:
                break
            tokens.append(token)
            embeds = torch.cat([embeds, table(torch.tensor([[token]]))], 1)
    return tokens


# --- families ---


def test_batched_cached_decoding_equals_decoding_anew(folder):
    llm = load_llm(folder, dtype=torch.float64)
    expected = [uncached(llm, prompt, 12) for prompt in prompts()]
    assert len({token for tokens in expected for token in tokens}) > 8, "too dull a text to tell anything"
    decoded = [llm.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in expected]
    assert generate(llm, prompts(), max_new_tokens=12) == decoded


def test_loss_in_a_batch_is_the_loss_alone_and_that_of_transformers(folder):
    llm = load_llm(folder, dtype=torch.float64)
    targets = TEXTS[:3] + ["No effusion."]
    together = prompt_loss(llm, prompts(), targets)
    for row, (prompt, target) in enumerate(zip(prompts(), targets, strict=True)):
        alone = prompt_loss(llm, [prompt], [target])
        n = int(alone.mask.sum())
        torch.testing.assert_close(together.nll[row, :n], alone.nll[0], rtol=1e-6, atol=1e-6)
    ids = torch.tensor([[*llm.bos, *llm.tokenizer("no effusion.", add_special_tokens=False)["input_ids"], llm.eos]])
    theirs = llm.model(ids, labels=ids).loss
    assert prompt_loss(llm, [Prompt()], ["no effusion."]).mean.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=4, dropout=0.2)], ids=["frozen", "lora"])
def test_checkpointing_changes_memory_and_not_gradients(folder, lora):
    """Also of a frozen model, which stays in eval mode; and what is written stays the same."""
    found = []
    for name in (str(folder), f"{folder}:checkpointing"):
        llm = load_llm(name, lora=lora, dtype=torch.float64)
        llm.model.train(lora is not None)
        kept = []
        x = embeddings(5).requires_grad_()
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = prompt_loss(llm, [Prompt("image:", x, "findings:")], TEXTS[:1]).mean
        loss.backward()
        trained = [p.grad for p in llm.model.parameters() if p.requires_grad]
        assert bool(trained) == (lora is not None)
        found.append((loss, x.grad, trained, sum(kept), generate(llm, prompts()[:2], max_new_tokens=6)))
    plain, thrifty = found
    assert thrifty[3] < 0.7 * plain[3]
    torch.testing.assert_close(thrifty[:3], plain[:3])
    assert plain[1].abs().sum() > 0
    assert thrifty[4] == plain[4]


def test_lora_has_adapters_on_every_linear_layer_but_the_output(folder):
    llm = load_llm(folder, lora=2)
    trainable = {n for n, p in llm.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trainable)
    output = llm.model.get_output_embeddings()
    linear = [m for m in llm.model.modules() if type(m) is torch.nn.Linear and m is not output]
    adapters = [m for m in linear if m.weight.requires_grad]
    assert len(adapters) == len(trainable) == 2 * (len(linear) - len(adapters))


def test_device_map_of_accelerate(llama):
    expected = generate(load_llm(llama), prompts(), max_new_tokens=9)
    for device_map in ("auto", {"": "cpu"}):
        assert generate(load_llm(llama, device_map=device_map), prompts(), max_new_tokens=9) == expected


def test_bf16_where_it_is_stored_in_16_bits_and_fast(llama, tmp_path, monkeypatch):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(half)
    load_llm(llama).tokenizer.save_pretrained(half)
    for fast, stored, expected in [
        (True, half, torch.bfloat16),
        (True, llama, torch.float32),
        (False, half, torch.float32),
    ]:
        monkeypatch.setattr(models_module, "autocast_bf16", lambda device, fast=fast: fast)
        llm = load_llm(stored, lora=2)
        assert llm.model.get_input_embeddings().weight.dtype == expected
        assert prompt_loss(llm, [Prompt(embeddings(3), "findings:")], TEXTS[:1]).mean.isfinite()
    assert load_llm(half, dtype=torch.float64).model.dtype == torch.float64


# --- memory ---


def test_estimate_counts_the_weights_exactly_and_the_cache(folder):
    config = AutoConfig.from_pretrained(folder)
    llm = load_llm(folder)
    need = memory_need(config, torch.float32)
    assert need.parameters == sum(p.numel() for p in llm.model.parameters())
    assert need.weights == 4 * need.parameters
    assert memory_need(config, torch.bfloat16).weights == 2 * need.parameters
    assert need.tokens == 128
    ids = torch.ones(1, need.tokens, dtype=torch.long)
    cache = transformers.DynamicCache(config=config)
    llm.model(ids, use_cache=True, **{models_module.CACHE: cache})
    assert need.cache == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))


def test_estimate_of_a_published_model_and_of_4_bits():
    """Llama-2-7B: 6,738,415,616 weights, 131,072,000 of them in each of the two vocabularies."""
    config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    need = memory_need(config, torch.bfloat16)
    assert need.parameters == 6_738_415_616
    assert need.cache == 2 * 32 * 4096 * 2 * 512
    assert "13.5 GB for 6.74 B weights" in str(need)
    quarter = memory_need(config, torch.bfloat16, four_bit=True)
    linear = need.parameters - 2 * 131_072_000 - 65 * 4096
    assert quarter.weights == pytest.approx(need.weights - linear * (2 - 4.127 / 8))
    thrifty = memory_need(config, torch.bfloat16, checkpointing=True)
    assert thrifty.activations < need.activations / 5
    assert need.total == need.weights + need.activations


def test_activations_of_the_estimate_are_of_the_right_size(llama):
    """What autograd keeps for one sequence, against the estimate: within a factor of two."""
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4
    )
    need = memory_need(config, torch.float32)
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    storages = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, need.tokens, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = model(inputs_embeds=x, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], torch.zeros(need.tokens, dtype=torch.long))
    kept = sum(size for pointer, size in storages.items() if pointer not in weights)
    assert 0.5 < kept / need.activations < 2


def test_too_little_memory_is_refused_before_weights_are_read(llama, tmp_path, monkeypatch):
    """A folder of configuration and tokenizer alone: whoever looked for weights would complain of them."""
    config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    config.save_pretrained(tmp_path)
    load_llm(llama).tokenizer.save_pretrained(tmp_path)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=8_000_000_000))
    with pytest.raises(RRGError) as caught:
        load_llm(tmp_path)
    said = str(caught.value)
    for words in (
        "not enough memory",
        "8 GB are free on this machine",
        "in 32 bits it needs about",
        "27 GB for 6.74 B",
    ):
        assert words in said
    assert f"{tmp_path}:4bit would do" in said
    assert "\n" not in said
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=80_000_000_000))
    with pytest.raises(RRGError, match=r"cannot load language model .*check that the folder holds"):
        load_llm(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("meta-llama/Llama-2-7b-chat-hf", " (by its name it needs about 14 GB for its weights, 3.5 GB in 4 bits)"),
        ("Qwen/Qwen1.5-1.8B-Chat", " (by its name it needs about 3.6 GB for its weights, 900 MB in 4 bits)"),
        ("org/small-135M", " (by its name it needs about 270 MB for its weights, 67.5 MB in 4 bits)"),
        ("org/model-v2", ""),
        ("org/biobert", ""),
    ],
)
def test_need_by_name(name, words):
    assert need_by_name(name) == words


def test_gigabytes():
    assert [gigabytes(n) for n in (13_476_831_232, 270e6, 41e6)] == ["13.5 GB", "270 MB", "41 MB"]


# --- 4 bits ---


def test_4_bits_need_a_gpu_and_bitsandbytes(llama, monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(RRGError, match="4-bit weights need an NVIDIA GPU"):
            load_llm(f"{llama}:4bit")
    with pytest.raises(RRGError, match="4-bit weights need an NVIDIA GPU"):
        load_llm(llama, four_bit=True, device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(models_module, "find_spec", lambda name: None)
    with pytest.raises(RRGError, match=r"need bitsandbytes: pip install -e '\.\[gpu\]'"):
        load_llm(llama, four_bit=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_4_bits_on_a_gpu(llama):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    llm = load_llm(llama, four_bit=True, lora=2)
    loss = prompt_loss(llm, [Prompt(embeddings(3), "findings:")], TEXTS[:1]).mean
    loss.backward()
    assert loss.isfinite()
    assert generate(llm, prompts(), max_new_tokens=9)


# --- the hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of our own on this machine: org/gated is gated, org/broken has no weights, nothing else exists."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            gated = "org/gated" in self.path
            body = b""
            if "org/broken" in self.path and self.path.endswith("config.json"):
                body = json.dumps({"model_type": "nobody-knows-this"}).encode()
            status = 200 if body else 403 if gated else 404
            self.send_response(status)
            if not body:
                self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path))
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/gated-7b", ["it is gated", "accept its terms on http", "/org/gated-7b", "hf auth login", "about 14 GB"]),
        ("org/nobody", ["the hub has no model of this name", "check the spelling", "hf auth login"]),
        ("org/broken", ["nobody-knows-this"]),
    ],
)
def test_the_hub_says_no(hub, name, words):
    with pytest.raises(RRGError) as caught:
        load_llm(name)
    for word in (f"cannot load language model {name}", *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hub_does_not_answer(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between its tries
    hub.shutdown()
    hub.server_close()
    with pytest.raises(RRGError, match=r"cannot load language model org/other-13b: .*hf download org/other-13b.*26 GB"):
        load_llm("org/other-13b")


def test_the_hub_is_switched_off(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RRGError) as caught:
        load_llm("mistralai/Mistral-7B-no-such:4bit")
    said = str(caught.value)
    if torch.cuda.is_available():
        assert "the hub is switched off: unset HF_HUB_OFFLINE, or hf download mistralai/Mistral-7B-no-such" in said
    with pytest.raises(RRGError, match=r"switched off: unset HF_HUB_OFFLINE, or hf download a/b-7b.* about 14 GB"):
        load_llm("a/b-7b")


def test_a_switch_that_does_not_exist_is_no_model():
    with pytest.raises(RRGError, match="unknown language model 'tiny:8bit'"):
        load_llm("tiny:8bit")
