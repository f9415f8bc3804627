"""BM25 by bm25s, with PyStemmer's English stemmer and English stop words, over title and text."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msa_plugin.bench.base import Cost, Found
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import BenchSystem, Seconds, best, shared, text_bytes, texts, timed
from msa_plugin.retrieval.bm25 import WordIndex


class Bm25(BenchSystem):
    """Lucene's variant with k1 = 1.5 and b = 0.75. A passage that shares no word with the question is not found."""

    _index = WordIndex([])

    def prepare(self) -> Cost:
        """Index the corpus; the index is built anew every time, which takes seconds."""
        began = time.perf_counter()
        self._index = WordIndex(texts(self.documents))
        seconds, held = time.perf_counter() - began, self._index.bytes
        return Cost(seconds, self.workspace.tokens, held + text_bytes(self.documents), held)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question."""
        if not questions:
            return []
        seconds: Seconds = {}
        with timed(seconds, "encode"):
            asked = self._index.words(questions)
        with timed(seconds, "search"):
            rows = [self._search(words, k) for words in asked]
        share = shared(seconds, len(questions))
        return [Found(row, share, (question,)) for question, row in zip(questions, rows, strict=True)]

    def close(self) -> None:
        """Drop the index."""
        self._index = WordIndex([])

    def _search(self, words: list[str], k: int) -> tuple[Scored, ...]:
        scores = self._index.scores(words)
        return tuple(Scored(self.documents[i].id, float(scores[i])) for i in best(scores, k) if scores[i] > 0)
