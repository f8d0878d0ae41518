"""From retrieved sentences to a report: keep all of Q, use U where it does not contradict Q (RadSCR's last step).

    template   Q, then what is kept of U, then normal statements, joined
    llm        the same sentences in the order that a frozen language model finds most likely
    prompt     a frozen language model is asked, in words, to write them as a report, and its text is checked by rule

In the paper a frozen Phi (4B) gets the rule in its prompt. A small language model cannot follow instructions, so here
the rule is applied by the labeller (`rrg_utils.labels.contradiction`) in every way of writing, and "llm" leaves to the
model what it can do: it chooses the order, sentence by sentence, and can neither lose nor invent one. Ours: the prompt
of "prompt", and the normal statements, the most frequent denials of the training reports that nothing contradicts.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from rrg_utils.labels.contradiction import contradictions, stance
from rrg_utils.language import Prompt, generate, load_llm, prompt_loss
from rrg_utils.systems.sentence_library import SentenceLibrary

AGGREGATES = ("template", "llm", "prompt")
NORMAL_STATEMENTS = 4  # at most
_STOCK = 40  # so many of the most frequent denials are tried
_BATCH = 256


class Retrieved(NamedTuple):
    """Lines of Q and U, and hypotheses withdrawn, as dictionaries; a line has `text`, `abnormality` and `region`."""

    q: list[dict]
    u: list[dict]
    withdrawn: list[dict]


def chosen(found: Retrieved, library: SentenceLibrary) -> tuple[list[dict], list[dict]]:
    """The lines of a report, each with its `kind` (Q, U or normal), and the lines of U that were dropped, with why."""
    lines, dropped = [], []
    for line in found.q:
        if line["text"] not in [kept["text"] for kept in lines]:
            lines.append(line | {"kind": "Q"})
    said = " ".join(line["text"] for line in lines)
    for line in found.u:
        against = contradictions(line["text"], said)
        if against:
            dropped.append(line | {"because": f"contradicts Q: {', '.join(sorted(against))}"})
        elif line["text"] not in [kept["text"] for kept in lines]:
            lines.append(line | {"kind": "U"})
    said = " ".join(line["text"] for line in lines)
    denied: set[str] = set()
    normal = 0
    for text in _stock(library):
        new = stance(text)[1] - denied
        if normal < NORMAL_STATEMENTS and new and not contradictions(text, said):
            lines.append({"text": text, "kind": "normal"})
            denied |= new
            normal += 1
    return lines, dropped


def _stock(library: SentenceLibrary) -> list[str]:
    """The most frequent denials, most frequent first; none that was de-identified."""
    times: dict[str, int] = {}
    for i in np.flatnonzero(~library.asserted):
        text = library.texts[i]
        if "_" not in text:
            times[text] = max(times.get(text, 0), int(library.count[i]))
    return sorted(times, key=lambda text: (-times[text], text))[:_STOCK]


def write(found: Sequence[Retrieved], library: SentenceLibrary, config) -> list[tuple[str, dict]]:
    """A report with its evidence for each film: `sentences`, `withdrawn` and `dropped` lines."""
    parts = [chosen(each, library) for each in found]
    reports = [lines for lines, _ in parts]
    if config.aggregate == "llm":
        reports = ordered(reports, config.llm)
    texts = [" ".join(line["text"] for line in lines) for lines in reports]
    if config.aggregate == "prompt":
        texts = asked(reports, config.llm)
    out = []
    for each, lines, text, (_, dropped) in zip(found, reports, texts, parts, strict=True):
        evidence = {"sentences": lines, "withdrawn": each.withdrawn, "dropped": dropped}
        if config.aggregate == "prompt":  # what the model made of the rule, sentence by sentence
            said = stance(text)[0]
            evidence["sentences"] = [line | {"kept": stance(line["text"])[0] <= said} for line in lines]
        out.append((text, evidence))
    return out


@torch.no_grad()
def ordered(reports: Sequence[Sequence[dict]], llm: str) -> list[list[dict]]:
    """The lines of each report in the order that a language model finds likely: always the next most likely one."""
    model = _model(llm)
    done: list[list[dict]] = [[] for _ in reports]
    left = [list(lines) for lines in reports]
    while any(left):
        tasks = [(i, k) for i, lines in enumerate(left) for k in range(len(lines)) if len(lines) > 1]
        scores: dict[tuple[int, int], float] = {}
        for start in range(0, len(tasks), _BATCH):
            chunk = tasks[start : start + _BATCH]
            prompts = [Prompt(" ".join(["findings:", *(line["text"] for line in done[i])])) for i, _ in chunk]
            loss = prompt_loss(model, prompts, [left[i][k]["text"] for i, k in chunk])
            mean = loss.nll.sum(1) / loss.mask.sum(1)
            scores |= dict(zip(chunk, mean.tolist(), strict=True))
        for i, lines in enumerate(left):
            if lines:
                best = min(range(len(lines)), key=lambda k, i=i: scores.get((i, k), 0.0))
                done[i].append(lines.pop(best))
    return done


def asked(reports: Sequence[Sequence[dict]], llm: str, max_new_tokens: int = 90) -> list[str]:
    """What a language model writes when it is asked to join the lines of each report by the paper's rule."""
    return generate(_model(llm), [Prompt(instruction(lines)) for lines in reports], max_new_tokens=max_new_tokens)


def instruction(lines: Sequence[dict]) -> str:
    """The rule in words, with the sentences of Q, and of U and normal statements."""
    keep = " ".join(line["text"] for line in lines if line["kind"] == "Q") or "none."
    may = " ".join(line["text"] for line in lines if line["kind"] != "Q") or "none."
    return (
        "Write the findings of a chest X-ray report. Keep every one of these sentences: "
        f"{keep} Use these only where they do not contradict the ones before: {may} findings:"
    )


@lru_cache(maxsize=1)
def _model(llm: str):
    return load_llm(llm)
