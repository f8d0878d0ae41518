"""The tiny language model: a small Llama that knows how the training split's reports are written, and nothing else.

It is trained on first use, on findings and impressions of the training reports and on no validation or test report,
stopped early on the validation split, cached and then frozen. It is not committed: the reports' licence allows no
derived copies.

Text form. Reports differ in their use of capitals and the model is small, so the tokenizer writes lower case and single
blanks: decoding gives back `normalise(text)`, not `text`. Compare references in that form.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data.cohort import cohort
from rrg_utils.data.reports import Report, clean, load_indiana
from rrg_utils.language import prompt
from rrg_utils.language.models import LanguageModel, no_bars
from rrg_utils.language.prompt import Prompt, TokenLoss, prompt_loss
from rrg_utils.training import FitOptions, History, fit

SECTIONS = ("findings", "impression")  # the other two say why the film was made, not what it shows


@dataclass(frozen=True)
class TinyOptions:
    """Sizes and schedule (our choice): 2.2 M parameters, small enough to be trained on two CPU cores at first use.

    With the defaults the loss on the validation findings was 1.97 nats per token after six epochs, and still falling.
    """

    vocabulary: int = 2000
    width: int = 192
    layers: int = 4
    heads: int = 4
    context: int = 512
    word_dropout: float = 0.0
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=6, batch_size=16, lr=3e-3, weight_decay=0.1, patience=2, precision="fp32"
        )
    )


PRESETS = {
    "tiny": TinyOptions(),
    "smoke": TinyOptions(vocabulary=600, width=64, layers=2, fit=FitOptions(epochs=1, batch_size=64, lr=4e-3)),
}


def normalise(text: str) -> str:
    """Text as the tiny model writes it: lower case, single blanks, none outside."""
    return " ".join(text.lower().split())


def build_tiny(options: TinyOptions | None = None) -> Path:
    """Folder of the tiny model in transformers' format, from the cache or trained now."""
    options = options or TinyOptions()
    split = cohort(load_indiana())
    train, val = documents(split.train), documents(split.val, ("findings",))

    def make(folder: Path) -> None:
        train_tiny(train, val, folder, options)

    digest = hashlib.sha256(json.dumps([train, val]).encode()).hexdigest()
    inputs = {"text": digest, "options": asdict(options)}
    return artifact("tiny-lm", inputs, make, code=[sys.modules[__name__], prompt, training], resume=True)


def documents(reports: Iterable[Report], sections: tuple[str, ...] = SECTIONS) -> list[tuple[str, str]]:
    """(section, cleaned text) of every section asked for that is not empty."""
    pairs = ((section, clean(getattr(report, section))) for report in reports for section in sections)
    return [(section, text) for section, text in pairs if text]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (any text can be written) on lower-case text; <bos> is put before a text."""
    bpe = Tokenizer(BPE())
    bpe.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " ")])
    # The blank before a word is part of it, and every text starts with one: "findings:" is the same tokens everywhere.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,  # it would join " ." to the word before
    )


def train_tiny(train: list[tuple[str, str]], val: list[tuple[str, str]], folder: Path, options: TinyOptions) -> History:
    """Train tokenizer and model on (section, text) pairs and write them to `folder`; resumes from what is there.

    Each document reads "<bos> findings: the heart is normal. <eos>", so that a prompt that ends in "findings:" is
    nothing new to the frozen model. History holds losses in nats per token, of both sections in training and of `val`.
    """
    tokenizer = train_tokenizer((f"{section}: {text}" for section, text in train), options.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.width,
        intermediate_size=options.width * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        max_position_embeddings=options.context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(options.fit.seed)
        model = LlamaForCausalLM(config)
    llm = LanguageModel("tiny", model, tokenizer)

    def token_loss(batch: list[tuple[str, str]], word_dropout: float = 0.0) -> TokenLoss:
        prompts = [Prompt(f"{section}:") for section, _ in batch]
        return prompt_loss(llm, prompts, [text for _, text in batch], word_dropout=word_dropout)

    def validate(_: LlamaForCausalLM) -> float:
        losses = [token_loss(val[i : i + 64]) for i in range(0, len(val), 64)]
        return float(sum(loss.nll.sum() for loss in losses) / sum(loss.mask.sum() for loss in losses))

    checkpoints = folder / "checkpoints"
    history = fit(
        model,
        lambda _, batch: token_loss(batch, options.word_dropout).mean,
        train,
        options=options.fit,
        length=lambda document: len(document[1]),
        validate=validate,
        folder=checkpoints,
        name="tiny language model",
    )
    with no_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(checkpoints)
    return history
