"""Words and names of a segment's documents: which have which word how often, and what each is called.

A segment keeps them as `words-<tokenizer>.safetensors`; documents are positions in the segment. Terms are stems, in
the order of their hashes (then of their bytes): `hashes` int64 [t], `terms` uint8 with `term_offsets` int32 [t + 1].
The postings of term i are `starts[i]` (int64 [t + 1]) to `starts[i + 1]`: `documents` int32 [p], ascending, and
`counts` [p], uint8 or, where one is larger, int32; `sums` int64 [t] is their CRC-32. `lengths` int32 [n] counts the
words of each document. Names, in the order of their hashes and documents: `name_hashes` int64 [m], `name_documents`
int32 [m], and `names` uint8, as they are spelled, with `name_offsets` int32 [m + 1]. The same documents always make
the same bytes. Postings are compared with their sums when they are first read, all else when the table is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from msa_plugin.bank.scopes import batches
from msa_plugin.bank.terms import Hashes, hashed, hashed_names, lowered, name_of
from msa_plugin.cancellation import check_cancelled
from msa_plugin.errors import BankCorruptError
from msa_plugin.prompts import document_text
from msa_plugin.stems import stems

Numbers = NDArray[np.int64]
Numbers32 = NDArray[np.int32]
Bytes = NDArray[np.uint8]
_PORTION = 1024  # documents split into words at once
# What `FileRecord.structure` is over, as it is written: all but the postings, which have sums of their own.
_WIDE, _NARROW, _TEXT = (
    ("hashes", "starts", "sums", "name_hashes"),
    ("term_offsets", "lengths", "name_documents", "name_offsets"),
    ("terms", "names"),
)
STRUCTURE = (*_WIDE, *_NARROW, *_TEXT)
_ARRAYS = (*STRUCTURE, "documents", "counts")


@dataclass(frozen=True, eq=False)
class WordTable:
    """See this module. Safe to share among threads."""

    hashes: Hashes
    term_offsets: Numbers32
    terms: Bytes
    starts: Numbers
    documents: Numbers32
    counts: NDArray[Any]
    sums: Numbers
    lengths: Numbers32
    name_hashes: Hashes
    name_documents: Numbers32
    name_offsets: Numbers32
    names: Bytes
    source: str = field(default="", kw_only=True)  # the file, for errors

    @classmethod
    def of(cls, documents: Iterable[tuple[str, str]]) -> WordTable:
        """Of documents by position, each a title and a text."""
        counting = _Counting()
        for portion in batches(documents, _PORTION):
            counting.add(portion)
        return counting.table()

    @classmethod
    def merged(cls, parts: Sequence[tuple[WordTable, Sequence[int]]]) -> WordTable:
        """Of the documents at some positions of each part, one after the other. Raises BankCorruptError."""
        counting = _Counting()
        for table, positions in parts:
            counting.take(table, np.asarray(positions, dtype=np.int64))
        return counting.table()

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], documents: int, source: str) -> WordTable:
        """Of the tensors of the file `source`, which it goes on reading. Raises BankCorruptError for any others."""
        allowed: dict[str, tuple[type, ...]] = {**dict.fromkeys(_WIDE, (np.int64,)), "documents": (np.int32,)}
        allowed |= {**dict.fromkeys(_NARROW, (np.int32,)), "counts": (np.uint8, np.int32)}
        allowed |= dict.fromkeys(_TEXT, (np.uint8,))
        arrays = {name: tensors[name].numpy() for name in _ARRAYS if name in tensors}
        found = {name for name, array in arrays.items() if array.ndim == 1 and array.dtype in allowed[name]}
        if found != {*_ARRAYS}:
            raise damaged(source, f"it has no sound tensors {sorted({*_ARRAYS} - found)}")
        sizes = {name: len(array) for name, array in arrays.items()}
        terms, names = sizes["hashes"], sizes["name_hashes"]
        expected = {"term_offsets": terms + 1, "starts": terms + 1, "sums": terms, "name_offsets": names + 1}
        expected |= {"name_documents": names, "lengths": documents, "counts": sizes["documents"]}
        if expected.items() - sizes.items():
            raise damaged(source, "its tensors do not fit together")
        return cls(**arrays, source=source)

    @property
    def consistent(self) -> bool:
        """Whether its offsets stay within what they point into, as those of a file that somebody made up may not."""
        spans = (
            (self.starts, self.documents),
            (self.term_offsets, self.terms),
            (self.name_offsets, self.names),
        )
        inside = all(at[0] == 0 and at[-1] == len(of) and (np.diff(at) >= 0).all() for at, of in spans)
        return bool(inside and _within(self.name_documents, len(self.lengths)))

    def structure(self, header: int) -> int:
        """CRC-32 of what says where words and names are, after a file's `header`; see `STRUCTURE`."""
        for name in STRUCTURE:
            header = zlib.crc32(getattr(self, name).data, header)
        return header

    def tensors(self) -> dict[str, Tensor]:
        """Its parts, to be written."""
        return {name: torch.from_numpy(getattr(self, name)) for name in _ARRAYS}

    def places(self, words: Sequence[bytes], hashes: Hashes) -> list[int]:
        """Where each of `words`, of these hashes, is among the terms; -1: nowhere."""
        found = [-1] * len(words)
        first, last = (np.searchsorted(self.hashes, hashes, side=side) for side in ("left", "right"))
        for n in np.flatnonzero(first < last).tolist():
            same = range(int(first[n]), int(last[n]))
            found[n] = next((place for place in same if self._term(place) == words[n]), -1)
        return found

    def postings(self, place: int) -> tuple[Numbers32, NDArray[Any]]:
        """Documents that have the term at `place`, and how often. Raises BankCorruptError."""
        at = slice(int(self.starts[place]), int(self.starts[place + 1]))
        documents, counts = self.documents[at], self.counts[at]
        if not self._sound[place]:
            if _sum(documents, counts) != self.sums[place] or not _within(documents, len(self.lengths)):
                raise damaged(self.source, "the postings of a word were altered")
            self._sound[place] = True
        return documents, counts

    def called(self, hashes: Hashes) -> list[tuple[int, int, str]]:
        """(document, place among `hashes`, name) of all documents whose name has one of `hashes`, which ascend."""
        if len(self.name_hashes) < len(hashes):  # look the fewer up among the more
            place = np.searchsorted(hashes, self.name_hashes).clip(max=max(len(hashes) - 1, 0))
            names = np.flatnonzero(hashes[place] == self.name_hashes) if len(hashes) else place[:0]
            return [(int(self.name_documents[n]), int(place[n]), self._name(int(n))) for n in names]
        first = np.searchsorted(self.name_hashes, hashes)
        known = np.flatnonzero(self.name_hashes[first.clip(max=max(len(self.name_hashes) - 1, 0))] == hashes)
        last = np.searchsorted(self.name_hashes, hashes[known], side="right")
        return [
            (int(self.name_documents[n]), place, self._name(n))
            for place, start, end in zip(known.tolist(), first[known].tolist(), last.tolist(), strict=True)
            for n in range(start, end)
        ]

    @cached_property
    def words(self) -> int:
        """Of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    @cached_property
    def _sound(self) -> NDArray[np.bool_]:
        return np.zeros(len(self.hashes), dtype=np.bool_)

    def _term(self, place: int) -> bytes:
        return self.terms[self.term_offsets[place] : self.term_offsets[place + 1]].tobytes()

    def _name(self, place: int) -> str:
        return self.names[self.name_offsets[place] : self.name_offsets[place + 1]].tobytes().decode()


class WordPart(NamedTuple):
    """A segment's table, the `ordinals` [n] of its documents, and which of them count (bool [n]; None: all)."""

    table: WordTable
    ordinals: Numbers
    allowed: NDArray[np.bool_] | None


