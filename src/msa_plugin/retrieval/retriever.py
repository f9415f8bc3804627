"""One ranking for all layers: by routing keys, words, names and recency, and judged for relevance."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.links import FOLLOWED, Titles
from msa_plugin.retrieval.postings import Words
from msa_plugin.retrieval.ranking import Ranked, SharedQueries, best_first, score_breakdown
from msa_plugin.retrieval.recency import with_recency
from msa_plugin.retrieval.relevance import Relevance, Said, compared
from msa_plugin.retrieval.search import Index, Search
from msa_plugin.retrieval.shared_names import Mentions
from msa_plugin.retrieval.words import WordSignal, depth


@dataclass(frozen=True)
class SharedRanking:
    """What ranks the documents of a bank, as it stands when a question is asked."""

    bank: BankHandle
    routing: RoutingConfig
    search: Search
    prefilter: Index | None
    lexical: WordSignal | None
    titles: Titles | None
    mentions: Mentions | None
    relevance: Relevance

    def rank(
        self,
        queries: Sequence[str],
        asked: SharedQueries,
        k: int,
        selection: Selected,
        *,
        judge: bool,
        also: Sequence[int] = (),
    ) -> list[list[Ranked]]:
        """The best `k` of each query; `judge`: with their relevance, which is for questions as they were asked.

        With documents `also` come all that were considered, best first; the best `k` and these have their relevance.
        """
        wanted, k = k, self.relevance.depth(k) if judge else k
        named, aged = self.titles is not None or self.mentions is not None, selection.asof.half_life is not None
        wide = depth(k) if self.lexical is not None or aged else max(k, FOLLOWED) if named else k
        ranked = self.search.ranked(asked, wide, selection, self.prefilter)
        words = None if self.lexical is None else self.lexical.words(queries, selection)
        if self.lexical is not None and words is not None:
            ranked = self.lexical.add(words, asked, ranked, wide if named or also or aged else k)
        score = partial(self._scored, asked, words)
        if also:
            missing = [sorted({*also} - {r.ordinal for r in row}) for row in ranked]
            ranked = [[*row, *score(n, missing[n])] for n, row in enumerate(ranked)]
        if self.titles is not None:
            every = bool(also) or aged or self.mentions is not None
            ranked = self.titles.add(queries, ranked, selection, score, sys.maxsize if every else k)
        if self.mentions is not None:
            ranked = self.mentions.add(queries, ranked, selection, score, sys.maxsize if also or aged else k)
        if aged:
            ranked = with_recency(self.bank, ranked, sys.maxsize if also else k, selection.asof)
        if also:
            each = [None] * len(queries) if words is None else [[said] for said in words]
            asked_for = zip(queries, ranked, each, strict=True)
            return [self._judged_among(query, row, k, said, also) for query, row, said in asked_for]
        if judge:
            ranked = self.relevance.judged(queries, ranked, self.lexical, words)
        return [row[:wanted] for row in ranked]

    def _judged_among(
        self, query: str, considered: list[Ranked], k: int, words: Said, also: Sequence[int]
    ) -> list[Ranked]:
        """All that were considered, best first; the best `k` and those `also` wanted with their relevance."""
        ranked = best_first(considered)
        wanted = {*also, *compared(ranked)}
        judged = [*ranked[:k], *(r for r in ranked[k:] if r.ordinal in wanted)]
        [judged] = self.relevance.judged([query], [judged], self.lexical, words)
        known = {r.ordinal: r for r in judged}
        return [known.get(r.ordinal, r) for r in ranked]

    def _scored(
        self, asked: SharedQueries, words: Sequence[Words] | None, row: int, ordinals: list[int]
    ) -> list[Ranked]:
        """Documents as question `row` scores them, by keys and by words where these count."""
        found = score_breakdown(self.bank, self.routing, asked.of(row), ordinals)
        return found if self.lexical is None or words is None else self.lexical.raised(found, words[row])
