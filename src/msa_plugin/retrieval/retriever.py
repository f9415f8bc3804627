"""From questions to documents: by one ranking for all layers, the sum of routing keys, words, names and recency.

A `Retriever` is made when a memory is opened and never changes; whoever wants other signals asks for another one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from msa_plugin import prompts
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import BesideConfig, RoutingConfig
from msa_plugin.encoding.encoder import Encoder
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.interleave import Query, Ranking
from msa_plugin.retrieval.links import FOLLOWED, Offers, Titles, lift
from msa_plugin.retrieval.postings import Words
from msa_plugin.retrieval.ranking import (
    Ranked,
    SharedQueries,
    best_first,
    chunks_of,
    interpolate,
    score_breakdown,
    shared_queries,
)
from msa_plugin.retrieval.recency import with_recency
from msa_plugin.retrieval.relevance import Relevance, Said, compared
from msa_plugin.retrieval.search import Index, Search
from msa_plugin.retrieval.shared_names import Mentions
from msa_plugin.retrieval.words import WordSignal, depth


class Signals(NamedTuple):
    """What counts beside routing keys; None: it does not."""

    lexical: WordSignal | None = None
    titles: Titles | None = None
    mentions: Mentions | None = None

    @classmethod
    def of(cls, bank: BankHandle, router: Router, search: Search, weights: BesideConfig) -> Signals:
        """Those that have a weight. Raises ConfigError where layers select for themselves."""
        given = bank, router, search
        return cls(
            WordSignal(*given, weights.lexical) if weights.lexical else None,
            Titles(*given, weights.titles) if weights.titles else None,
            Mentions(*given, weights.mentions) if weights.mentions else None,
        )

    @property
    def weights(self) -> dict[str, float]:
        """By the names that traces give them."""
        named = {"words": self.lexical, "names": self.titles, "mentions": self.mentions}
        return {name: signal.weight for name, signal in named.items() if signal is not None}

    @property
    def steps(self) -> tuple[Offers, ...]:
        """What names offer, one after the other."""
        return tuple(step for signal in (self.titles, self.mentions) if signal is not None for step in signal.steps)


class Retriever(Protocol):
    """Ranks the documents of selections."""

    @property
    def signals(self) -> Signals:
        """What counts beside routing keys."""

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest score that a document can have."""

    def rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int] = ()) -> Ranking:
        """The best `k` documents of each query that `selection` allows; with `also`, all considered and these too."""

    def rank_round(self, queries: Sequence[Query], k: int, selection: Selected, weight: float) -> Ranking:
        """The same for a round: bare questions as they are, those with found text as follow-ups, by their `weight`."""


