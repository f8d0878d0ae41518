"""Encoders of timm and torchxrayvision behind our interface. Their weights here are random and lie in files."""

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_llm import make_llm

from rrg_utils.data.datasets import Films
from rrg_utils.errors import RRGError
from rrg_utils.systems.narrative import Example, NarrativeConfig, NarrativeVLM
from rrg_utils.training import FitOptions, fit
from rrg_utils.vision import as_films, load_detector, load_encoder
from rrg_utils.vision.features import encode, film_tokens, weights_hash
from rrg_utils.vision.pretrained import locate, parse

timm = pytest.importorskip("timm")
# A convolutional map (B, C, H, W); one with channels last; a sequence of tokens after a class token.
MODELS = {"test_resnet": 5, "test_mambaout": 5, "test_vit": 10}  # {model: grid at the 160 px it was made for}
NATIVE = 160
FILMS = np.random.default_rng(0).integers(0, 256, (3, NATIVE, NATIVE), dtype=np.uint8)


def save(path: Path, model: torch.nn.Module, without: tuple[str, ...] = ()) -> str:
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(without or "\n")}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return str(path)


def random_model(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, **options)
    for key, buffer in model.named_buffers():  # no two channels and no two layers alike
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timm")
    return {name: save(folder / f"{name}.safetensors", random_model(name)) for name in MODELS}


def name_of(files, model):
    return f"timm:{model}@{files[model]}"


# --- timm ---


@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_the_models_own_features_of_a_grey_picture(model, files):
    encoder = load_encoder(name_of(files, model), NATIVE)
    reference = random_model(model)
    data = timm.data.resolve_model_data_config(reference)
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    features = reference.forward_features((as_films(FILMS).expand(-1, 3, -1, -1) - mean) / std)
    grid = MODELS[model]
    if model == "test_vit":
        expected, pooled = features[:, 1:], features[:, 0]
    else:
        places = features.permute(0, 2, 3, 1) if model == "test_resnet" else features
        expected = torch.stack([places[:, i, j] for i in range(grid) for j in range(grid)], 1)
        pooled = expected.mean(1)
    seen = encoder(as_films(FILMS))
    torch.testing.assert_close(seen.tokens, expected)
    torch.testing.assert_close(seen.pooled, pooled)
    assert (encoder.size, encoder.grid, encoder.width) == (NATIVE, grid, expected.shape[-1])
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("model", MODELS)
def test_other_sizes(model, files):
    """Convolutions take other sizes as they are; timm resamples the ViT's positions."""
    encoder = load_encoder(name_of(files, model), 128)
    assert encoder(as_films(FILMS[:, :128, :128])).tokens.shape == (3, encoder.grid**2, encoder.width)
    assert encoder.grid == MODELS[model] * 128 // NATIVE
    with pytest.raises(RRGError, match=r"on films of 100 px: expected a multiple of \d+ px .*pre-trained at 160 px"):
        load_encoder(name_of(files, model), 100)
    with pytest.raises(RRGError, match=re.escape("expected (B, 1, 128, 128)")):
        encoder(torch.zeros(1, 1, 64, 64))


def test_positions_of_another_size_are_resampled(files):
    from timm.layers import resample_abs_pos_embed

    own = random_model("test_vit").pos_embed
    expected = resample_abs_pos_embed(own, (8, 8), num_prefix_tokens=1)
    torch.testing.assert_close(load_encoder(name_of(files, "test_vit"), 128).body.pos_embed, expected)


def test_tokens_are_in_row_major_order_of_the_film(files):
    encoder = load_encoder(name_of(files, "test_mambaout"), NATIVE)
    dark = torch.full((3, 1, NATIVE, NATIVE), 0.3)
    dark[1, :, :16, -16:] = 1
    dark[2, :, -16:, :16] = 1
    tokens = encoder(dark).tokens
    moved = (tokens[1:] - tokens[:1]).norm(dim=-1)
    assert moved.argmax(1).tolist() == [4, 20]


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "bin"])
def test_a_classifier_of_another_kind_or_none_is_no_matter(suffix, files, tmp_path):
    expected = load_encoder(name_of(files, "test_resnet"), NATIVE)(as_films(FILMS)).tokens
    headless = save(tmp_path / f"a.{suffix}", random_model("test_resnet"), without=("fc.",))
    model = random_model("test_resnet")
    model.reset_classifier(14)
    of_14 = save(tmp_path / f"b.{suffix}", model)
    for path in (headless, of_14):
        torch.testing.assert_close(load_encoder(f"timm:test_resnet@{path}", NATIVE)(as_films(FILMS)).tokens, expected)


