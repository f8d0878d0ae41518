"""Prompts of text and embeddings: the one way by which anything visual reaches a language model.

    prompt = Prompt("image:", tokens, "findings:")              # tokens: (n, d) from a projector
    loss = prompt_loss(llm, [prompt], ["heart size is normal."]).mean
    texts = generate(llm, [prompt])

Text and tokens. White space before a word belongs to the word's first token, as byte-level BPE has it; so blanks at
the end of a text segment are dropped, and a target is joined to the text before it by one blank (none after a line
break or an embedding). Prompt text and target are tokenised as one string, hence the tokens do not depend on where
between two words a report is cut into a given prefix and a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from rrg_utils.errors import RRGError
from rrg_utils.language.memory import cache_bytes, free_memory
from rrg_utils.language.models import CACHE, LanguageModel

SLOT = -1  # stands in a row of token ids for one embedding


class Prompt:
    """An immutable sequence of text (str) and embedding segments (float tensors (n, d), d the width of the model).

    Neighbouring texts are one text. `+` joins prompts, texts and tensors.
    """

    __slots__ = ("segments",)

    def __init__(self, *segments: "Prompt | str | Tensor") -> None:
        flat: list[str | Tensor] = []
        for segment in segments:
            for part in segment.segments if isinstance(segment, Prompt) else (segment,):
                if isinstance(part, str):
                    if flat and isinstance(flat[-1], str):
                        flat[-1] += part
                    elif part:
                        flat.append(part)
                elif isinstance(part, Tensor):
                    if part.ndim != 2 or not part.is_floating_point():
                        got = f"{part.dtype} {tuple(part.shape)}"
                        raise RRGError(f"a prompt's embedding segment must be a float tensor (n, d): got {got}")
                    flat.append(part)
                else:
                    raise RRGError(f"a prompt is made of text and tensors, not of {type(part).__name__}")
        object.__setattr__(self, "segments", tuple(flat))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Prompt cannot be changed: make another one")

    def __add__(self, other: "Prompt | str | Tensor") -> "Prompt":
        return Prompt(self, other)

    def __radd__(self, other: str | Tensor) -> "Prompt":
        return Prompt(other, self)

    @property
    def text(self) -> str:
        """The prompt as a reader sees it, each embedding segment as its number of tokens: `image:[64]findings:`."""
        return "".join(s if isinstance(s, str) else f"[{len(s)}]" for s in self.segments)

    def __repr__(self) -> str:
        return f"Prompt({self.text!r})"


@dataclass(frozen=True)
class TokenLoss:
    """Negative log-likelihood, in nats, of every target token given all before it.

    `nll` (B, T) float32, 0 where `mask` (B, T) is False (padding). The last token of each target is the end of text.
    `offsets[i]` holds for each token of target i its span (start, end) of characters in the target as given, without
    the blank before a word; the end of text has an empty span at the end.
    """

    nll: Tensor
    mask: Tensor
    offsets: list[list[tuple[int, int]]]

    @property
    def mean(self) -> Tensor:
        """Mean over all target tokens of the batch: the scalar to train on."""
        return self.nll.sum() / self.mask.sum()


def prompt_loss(
    llm: LanguageModel,
    prompts: Sequence[Prompt],
    targets: Sequence[str],
    *,
    word_dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> TokenLoss:
    """Loss of `targets` after `prompts` of any length and structure; differentiable in embeddings and weights.

    `word_dropout` replaces each target token on the *input* side by a random token of the vocabulary with this
    probability; labels stay. It weakens the model's own text as a source, so that the prompt is worth reading (our
    choice; cf. Bowman et al. 2016, arXiv 1511.06349). Drawn on the CPU from `generator`, or from the global one.
    Raises RRGError for an empty target, embeddings of a wrong width or not finite, and more tokens than the model's
    context.
    """
    if len(prompts) != len(targets) or not prompts:
        raise RRGError(
            f"prompt_loss needs one target per prompt: got {len(prompts)} prompts and {len(targets)} targets"
        )
    if not 0 <= word_dropout < 1:
        raise RRGError(f"word_dropout is {word_dropout}: it is a probability, from 0 up to 1")
    rows = _tokenise(llm, prompts, targets)
    _check_context(llm, max(len(row.prompt) + len(row.target) for row in rows), "prompt and target")

    # Padded on the right, behind everything that counts: with causal attention no mask is needed.
    length = max(len(row.prompt) + len(row.target) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.zeros(len(rows), max(len(row.target) for row in rows) + 1, dtype=torch.long)
    mask = torch.zeros_like(labels, dtype=torch.bool)
    replaceable = torch.zeros_like(ids, dtype=torch.bool)
    first = min(len(row.prompt) for row in rows) - 1  # the first position whose output is a label's prediction
    where = torch.zeros_like(labels)
    for i, row in enumerate(rows):
        p, t = len(row.prompt), len(row.target)
        ids[i, : p + t] = torch.tensor(row.prompt + row.target)
        labels[i, : t + 1] = torch.tensor([*row.target, llm.eos])
        mask[i, : t + 1] = True
        replaceable[i, p : p + t] = True
        where[i, : t + 1] = torch.arange(p - 1, p + t) - first
    if word_dropout:
        drop = replaceable & (torch.rand(ids.shape, generator=generator) < word_dropout)
        ids = torch.where(drop, torch.randint(len(llm.tokenizer), ids.shape, generator=generator), ids)

    embeds = _embed(llm, ids, [s for row in rows for s in row.embeddings])
    logits = llm.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=length - first).logits
    # What counts is found on the processor: asked on a GPU, it would have to wait for all that was computed before.
    i, t = mask.nonzero(as_tuple=True)
    at, right = where[i, t].to(logits.device), labels[i, t].to(logits.device)
    i, t = i.to(logits.device), t.to(logits.device)
    losses = F.cross_entropy(logits[i, at].float(), right, reduction="none")
    nll = torch.zeros(mask.shape, device=logits.device).index_put((i, t), losses)
    return TokenLoss(nll, mask.to(logits.device), [row.offsets for row in rows])


@torch.no_grad()
def generate(
    llm: LanguageModel, prompts: Sequence[Prompt], *, max_new_tokens: int = 120, batch_size: int | None = None
) -> list[str]:
    """One text per prompt: the most likely next token (greedy), until the end of text or `max_new_tokens`.

    Prompts of similar length are decoded together with a key-value cache, padded on the left; `batch_size` None: 64, or
    on a GPU, where a step takes as long for many as for few, up to 256. Puts the model into eval mode. Texts come
    without special tokens and outer white space, in the form of the tokenizer (the tiny model writes lower case).
    Raises RRGError as `prompt_loss` does.
    """
    llm.model.eval()
    rows = _tokenise(llm, prompts)
    longest = max((len(row.prompt) for row in rows), default=0) + max_new_tokens
    if rows:
        _check_context(llm, longest, "prompt and new tokens")
    batch_size = batch_size or _batch_size(llm, longest)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    texts = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        tokens = _greedy(llm, [rows[i] for i in chunk], max_new_tokens)
        for i, text in zip(chunk, llm.tokenizer.batch_decode(tokens, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


def _batch_size(llm: LanguageModel, tokens: int) -> int:
    """How many texts to write at once: on a GPU what keys and values of so many tokens leave half of its memory for."""
    if llm.device.type != "cuda":
        return 64
    one = cache_bytes(llm.model.config, tokens, llm.model.dtype)
    return max(1, min(256, free_memory(llm.device) // (2 * one)))


def _greedy(llm: LanguageModel, rows: "list[_Row]", max_new_tokens: int) -> list[list[int]]:
    """Token ids after each row, without the end of text."""
    length = max(len(row.prompt) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[i, length - len(row.prompt) :] = 1
    inputs = {"inputs_embeds": _embed(llm, ids, [s for row in rows for s in row.embeddings])}
    mask = mask.to(llm.device)
    padded = not bool(mask.all())
    position = (mask.cumsum(1) - 1).clamp(min=0)

    tokens: list[list[int]] = [[] for _ in rows]
    alive = list(range(len(rows)))  # the row that each line of the batch decodes
    running = set(alive)
    cache = DynamicCache(config=llm.model.config)
    for _ in range(max_new_tokens):
        out = llm.model(
            **inputs,
            attention_mask=mask if padded else None,
            position_ids=position,
            **{CACHE: cache},
            use_cache=True,
            logits_to_keep=1,
        )
        new = out.logits[:, -1].argmax(-1)
        for row, token in zip(alive, new.tolist(), strict=True):
            if row in running:
                if token == llm.eos:
                    running.remove(row)
                else:
                    tokens[row].append(token)
        if not running:
            break
        position, mask = position[:, -1:] + 1, F.pad(mask, (0, 1), value=1)
        if len(running) <= len(alive) // 2:  # finished rows cost as much as running ones
            keep = torch.tensor([k for k, row in enumerate(alive) if row in running], device=llm.device)
            cache.batch_select_indices(keep)
            new, position, mask = new[keep], position[keep], mask[keep]
            alive = [row for row in alive if row in running]
        inputs = {"input_ids": new[:, None]}
    return tokens


@dataclass(frozen=True)
class _Row:
    """Token ids of a prompt, with a SLOT for each embedding, and of its target, with character spans in the target."""

    prompt: list[int]
    embeddings: list[Tensor]
    target: list[int]
    offsets: list[tuple[int, int]]


def _tokenise(llm: LanguageModel, prompts: Sequence[Prompt], targets: Sequence[str] | None = None) -> list[_Row]:
    # Every text of every prompt goes through the tokenizer in one call; the last one of a prompt with its target.
    texts: list[str] = []
    seams: list[int] = []  # where the prompt ends in the joint text of prompt and target
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, Prompt):
            raise RRGError(f"prompt {number} is a {type(prompt).__name__}: make it a Prompt")
        texts += [s.rstrip(" ") for s in prompt.segments if isinstance(s, str)]
        if targets is not None:
            if not targets[number].strip():
                raise RRGError(f"target {number} is empty: leave out examples without text")
            before = texts.pop() if prompt.segments and isinstance(prompt.segments[-1], str) else ""
            seams.append(len(before))
            texts.append(before + (" " if before and not before[-1].isspace() else "") + targets[number].strip())
    encoded = llm.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True) if texts else {}
    pieces = iter(zip(texts, encoded.get("input_ids", []), encoded.get("offset_mapping", []), strict=True))

    rows = []
    for number, prompt in enumerate(prompts):
        ids, embeddings, target, offsets = list(llm.bos), [], [], []
        for place, segment in enumerate(prompt.segments):
            if isinstance(segment, Tensor):
                if segment.shape[1] != llm.width:
                    raise RRGError(
                        f"prompt {number} has an embedding segment of width {segment.shape[1]}, "
                        f"but {llm.name} expects {llm.width}"
                    )
                ids += [SLOT] * len(segment)
                embeddings.append(segment)
            elif targets is None or place < len(prompt.segments) - 1:
                ids += next(pieces)[1]
        if targets is not None:
            whole, tokens, spans = next(pieces)
            length = len(targets[number].rstrip())
            shift = len(whole) - length  # from a position in the target to one in the joint text
            for token, (start, end) in zip(tokens, spans, strict=True):
                if end <= seams[number]:
                    ids.append(token)
                    continue
                while start < end and (start < seams[number] or whole[start].isspace()):
                    start += 1
                target.append(token)
                offsets.append((start - shift, end - shift))
            offsets.append((length, length))
        if not ids:
            raise RRGError(f"prompt {number} is empty, and {llm.name} has no token for the beginning of a text")
        rows.append(_Row(ids, embeddings, target, offsets))
    return rows


def _embed(llm: LanguageModel, ids: Tensor, embeddings: list[Tensor]) -> Tensor:
    """Input embeddings (B, L, d) of token ids (B, L) on the CPU, with `embeddings` in order in the SLOTs."""
    ids = ids.to(llm.device)
    slots = ids == SLOT
    embeds = llm.model.get_input_embeddings()(ids.masked_fill(slots, 0))
    if embeddings:
        values = torch.cat([e.to(embeds) for e in embeddings])
        waits = values.is_cuda and torch.is_grad_enabled()  # training on a GPU, where the loss will tell
        if not waits and not bool(values.isfinite().all()):
            raise RRGError(
                "a prompt's embedding segment holds values that are not finite: check its encoder or projector"
            )
        embeds = embeds.masked_scatter(slots[..., None], values)
    return embeds


def _check_context(llm: LanguageModel, needed: int, what: str) -> None:
    if llm.context is not None and needed > llm.context:
        raise RRGError(f"{what} take {needed} tokens, but {llm.name} has a context of {llm.context}: shorten them")
