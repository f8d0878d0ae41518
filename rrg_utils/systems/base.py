"""What every report generator has in common: the loss of its answers, decoding, storage, training in parallel.

A system defines `prompts(batch)`: what the language model reads of each study. An example is whatever the system needs,
with the true answer in `text` and the true text given before it in `prefix`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, NamedTuple

import joblib
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rrg_utils import processes
from rrg_utils.device import default_device
from rrg_utils.errors import RRGError
from rrg_utils.language import LoraOptions, Prompt, generate, load_llm, prompt_loss
from rrg_utils.language.prompt import TokenLoss


class GeneratedReport(NamedTuple):
    """A report and what it rests on; `evidence` is empty where a system has none to show."""

    text: str
    evidence: dict


class ReportGenerator(nn.Module):
    """A language model, frozen or with LoRA, that answers the prompts of a system.

    The configuration is a dataclass with `llm`, `lora_rank` (None: frozen), `lr` and `seed`. What a system registers
    beside the language model is trained, saved and loaded; frozen parts are kept as plain attributes elsewhere.
    """

    Config: ClassVar[type]

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        rank = config.lora_rank
        lora = None if rank is None else LoraOptions(rank, 2 * rank, seed=config.seed)
        self.llm = load_llm(config.llm, lora=lora, device=default_device())
        self.language = self.llm.model  # registered, so that LoRA weights are trained and saved

    def prompts(self, batch: Sequence) -> list[Prompt]:
        """What the language model reads of each study."""
        raise NotImplementedError

    def loss(self, batch: Sequence, word_dropout: float = 0.0) -> Tensor:
        """Mean loss per token of the answers."""
        return prompt_loss(
            self.llm, self.prompts(batch), [example.text for example in batch], word_dropout=word_dropout
        ).mean

    @torch.no_grad()
    def token_losses(self, examples: Sequence, batch: int = 64) -> list[TokenLoss]:
        """Loss of every token of the answers, given the prompts; one entry per example, in order, on the CPU."""
        self.eval()
        out: list[TokenLoss | None] = [None] * len(examples)
        order = sorted(range(len(examples)), key=lambda i: len(examples[i].prefix) + len(examples[i].text))
        for k in range(0, len(order), batch):
            chunk = [examples[i] for i in order[k : k + batch]]
            loss = prompt_loss(self.llm, self.prompts(chunk), [example.text for example in chunk])
            nll, mask = loss.nll.cpu(), loss.mask.cpu()
            for row, i in enumerate(order[k : k + batch]):
                n = int(mask[row].sum())
                out[i] = TokenLoss(nll[row : row + 1, :n], mask[row : row + 1, :n], [loss.offsets[row]])
        return out

    def mean_loss(self, examples: Sequence) -> float:
        """Loss in nats per token over all answers."""
        losses = self.token_losses(examples)
        return float(sum(loss.nll.sum() for loss in losses) / sum(loss.mask.sum() for loss in losses))

    @torch.no_grad()
    def generate(self, batch: Sequence, max_new_tokens: int = 90) -> list[GeneratedReport]:
        """What the model writes for each study (greedy); the examples' texts are not read."""
        self.eval()
        prompts = [prompt for k in range(0, len(batch), 256) for prompt in self.prompts(batch[k : k + 256])]
        return [GeneratedReport(text, {}) for text in generate(self.llm, prompts, max_new_tokens=max_new_tokens)]

    # --- storage ---

    def save(self, folder: Path) -> None:
        """What was trained (safetensors) and the configuration (JSON); the folder is made if it is not there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v.contiguous() for k, v in self.state_dict().items() if not _frozen(k)}
        save_file(kept, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "ReportGenerator":
        """A saved model in eval mode, on the GPU if there is one. RRGError where the folder holds none, or one of
        another version."""
        try:
            config = cls.Config(**json.loads((Path(folder) / "config.json").read_text()))
            weights = load_file(Path(folder) / "model.safetensors")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise RRGError(f"no {cls.__name__} in {folder}: {error}") from error
        model = cls(config)
        try:
            missing, unexpected = model.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # of other shapes
            reason = str(error).splitlines()[-1].strip()
            raise RRGError(f"the {cls.__name__} in {folder} does not fit its config.json: {reason}") from error
        wrong = unexpected + [key for key in missing if not _frozen(key)]
        if wrong:
            raise RRGError(f"the {cls.__name__} in {folder} does not fit this version: see {wrong[0]}")
        return model.to(default_device()).eval()


def loss_on(held_out: Sequence) -> Callable[[ReportGenerator], float] | None:
    """What `fit` chooses an epoch by: the mean loss on held-out examples. None where there are none."""
    return (lambda model: model.mean_loss(held_out)) if held_out else None


def _frozen(key: str) -> bool:
    """Whether a weight is one of the language model's own, which are never trained and hence not saved."""
    return key.startswith("language.") and "lora_" not in key


def in_parallel(build: Callable[..., object], configs: Sequence) -> None:
    """Call `build(config)` for every configuration, one process for each core that may be used, with one thread each.

    Matrices as small as these gain little from a second thread. With a GPU, one after the other.
    """
    configs = list(dict.fromkeys(configs))
    workers = 1 if torch.cuda.is_available() else min(processes.cores(), len(configs))
    if workers <= 1:
        for config in configs:
            build(config)
    else:
        joblib.Parallel(n_jobs=workers)(joblib.delayed(_with_one_thread)(build, config) for config in configs)


def _with_one_thread(build: Callable[..., object], config: object) -> None:
    torch.set_num_threads(1)
    build(config)