def test_weights_of_another_model_are_refused(files, tmp_path):
    with pytest.raises(RRGError, match=r"test_vit\.safetensors: not the weights of this encoder"):
        load_encoder(f"timm:test_resnet@{files['test_vit']}", NATIVE)
    cut = save(tmp_path / "cut.safetensors", random_model("test_resnet"), without=("layer4.0.conv1",))
    with pytest.raises(RRGError, match=r"1 names differ, such as layer4\.0\.conv1\.weight"):
        load_encoder(f"timm:test_resnet@{cut}", NATIVE)
    model = random_model("test_resnet")
    model.layer4[0].bn1.weight = torch.nn.Parameter(torch.ones(3))
    wide = save(tmp_path / "wide.safetensors", model)
    with pytest.raises(RRGError, match=r"size mismatch for layer4\.0\.bn1\.weight"):
        load_encoder(f"timm:test_resnet@{wide}", NATIVE)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_a_file_of_weights_is_run(tmp_path):
    (tmp_path / "model.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "run"), protocol=2))
    torch.save({"state_dict": Harmful(tmp_path / "run")}, tmp_path / "model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    for suffix in ("pth", "bin", "safetensors"):
        with pytest.raises(
            RRGError, match=rf"model\.{suffix}: no weights can be read from it .* expected a state dict"
        ):
            load_encoder(f"timm:test_resnet@{tmp_path}/model.{suffix}", NATIVE)
    assert not (tmp_path / "run").exists()


def test_models_without_a_grid_are_refused(tmp_path):
    (tmp_path / "none.safetensors").touch()
    with pytest.raises(RRGError, match=r"pit_ti_224 cannot be used .* not one token per patch"):
        load_encoder(f"timm:pit_ti_224@{tmp_path}/none.safetensors", 224)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:swin_base_patch4_window7_225", r"did you mean timm:swin_base_patch4_window7_224\?\)"),
        ("timm:test_vit.r161_in1k", r"did you mean timm:test_vit\.r160_in1k\?\)"),
        ("xrv:densenet121-res224-al", r"did you mean xrv:densenet121-res224-all\?\)"),
        ("tim:resnet18", "unknown encoder 'tim:resnet18': before the colon stands one of timm, xrv"),
        ("timm:resnet18@nowhere.pth", r"timm:resnet18: there is no file 'nowhere\.pth'"),
        ("swim", r"unknown encoder 'swim' \(did you mean swin\?\); known: swin, .*timm:NAME, xrv:NAME"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(RRGError, match=message):
        load_encoder(name, 224)


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        "no weights of timm:test_vit: they are not in the local cache and HF_HUB_OFFLINE is set: "
        r"hf download timm/test_vit\.r160_in1k model\.safetensors, .*name a file: timm:test_vit@FILE"
    )
    for ask in (locate, lambda name: load_encoder(name, NATIVE)):
        with pytest.raises(RRGError, match=message):
            ask("timm:test_vit")
    unpublished = next(name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).hf_hub_id)
    with pytest.raises(RRGError, match=f"hub has no weights of timm:{unpublished} .* timm:{unpublished}@FILE"):
        locate(f"timm:{unpublished}")


def test_only_our_own_have_heads(files):
    with pytest.raises(RRGError, match="has no heads for findings and regions: choose from swin, mamba"):
        load_detector(name_of(files, "test_resnet"), NATIVE)


# --- what is made with them ---


def test_the_hash_is_of_the_weights_not_of_the_file(files, tmp_path):
    names = [name_of(files, "test_resnet")]
    names.append(f"timm:test_resnet@{save(tmp_path / 'copy.pth', random_model('test_resnet'))}")
    model = random_model("test_resnet")
    model.conv1[0].weight.data[0, 0, 0, 0] += 1
    names.append(f"timm:test_resnet@{save(tmp_path / 'other.pth', model)}")
    first, copy, other = (weights_hash(name, NATIVE) for name in names)
    assert first == copy
    assert len({first, other, weights_hash(names[0], 128)}) == 3


def test_tokens_of_films_are_made_and_kept(files, tmp_path, monkeypatch):
    monkeypatch.setenv("RRG_CACHE", str(tmp_path))
    name = name_of(files, "test_resnet")
    none = np.zeros((len(FILMS), 0), np.uint8)
    tokens = film_tokens(Films(FILMS, none, none, "three"), name, NATIVE)
    expected = encode(load_encoder(name, NATIVE), FILMS)
    assert tokens.dtype == np.float16
    np.testing.assert_allclose(tokens, expected, atol=0 if not torch.accelerator.is_available() else 0.01)
    assert len([*tmp_path.glob("tokens/*/tokens.npy")]) == 1


