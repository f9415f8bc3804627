"""Words beside routing keys: a document's score is its routing score plus a weight times its share of the best BM25.

The candidates are the best by routing keys and the best by words; all of them get both scores exactly. BM25 counts over
the documents that a question may see, so that what others stored changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.cancellation import check_cancelled
from msa_plugin.engine.ranking import Ranked, SharedQueries, explained
from msa_plugin.errors import ConfigError
from msa_plugin.routing.lexical import Scores, WordIndex

_KEPT = 4  # indexes of the selections asked last
_READ = 1024  # texts read at once while an index is built


def depth(k: int) -> int:
    """How many candidates each side brings to a ranking of `k`."""
    return max(100, 4 * k)


class Lexical:
    """BM25 of a bank's selections, indexed when first asked about and kept while it is asked for."""

    def __init__(self, bank: BankHandle, router: Router, weight: float) -> None:
        """Raises ConfigError where layers select for themselves, MissingExtraError without the extra lexical."""
        if router.config.selection != "shared":
            raise ConfigError(
                "lexical is for adapters with one ranking for all layers; this one's layers each have theirs"
            )
        self.bank, self.router, self.weight = bank, router, weight
        self._indexes: OrderedDict[bytes, WordIndex] = OrderedDict()
        WordIndex([])  # the extra is missed when a memory is opened, not at its first question

    def add(
        self,
        texts: Sequence[str],
        asked: SharedQueries,
        ranked: Sequence[list[Ranked]],
        selection: Selected,
        k: int,
    ) -> list[list[Ranked]]:
        """The best `k` of each row by both scores; `ranked` are the best `depth(k)` by routing keys alone."""
        index, ordinals = self.index(selection), selection.ordinals()
        rows = []
        for row, (text, routed) in enumerate(zip(texts, ranked, strict=True)):
            scores = index.asked(text)
            shares = asked.shares[:, row][:, asked.votes[row]]
            rows.append(self._both(routed, shares, ordinals, scores, k))
        return rows

    def index(self, selection: Selected) -> WordIndex:
        """The index of a selection's documents, in the order of their ordinals."""
        ordinals = selection.ordinals()
        key = hashlib.sha256(ordinals.numpy().tobytes()).digest()
        if key not in self._indexes:
            texts: list[str] = []
            for start in range(0, len(ordinals), _READ):
                check_cancelled()
                stored = self.bank.documents(ordinals[start : start + _READ].tolist())
                texts += [prompts.document_text(d.title, d.text) for d in stored]
            self._indexes[key] = WordIndex(texts)
        self._indexes.move_to_end(key)
        while len(self._indexes) > _KEPT:
            self._indexes.popitem(last=False)
        return self._indexes[key]

    def _both(self, routed: list[Ranked], shares: Tensor, ordinals: Tensor, scores: Scores, k: int) -> list[Ranked]:
        best = float(scores.max(initial=0.0))
        if best <= 0:  # no document has a word of the question
            return routed[:k]
        found = {r.ordinal: r for r in routed}
        count = min(depth(k), int((scores > 0).sum()))
        # Ties go to the lower ordinal, as everywhere.
        by_words = ordinals[torch.from_numpy(np.lexsort((ordinals.numpy(), -scores))[:count])].tolist()
        missing = sorted(set(by_words) - found.keys())
        found |= {r.ordinal: r for r in explained(self.bank, self.router.config, shares, missing)}
        wanted = torch.tensor(list(found))
        places = torch.searchsorted(ordinals, wanted).clamp(max=len(ordinals) - 1)
        # A shard may have answered and then have been lost: what it named has no words in this index.
        words = torch.from_numpy(scores)[places].where(ordinals[places] == wanted, 0.0).tolist()
        both = [
            replace(r, score=r.score + self.weight * share / best)
            for r, share in zip(found.values(), words, strict=True)
        ]
        return sorted(both, key=lambda r: (-r.score, r.ordinal))[:k]
