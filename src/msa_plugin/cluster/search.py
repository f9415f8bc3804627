"""Search over shards: the question's vectors go to all, each answers with its own best, and the best of these are kept.

Every shard scores exactly as one process would, an ordinal is a document's number in the whole cluster, and ties go to
the lower one: what is kept is what one process that holds all documents would have found.
Shapes: B rows, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from msa_plugin.bank.handle import Selected
from msa_plugin.cluster.bank import ClusterBank
from msa_plugin.cluster.selection import ShardedSelection
from msa_plugin.cluster.wire import flat, pack, unflat_row, unpack
from msa_plugin.engine.ranking import Ranked, SharedQueries
from msa_plugin.errors import ConfigError
from msa_plugin.routing.prefilter import Prefilter, PrefilterSpec
from msa_plugin.routing.scorer import RoutedDocuments


class ClusterSearch:
    """`engine.search.Search` over a cluster, one round trip a call."""

    def __init__(self, bank: ClusterBank) -> None:
        """Search in `bank`."""
        self.bank = bank

    def ranked(
        self, asked: SharedQueries, k: int, selection: Selected, prefilter: Prefilter | None = None
    ) -> list[list[Ranked]]:
        """The best `k` of each row by a shared selection."""
        assert isinstance(selection, ShardedSelection) and prefilter is None
        answers = self.bank.find("ranked", selection, flat(asked), k)
        for shard, rows in answers.items():
            self.bank.remember(shard, (ordinal for row in rows for _, ordinal, *_ in row))
        rows = [[r for rows in answers.values() for r in rows[row]] for row in range(asked.votes.shape[0])]
        return [unflat_row(sorted(row, key=lambda r: (-r[0], r[1]))[:k]) for row in rows]

    def route(self, layer: int, queries: Tensor, votes: Tensor, k: int, selection: Selected) -> RoutedDocuments:
        """The best `k` of each row at one layer; `queries` [B, H, T, D], `votes` bool [B, T]."""
        assert isinstance(selection, ShardedSelection)
        parts = []
        for shard, answer in self.bank.find("route", selection, layer, pack(queries), pack(votes), k).items():
            found = RoutedDocuments(*map(unpack, answer))
            self.bank.remember(shard, found.ordinals.flatten().tolist())
            parts.append(found)
        return merged(parts, k, queries)

    def prefilter(self, spec: PrefilterSpec | str, folder: Path, selection: Selected) -> Prefilter:
        """Raises ConfigError."""
        raise ConfigError("a prefilter indexes keys in this process; a cluster's shards search theirs exactly")


def merged(parts: list[RoutedDocuments], k: int, like: Tensor) -> RoutedDocuments:
    """The best `k` of each row of several results of disjoint documents, on the device of `like`."""
    if not parts:
        rows = like.shape[0]
        return RoutedDocuments(torch.empty(rows, 0, dtype=torch.int64), torch.empty(rows, 0))
    ordinals, order = torch.cat([p.ordinals for p in parts], 1).sort(1)
    scores = torch.cat([p.scores for p in parts], 1).gather(1, order)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return RoutedDocuments(ordinals.gather(1, best).to(like.device), scores.gather(1, best).to(like.device))
