"""Similar studies by their vectors: a faiss index that never hands a study its own report.

    index = StudyIndex.build(ids, vectors, source="swin", texts=reports)
    rows, similarity = index.search(queries, k=3, source="swin", ids=query_ids, texts=query_reports)

Similarity is the cosine. `Flat` compares with every study and is exact; at a few hundred thousand studies and more the
other kinds of faiss are worth their error (`benchmarks/retrieval.py` measures them at the size of MIMIC-CXR).

Several machines. Each builds and saves the index of its part of the studies. Where one machine has room for all parts,
`StudyIndex.joined` searches them as one. Where it has not, each serves its part with `faiss.contrib.client_server`, and
a `ClientIndex` over their addresses asks all and merges the answers: what `joined` does, across the network. Inverted
lists can also stay on disk (`faiss.contrib.ondisk.merge_ondisk`). None of this needs code of ours.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from rrg_utils.data.datasets import Films
from rrg_utils.errors import RRGError
from rrg_utils.files import write_all
from rrg_utils.vision.features import film_tokens

_CHUNK = 65_536
_TRAINED_ON = 100_000  # vectors at most that an approximate kind learns its cells from


class Neighbours(NamedTuple):
    """`rows` (Q, k) int64: places in the index, the nearest first; `similarity` (Q, k) float32: their cosine."""

    rows: np.ndarray
    similarity: np.ndarray


class StudyIndex:
    """Vectors of studies, searched by cosine. `source` names what made them: vectors of another source do not fit.

    Leak-safe: a query that gives its id or its report never gets a study with that id, nor one whose report says the
    same (case, punctuation and spaces aside).
    """

    def __init__(self, index: faiss.Index, ids: Sequence[str], reports: Sequence[str], source: str) -> None:
        self.index, self.ids, self.reports, self.source = index, list(ids), list(reports), source
        self._of_id, self._of_report = defaultdict(list), defaultdict(list)
        for row, (study, report) in enumerate(zip(self.ids, self.reports, strict=True)):
            self._of_id[study].append(row)
            if report:
                self._of_report[report].append(row)

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        vectors: np.ndarray,
        source: str,
        texts: Sequence[str] | None = None,
        factory: str = "Flat",
        options: str = "",
    ) -> "StudyIndex":
        """Index of `vectors` (N, d), one per id; they may be memory-mapped.

        texts: the studies' reports; only a hash of each is kept. factory: any kind of faiss by its name, such as
        "Flat", "IVF1024,PQ64" or "HNSW32". options: how to search it, such as "nprobe=16".
        """
        if np.ndim(vectors) != 2:
            raise RRGError(f"vectors of shape {np.shape(vectors)}: expected (N, d)")
        if not len(vectors):
            raise RRGError("no studies to index: the pool is empty")
        if len(ids) != len(vectors) or (texts is not None and len(texts) != len(vectors)):
            raise RRGError(
                f"{len(ids)} ids and {len(texts or ids)} reports for {len(vectors)} vectors: give one of each"
            )
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(_units(vectors[:: -(-len(vectors) // _TRAINED_ON)]))
            for k in range(0, len(vectors), _CHUNK):  # so that memory-mapped vectors need not fit into memory
                index.add(_units(vectors[k : k + _CHUNK]))
            faiss.ParameterSpace().set_index_parameters(index, options)
        except RuntimeError as error:
            raise RRGError(f"cannot build a {factory!r} index of {len(vectors)} studies: {_reason(error)}") from error
        return cls(index, ids, [""] * len(ids) if texts is None else [_says(text) for text in texts], source)

    @classmethod
    def joined(cls, parts: Sequence["StudyIndex"]) -> "StudyIndex":
        """Several parts searched as one, each in its own thread; rows count through the parts in order."""
        if not parts:
            raise RRGError("no parts to join")
        for part in parts[1:]:
            if (part.source, part.width) != (parts[0].source, parts[0].width):
                raise RRGError(
                    f"parts of {parts[0].source!r} ({parts[0].width} wide) and of {part.source!r} ({part.width} wide) "
                    "cannot be joined: build them with one encoder"
                )
        shards = faiss.IndexShards(parts[0].width, True, True)
        for part in parts:
            shards.add_shard(part.index)
        ids, reports = ([x for part in parts for x in getattr(part, name)] for name in ("ids", "reports"))
        joined = cls(shards, ids, reports, parts[0].source)
        joined._parts = list(parts)  # faiss holds no reference to them
        return joined

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        return self.index.d

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        source: str,
        ids: Sequence[str] | None = None,
        texts: Sequence[str] | None = None,
    ) -> Neighbours:
        """The `k` nearest studies of each query vector (Q, d), without those that would give the query away.

        ids, texts: the queries' own. RRGError for vectors of another source or width, and where fewer than `k` studies
        are left.
        """
        vectors = _units(vectors)
        if source != self.source or vectors.shape[1] != self.width:
            raise RRGError(
                f"the index holds vectors of {self.source!r}, {self.width} wide, and cannot be asked with vectors of "
                f"{source!r}, {vectors.shape[1]} wide: build it again with this encoder"
            )
        for name, given in (("ids", ids), ("texts", texts)):
            if given is not None and len(given) != len(vectors):
                raise RRGError(f"{len(given)} {name} for {len(vectors)} queries: give one per query")
        if k < 1:
            raise RRGError(f"k={k}: ask for at least one neighbour")
        barred = [set[int]() for _ in vectors]
        for of, keys in ((self._of_id, ids), (self._of_report, texts and [_says(text) for text in texts])):
            for rows, key in zip(barred, keys or (), strict=False):
                rows.update(of.get(key, ()))
        most = max(map(len, barred), default=0)
        if k + most > len(self):
            raise RRGError(
                f"k={k} neighbours were asked for, but the pool holds {len(self)} studies, of which {most} are the "
                "query itself or say the same: ask for fewer, or use a larger pool"
            )
        similarity, found = self.index.search(vectors, k + most)  # the barred ones included, which are then left out
        keep = [
            [n for n, row in enumerate(line) if row >= 0 and row not in bar][:k]
            for line, bar in zip(found, barred, strict=True)
        ]
        if short := next((line for line in keep if len(line) < k), None):
            raise RRGError(
                f"this approximate index found only {len(short)} of {k} neighbours: raise nprobe or efSearch"
            )
        keep = np.array(keep, int).reshape(-1, k)
        return Neighbours(np.take_along_axis(found, keep, 1), np.take_along_axis(similarity, keep, 1))

    # --- storage ---

    def save(self, folder: Path | str) -> None:
        """The index in faiss' format, and a card (JSON) of its studies."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            data = faiss.serialize_index(self.index).tobytes()
        except RuntimeError as error:
            raise RRGError("joined parts are not saved as one: save each part") from error
        card = {
            "source": self.source,
            "width": self.width,
            "sha256": hashlib.sha256(data).hexdigest(),
            "ids": self.ids,
            "reports": self.reports,
        }
        write_all({folder / "index.faiss": data, folder / "studies.json": json.dumps(card)})

    @classmethod
    def load(cls, folder: Path | str, source: str, width: int | None = None) -> "StudyIndex":
        """A saved index, checked: RRGError if it is missing, damaged, or of another source or width."""
        folder = Path(folder)
        try:
            card = json.loads((folder / "studies.json").read_text())
            data = (folder / "index.faiss").read_bytes()
            about = (card["source"], card["width"])
            ids, reports, digest = card["ids"], card["reports"], card["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RRGError(f"no study index in {folder}: {error!r}; build it again") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise RRGError(f"{folder / 'index.faiss'} is damaged or cut off ({len(data)} bytes): build it again")
        if about != (source, width or about[1]):
            raise RRGError(
                f"the index in {folder} holds vectors of {about[0]!r}, {about[1]} wide, not of {source!r}"
                f"{f', {width} wide' if width else ''}: build it again with this encoder"
            )
        return cls(faiss.deserialize_index(np.frombuffer(data, np.uint8)), ids, reports, source)


def global_features(films: Films, encoder: str = "swin", size: int = 128) -> np.ndarray:
    """The global vector v_G (N, d) float32 of each film: the mean of its patch tokens, cached with them."""
    return np.asarray(film_tokens(films, encoder, size), np.float32).mean(1)


def standardised(vectors: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Vectors (N, d) in units of the spread of `reference` (M, d) about its mean, column by column.

    Films resemble each other far more than they differ: the cosine of raw features is near 1 for any two.
    """
    return (vectors - reference.mean(0)) / np.maximum(reference.std(0), 1e-6)


def _units(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors (N, d) float32, so that the inner product is the cosine."""
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2:
        raise RRGError(f"vectors of shape {vectors.shape}: expected (N, d)")
    if not np.isfinite(vectors).all():
        raise RRGError("vectors hold NaN or infinity: check their encoder")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def says_the_same(text: str, other: str) -> bool:
    """Whether two reports have the same words in the same order; one without words is like no other."""
    return bool(_says(text)) and _says(text) == _says(other)


@lru_cache(maxsize=100_000)
def _says(text: str) -> str:
    """A hash of the words of a report; two reports with the same hash say the same. "" for a report without words."""
    words = " ".join(re.findall(r"[^\W_]+", text.lower()))
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest() if words else ""


def _reason(error: RuntimeError) -> str:
    """What faiss says, without the place in its source."""
    return str(error).strip().splitlines()[0].split(": ", 1)[-1].removeprefix("Error: ")
