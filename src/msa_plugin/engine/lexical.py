"""Words beside routing keys: a document's score is its routing score plus a weight times its share of the best BM25.

The candidates are the best by routing keys and the best by words; all of them get both scores exactly. BM25 counts over
the documents that a question may see, so that what others stored changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.engine.indexed import PerSelection
from msa_plugin.engine.ranking import Ranked, SharedQueries, explained
from msa_plugin.errors import ConfigError
from msa_plugin.routing.lexical import Scores, WordIndex


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
        count = min(count, int((self.scores > 0).sum()))
        order = np.lexsort((self.ordinals.numpy(), -self.scores))[:count]
        found: list[int] = self.ordinals[torch.from_numpy(order)].tolist()
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
    """BM25 of a bank's selections, indexed when first asked about and kept while it is asked for."""

    def __init__(self, bank: BankHandle, router: Router, weight: float) -> None:
        """Raises ConfigError where layers select for themselves, MissingExtraError without the extra lexical."""
        if router.config.selection != "shared":
            raise ConfigError(
                "lexical is for adapters with one ranking for all layers; this one's layers each have theirs"
            )
        self.bank, self.router, self.weight = bank, router, weight
        self._indexes = PerSelection(bank, lambda d: prompts.document_text(d.title, d.text), WordIndex)
        WordIndex([])  # the extra is missed when a memory is opened, not at its first question

    def words(self, texts: Sequence[str], selection: Selected) -> list[Words]:
        """What words say of a selection's documents, for each text."""
        index, ordinals = self.index(selection), selection.ordinals()
        return [Words(ordinals, index.asked(text)) for text in texts]

    def add(
        self, words: Sequence[Words], asked: SharedQueries, ranked: Sequence[list[Ranked]], k: int
    ) -> list[list[Ranked]]:
        """The best `k` of each row by both scores; `ranked` are the best `depth(k)` by routing keys alone."""
        rows = []
        for row, (said, routed) in enumerate(zip(words, ranked, strict=True)):
            missing = sorted({*said.best(depth(k))} - {r.ordinal for r in routed})
            shares = asked.shares[:, row][:, asked.votes[row]]
            both = self.raised([*routed, *explained(self.bank, self.router.config, shares, missing)], said)
            rows.append(sorted(both, key=lambda r: (-r.score, r.ordinal))[:k])
        return rows

    def raised(self, ranked: Sequence[Ranked], words: Words) -> list[Ranked]:
        """The same documents with their words counted."""
        shares = words.shares([r.ordinal for r in ranked])
        return [replace(r, score=r.score + self.weight * share) for r, share in zip(ranked, shares, strict=True)]

    def index(self, selection: Selected) -> WordIndex:
        """The index of a selection's documents, in the order of their ordinals."""
        return self._indexes.of(selection)
