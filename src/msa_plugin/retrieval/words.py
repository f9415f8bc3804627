"""Words beside routing keys: a document's score is its routing score plus a weight times its share of the best words.

The candidates are the best by routing keys and the best by words; all of them get both scores exactly. Words are
counted over the documents that a question may see (`postings`), so that what others stored changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.retrieval.postings import Words
from msa_plugin.retrieval.ranking import Ranked, SharedQueries, best_first, score_breakdown
from msa_plugin.retrieval.search import Search

_WORD = re.compile(r"\w+")


def depth(k: int) -> int:
    """How many candidates each side brings to a ranking of `k`."""
    return max(100, 4 * k)


class WordSignal:
    """What words say of a bank's selections, beside its routing keys."""

    def __init__(self, bank: BankHandle, router: Router, search: Search, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        router.config.check_shared("lexical")
        self.bank, self.router, self.search, self.weight = bank, router, search, weight

    def add(
        self, words: Sequence[Words], asked: SharedQueries, ranked: Sequence[list[Ranked]], k: int
    ) -> list[list[Ranked]]:
        """The best `k` of each row by both scores; `ranked` are the best `depth(k)` by routing keys alone."""
        rows = []
        for row, (said, routed) in enumerate(zip(words, ranked, strict=True)):
            missing = sorted({*said.best(depth(k))} - {r.ordinal for r in routed})
            both = self.raised([*routed, *score_breakdown(self.bank, self.router.config, asked.of(row), missing)], said)
            rows.append(best_first(both)[:k])
        return rows

    def raised(self, ranked: Sequence[Ranked], words: Words) -> list[Ranked]:
        """The same documents with their words counted."""
        shares = words.shares([r.ordinal for r in ranked])
        added = [self.weight * share for share in shares]
        return [replace(r, score=r.score + more, words=more) for r, more in zip(ranked, added, strict=True)]

    def parts(self, text: str, selection: Selected, ordinal: int) -> dict[str, float]:
        """What each word of a text adds to the score of one document of a selection, of those that do."""
        times = Counter(_WORD.findall(text.lower()))
        whole, *each = self.search.words([text, *times], selection)
        best = float(whole.scores.max(initial=0.0))
        scores = [float(words.of([ordinal])[0]) for words in each]
        pairs = zip(times.items(), scores, strict=True)
        return {word: self.weight * often * score / best for (word, often), score in pairs if score}
