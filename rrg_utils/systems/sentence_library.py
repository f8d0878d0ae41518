"""The library of RadSCR: what training reports say of each abnormality, and the kinds of such statements (prototypes).

An entry is what one report asserts, or denies, of one abnormality: all its sentences about it, joined. Sentences find
their abnormality through the mentions of the labeller (`rrg_utils.data.annotation.MENTIONED`). The K prototypes of an
abnormality are clusters of the TF-IDF vectors of its entries by K-means: K - 1 of assertions, one of denials.

Choices that the paper leaves open, all ours: a sentence that asserts several abnormalities is left out, for it would
bring findings that nobody hypothesised; of the denials of an abnormality the most frequent are kept; a prototype is
spoken for by the entry next to the centre of its cluster.
"""

import hashlib
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rrg_utils.artifacts import artifact
from rrg_utils.data.abnormalities import ABNORMALITIES, OBSERVATION_OF
from rrg_utils.data.annotation import MENTIONED
from rrg_utils.data.reports import sentences
from rrg_utils.errors import RRGError
from rrg_utils.labels.labeller import DENIES
from rrg_utils.labels.mentions import ABSENT, PRESENT, mentions
from rrg_utils.language import normalise
from rrg_utils.language.sentences import load_sentence_encoder

# Where mentions do not tell a class alone: what the sentence must hold too.
_ALSO = {
    "calcified lymph node": re.compile(r"node|hil"),
    "valve": re.compile(r"valv"),
    "pacemaker": re.compile(r"pace|icd|defib|generator|lead"),
    "rib fracture": re.compile(r"\brib"),
}
_KNOWN = {mention for known in MENTIONED.values() for mention in known}


class Statement(NamedTuple):
    """What a text says of an abnormality (its number in `ABNORMALITIES`), asserted or denied."""

    of: int
    asserted: bool
    text: str


def statements(text: str) -> list[Statement]:
    """What a report asserts or denies of each abnormality; its sentences about one are joined, in lower case."""
    found: dict[tuple[int, bool], list[str]] = defaultdict(list)
    for sentence in map(normalise, sentences(text)):
        for of, asserted in _about(sentence):
            found[of, asserted].append(sentence)
    return [Statement(of, asserted, " ".join(parts)) for (of, asserted), parts in sorted(found.items())]


@lru_cache(maxsize=65536)
def _about(sentence: str) -> tuple[tuple[int, bool], ...]:
    """(abnormality, asserted) for what one sentence is about."""
    asserted, denied = set(), set()
    for mention in mentions(sentence):
        if mention.finding in DENIES and mention.polarity == PRESENT:  # "the lungs are clear" denies an opacity
            denied |= {n for n in ABNORMALITIES if OBSERVATION_OF[n] in DENIES[mention.finding]}
        names = {n for n in ABNORMALITIES if mention.finding in MENTIONED[n] and _also(n, sentence)}
        if mention.polarity == ABSENT:
            denied |= names
        elif mention.finding in _KNOWN:
            asserted.add(frozenset(names))
    if not asserted:
        return tuple((ABNORMALITIES.index(name), False) for name in sorted(denied))
    common = frozenset.intersection(*asserted)  # several mentions of one and the same abnormality are about it
    return tuple((ABNORMALITIES.index(name), True) for name in sorted(common))


def _also(name: str, sentence: str) -> bool:
    return name not in _ALSO or _ALSO[name].search(sentence) is not None