class _Counting:
    """Documents one after another, on their way into a table."""

    def __init__(self) -> None:
        self._ids: dict[bytes, int] = {}
        self._terms: list[Numbers] = []
        self._documents: list[Numbers32] = []
        self._counts: list[NDArray[Any]] = []
        self._lengths: list[Numbers32] = []
        self._names: list[tuple[int, str]] = []
        self._held = 0

    def add(self, documents: Sequence[tuple[str, str]]) -> None:
        """The next documents, as texts."""
        check_cancelled()
        rows, words = stems().numbered([document_text(*document) for document in documents])
        lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        ids = np.asarray([self._id(word.encode()) for word in words], dtype=np.int64)
        found = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        # One number for a word and a document: both are far below 2 ** 31.
        pairs = ids[found] << 32 | np.repeat(np.arange(self._held, self._held + len(rows)), lengths)
        pairs, counts = np.unique(pairs, return_counts=True)
        self._take(pairs >> 32, (pairs & 0xFFFFFFFF).astype(np.int32), counts)
        self._names += [(n, name) for n, (title, _) in enumerate(documents, self._held) if (name := name_of(title))]
        self._close(lengths)

    def take(self, table: WordTable, positions: Numbers) -> None:
        """The next documents, at ascending `positions` of a table, all of whose postings are read."""
        places = np.full(len(table.lengths), -1, dtype=np.int32)
        places[positions] = np.arange(self._held, self._held + len(positions), dtype=np.int32)
        for place in range(len(table.hashes)):
            table.postings(place)  # compared with its sum
        kept = np.flatnonzero(places[table.documents] >= 0)
        ids = np.asarray([self._id(table._term(place)) for place in range(len(table.hashes))], dtype=np.int64)
        terms = np.repeat(ids, np.diff(table.starts))[kept]
        self._take(terms, places[table.documents[kept]], table.counts[kept])
        named = zip(table.name_documents.tolist(), range(len(table.name_hashes)), strict=True)
        self._names += [(int(places[document]), table._name(n)) for document, n in named if places[document] >= 0]
        self._close(table.lengths[positions])

    def table(self) -> WordTable:
        """All of them."""
        used = np.concatenate([*self._terms, np.zeros(0, dtype=np.int64)])
        known = list(self._ids)
        distinct = np.unique(used)
        words = [known[place] for place in distinct]
        hashes = hashed([word.decode() for word in words])
        order = sorted(range(len(words)), key=lambda n: (hashes[n], words[n]))
        rank = np.zeros(len(known), dtype=np.int64)
        rank[distinct[order]] = np.arange(len(words))
        terms, documents = rank[used], np.concatenate([*self._documents, np.zeros(0, dtype=np.int32)])
        counts = np.concatenate([*self._counts, np.zeros(0, dtype=np.int64)])
        by_term = np.lexsort((documents, terms))
        documents = documents[by_term]
        counts = counts[by_term].astype(np.uint8 if counts.max(initial=0) < 256 else np.int32)
        starts = np.searchsorted(terms[by_term], np.arange(len(words) + 1))
        spans = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
        text, offsets = _joined([words[n] for n in order])
        return WordTable(
            hashes[order],
            offsets,
            text,
            starts.astype(np.int64),
            documents,
            counts,
            np.asarray([_sum(documents[a:b], counts[a:b]) for a, b in spans], dtype=np.int64),
            np.concatenate([*self._lengths, np.zeros(0, dtype=np.int32)]),
            *self._called(),
        )

    def _called(self) -> tuple[Hashes, Numbers32, Numbers32, Bytes]:
        hashes = hashed_names([lowered(name) for _, name in self._names])
        documents = np.asarray([document for document, _ in self._names], dtype=np.int32)
        order = np.lexsort((documents, hashes))
        text, offsets = _joined([self._names[n][1].encode() for n in order])
        return hashes[order], documents[order], offsets, text

    def _id(self, word: bytes) -> int:
        return self._ids.setdefault(word, len(self._ids))

    def _take(self, terms: Numbers, documents: Numbers32, counts: NDArray[Any]) -> None:
        self._terms.append(terms)
        self._documents.append(documents)
        self._counts.append(counts)

    def _close(self, lengths: Numbers32) -> None:
        self._lengths.append(lengths)
        self._held += len(lengths)


def _joined(words: Sequence[bytes]) -> tuple[Bytes, Numbers32]:
    """Words one after another, and where each begins."""
    offsets = np.zeros(len(words) + 1, dtype=np.int32)
    np.cumsum([len(word) for word in words], out=offsets[1:])
    return np.frombuffer(bytearray(b"".join(words)), dtype=np.uint8), offsets


def _sum(documents: Numbers32, counts: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(counts).data, zlib.crc32(np.ascontiguousarray(documents).data))


def _within(documents: Numbers32, count: int) -> bool:
    return not len(documents) or bool(documents.min() >= 0 and documents.max() < count)


def damaged(source: str, why: str) -> BankCorruptError:
    """An error of the file of words `source`."""
    return BankCorruptError(f"{source}: {why}; run `msa bank verify`, then `msa bank repair`, which counts words anew")
