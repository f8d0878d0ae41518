"""From the tokens of a frozen encoder to visual tokens that a frozen language model reads.

Every system starts from the same projector, aligned once on rendered studies with balanced findings and composed
reports (`rrg_utils.data.composed`), as many as wanted: 2,069 real reports are too few to learn reading a film from.
The papers start from projectors aligned elsewhere or train them on the reports themselves, of which MIMIC-CXR has a
hundred times as many; this way is ours.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrg_utils import training
from rrg_utils.data import composed, synthetic
from rrg_utils.data.composed import Composer
from rrg_utils.data.datasets import indiana, render_films
from rrg_utils.data.reports import Report
from rrg_utils.data.synthetic import balanced_studies
from rrg_utils.device import default_device, stacked
from rrg_utils.language import LanguageModel, Prompt, load_llm, prompt, prompt_loss, tiny
from rrg_utils.systems import stored
from rrg_utils.training import FitOptions, History, fit
from rrg_utils.vision.features import film_tokens, merge_tokens
from rrg_utils.vision.pretrain import load_encoder


class FilmProjector(nn.Module):
    """MLP from encoder tokens (B, T, d) to visual tokens (B, T / 4, width of the language model).

    What is ours: tokens are taken relative to the mean film, because films differ less from patient to patient than
    from place to place, and four neighbouring tokens become one.
    """

    def __init__(self, llm: LanguageModel, encoder: str = "swin", size: int = 128, seed: int = 0) -> None:
        super().__init__()
        shape = load_encoder(encoder, size)
        width = 4 * shape.width
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 2 * llm.width), nn.GELU(), nn.Linear(2 * llm.width, llm.width)
            )
        # Projected tokens start at the size of word embeddings, so that the frozen model meets nothing outlandish.
        scale = llm.model.get_input_embeddings().weight.float().std()
        with torch.no_grad():
            self.layers[-1].weight.mul_((scale / 0.1).item())
            self.layers[-1].bias.zero_()
        self.register_buffer("mean", torch.zeros(shape.grid**2, shape.width))
        self.register_buffer("spread", torch.ones(shape.width))

    def refer_to(self, tokens: np.ndarray) -> None:
        """Take the mean film and the spread about it from the first thousand studies (N, T, d)."""
        sample = torch.from_numpy(np.asarray(tokens[:1000], np.float32))
        self.mean.copy_(sample.mean(0))
        self.spread.copy_((sample - self.mean).std((0, 1)).clamp(min=1e-3))

    def relative(self, tokens: Tensor) -> Tensor:
        """Encoder tokens (B, T, d) as deviations from the mean film."""
        return (tokens - self.mean) / self.spread

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(merge_tokens(self.relative(tokens)))

    def save(self, folder: Path) -> None:
        """All that a projector is made of."""
        save_file(self.state_dict(), folder / "projector.safetensors")


@dataclass(frozen=True)
class Alignment:
    """How the shared projector is made. All values are ours."""

    size: int = 128
    encoder: str = "swin"
    llm: str = "tiny"
    studies: int = 4000  # rendered studies
    epochs: int = 5  # each with other composed reports for the same films
    lr: float = 3e-3
    batch_size: int = 16
    seed: int = 0


def alignment_studies(count: int) -> list[Report]:
    """The rendered studies of the alignment; other ones than the encoder was pre-trained on."""
    return balanced_studies(indiana().train, count, seed=1)


def align(projector: FilmProjector, llm: LanguageModel, config: Alignment, folder: Path | None = None) -> History:
    """Train the projector alone: `image: <visual tokens> findings:` is answered by a composed report."""
    studies = alignment_studies(config.studies)
    tokens = film_tokens(render_films(studies, config.size), config.encoder, config.size)
    projector.refer_to(tokens)
    composer, rng = Composer(indiana().train), np.random.default_rng([7, config.seed])
    examples = [
        (tokens[i], composer.compose(study, rng)) for _ in range(config.epochs) for i, study in enumerate(studies)
    ]

    def loss(projector: FilmProjector, batch: list[tuple[np.ndarray, str]]) -> Tensor:
        visual = projector(stacked([seen for seen, _ in batch], llm.device))
        prompts = [Prompt("image:", tokens, "findings:") for tokens in visual]
        return prompt_loss(llm, prompts, [text for _, text in batch]).mean

    return fit(
        projector,
        loss,
        examples,
        options=FitOptions(epochs=1, batch_size=config.batch_size, lr=config.lr, seed=config.seed),
        length=lambda example: len(example[1]),
        folder=folder,
        name="aligning the projector",
    )


_CODE = [sys.modules[__name__], composed, synthetic, prompt, tiny, training]


def aligned(config: Alignment) -> Path:
    """Folder of the aligned projector, from the cache or trained now (about three minutes at the default sizes)."""

    def train(folder: Path) -> tuple[FilmProjector, History]:
        llm = load_llm(config.llm, device=default_device())
        projector = FilmProjector(llm, config.encoder, config.size, config.seed)
        return projector, align(projector, llm, config, folder)

    return stored.training("projector", config, train, _CODE)


def aligned_projector(config: Alignment) -> dict[str, Tensor]:
    """State of the aligned projector, for `FilmProjector.load_state_dict`."""
    return load_file(aligned(config) / "projector.safetensors")
