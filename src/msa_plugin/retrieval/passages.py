"""Passages of the documents that routing found: cut once, kept for later questions, and ranked for each.

A passage's score is its document's, plus the best routing key that overlaps it, plus its share of the best BM25 among
the passages of all that was found. Keys of a few tokens blur a manual's rare words, and words know no synonyms; how
much each is worth was measured (docs/experiments).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from msa_plugin import prompts
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.positions import WindowLayout
from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.cancellation import check_cancelled
from msa_plugin.retrieval.cutting import LARGEST, Positions, TextSpan, cut
from msa_plugin.retrieval.postings import word_scores
from msa_plugin.retrieval.ranking import ChunkScores, Ranked
from msa_plugin.types import Passage

KEYS, WORDS = 2.0, 1.0  # what a passage's best key and its share of the best BM25 count beside its document's score
_KEPT = 16_000_000  # tokens of documents whose passages are kept for later questions
_PORTION, _AT_ONCE = 1 << 16, 16  # characters of a text that are tokenised in one piece; pieces side by side


class ScoredPassage(NamedTuple):
    """Passage `number` of the document at `place` among those found; `token` is where what fits best begins."""

    place: int
    number: int
    span: TextSpan
    score: float
    token: int

    def of(self, document: StoredDocument) -> Passage:
        """The passage as users see it."""
        span = self.span
        return Passage(document.text[span.start : span.end], self.score, span.start, span.end, span.heading)


class Laid(NamedTuple):
    """A document's passages, the chunks (first and last) that each overlaps, and the words of each."""

    spans: list[TextSpan]
    chunks: list[tuple[int, int]]
    words: WordTable


