"""Words beside routing keys: a document's score is its routing score plus a weight times its share of the best BM25.

The candidates are the best by routing keys and the best by words; all of them get both scores exactly. BM25 counts over
the documents that a question may see, so that what others stored changes nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.engine.indexed import Followed
from msa_plugin.engine.ranking import Ranked, SharedQueries, explained
from msa_plugin.errors import ConfigError
from msa_plugin.routing.lexical import Scores
from msa_plugin.routing.postings import Postings
from msa_plugin.stems import Stems

_WORD = re.compile(r"\w+")
_ASKING = (
    "who whom whose what when where which why how many much do does did done has have had can could would should shall "
    "may might must i me my you your we us our he him his she her them am were been about from than so also please tell"
)


def depth(k: int) -> int:
    """How many candidates each side brings to a ranking of `k`."""
    return max(100, 4 * k)


@dataclass(frozen=True)
class Words:
    """BM25 `scores` [n] of one question for a selection's documents `ordinals` [n]."""

    ordinals: Tensor
    scores: Scores

    def best(self, count: int) -> list[int]:
        """Ordinals of the best that have a word of the question; ties go to the lower one, as everywhere."""
        having = np.flatnonzero(self.scores)
        if len(having) > count:
            scores = self.scores[having]
            having = having[scores >= np.partition(scores, len(scores) - count)[len(scores) - count]]
        order = np.lexsort((having, -self.scores[having]))[:count]  # places ascend as ordinals do
        found: list[int] = self.ordinals[torch.from_numpy(having[order])].tolist()
        return found

    def shares(self, wanted: Sequence[int]) -> list[float]:
        """Scores of `wanted` over the best there is; 0 for documents that are not in the selection."""
        best = float(self.scores.max(initial=0.0))
        if best <= 0:  # no document has a word of the question
            return [0.0] * len(wanted)
        asked = torch.tensor(wanted)
        places = torch.searchsorted(self.ordinals, asked).clamp(max=len(self.ordinals) - 1)
        # A shard may have answered and then have been lost: what it named has no words in this index.
        known = torch.from_numpy(self.scores)[places].where(self.ordinals[places] == asked, 0.0)
        shares: list[float] = (known / best).tolist()
        return shares


class Lexical:
    """BM25 of a bank's selections; a document is indexed when a question may first see it."""

    def __init__(self, bank: BankHandle, router: Router, weight: float) -> None:
        """Raises ConfigError where layers select for themselves."""
        if router.config.selection != "shared":
            raise ConfigError(
                "lexical is for adapters with one ranking for all layers; this one's layers each have theirs"
            )
        self.bank, self.router, self.weight = bank, router, weight
        self._stems = Stems()
        self._asking = frozenset(self._stems([_ASKING])[0])
        self._postings = Followed(bank, lambda d: prompts.document_text(d.title, d.text), Postings)

    def words(self, texts: Sequence[str], selection: Selected) -> list[Words]:
        """What words say of a selection's documents, for each text."""
        postings, ordinals = self._postings.of(selection)
        return [Words(torch.from_numpy(ordinals), postings.scores(text, ordinals)) for text in texts]

    def rarity(self, question: str, selection: Selected, others: int) -> dict[str, float]:
        """What each word of a question weighs among the documents of a selection; see `Postings.rarity`.

        Words that only ask are left out: no text that answers needs them.
        """
        postings, ordinals = self._postings.of(selection)
        weights = postings.rarity(question, ordinals, others)
        return {word: weight for word, weight in weights.items() if word not in self._asking}

    def stems(self, texts: Sequence[str]) -> list[list[str]]:
        """The words of texts, as they are counted."""
        return self._stems(texts)

    def add(
        self, words: Sequence[Words], asked: SharedQueries, ranked: Sequence[list[Ranked]], k: int
    ) -> list[list[Ranked]]:
        """The best `k` of each row by both scores; `ranked` are the best `depth(k)` by routing keys alone."""
        rows = []
        for row, (said, routed) in enumerate(zip(words, ranked, strict=True)):
            missing = sorted({*said.best(depth(k))} - {r.ordinal for r in routed})
            both = self.raised([*routed, *explained(self.bank, self.router.config, asked.of(row), missing)], said)
            rows.append(sorted(both, key=lambda r: (-r.score, r.ordinal))[:k])
        return rows

    def raised(self, ranked: Sequence[Ranked], words: Words) -> list[Ranked]:
        """The same documents with their words counted."""
        shares = words.shares([r.ordinal for r in ranked])
        added = [self.weight * share for share in shares]
        return [replace(r, score=r.score + more, words=more) for r, more in zip(ranked, added, strict=True)]

    def parts(self, text: str, selection: Selected, ordinal: int) -> dict[str, float]:
        """What each word of a text adds to the score of one document of a selection, of those that do."""
        postings, ordinals = self._postings.of(selection)
        place = int(np.searchsorted(ordinals, ordinal))
        best = float(postings.scores(text, ordinals).max(initial=0.0))
        added = {}
        for word, times in Counter(_WORD.findall(text.lower())).items():
            if score := times * float(postings.scores(word, ordinals)[place]):
                added[word] = self.weight * score / best
        return added

    def index(self, selection: Selected) -> Postings:
        """The words of documents, by ordinal, those of a selection among them."""
        return self._postings.of(selection)[0]
