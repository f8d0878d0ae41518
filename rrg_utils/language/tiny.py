"""The tiny language model: a small Llama that reads a description and writes it out as a report of this cohort.

It learns from the training split's text only, and no validation or test report: each document is a described report,

    image: there is mild atelectasis in the left lung base. findings: heart size normal. mild left basilar ...

Why described? A large language model reads what stands before its answer. One of two million weights that has seen only
reports does not: whatever a projector put before "findings:", it went on with the most common report, even when given
the annotation itself. So it is taught to read, by text alone: the real training reports after their annotation in
words, and as many composed ones (`rrg_utils.data.composed`) as reading takes. Some documents have no description, so
that the model can also write without one.

It is trained on first use, stopped early on the validation split, cached and then frozen. It is not committed: the
reports' licence allows no derived copies.

Text form. Reports differ in their use of capitals and the model is small, so the tokenizer writes lower case and single
blanks: decoding gives back `normalise(text)`, not `text`. Compare references in that form.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rrg_utils import training
from rrg_utils.artifacts import artifact
from rrg_utils.data.cohort import cohort
from rrg_utils.data.composed import Composer
from rrg_utils.data.reports import Report, clean, load_indiana
from rrg_utils.data.synthetic import balanced_studies, caption
from rrg_utils.language import prompt
from rrg_utils.language.models import LanguageModel, no_bars
from rrg_utils.language.prompt import Prompt, TokenLoss, prompt_loss
from rrg_utils.processes import from_main, is_main_process
from rrg_utils.training import FitOptions, History, fit


@dataclass(frozen=True)
class TinyOptions:
    """Sizes and schedule (our choice): 2.2 M parameters, small enough to be trained on two CPU cores at first use."""

    vocabulary: int = 2000
    width: int = 192
    layers: int = 4
    heads: int = 4
    context: int = 512
    composed: int = 10000  # composed reports beside the real ones
    whole: float = 0.75  # share of them that are whole reports; the others hold nothing but what the description says
    undescribed: float = 0.1  # share of the documents without a description
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(
            epochs=3, batch_size=16, lr=3e-3, weight_decay=0.1, patience=2, precision="fp32"
        )
    )


PRESETS = {
    "tiny": TinyOptions(),
    "smoke": TinyOptions(
        vocabulary=600, width=64, layers=2, composed=0, fit=FitOptions(epochs=1, batch_size=64, lr=4e-3)
    ),
}


class Document(NamedTuple):
    """What the model reads before its answer, and the report."""

    prompt: str
    text: str


def normalise(text: str) -> str:
    """Text as the tiny model writes it: lower case, single blanks, none outside."""
    return " ".join(text.lower().split())


def build_tiny(options: TinyOptions | None = None) -> Path:
    """Folder of the tiny model in transformers' format, from the cache or trained now."""
    options = options or TinyOptions()
    split = cohort(load_indiana())
    train, val = training_documents(split.train, options), documents(split.val)

    def make(folder: Path) -> None:
        train_tiny(train, val, folder, options)

    digest = hashlib.sha256(json.dumps([train, val]).encode()).hexdigest()
    inputs = {"text": digest, "options": asdict(options)}
    return artifact("tiny-lm", inputs, make, code=[sys.modules[__name__], prompt, training], resume=True, together=True)


def describe(report: Report) -> str:
    """What stands before a report in place of its film: its annotation in words."""
    return f"image: {caption(report)} findings:"


def documents(reports: Iterable[Report]) -> list[Document]:
    """The findings of real reports after their description."""
    return [Document(describe(report), clean(report.findings)) for report in reports]


def training_documents(train: Sequence[Report], options: TinyOptions) -> list[Document]:
    """Real and composed reports, most of them described."""
    rng = np.random.default_rng(options.fit.seed)
    composer = Composer(train)
    out = documents(train)
    for study in balanced_studies(train, options.composed, seed=2):
        whole = bool(rng.random() < options.whole)
        out.append(Document(describe(study), composer.compose(study, rng, whole)))
    return [
        document._replace(prompt="findings:") if rng.random() < options.undescribed else document for document in out
    ]


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


def train_tiny(train: list[Document], val: list[Document], folder: Path, options: TinyOptions) -> History:
    """Train tokenizer and model on documents and write them to `folder`; resumes from what is there.

    Only the reports count in the loss: a description is given, and what it says of a synthetic study cannot be guessed.
    History holds losses in nats per report token.
    """
    texts = (f"{document.prompt} {document.text}" for document in train)
    tokenizer = from_main(train_tokenizer(texts, options.vocabulary))
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

    def token_loss(batch: list[Document]) -> TokenLoss:
        return prompt_loss(llm, [Prompt(document.prompt) for document in batch], [document.text for document in batch])

    def validate(_: LlamaForCausalLM) -> float:
        losses = [token_loss(val[i : i + 64]) for i in range(0, len(val), 64)]
        return float(sum(loss.nll.sum() for loss in losses) / sum(loss.mask.sum() for loss in losses))

    checkpoints = folder / "checkpoints"
    history = fit(
        model,
        lambda _, batch: token_loss(batch).mean,
        train,
        options=options.fit,
        length=lambda document: len(document.prompt) + len(document.text),
        validate=validate,
        folder=checkpoints,
        name="tiny language model",
    )
    if is_main_process():
        with no_bars():
            model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.rmtree(checkpoints)
    return history
