"""Names that documents share, without titles: what is found leads to what has a rare name in common with it.

The best few are read. A document that has a name of one of them ("Anna Veld", "412 metres"; `mentions`) which
few others have gains a share `weight` of its score, over the square root of how many others have it. So a chain's
second document, which shares neither words nor meaning with the question, is found although nothing has a title.

Three gates keep those from paying whose questions have no chain. What a link lifts stays below what it came from, so
that the first stays first. A name whose words the question has was looked for already. And a question of many words
says itself what it looks for: its best documents differ little, and a link would put what is merely near above them.
The weight and the gates were chosen on training sets (docs/experiments/words-and-names.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.retrieval.links import FOLLOWED, Score, around
from msa_plugin.retrieval.mentions import Mention, mentions
from msa_plugin.retrieval.ranking import Link, Ranked, best_first
from msa_plugin.retrieval.search import Search
from msa_plugin.stems import stems

MOST = 10  # documents; a name that more of them have leads nowhere in particular
SHARE = 20  # nor does one that more than every twentieth document has
BELOW = 0.9  # of a document's score: what it links to is not lifted above that
ASKED = 16  # words (stop words left out): a question of more follows no link
_CHARACTERS = 4_000  # of each document, around its best chunk


class _Shared(NamedTuple):
    """A document that others are linked by, and those that have one of its names."""

    source: Ranked
    others: list[int]


class Mentions:
    """Names that a bank's documents share, beside its routing keys."""

    def __init__(self, bank: BankHandle, router: Router, search: Search, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        router.config.check_shared("mentions")
        self.bank, self.search, self.weight, self._pooling = bank, search, weight, router.config.pooling

    def add(
        self, texts: Sequence[str], ranked: Sequence[list[Ranked]], selection: Selected, score: Score, k: int
    ) -> list[list[Ranked]]:
        """The best `k` of each row; `ranked` are more of them, and `score` gives those that are not there.

        Ties go to the lower ordinal.
        """
        rows = [{r.ordinal: r for r in given} for given in ranked]
        asked = [frozenset(words) for words in stems()(texts)]
        tops = [
            best_first(found.values())[:FOLLOWED] if len(a) <= ASKED else []
            for a, found in zip(asked, rows, strict=True)
        ]
        for row, shared in enumerate(self._shared(asked, tops, selection)):
            found = rows[row]
            missing = sorted({o for one in shared for o in one.others} - found.keys())
            found.update({r.ordinal: r for r in score(row, missing)} if missing else {})
            self._lift(found, shared)
        return [best_first(found.values())[:k] for found in rows]

    def _shared(
        self, asked: Sequence[frozenset[str]], tops: Sequence[Sequence[Ranked]], selection: Selected
    ) -> list[list[_Shared]]:
        """For each row, who shares which name with its best."""
        most = min(MOST, selection.documents // SHARE) if any(tops) else 0
        if most < 2:
            return [[] for _ in tops]
        stored = {d.ordinal: d.text for d in self.bank.documents(sorted({r.ordinal for top in tops for r in top}))}
        places = sorted({(r.ordinal, r.best_chunk) for top in tops for r in top if r.ordinal in stored})
        texts = [around(stored[ordinal], chunk * self._pooling, _CHARACTERS) for ordinal, chunk in places]
        named = dict(zip(places, mentions(texts), strict=True))
        chosen = [
            [(r, m) for r in top for m in named.get((r.ordinal, r.best_chunk), []) if not words.issuperset(m)]
            for words, top in zip(asked, tops, strict=True)
        ]
        wanted: list[Mention] = list(dict.fromkeys(mention for row in chosen for _, mention in row))
        held = dict(zip(wanted, self.search.holders(wanted, selection, most), strict=True))
        return [
            [_Shared(r, [o for o in held[m] if o != r.ordinal]) for r, m in row if 1 < len(held[m]) <= most]
            for row in chosen
        ]

    def _lift(self, found: dict[int, Ranked], shared: Sequence[_Shared]) -> None:
        links: dict[int, Link] = {}
        for source, others in shared:
            gain = self.weight * source.score / len(others) ** 0.5
            for ordinal in others:
                if (one := found.get(ordinal)) is not None:  # a shard that was lost meanwhile has no score for its own
                    added = min(gain, BELOW * source.score - one.score)
                    if added > (links[ordinal].added if ordinal in links else 0.0):
                        links[ordinal] = Link(source.ordinal, added, shared=True)
        for ordinal, link in links.items():
            one = found[ordinal]
            found[ordinal] = replace(one, score=one.score + link.added, links=(*one.links, link))
