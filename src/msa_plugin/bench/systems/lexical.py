"""BM25 by bm25s, with PyStemmer's English stemmer and English stop words, over title and text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.base import Cost, Found, Scored, Workspace
from msa_plugin.bench.systems.common import Options, Seconds, best, shared, text_bytes, texts, timed
from msa_plugin.errors import MissingExtraError


class Bm25:
    """Lucene's variant with k1 = 1.5 and b = 0.75. A passage that shares no word with the question is not found."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """Raises MissingExtraError without bm25s or PyStemmer."""
        self.name, self.workspace = name, workspace
        self._bm25s, self._stemmer = _libraries()
        self._index: Any = None

    def prepare(self) -> Cost:
        """Index the corpus; the index is built anew every time, which takes seconds."""
        documents = self.workspace.dataset.documents
        began = time.perf_counter()
        index = self._bm25s.BM25()
        tokens = self._tokens(texts(documents))
        if any(tokens):  # bm25s refuses a corpus without a single word
            index.index(tokens, show_progress=False)
            self._index = index
        seconds = time.perf_counter() - began
        held = self._held()
        return Cost(seconds, self.workspace.tokens, held + text_bytes(documents), held)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question."""
        if not questions:
            return []
        seconds: Seconds = {}
        with timed(seconds, "encode"):
            tokens = self._tokens(questions)
        with timed(seconds, "search"):
            rows = [self._search(words, k) for words in tokens]
        share = shared(seconds, len(questions))
        return [Found(row, share, (question,)) for question, row in zip(questions, rows, strict=True)]

    def close(self) -> None:
        """Drop the index."""
        self._index = None

    def _tokens(self, given: Sequence[str]) -> list[list[str]]:
        rows: list[list[str]] = self._bm25s.tokenize(
            list(given), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return rows

    def _search(self, words: list[str], k: int) -> tuple[Scored, ...]:
        known = [] if self._index is None else [w for w in words if w in self._index.vocab_dict]
        if not known:
            return ()
        scores = self._index.get_scores(known)
        documents = self.workspace.dataset.documents
        return tuple(Scored(documents[i].id, float(scores[i])) for i in best(scores, k) if scores[i] > 0)

    def _held(self) -> int:
        """Bytes of the index: scores, where they are, and the words."""
        if self._index is None:
            return 0
        arrays = sum(getattr(value, "nbytes", 0) for value in self._index.scores.values())
        return int(arrays) + sum(len(word.encode()) for word in self._index.vocab_dict)


def _libraries() -> tuple[Any, Any]:
    """The module bm25s and an English stemmer; the only place that imports them."""
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise MissingExtraError('bm25 needs bm25s and PyStemmer: pip install "msa-plugin[bench]"') from error
    return bm25s, Stemmer.Stemmer("english")


def stemmed_bm25(corpus: Sequence[str]) -> Callable[[str], NDArray[np.float32]]:
    """A function that gives every text of `corpus` its score for a question, as `Bm25` scores passages."""
    bm25s, stemmer = _libraries()

    def words(given: list[str]) -> list[list[str]]:
        rows: list[list[str]] = bm25s.tokenize(
            given, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        return rows

    index = bm25s.BM25()
    tokens = words(list(corpus))
    if any(tokens):
        index.index(tokens, show_progress=False)

    def score(question: str) -> NDArray[np.float32]:
        known = [w for w in words([question])[0] if any(tokens) and w in index.vocab_dict]
        return np.asarray(index.get_scores(known), dtype=np.float32) if known else np.zeros(len(corpus), np.float32)

    return score