# --- the library ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SentenceLibrary:
    """Entries and prototypes, in arrays: `texts` (n), `of` (n,) abnormality, `asserted` (n,) bool, `count` (n,) how
    many reports say it, `prototype` (n,) the number of its prototype; `centre` (p,) the entry that speaks for each
    prototype. Sorted by abnormality, assertions first, frequent ones first."""

    texts: list[str]
    of: np.ndarray
    asserted: np.ndarray
    count: np.ndarray
    prototype: np.ndarray
    centre: np.ndarray
    k: int
    _number: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, reports: Sequence[str], k: int = 5, denials: int = 30, seed: int = 0) -> "SentenceLibrary":
        """The library of report texts. RRGError if nothing in them is about an abnormality."""
        if k < 2:
            raise RRGError(f"k is {k}: an abnormality needs at least 2 prototypes, one of assertions, one of denials")
        counts = Counter(statement for text in reports for statement in statements(text))
        if not counts:
            raise RRGError("the reports assert or deny none of the abnormalities: no sentence library")
        ranked = sorted(counts.items(), key=lambda item: (item[0].of, not item[0].asserted, -item[1], item[0].text))
        kept, seen = [], Counter()
        for statement, count in ranked:
            seen[statement[:2]] += 1
            if statement.asserted or seen[statement[:2]] <= denials:
                kept.append((statement, count))
        texts = [statement.text for statement, _ in kept]
        of = np.array([statement.of for statement, _ in kept])
        asserted = np.array([statement.asserted for statement, _ in kept])
        prototype, centre = _prototypes(texts, of, asserted, k, seed)
        return cls(texts, of, asserted, np.array([count for _, count in kept]), prototype, centre, k)

    def __len__(self) -> int:
        return len(self.texts)

    def entries(self, of: int, asserted: bool | None = None) -> np.ndarray:
        """Numbers of the entries about an abnormality; empty where the training reports never speak of it."""
        mask = self.of == of
        return np.flatnonzero(mask if asserted is None else mask & (self.asserted == asserted))

    def nearest_prototype(self, statement: Statement) -> int | None:
        """The prototype of a statement: its own if it is an entry, else that of the most similar entry by TF-IDF."""
        if not self._number:
            self._number.update({Statement(*row): i for i, row in enumerate(self._rows())})
            self._number["tfidf"] = TfidfVectorizer(token_pattern=r"[a-z]+").fit(self.texts)
            self._number["vectors"] = self._number["tfidf"].transform(self.texts)
        if statement not in self._number:
            own = self.entries(statement.of, statement.asserted)
            if not len(own):
                return None
            asked = self._number["tfidf"].transform([statement.text])
            self._number[statement] = own[int((self._number["vectors"][own] @ asked.T).toarray().argmax())]
        return int(self.prototype[self._number[statement]])

    def _rows(self):
        return zip(self.of.tolist(), self.asserted.tolist(), self.texts, strict=True)

    def to_json(self) -> dict:
        """Everything as lists, for JSON."""
        arrays = {name: getattr(self, name).tolist() for name in ("of", "asserted", "count", "prototype", "centre")}
        return {"texts": self.texts, "k": self.k} | arrays

    @classmethod
    def from_json(cls, content: dict) -> "SentenceLibrary":
        """A library from what `to_json` gave."""
        arrays = {
            name: np.array(content[name], bool if name == "asserted" else int)
            for name in ("of", "asserted", "count", "prototype", "centre")
        }
        return cls(content["texts"], k=content["k"], **arrays)


def _prototypes(texts: list[str], of: np.ndarray, asserted: np.ndarray, k: int, seed: int):
    """The prototype of each entry, and the entry next to the centre of each prototype."""
    vectors = TfidfVectorizer(token_pattern=r"[a-z]+").fit_transform(texts)
    prototype, centre = np.zeros(len(texts), int), []
    for name, is_asserted in sorted(
        {*zip(of.tolist(), asserted.tolist(), strict=True)}, key=lambda g: (g[0], not g[1])
    ):
        own = np.flatnonzero((of == name) & (asserted == is_asserted))
        clusters = min(k - 1 if is_asserted else 1, len(own))  # no more clusters than statements
        means = KMeans(clusters, n_init=4, random_state=seed).fit(vectors[own])
        distance = means.transform(vectors[own])
        for cluster in range(clusters):
            members = np.flatnonzero(means.labels_ == cluster)
            if len(members):  # equal vectors leave clusters empty
                prototype[own[members]] = len(centre)
                centre.append(own[members[distance[members, cluster].argmin()]])
    return prototype, np.array(centre)


# --- the frozen sentence encoder's words ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """Word vectors of distinct texts as the frozen encoder has them: one long array and where each text starts."""

    number: dict[str, int]
    vectors: np.ndarray  # (all words, d_t) float16
    start: np.ndarray  # (texts + 1,)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Words (N, r, d_t) of the texts, padded, and which are words (N, r) bool."""
        rows = [self.number[text] for text in texts]
        parts = [torch.from_numpy(self.vectors[self.start[i] : self.start[i + 1]].astype(np.float32)) for i in rows]
        length = torch.tensor([len(part) for part in parts])
        padded = pad_sequence(parts, batch_first=True)
        return padded, torch.arange(padded.shape[1]) < length[:, None]


def words(texts: Sequence[str], encoder: str = "minilm") -> Words:
    """Word vectors of the distinct texts, from the cache or encoded now. Vectors only are kept, no text."""
    distinct = sorted(set(texts))
    if not distinct:
        raise RRGError("no texts to encode")
    model = load_sentence_encoder(encoder)

    def make(folder: Path) -> None:
        parts: list[np.ndarray] = [np.zeros(0)] * len(distinct)
        order = sorted(range(len(distinct)), key=lambda i: len(distinct[i]))
        for k in range(0, len(order), 128):
            rows = order[k : k + 128]
            vectors, real = model.words([distinct[i] for i in rows])
            for i, own, mask in zip(rows, vectors, real, strict=True):
                parts[i] = own[mask].half().numpy()
        np.save(folder / "vectors.npy", np.concatenate(parts))
        np.save(folder / "start.npy", np.cumsum([0] + [len(part) for part in parts]))

    digest = hashlib.sha256("\n".join(map(repr, distinct)).encode()).hexdigest()
    folder = artifact("words", {"texts": digest, "encoder": model.digest}, make, code=[sys.modules[__name__]])
    number = {text: i for i, text in enumerate(distinct)}
    return Words(number, np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "start.npy"))