@dataclass(frozen=True, eq=False)
class SharedRetriever:
    """Ranks by one matrix product, and adds up what else is said of a document. With a `prefilter`, its candidates."""

    backbone: Backbone
    router: Router
    bank: BankHandle
    encoder: Encoder
    search: Search
    signals: Signals
    relevance: Relevance
    batch_tokens: int
    lora: Lora | None = None
    prefilter: Index | None = None

    @property
    def routing(self) -> RoutingConfig:
        """The adapter's."""
        return self.router.config

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest score that a document can have."""
        low, high = self.routing.score_bounds
        lexical, titles, _ = self.signals
        high += 0.0 if lexical is None else lexical.weight
        return low, high * (1.0 if titles is None else titles.most)

    def rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int] = ()) -> Ranking:
        """The best `k` documents of each query that `selection` allows; with `also`, all considered and these too."""
        began = time.perf_counter()
        return self._ranking(queries, self.vectors(queries), began, k, selection, judge=True, also=also)

    def rank_round(self, queries: Sequence[Query], k: int, selection: Selected, weight: float) -> Ranking:
        """See `Retriever`: a follow-up's vector is blended with its question's."""
        texts, questions = [follow_up(query) for query in queries], [query.question for query in queries]
        if texts == questions or self.routing.query_reduce != "pooled" or self.routing.heads > 1:
            return self.rank(texts, k, selection)
        began = time.perf_counter()
        asked = self.vectors(texts)
        asked = interpolate(self.vectors(questions), asked, weight, self.router)
        return self._ranking(texts, asked, began, k, selection, judge=False)

    def vectors(self, texts: Sequence[str]) -> SharedQueries:
        """Routing queries of texts, each different one encoded once."""
        distinct = list(dict.fromkeys(texts))
        rows = [self._query_ids(ids) for ids in self.backbone.tokenize_batch(distinct)]
        found = shared_queries(self.backbone, self.router, rows, self.batch_tokens, self.lora)
        order = [distinct.index(text) for text in texts]
        return SharedQueries(found.queries[order], found.shares[:, order], found.votes[order])

    def _query_ids(self, ids: list[int]) -> list[int]:
        """A query is read like a document; one longer than the window keeps its beginning, where the question is."""
        row = self.encoder.prefix + ids[: self.encoder.layout.text]
        if not row:
            raise InvalidQueryError("the question has no token that the backbone knows")
        return row

    def _ranking(
        self,
        queries: Sequence[str],
        asked: SharedQueries,
        began: float,
        k: int,
        selection: Selected,
        *,
        judge: bool,
        also: Sequence[int] = (),
    ) -> Ranking:
        encoded = time.perf_counter()
        ranked = self._ranked(queries, asked, k, selection, judge, also)
        seconds = {"encode": encoded - began, "route": time.perf_counter() - encoded}
        return Ranking(ranked, seconds, chunks_of(self.bank, asked))

    def _ranked(
        self,
        queries: Sequence[str],
        asked: SharedQueries,
        k: int,
        selection: Selected,
        judge: bool,
        also: Sequence[int],
    ) -> list[list[Ranked]]:
        """The best `k` of each query; `judge`: with their relevance, which is for questions as they were asked.

        With documents `also` come all that were considered, best first; the best `k` and these have their relevance.
        """
        wanted, k = k, self.relevance.depth(k) if judge else k
        lexical, steps, aged = self.signals.lexical, self.signals.steps, selection.asof.half_life is not None
        wide = depth(k) if lexical is not None or aged else max(k, FOLLOWED) if steps else k
        ranked = self.search.ranked(asked, wide, selection, self.prefilter)
        words = None if lexical is None else self.search.words(queries, selection)
        if lexical is not None and words is not None:
            ranked = lexical.add(words, asked, ranked, wide if steps or also or aged else k)
        score = partial(self._scored, asked, words)
        if also:
            ranked = [[*row, *score(n, sorted({*also} - {r.ordinal for r in row}))] for n, row in enumerate(ranked)]
        if steps:
            rows = [{r.ordinal: r for r in row} for row in ranked]
            for step in steps:
                for row, offers in enumerate(step(queries, rows, selection)):
                    missing = sorted({offer.ordinal for offer in offers} - rows[row].keys())
                    rows[row].update({r.ordinal: r for r in score(row, missing)} if missing else {})
                    lift(rows[row], offers)
            ranked = [best_first(row.values())[: sys.maxsize if also or aged else k] for row in rows]
        if aged:
            ranked = with_recency(self.bank, ranked, sys.maxsize if also else k, selection.asof)
        if also:
            each = [None] * len(queries) if words is None else [[said] for said in words]
            asked_for = zip(queries, ranked, each, strict=True)
            return [self._judged_among(query, row, k, said, also) for query, row, said in asked_for]
        if judge:
            ranked = self.relevance.judged(queries, ranked, lexical, words)
        return [row[:wanted] for row in ranked]

    def _judged_among(
        self, query: str, considered: list[Ranked], k: int, words: Said, also: Sequence[int]
    ) -> list[Ranked]:
        """All that were considered, best first; the best `k` and those `also` wanted with their relevance."""
        ranked = best_first(considered)
        wanted = {*also, *compared(ranked)}
        judged = [*ranked[:k], *(r for r in ranked[k:] if r.ordinal in wanted)]
        [judged] = self.relevance.judged([query], [judged], self.signals.lexical, words)
        known = {r.ordinal: r for r in judged}
        return [known.get(r.ordinal, r) for r in ranked]

    def _scored(
        self, asked: SharedQueries, words: Sequence[Words] | None, row: int, ordinals: list[int]
    ) -> list[Ranked]:
        """Documents as question `row` scores them, by keys and by words where these count."""
        found, lexical = score_breakdown(self.bank, self.routing, asked.of(row), ordinals), self.signals.lexical
        return found if lexical is None or words is None else lexical.raised(found, words[row])


def follow_up(query: Query) -> str:
    """The text that a query of a round routes on."""
    return prompts.follow_up(*query) if query.found else query.question
