"""Search over shards: the question's vectors go to all, each answers with its own best, and the best of these are kept.

Every shard scores exactly as one process would, an ordinal is a document's number in the whole cluster, and ties go to
the lower one: what is kept is what one process that holds all documents would have found.
Shapes: B rows, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa_plugin.bank.handle import Selected
from msa_plugin.bank.terms import tokenizer
from msa_plugin.cluster.bank import ClusterBank
from msa_plugin.cluster.selection import PLACES, ShardedSelection
from msa_plugin.cluster.serialization import flat, pack, unflat_row, unpack
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.mentions import Mention
from msa_plugin.retrieval.names import Named, Runs, TextNames
from msa_plugin.retrieval.postings import Counts, Words
from msa_plugin.retrieval.prefilter import PrefilterSpec
from msa_plugin.retrieval.ranking import Ranked, SharedQueries
from msa_plugin.retrieval.scorer import RoutedDocuments
from msa_plugin.retrieval.search import Index


@dataclass(frozen=True)
class ShardIndexes:
    """A prefilter in every shard, over its part of a selection, which shards keep as long as this lives."""

    spec: str
    folder: str
    selection: ShardedSelection
    documents: int
    bytes: int

    def arguments(self) -> list[Any]:
        """What a shard finds its index by; see `Shard.index`."""
        return [self.selection.asked.light(), self.spec, self.folder]


class ClusterSearch:
    """`retrieval.search.Search` over a cluster, one round trip a call."""

    def __init__(self, bank: ClusterBank) -> None:
        """Search in `bank`."""
        self.bank = bank

    def ranked(
        self, asked: SharedQueries, k: int, selection: Selected, prefilter: Index | None = None
    ) -> list[list[Ranked]]:
        """The best `k` of each row by a shared selection; with a prefilter, of what shards' indexes name.

        A shard that was started again reads its index from where it was saved, or builds it anew.
        """
        assert prefilter is None or isinstance(prefilter, ShardIndexes)
        behind = [] if prefilter is None else [prefilter.arguments()]
        answers = self.bank.find("ranked", selection, flat(asked), k, *behind)
        for shard, rows in answers.items():
            self.bank.remember(shard, (ordinal for row in rows for _, ordinal, *_ in row))
        rows = [[r for rows in answers.values() for r in rows[row]] for row in range(asked.votes.shape[0])]
        return [unflat_row(sorted(row, key=lambda r: (-r[0], r[1]))[:k]) for row in rows]

    def route(self, layer: int, queries: Tensor, votes: Tensor, k: int, selection: Selected) -> RoutedDocuments:
        """The best `k` of each row at one layer; `queries` [B, H, T, D], `votes` bool [B, T]."""
        parts = []
        for shard, answer in self.bank.find("route", selection, layer, pack(queries), pack(votes), k).items():
            found = RoutedDocuments(*map(unpack, answer))
            self.bank.remember(shard, found.ordinals.flatten().tolist())
            parts.append(found)
        return merged(parts, k, queries)

    def words(self, texts: Sequence[str], selection: Selected) -> list[Words]:
        """What words say over all shards: what each counts is added up, and each scores its documents by the sums.

        Two round trips; of a shard that is lost between them the documents still count, and have no scores.
        """
        sums = self._word_counts(texts, selection)
        asked = [[str(text) for text in texts], tokenizer()]
        answers = self.bank.find("word_scores", selection, *asked, [list(one) for one in sums])
        for shard, rows in answers.items():
            self.bank.remember(shard, (o for ordinals, _ in rows for o in ordinals.numbers[:PLACES].tolist()))
        found = []
        for row, over in enumerate(sums):
            parts = []
            for rows in answers.values():
                ordinals, scores = (unpack(part).numpy() for part in rows[row])
                parts.append(Words(ordinals, scores, over))
            found.append(Words.joined(parts, over))
        return found

    def _word_counts(self, texts: Sequence[str], selection: Selected) -> list[Counts]:
        asked = [[str(text) for text in texts], tokenizer()]
        counted = [[Counts(*row) for row in rows] for rows in self.bank.find("word_counts", selection, *asked).values()]
        return [Counts.summed(rows[row] for rows in counted) for row in range(len(texts))]

    def names(self, texts: Sequence[str], selection: Selected, *, any_case: bool) -> list[Named]:
        """Each shard says which runs of words name a document of its own; the longest over all of them are taken."""
        answers = self.bank.find("names", selection, [str(text) for text in texts], any_case, tokenizer())
        found = []
        for row, text in enumerate(texts):
            runs: Runs = {}
            for shard, rows in answers.items():
                for at, size, ordinals in rows[row]:
                    runs[at, size] = sorted([*runs.get((at, size), []), *ordinals])
                    self.bank.remember(shard, ordinals)
            found.append(TextNames(text, any_case=any_case).chosen(runs))
        return found

    def holders(self, wanted: Sequence[Mention], selection: Selected, most: int) -> list[list[int]]:
        """Each shard names its own documents, and no more than would be too many."""
        found: list[list[int]] = [[] for _ in wanted]
        if wanted:
            asked = [[list(mention) for mention in wanted], most, tokenizer()]
            for shard, rows in self.bank.find("holders", selection, *asked).items():
                self.bank.remember(shard, (ordinal for row in rows for ordinal in row))
                for holding, row in zip(found, rows, strict=True):
                    holding += row
        return [sorted(holding) for holding in found]

    def prefilter(self, spec: PrefilterSpec | str, folder: Path, selection: Selected) -> ShardIndexes:
        """An index in every shard, over its part of `selection`; each names as many candidates as one alone would.

        Kept on each shard's machine, in a folder of its own inside `folder`. Raises as `Prefilter.open`.
        """
        assert isinstance(selection, ShardedSelection)
        parsed = PrefilterSpec.parse(spec) if isinstance(spec, str) else spec
        where = str(folder.absolute())
        made = self.bank.find("index", selection, str(parsed), where).values()
        documents, size = (sum(part[i] for part in made) for i in (0, 1))
        if not documents:
            raise ConfigError("there is no document to build a prefilter over; add documents first")
        return ShardIndexes(str(parsed), where, selection, documents, size)


def merged(parts: list[RoutedDocuments], k: int, like: Tensor) -> RoutedDocuments:
    """The best `k` of each row of several results of disjoint documents, on the device of `like`."""
    if not parts:
        rows = like.shape[0]
        return RoutedDocuments(torch.empty(rows, 0, dtype=torch.int64), torch.empty(rows, 0))
    ordinals, order = torch.cat([p.ordinals for p in parts], 1).sort(1)
    scores = torch.cat([p.scores for p in parts], 1).gather(1, order)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    return RoutedDocuments(ordinals.gather(1, best).to(like.device), scores.gather(1, best).to(like.device))
