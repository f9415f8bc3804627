"""One ranking for all layers: by routing keys, words and names, and judged for relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import RoutingConfig
from msa_plugin.engine.lexical import Lexical, Words, depth
from msa_plugin.engine.ranking import Ranked, SharedQueries, explained
from msa_plugin.engine.relevance import Relevance
from msa_plugin.engine.search import Index, Search
from msa_plugin.engine.titles import FOLLOWED, Titles


@dataclass(frozen=True)
class SharedRanking:
    """What ranks the documents of a bank, as it stands when a question is asked."""

    bank: BankHandle
    routing: RoutingConfig
    search: Search
    prefilter: Index | None
    lexical: Lexical | None
    titles: Titles | None
    relevance: Relevance

    def rank(
        self, queries: Sequence[str], asked: SharedQueries, k: int, selection: Selected, *, judge: bool
    ) -> list[list[Ranked]]:
        """The best `k` of each query; `judge`: with their relevance, which is for questions as they were asked."""
        wanted, k = k, self.relevance.depth(k) if judge else k
        wide = depth(k) if self.lexical is not None else k if self.titles is None else max(k, FOLLOWED)
        ranked = self.search.ranked(asked, wide, selection, self.prefilter)
        words = None if self.lexical is None else self.lexical.words(queries, selection)
        if self.lexical is not None and words is not None:
            ranked = self.lexical.add(words, asked, ranked, k if self.titles is None else wide)
        if self.titles is not None:
            ranked = self.titles.add(queries, ranked, selection, partial(self._scored, asked, words), k)
        if judge:
            ranked = self.relevance.judged(queries, ranked, self.lexical, selection)
        return [row[:wanted] for row in ranked]

    def _scored(
        self, asked: SharedQueries, words: Sequence[Words] | None, row: int, ordinals: list[int]
    ) -> list[Ranked]:
        """Documents as question `row` scores them, by keys and by words where these count."""
        found = explained(self.bank, self.routing, asked.of(row), ordinals)
        return found if self.lexical is None or words is None else self.lexical.raised(found, words[row])
