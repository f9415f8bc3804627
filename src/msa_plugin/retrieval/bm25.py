"""BM25 over documents' words, by bm25s: Lucene's variant with k1 = 1.5 and b = 0.75, English stems and stop words.

Routing keys say what a text is about and blur its rare words; BM25 counts these and knows no synonyms. What their
sum finds is measured in docs/experiments. Statistics are those of the documents that are indexed together alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msa_plugin.stems import stems

Scores = NDArray[np.float32]
K1, B = 1.5, 0.75


class WordIndex:
    """BM25 of a list of texts, built at once and held in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Texts without a single word are allowed and never score."""
        self.words = stems()
        self._count = len(texts)
        tokens = self.words(texts)
        self._index: Any = None
        if any(tokens):  # bm25s refuses a corpus without a single word
            import bm25s  # here: loading it takes longer than a question

            self._index = bm25s.BM25(k1=K1, b=B)
            self._index.index(tokens, show_progress=False)

    def scores(self, words: Sequence[str]) -> Scores:
        """Score [n] of every text for a question's `words`; 0 for a text that has none of them."""
        known = [] if self._index is None else [w for w in words if w in self._index.vocab_dict]
        if not known:
            return np.zeros(self._count, dtype=np.float32)
        return np.asarray(self._index.get_scores(known), dtype=np.float32)

    def asked(self, question: str) -> Scores:
        """`scores` for a question as text."""
        return self.scores(self.words([question])[0])

    @property
    def bytes(self) -> int:
        """Bytes of the index: scores, where they are, and the words."""
        if self._index is None:
            return 0
        arrays = sum(getattr(value, "nbytes", 0) for value in self._index.scores.values())
        return int(arrays) + sum(len(word.encode()) for word in self._index.vocab_dict)
