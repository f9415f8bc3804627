"""What of found documents goes on: chunks to the next round's query, passages to the prompt and to whoever asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from msa_plugin import prompts
from msa_plugin.answering.reading import Excerpt, allowances, around
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import BankHandle
from msa_plugin.retrieval.cutting import LARGEST, TextSpan
from msa_plugin.retrieval.passages import BestChunks, Passages, ScoredPassage
from msa_plugin.retrieval.ranking import ChunkScores, Ranked
from msa_plugin.types import Hit, Passage

# Chunks of a found document that the next round routes on.
_PIECES = 8
_SHOWN = 3  # passages of a hit
_LEAST = 16  # tokens left of a budget that are not worth another passage


class Excerpts:
    """The documents that one call found, each fetched once, and their parts."""

    def __init__(self, backbone: Backbone, bank: BankHandle, passages: Passages) -> None:
        """`passages` outlives the call."""
        self._backbone, self._bank, self._passages = backbone, bank, passages
        self._documents: dict[int, StoredDocument] = {}

    def documents(self, ranked: Iterable[Ranked]) -> list[StoredDocument]:
        """The documents themselves."""
        ordinals = [r.ordinal for r in ranked]
        missing = [o for o in dict.fromkeys(ordinals) if o not in self._documents]
        if missing:
            self._documents.update({d.ordinal: d for d in self._bank.documents(missing)})
        return [self._documents[o] for o in ordinals]

    def pieces(self, ranked: Sequence[Ranked]) -> list[tuple[str, list[str]]]:
        """Id and pieces of each document, a chunk long, from around its best chunk."""
        return [(d.id, self._pieces(r, d)) for r, d in zip(ranked, self.documents(ranked), strict=True)]

    def whole(self, ranked: Sequence[Ranked]) -> list[Excerpt]:
        """The documents as they are."""
        return [_whole(d, r.score) for r, d in zip(ranked, self.documents(ranked), strict=True)]

    def best_chunks(self, ranked: Iterable[Ranked]) -> BestChunks:
        """Says, when asked, where in each document's text the chunk is that scored best."""
        numbers = {r.ordinal: r.best_chunk for r in ranked}
        return BestChunks(self._passages, {o: (self._documents[o], number) for o, number in numbers.items()})

    def cut(self, ranked: Sequence[Ranked], budget: int) -> list[Excerpt]:
        """What of each document fits a budget of tokens, in the order given.

        For models that read a document in one piece: long ones are cut around the chunk that scored best.
        """
        documents = self.documents(ranked)
        granted = allowances([d.tokens for d in documents], budget)
        return [
            _whole(d, r.score) if size >= d.tokens else self._around(d, r, size)
            for r, d, size in zip(ranked, documents, granted, strict=True)
            if size > 0
        ]

    def read(
        self, question: str, ranked: Sequence[Ranked], chunks: ChunkScores | None, budget: int, *, each: bool = False
    ) -> list[Excerpt]:
        """The best passages within a budget of tokens, as they are read: the best document last, in its own order.

        Documents that fit as they are, are read whole. With `each`, something of every document is read.
        """
        documents = self.documents(ranked)
        if sum(d.tokens for d in documents) <= budget:
            return self.whole(ranked)[::-1]
        passages = self._passages.ranked(question, list(zip(documents, ranked, strict=True)), chunks)
        chosen: dict[int, list[ScoredPassage]] = {}
        if each:
            first = {p.place: p for p in reversed(passages)}
            costs = {place: self._cost(documents[place], p.span) for place, p in first.items()}
            if sum(costs.values()) > budget:
                granted = dict(zip(costs, allowances(list(costs.values()), budget), strict=True))
                return [
                    self._trimmed(documents[place], first[place], granted[place])
                    for place in sorted(first, reverse=True)
                    if granted[place] > 0
                ]
            passages = [*first.values(), *(p for p in passages if first[p.place] is not p)]
        for passage in passages:
            if budget < _LEAST and chosen:
                break
            document = documents[passage.place]
            cost = self._cost(document, passage.span)
            if cost > budget and not chosen:
                return [self._trimmed(document, passage, budget)]
            if cost <= budget:
                chosen.setdefault(passage.place, []).append(passage)
                budget -= cost
        return [e for place in sorted(chosen, reverse=True) for e in self._parts(documents[place], chosen[place])]

    def hits(self, question: str, ranked: Sequence[Ranked], chunks: ChunkScores | None) -> list[Hit]:
        """Documents, each with its best passages."""
        documents = self.documents(ranked)
        long = [(d, r) for d, r in zip(documents, ranked, strict=True) if d.tokens > LARGEST]
        best: dict[int, list[Passage]] = {}
        for passage in self._passages.ranked(question, long, chunks):
            document = long[passage.place][0]
            mine = best.setdefault(document.ordinal, [])
            if len(mine) < _SHOWN:
                mine.append(passage.of(document))
        return [
            replace(_hit(r, d), passages=tuple(best.get(d.ordinal) or [all_of(d, r.score)]))
            for r, d in zip(ranked, documents, strict=True)
        ]

    def passage_hits(self, question: str, ranked: Sequence[Ranked], chunks: ChunkScores | None, k: int) -> list[Hit]:
        """The best `k` passages of these documents."""
        found = list(zip(self.documents(ranked), ranked, strict=True))
        hits = []
        for scored in self._passages.ranked(question, found, chunks)[:k]:
            document, routed = found[scored.place]
            passage = scored.of(document)
            hit = replace(_hit(routed, document), score=passage.score, text=passage.text)
            hits.append(replace(hit, passages=(passage,), passage=passage))
        return hits

    def _cost(self, document: StoredDocument, span: TextSpan) -> int:
        """Tokens of a passage with title and heading."""
        if span.stop - span.first >= document.tokens:
            return document.tokens
        above = prompts.passage_text(document.title, span.heading, "")
        return span.stop - span.first + (len(self._backbone.tokenize(above)) if above else 0)

    def _parts(self, document: StoredDocument, chosen: Sequence[ScoredPassage]) -> list[Excerpt]:
        """Passages of one document in its order; neighbours below one heading are read as one."""
        parts: list[Excerpt] = []
        last: ScoredPassage | None = None
        for passage in sorted(chosen, key=lambda p: p.number):
            span, score = passage.span, passage.score
            if last is not None and (last.number + 1, last.span.heading) == (passage.number, span.heading):
                span = span._replace(start=last.span.start, first=last.span.first)
                score = max(score, last.score)
                parts.pop()
            whole = span.stop - span.first >= document.tokens
            parts.append(_whole(document, score) if whole else self._part(document, span, score))
            last = passage._replace(span=span, score=score)
        return parts

    def _part(self, document: StoredDocument, span: TextSpan, score: float, *, above: bool = True) -> Excerpt:
        passage = Passage(document.text[span.start : span.end], score, span.start, span.end, span.heading)
        text = prompts.passage_text(document.title, span.heading, passage.text) if above else passage.text
        return Excerpt(document.ordinal, text, span.first, span.stop, passage)

    def _trimmed(self, document: StoredDocument, passage: ScoredPassage, budget: int) -> Excerpt:
        """As much of a passage as fits, around its best chunk; without title and heading if these do not."""
        span = passage.span
        above = prompts.passage_text(document.title, span.heading, "")
        taken = len(self._backbone.tokenize(above)) if above else 0
        fits = taken <= budget // 2
        size = min(budget - taken * fits, span.stop - span.first)
        start, stop = around(max(0, passage.token - span.first), size, span.stop - span.first)
        first, stop = span.first + start, span.first + stop
        begin, end = self._passages.characters(document, first, stop)
        part = TextSpan(max(begin, 0), max(end, 0), first, stop, span.heading)
        return self._part(document, part, passage.score, above=fits)

    def _around(self, document: StoredDocument, ranked: Ranked, size: int) -> Excerpt:
        start, stop = around(self._best_token(ranked), size, document.tokens)
        begin, end = (max(0, at) for at in self._passages.characters(document, start, stop))
        passage = Passage(document.text[begin:end], ranked.score, begin, end)
        return Excerpt(document.ordinal, self._encoded(document, start, stop), start, stop, passage)

    def _pieces(self, ranked: Ranked, document: StoredDocument) -> list[str]:
        size = self._passages.pooling
        total = len(self._passages.starts(document))
        start, stop = around(self._best_token(ranked), min(_PIECES * size, total), total)
        return [self._encoded(document, at, min(at + size, stop)) for at in range(start, stop, size)]

    def _encoded(self, document: StoredDocument, first: int, stop: int) -> str:
        """Tokens [first, stop) of the document as it was encoded, title included, without characters cut through."""
        text = prompts.document_text(document.title, document.text)
        before = len(text) - len(document.text)
        start, end = self._passages.characters(document, first, stop)
        return text[start + before : end + before]

    def _best_token(self, ranked: Ranked) -> int:
        return self._passages.layout_of(ranked.ordinal).token_of_chunk(ranked.best_chunk, self._passages.pooling)


def _whole(document: StoredDocument, score: float) -> Excerpt:
    text = prompts.document_text(document.title, document.text)
    return Excerpt(document.ordinal, text, 0, document.tokens, all_of(document, score))


def all_of(document: StoredDocument, score: float) -> Passage:
    """A document that is read as it is."""
    return Passage(document.text, score, 0, len(document.text))


def _hit(ranked: Ranked, document: StoredDocument) -> Hit:
    metadata = dict(document.metadata)  # its own: another row may have found the same document
    found = Hit(document.id, ranked.score, document.text, document.title, metadata, ranked.layer_scores, ranked.ordinal)
    found = replace(found, namespace=document.namespace, validity=document.validity)
    return replace(found, relevance=ranked.relevance, signals=ranked.signals)