def test_a_system_is_trained_on_them(files, tmp_path):
    """One step of the narrative model: 5 x 5 patches of the encoder become 3 x 3 visual tokens."""
    texts = ["The heart is enlarged. No effusion.", "The lungs are clear.", "There is a left effusion."]
    name = name_of(files, "test_resnet")
    config = NarrativeConfig(
        size=NATIVE, encoder=name, llm=make_llm(tmp_path, texts, context=256), lora_rank=None, align_studies=0
    )
    model = NarrativeVLM(config)
    seen = encode(load_encoder(name, NATIVE), FILMS)
    model.projector.refer_to(seen)
    examples = [Example(tokens, text) for tokens, text in zip(seen, texts, strict=True)]
    assert model.prompts(examples)[0].text == "image:[9]findings:"
    before = model.projector.layers[-1].weight.clone()
    history = fit(model, lambda m, batch: m.loss(batch), examples, options=FitOptions(epochs=1, batch_size=3, warmup=0))
    assert math.isfinite(history.train[0])
    assert not torch.equal(model.projector.layers[-1].weight.cpu(), before)
    (tmp_path / "saved").mkdir()
    model.cpu().save(tmp_path / "saved")
    assert [r.text for r in NarrativeVLM.load(tmp_path / "saved").generate(examples, 4)] == [
        r.text for r in model.generate(examples, 4)
    ]


# --- torchxrayvision ---


@pytest.fixture(scope="module")
def densenet():
    from torchxrayvision.models import DenseNet

    torch.manual_seed(0)
    return DenseNet().eval()


def normalised(films: np.ndarray) -> torch.Tensor:
    """As its users scale films."""
    from torchxrayvision.utils import normalize

    return torch.from_numpy(np.stack([normalize(film.astype(np.float32), 255) for film in films]))[:, None]


@torch.no_grad()
def test_densenet_from_a_state_dict(densenet, tmp_path):
    name = f"xrv:densenet121-res224-all@{save(tmp_path / 'densenet.pt', densenet)}"
    encoder = load_encoder(name, 64)
    films = FILMS[:2, :64, :64]
    seen = encoder(as_films(films))
    torch.testing.assert_close(seen.pooled, densenet.features2(normalised(films)), rtol=1e-3, atol=1e-4)
    assert seen.tokens.shape == (2, 4, 1024)
    assert (encoder.grid, encoder.width) == (2, 1024)
    with pytest.raises(RRGError, match="films of 100 px: expected a multiple of 32"):
        load_encoder(name, 100)


def test_densenet_from_where_torchxrayvision_keeps_it(densenet, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "xrv:densenet121-res224-chex"
    with pytest.raises(
        RRGError, match=r"curl -L --create-dirs -o (~/\.torchxrayvision/\S+\.pt) https://github\.com/\S+"
    ):
        load_encoder(name, 64)
    path = (
        tmp_path / ".torchxrayvision" / "models_data" / "chex-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
    )
    path.parent.mkdir(parents=True)
    torch.save(densenet, path)  # the whole model, as torchxrayvision's own files
    assert locate(name) == path
    tokens = load_encoder(name, 64)(as_films(FILMS[:1, :64, :64])).tokens
    again = load_encoder(f"{name}@{save(tmp_path / 'state.pt', densenet)}", 64)(as_films(FILMS[:1, :64, :64])).tokens
    torch.testing.assert_close(tokens, again)
    with pytest.raises(RRGError, match=r"no weights can be read from it .* expected a state dict"):
        load_encoder(f"{name}@{path}", 64)  # a pickled model from elsewhere could run anything
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RRGError, match=r"torchxrayvision cannot load it .* remove it and fetch it again"):
        load_encoder(name, 64)


@torch.no_grad()
def test_resnet_from_a_state_dict(tmp_path):
    from torchvision.models import resnet50

    torch.manual_seed(0)
    reference = resnet50(num_classes=18).eval()
    reference.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    films = FILMS[:2, :64, :64]
    encoder = load_encoder(f"xrv:resnet50-res512-all@{save(tmp_path / 'resnet.pt', reference)}", 64)
    reference.fc = torch.nn.Identity()
    torch.testing.assert_close(encoder(as_films(films)).pooled, reference(normalised(films)), rtol=1e-3, atol=1e-4)
    assert (encoder.grid, encoder.width) == (2, 2048)


def test_importing_torchxrayvision_leaves_warnings_alone():
    import warnings

    before = list(warnings.filters)
    parse("xrv:densenet121-res224-all")
    assert warnings.filters == before
