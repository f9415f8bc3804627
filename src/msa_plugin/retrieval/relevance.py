"""Relevance: how likely a document holds what a question asks for, a number that means the same for every question.

A score ranks the documents of one question and is relative to its best match. Relevance comes from what can be compared
between questions: the cosine of the best routing key, the share of the question's words that the text around it holds
(rare ones count more), and by how much both are ahead of what is merely about the same. A logistic regression over
these is fitted on training sets (`training.relevance`); an adapter without one has no relevance, which is None.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from msa_plugin.backbone.adapter import AdapterConfig
from msa_plugin.bank.handle import BankHandle
from msa_plugin.config import RelevanceConfig, RelevanceWeights
from msa_plugin.retrieval.bm25 import K1, B
from msa_plugin.retrieval.links import around
from msa_plugin.retrieval.postings import Words, rarity
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.retrieval.words import WordSignal
from msa_plugin.stems import stems

BESIDE = 8  # the document that the best are compared with is the eighth best
_OTHERS = 100  # documents without a question's words that a memory counts as holding besides: a small one has no rarity
_LENGTH = 60  # words of a text whose length neither helps nor harms
_PIECE, _PIECES = 400, 3  # characters, and how many pieces of a long document count together: a book has every word
_CHARACTERS = 100_000  # of a document, around its best chunk
_CUT = re.compile(rf"(?s).{{1,{_PIECE}}}(?:\s|$)|.{{1,{_PIECE}}}")  # at blanks, where there are some

Said = Sequence[Words] | None  # what each question's words say, where words count


class Signal(NamedTuple):
    """What says whether one document answers one question, and the same of the eighth best (None: there are fewer).

    `key` is the cosine of the best routing key, `words` a share from 0 to 1; None where words do not count, or the
    question has none that do.
    """

    key: float
    key_beside: float | None
    words: float | None = None
    words_beside: float | None = None

    def weights(self, config: RelevanceConfig) -> RelevanceWeights:
        """Those that are for it."""
        return config.keys if self.words is None else config.words

    def features(self, unrelated: float) -> tuple[float, float, float, float]:
        """Key, its lead, words and their lead; `unrelated` is the key of an eighth document that there is not."""
        words = self.words or 0.0
        beside = unrelated if self.key_beside is None else self.key_beside
        return self.key, self.key - beside, words, words - (self.words_beside or 0.0)


def relevance(signal: Signal, config: RelevanceConfig) -> float:
    """From 0 to 1."""
    weights = signal.weights(config)
    pairs = zip(weights.slopes, signal.features(config.unrelated), strict=True)
    total = weights.bias + sum(weight * value for weight, value in pairs)
    return 1.0 / (1.0 + math.exp(-min(max(total, -700.0), 700.0)))


class Relevance:
    """Judges ranked documents, by keys and, where words are indexed, by words."""

    def __init__(self, bank: BankHandle, adapter: AdapterConfig) -> None:
        """Of an adapter that was not fitted there are signals and no relevance."""
        self.config, self._bank, self._pooling = adapter.relevance, bank, adapter.routing.pooling

    def depth(self, k: int) -> int:
        """How long a ranking of `k` must be to be judged."""
        return k if self.config is None else max(k, BESIDE)

    def judged(
        self, questions: Sequence[str], rows: Sequence[list[Ranked]], lexical: WordSignal | None, words: Said
    ) -> list[list[Ranked]]:
        """The same rankings, at least `BESIDE` long where there are so many documents, with relevance."""
        if self.config is None:
            return list(rows)
        judged = []
        for row, signals in zip(rows, self.signals(questions, rows, lexical, words), strict=True):
            found = [relevance(signal, self.config) for signal in signals]
            judged.append([replace(r, relevance=value) for r, value in zip(row, found, strict=True)])
        return judged

    def signals(
        self, questions: Sequence[str], rows: Sequence[list[Ranked]], lexical: WordSignal | None, words: Said
    ) -> list[list[Signal]]:
        """What can be compared between questions, for each ranked document; `words` where `lexical` counts them."""
        signals = []
        for place, (question, row) in enumerate(zip(questions, rows, strict=True)):
            keys = [sum(r.layer_scores.values()) for r in row]
            weighed = {}
            if lexical is not None and words is not None:
                weighed = rarity(question, words[place].counts, _OTHERS)
            held: list[float | None] = [None] * len(row)
            if weighed:
                held = [*self._held(row, weighed)]
            first = compared(row)
            known = [w for w, r in zip(held, row, strict=True) if w is not None and r.ordinal in first]
            beside = _beside([key for key, r in zip(keys, row, strict=True) if r.ordinal in first]), _beside(known)
            signals.append([Signal(key, beside[0], said, beside[1]) for key, said in zip(keys, held, strict=True)])
        return signals

    def _held(self, row: Sequence[Ranked], weighed: Mapping[str, float]) -> Iterator[float]:
        """The best share of the words that some place of each document holds, its title always beside it.

        Documents of a shard that was lost meanwhile hold none.
        """
        stored = {d.ordinal: d for d in self._bank.documents([r.ordinal for r in row])}
        for ranked in row:
            document = stored.get(ranked.ordinal)
            if document is None:
                yield 0.0
                continue
            pieces = _CUT.findall(around(document.text, ranked.best_chunk * self._pooling, _CHARACTERS))
            title, *counted = map(Counter, stems()([document.title, *pieces]))
            places = range(max(1, len(counted) - _PIECES + 1))
            yield max(_share(sum(counted[at : at + _PIECES], title), weighed) for at in places)


def compared(row: Sequence[Ranked]) -> set[int]:
    """Ordinals of those that all of a ranking are compared with: what one is worth depends on neither k nor recency."""
    return {r.ordinal for r in sorted(row, key=lambda r: r.recency - r.score)[:BESIDE]}


def _beside(values: Sequence[float]) -> float | None:
    return sorted(values, reverse=True)[BESIDE - 1] if len(values) >= BESIDE else None


def _share(counts: Mapping[str, int], weighed: Mapping[str, float]) -> float:
    """A text's BM25 over the most that any text could have, with a usual length instead of the memory's mean."""
    relative = K1 * (1 - B + B * sum(counts.values()) / _LENGTH)
    total = sum(weighed.values())
    return sum(rare * counts.get(word, 0) / (relative + counts.get(word, 0)) for word, rare in weighed.items()) / total