class Passages:
    """Cuts and ranks passages. What was cut is kept by ordinal, for ordinals are never used twice; safe for threads."""

    def __init__(self, backbone: Backbone, layout_of: Callable[[int], WindowLayout], pooling: int) -> None:
        """`layout_of` an ordinal says where the document's tokens ended up; routing chunks have `pooling` tokens."""
        self._backbone, self.layout_of, self.pooling = backbone, layout_of, pooling
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._starts: dict[int, Positions] = {}
        self._laid: dict[int, Laid] = {}
        self._tokens = 0

    def starts(self, document: StoredDocument) -> Positions:
        """The character of the text at which each token of the document as encoded starts; negative in its title."""
        with self._lock:
            self._make_room()
            return self._started(document)

    def characters(self, document: StoredDocument, first: int, stop: int) -> tuple[int, int]:
        """Characters of the text that tokens [first, stop) cover, only whole ones; negative in the title."""
        starts = self.starts(document)
        start, end = (int(starts[at]) if at < len(starts) else len(document.text) for at in (first, stop))
        if 0 < first < len(starts) and starts[first - 1] == start:  # the cut went through a character
            after = int(np.searchsorted(starts, start, "right"))
            start = int(starts[after]) if after < len(starts) else len(document.text)
        return start, max(start, end)

    def chunk(self, document: StoredDocument, number: int) -> tuple[int, int]:
        """Characters of the text that routing chunk `number` covers; none of them where it is of the title alone."""
        layout = self.layout_of(document.ordinal)
        first, stop = (layout.token_of_chunk(n, self.pooling) for n in (number, number + 1))
        start, end = self.characters(document, first, stop)
        return max(0, start), max(0, end)

    def ranked(
        self, question: str, found: Sequence[tuple[StoredDocument, Ranked]], chunks: ChunkScores | None
    ) -> list[ScoredPassage]:
        """Every passage of documents that a question found, best first; ties go to the document found earlier.

        Without `chunks` the best chunk of each document is the only one known.
        """
        with self._lock:
            self._make_room()
            laid = [self._cut(document) for document, _ in found]
        shares = iter(_shares(question, laid))
        scores = chunks([ranked.ordinal for _, ranked in found]) if chunks is not None and found else None
        passages = []
        for place, ((_, ranked), cuts) in enumerate(zip(found, laid, strict=True)):
            keys, tokens = self._by_keys(ranked, cuts, None if scores is None else scores[place])
            for number, (span, key, token) in enumerate(zip(cuts.spans, keys, tokens, strict=True)):
                score = ranked.score + KEYS * key + WORDS * next(shares)
                passages.append(ScoredPassage(place, number, span, score, token))
        return sorted(passages, key=lambda p: -p.score)

    def _by_keys(self, ranked: Ranked, laid: Laid, scores: NDArray[np.float32] | None) -> tuple[list[float], list[int]]:
        """Each passage's best key score, and the token where that chunk begins."""
        layout = self.layout_of(ranked.ordinal)
        values, tokens = [], []
        for first, last in laid.chunks:
            if scores is None:
                best, value = ranked.best_chunk, float(first <= ranked.best_chunk <= last)
            else:
                among = scores[first : last + 1]
                best, value = (first + int(among.argmax()), float(among.max())) if len(among) else (first, 0.0)
            values.append(value)
            tokens.append(layout.token_of_chunk(best, self.pooling))
        return values, tokens

    def _cut(self, document: StoredDocument) -> Laid:
        laid = self._laid.get(document.ordinal)
        if laid is None:
            check_cancelled()
            text = document.text
            short = document.tokens <= LARGEST  # most are, and need no tokens to be counted
            spans = [TextSpan(0, len(text), 0, document.tokens)] if short else cut(text, self._started(document))
            place = self.layout_of(document.ordinal).chunk_of_token
            edges = [(s.first, max(s.first, s.stop - 1)) for s in spans]
            chunks = [(place(a, self.pooling), place(b, self.pooling)) for a, b in edges]
            words = WordTable.of(("", f"{s.heading}\n{text[s.start : s.end]}") for s in spans)
            laid = self._laid[document.ordinal] = Laid(spans, chunks, words)
            self._tokens += document.tokens
        return laid

    def _started(self, document: StoredDocument) -> Positions:
        starts = self._starts.get(document.ordinal)
        if starts is None:
            text = prompts.document_text(document.title, document.text)
            placed, at = [], 0
            portions = _portions(text)
            for first in range(0, len(portions), _AT_ONCE):
                check_cancelled()
                batch = portions[first : first + _AT_ONCE]
                for portion, places in zip(batch, self._backbone.tokenize_places(batch), strict=True):
                    placed.append(np.array(places, dtype=np.int32) + at)
                    at += len(portion)
            starts = np.concatenate(placed) - np.int32(len(text) - len(document.text))
            self._starts[document.ordinal] = starts
            self._tokens += len(starts)
        return starts

    def _make_room(self) -> None:
        if self._tokens > _KEPT:
            self._clear()


class BestChunks:
    """Where in documents' texts the chunks are that scored best: worked out when asked for, while the memory is there.

    Most who search never ask, and it takes the tokens of every text that was found.
    """

    def __init__(self, passages: Passages, found: Mapping[int, tuple[StoredDocument, int]]) -> None:
        """Documents by ordinal, each with the number of its chunk. Keeps no model in memory."""
        self._passages, self._found = weakref.ref(passages), found

    def __call__(self, ordinal: int) -> tuple[int, int] | None:
        """Characters [start, end) of that document's text; None once the memory is gone."""
        passages, found = self._passages(), self._found.get(ordinal)
        return None if passages is None or found is None else passages.chunk(*found)


def _shares(question: str, laid: Sequence[Laid]) -> list[float]:
    """What the question's words say of each passage among all of them, over the best there is."""
    parts, count = [], 0
    for cuts in laid:
        parts.append(WordPart(cuts.words, np.arange(count, count + len(cuts.spans)), None))
        count += len(cuts.spans)
    return word_scores([question], parts)[0].shares([*range(count)])


def _portions(text: str) -> list[str]:
    """The text in pieces that end with a line, where lines are not too long for that."""
    portions, at = [], 0
    while len(text) - at > _PORTION:
        line = text.rfind("\n", at + _PORTION // 2, at + _PORTION) + 1
        end = line or at + _PORTION
        portions.append(text[at:end])
        at = end
    return [*portions, text[at:]]
