"""Titles beside routing keys: who is named in the question, or in what was found, ranks higher.

A document whose title is in the question gains `NAMED` times a share `weight` of its own score: a title that is a
common word ("earth") lifts nothing that has no more to do with the question. Then the best few are read: a document
that one of them names gains that share of its score, over the square root of how many are named there. So a chain's
second document, which shares neither words nor meaning with the question, is found through the name that the first one
gives it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.bank.terms import lowered, name_of
from msa_plugin.retrieval.ranking import Link, Ranked, best_first
from msa_plugin.retrieval.search import Search

NAMED = 1.5  # what a name in the question weighs beside one in a document
FOLLOWED = 3  # best documents whose names are followed
_CHARACTERS = 20_000  # of each of them, around its best chunk: a book names everyone
_PER_TOKEN = 4  # characters, roughly


class Offer(NamedTuple):
    """What a document may gain by a name: `gain` and a share `own` of its own score, not beyond a score of `most`.

    `by` and `shared` are as in `Link`.
    """

    ordinal: int
    gain: float
    by: int | None
    most: float = math.inf
    shared: bool = False
    own: float = 0.0


Found = dict[int, Ranked]  # the documents of one question, by ordinal
# What names offer to documents that were found, or not yet, for each question.
Offers = Callable[[Sequence[str], Sequence[Found], Selected], list[list[Offer]]]


def lift(found: Found, offers: Sequence[Offer]) -> None:
    """Give every document the best of what it is offered."""
    links: dict[int, Link] = {}
    for offer in offers:
        if (one := found.get(offer.ordinal)) is not None:  # a shard that was lost meanwhile has no score for its own
            added = min(offer.gain + offer.own * max(one.score, 0.0), offer.most - one.score)
            if added > (links[offer.ordinal].added if offer.ordinal in links else 0.0):
                links[offer.ordinal] = Link(offer.by, added, offer.shared)
    for ordinal, link in links.items():
        one = found[ordinal]
        found[ordinal] = replace(one, score=one.score + link.added, links=(*one.links, link))


class Titles:
    """Titles of a bank's selections, beside its routing keys."""

    def __init__(self, bank: BankHandle, router: Router, search: Search, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        router.config.check_shared("titles")
        self.bank, self.search, self.weight, self._pooling = bank, search, weight, router.config.pooling

    @property
    def most(self) -> float:
        """How many times its score a document has at most with both steps."""
        return (1 + NAMED * self.weight) * (1 + self.weight)

    @property
    def steps(self) -> tuple[Offers, ...]:
        """Titles in the question, then titles in the best of what these leave."""
        return self._asked, self._followed

    def _asked(self, texts: Sequence[str], rows: Sequence[Found], selection: Selected) -> list[list[Offer]]:
        named = self.search.names(texts, selection, any_case=True)
        return [[Offer(o, 0.0, None, own=NAMED * self.weight) for o in each] for each in named]

    def _followed(self, texts: Sequence[str], rows: Sequence[Found], selection: Selected) -> list[list[Offer]]:
        tops = [best_first(found.values())[:FOLLOWED] for found in rows]
        names = self._names([r for top in tops for r in top], selection)
        offers = []
        for top in tops:
            each = [(r, names.get((r.ordinal, r.best_chunk), [])) for r in top]
            gains = [(r, others, self.weight * (r.score / max(len(others), 1) ** 0.5)) for r, others in each]
            offers.append([Offer(o, gain, r.ordinal) for r, others, gain in gains for o in others])
        return offers

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
