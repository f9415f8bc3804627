"""BM25 over documents that come one after another, counted for any selection of them: an inverted index in numpy.

The scores are those of `lexical.WordIndex` for the texts of a selection alone. Its library puts a corpus's statistics
into the index, so that each change and each filter would take a new one; here they are counted when a question is
asked, over the postings of its words. Blocks of postings are merged as they grow (compare LSM trees).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from msa_plugin.routing.lexical import K1, B, Scores
from msa_plugin.stems import Stems

Numbers = NDArray[np.int64]
Numbers32 = NDArray[np.int32]
_NONE = np.zeros(0, dtype=np.int32)


class _Block(NamedTuple):
    """Postings sorted by term and document: `documents` and `counts` [p], those of `terms[i]` from `starts[i]` on."""

    terms: Numbers
    starts: Numbers
    documents: Numbers32
    counts: Numbers32

    def of(self, term: int) -> slice:
        """Where the postings of a term are."""
        at = int(np.searchsorted(self.terms, term))
        if at == len(self.terms) or self.terms[at] != term:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))


class Postings:
    """Which documents have which words how often. Documents are numbers from 0, and never change.

    One thread may add while others ask about documents that were added before.
    """

    def __init__(self) -> None:
        """Empty."""
        self._stems = Stems()
        self._terms: dict[str, int] = {}
        self._lengths: Numbers32 = _NONE  # words of each document, by its number
        self._blocks: list[_Block] = []

    def add(self, documents: Sequence[int], texts: Sequence[str]) -> None:
        """Take in documents that were not added before, with their texts."""
        rows = self._stems(texts)
        lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
        ids = [self._terms.setdefault(word, len(self._terms)) for word in chain.from_iterable(rows)]
        numbers = np.asarray(documents, dtype=np.int32)
        grown = np.zeros(max(len(self._lengths), int(numbers.max(initial=-1)) + 1), dtype=np.int32)
        grown[: len(self._lengths)] = self._lengths
        grown[numbers] = lengths
        self._lengths = grown
        blocks = [*self._blocks, _counted(np.asarray(ids, dtype=np.int64), np.repeat(numbers, lengths))]
        while len(blocks) > 1 and len(blocks[-2].documents) < 2 * len(blocks[-1].documents):
            blocks[-2:] = [_merged(blocks[-2], blocks[-1])]
        self._blocks = blocks

    def scores(self, question: str, selected: Numbers) -> Scores:
        """Score [n] of each of the documents `selected` (ascending); 0 for one that has no word of the question.

        Lucene's variant, by Kamphuis et al., ECIR 2020: no other document counts.
        """
        total = np.zeros(len(selected), dtype=np.float32)
        if not len(selected):
            return total
        lengths = self._lengths[selected]
        relative = K1 * (1 - B + B * lengths / max(float(lengths.mean()), 1e-9))
        for word, times in Counter(self._stems([question])[0]).items():
            documents, counts = self._postings(word)
            places, among = _places(documents, selected)
            found, often = places[among], counts[among]
            total[found] += times * _rarity(len(found), len(selected)) * often / (relative[found] + often)
        return total

    def rarity(self, question: str, selected: Numbers, others: int = 0) -> dict[str, float]:
        """What each word of a question weighs: how often the question has it, times its inverse document frequency.

        It is counted over the documents `selected` (ascending) and `others`, which have none of the words.
        """
        weights = {}
        for word, times in Counter(self._stems([question])[0]).items():
            documents, _ = self._postings(word)
            held = int(_places(documents, selected)[1].sum()) if len(selected) else 0
            weights[word] = times * _rarity(held, len(selected) + others)
        return weights

    @property
    def bytes(self) -> int:
        """Bytes of the postings, the lengths and the words."""
        arrays = sum(array.nbytes for block in self._blocks for array in block)
        return arrays + self._lengths.nbytes + sum(len(word.encode()) for word in self._terms)

    def _postings(self, word: str) -> tuple[Numbers32, Numbers32]:
        term = self._terms.get(word)
        if term is None:
            return _NONE, _NONE
        parts = [(block, block.of(term)) for block in self._blocks]
        documents = np.concatenate([block.documents[at] for block, at in parts] or [_NONE])
        return documents, np.concatenate([block.counts[at] for block, at in parts] or [_NONE])


def _rarity(held: int, documents: int) -> float:
    """Inverse document frequency, as Lucene has it."""
    return math.log(1 + (documents - held + 0.5) / (held + 0.5))


def _counted(terms: Numbers, documents: Numbers32) -> _Block:
    """Postings of words in the order of a text."""
    order = np.lexsort((documents, terms))
    terms, documents = terms[order], documents[order]
    new = np.ones(len(terms), dtype=bool)
    new[1:] = (terms[1:] != terms[:-1]) | (documents[1:] != documents[:-1])
    first = np.flatnonzero(new)
    return _block(terms[first], documents[first], np.diff(first, append=len(terms)).astype(np.int32))


def _merged(one: _Block, other: _Block) -> _Block:
    terms = np.concatenate([np.repeat(b.terms, np.diff(b.starts)) for b in (one, other)])
    documents = np.concatenate([one.documents, other.documents])
    order = np.lexsort((documents, terms))
    return _block(terms[order], documents[order], np.concatenate([one.counts, other.counts])[order])


def _block(terms: Numbers, documents: Numbers32, counts: Numbers32) -> _Block:
    """Of postings in order."""
    distinct, starts = np.unique(terms, return_index=True)
    return _Block(distinct, np.append(starts, len(terms)).astype(np.int64), documents, counts)


def _places(documents: Numbers32, selected: Numbers) -> tuple[NDArray[np.signedinteger[Any]], NDArray[np.bool_]]:
    """Where each of `documents` stands among the ascending `selected`, and whether it does."""
    first, last = int(selected[0]), int(selected[-1])
    if last - first + 1 == len(selected):  # no gap, as in a bank of one namespace from which nothing was deleted
        return documents - first, (documents >= first) & (documents <= last)
    places = np.searchsorted(selected, documents).clip(max=len(selected) - 1)
    return places, selected[places] == documents
