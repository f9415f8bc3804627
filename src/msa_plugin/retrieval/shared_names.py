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

from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.retrieval.links import FOLLOWED, Found, Offer, Offers, around
from msa_plugin.retrieval.mentions import Mention, mentions
from msa_plugin.retrieval.ranking import Ranked, best_first
from msa_plugin.retrieval.search import Search
from msa_plugin.stems import stems

MOST = 10  # documents; a name that more of them have leads nowhere in particular
SHARE = 20  # nor does one that more than every twentieth document has
BELOW = 0.9  # of a document's score: what it links to is not lifted above that
ASKED = 16  # words (stop words left out): a question of more follows no link
_CHARACTERS = 4_000  # of each document, around its best chunk


class Mentions:
    """Names that a bank's documents share, beside its routing keys."""

    def __init__(self, bank: BankHandle, router: Router, search: Search, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        router.config.check_shared("mentions")
        self.bank, self.search, self.weight, self._pooling = bank, search, weight, router.config.pooling

    @property
    def steps(self) -> tuple[Offers, ...]:
        """One: names of the best."""
        return (self._shared,)

    def _shared(self, texts: Sequence[str], rows: Sequence[Found], selection: Selected) -> list[list[Offer]]:
        """For each row, who shares a name with one of its best."""
        asked = [frozenset(words) for words in stems()(texts)]
        tops = [
            best_first(found.values())[:FOLLOWED] if len(words) <= ASKED else []
            for words, found in zip(asked, rows, strict=True)
        ]
        most = min(MOST, selection.documents // SHARE) if any(tops) else 0
        if most < 2:
            return [[] for _ in tops]
        stored = {d.ordinal: d.text for d in self.bank.documents(sorted({r.ordinal for top in tops for r in top}))}
        places = sorted({(r.ordinal, r.best_chunk) for top in tops for r in top if r.ordinal in stored})
        contexts = [around(stored[ordinal], chunk * self._pooling, _CHARACTERS) for ordinal, chunk in places]
        named = dict(zip(places, mentions(contexts), strict=True))
        chosen = [
            [(r, m) for r in top for m in named.get((r.ordinal, r.best_chunk), []) if not words.issuperset(m)]
            for words, top in zip(asked, tops, strict=True)
        ]
        wanted: list[Mention] = list(dict.fromkeys(mention for row in chosen for _, mention in row))
        held = dict(zip(wanted, self.search.holders(wanted, selection, most), strict=True))
        return [
            [offer for r, m in row if 1 < len(held[m]) <= most for offer in self._offers(r, held[m])] for row in chosen
        ]

    def _offers(self, source: Ranked, holding: Sequence[int]) -> list[Offer]:
        others = [o for o in holding if o != source.ordinal]
        gain, most = self.weight * source.score / len(others) ** 0.5, BELOW * source.score
        return [Offer(o, gain, source.ordinal, most, shared=True) for o in others]
