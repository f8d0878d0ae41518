"""A BERT of random weights with a vocabulary of a few words, for tests of what is built on a sentence encoder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TEXTS = [
    "the heart is enlarged.",
    "there is a left pleural effusion and the heart is normal.",
    "no pneumothorax.",
    "lungs clear.",
]
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_bert(folder: Path, texts: Sequence[str] = TEXTS, seed: int = 0, width: int = 32) -> Path:
    """Write the model, which knows the words of `texts`, to a folder, as `from_pretrained` reads it."""
    words = sorted({word for text in texts for word in text.replace(".", " .").split()})
    words = dict.fromkeys([*MARKS, *words, *"abcdefghijklmnopqrstuvwxyz:,"])
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).save_pretrained(folder)
    return folder
