"""On a GPU everything must come out as on the processor. Skipped, with the reason, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rrg_utils.training import FitOptions, fit
from rrg_utils.vision import as_films, load_encoder
from rrg_utils.vision.features import encode
from rrg_utils.vision.pretrain import ENCODERS, Detector, predict

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
FILMS = np.random.default_rng(0).integers(0, 256, (5, 128, 128), dtype=np.uint8)


@pytest.fixture(autouse=True)
def exact_matrix_products():
    """TF32 is the default of convolutions on a GPU: faster, and rounded to three digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def detector(name):
    torch.manual_seed(0)
    return Detector(ENCODERS[name](128))


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_the_same(name):
    model = detector(name)
    expected = predict(model, FILMS)
    np.testing.assert_allclose(predict(model.cuda(), FILMS, batch=2), expected, rtol=0, atol=2e-3)


def test_films_are_encoded_where_the_model_is():
    encoder = load_encoder("swin")
    expected = encode(encoder, FILMS).astype(np.float32)
    np.testing.assert_allclose(encode(encoder.cuda(), FILMS).astype(np.float32), expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_are_the_same(name):
    gradients = {}
    for device in ("cpu", "cuda"):
        model = detector(name).to(device).eval()
        image, cells = model(as_films(FILMS).to(device))
        (image.square().mean() + cells.square().mean()).backward()
        gradients[device] = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    error = (gradients["cuda"] - gradients["cpu"]).norm() / gradients["cpu"].norm()
    assert error < 2e-3


def steps() -> list[float]:
    """Loss per epoch of a few steps, on the device that accelerate finds."""

    def loss(model, batch):
        return model(batch)[0].square().mean()

    options = FitOptions(epochs=3, batch_size=5, precision="fp32", warmup=0)
    return fit(detector("mamba"), loss, as_films(FILMS), collate=torch.stack, options=options).train


def test_the_same_steps_of_training():
    """Once here and once in a process that sees no GPU: accelerate keeps one device for a process."""
    command = [sys.executable, "-c", "import json, test_gpu; print(json.dumps(test_gpu.steps()))"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, env=os.environ | hidden, capture_output=True, text=True, check=True)
    np.testing.assert_allclose(steps(), json.loads(done.stdout), rtol=1e-3)
