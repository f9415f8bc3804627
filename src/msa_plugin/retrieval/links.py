"""Titles beside routing keys: who is named in the question, or in what was found, ranks higher.

A document whose title is in the question gains a share `weight` of the best score. Then the best few are read: a
document that one of them names gains that share of its score, over the square root of how many are named there. So a
chain's second document, which shares neither words nor meaning with the question, is found through the name that the
first one gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.bank.terms import lowered, name_of
from msa_plugin.retrieval.ranking import Link, Ranked, best_first
from msa_plugin.retrieval.search import Search

Score = Callable[[int, list[int]], list[Ranked]]  # documents as a row's question scores them without their titles

FOLLOWED = 3  # best documents whose names are followed
_CHARACTERS = 20_000  # of each of them, around its best chunk: a book names everyone
_PER_TOKEN = 4  # characters, roughly


class Titles:
    """Titles of a bank's selections, beside its routing keys."""

    def __init__(self, bank: BankHandle, router: Router, search: Search, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        router.config.check_shared("titles")
        self.bank, self.search, self.weight, self._pooling = bank, search, weight, router.config.pooling

    def add(
        self, texts: Sequence[str], ranked: Sequence[list[Ranked]], selection: Selected, score: Score, k: int
    ) -> list[list[Ranked]]:
        """The best `k` of each row; `ranked` are more of them, best first, and `score` gives those that are not there.

        Ties go to the lower ordinal.
        """
        asked = self.search.names(texts, selection, any_case=True)
        rows = [{r.ordinal: r for r in given} for given in ranked]
        for row, (named, found) in enumerate(zip(asked, rows, strict=True)):
            best = max((r.score for r in found.values()), default=0.0)
            self._raise(found, dict.fromkeys(named, Link(None, best)), partial(score, row))
        tops = [best_first(found.values())[:FOLLOWED] for found in rows]
        names = self._names([r for top in tops for r in top], selection)
        for row, (top, found) in enumerate(zip(tops, rows, strict=True)):
            gains: dict[int, Link] = {}
            for ranking in top:
                others = names.get((ranking.ordinal, ranking.best_chunk), [])
                link = Link(ranking.ordinal, ranking.score / max(len(others), 1) ** 0.5)
                gains.update({o: link for o in others if o not in gains or link.added > gains[o].added})
            self._raise(found, gains, partial(score, row))
        return [best_first(found.values())[:k] for found in rows]

    def _raise(
        self, found: dict[int, Ranked], gains: dict[int, Link], score: Callable[[list[int]], list[Ranked]]
    ) -> None:
        missing = sorted(gains.keys() - found.keys())
        found.update({r.ordinal: r for r in score(missing)} if missing else {})
        for ordinal, link in gains.items():
            if (one := found.get(ordinal)) is not None:  # a shard that was lost meanwhile has no score for its own
                added = self.weight * max(link.added, 0.0)
                links = (*one.links, Link(link.by, added))
                found[ordinal] = replace(one, score=one.score + added, links=links)

    def _names(self, ranked: Sequence[Ranked], selection: Selected) -> dict[tuple[int, int], list[int]]:
        """Documents that each document names around its best chunk, none of them called as it is itself."""
        stored = {d.ordinal: d for d in self.bank.documents(sorted({r.ordinal for r in ranked}))}
        places = sorted({(r.ordinal, r.best_chunk) for r in ranked if r.ordinal in stored})
        texts = [around(stored[ordinal].text, chunk * self._pooling, _CHARACTERS) for ordinal, chunk in places]
        own = [lowered(name_of(stored[ordinal].title)) for ordinal, _ in places]
        found = self.search.names(texts, selection, any_case=False)
        return {
            place: [ordinal for ordinal, name in named.items() if name != mine]
            for place, named, mine in zip(places, found, own, strict=True)
        }


def around(text: str, token: int, characters: int) -> str:
    """So many characters of a text around one of its tokens, roughly."""
    start = max(0, min(token * _PER_TOKEN - characters // 2, len(text) - characters))
    return text[start : start + characters]
