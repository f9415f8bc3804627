"""A selection of documents in other processes, which keep it for as long as it lives here."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msa_plugin.cluster.serialization import unpack
from msa_plugin.cluster.shard import ShardQuestion
from msa_plugin.errors import ConfigError
from msa_plugin.types import Asof, KeyBlock

if TYPE_CHECKING:
    from msa_plugin.cluster.bank import ClusterBank

PLACES = 1 << 16  # documents whose shard a bank remembers


class ShardedSelection:
    """See `view.Selection`. Every shard takes its part when it is first asked about it, and stays at that moment."""

    def __init__(self, bank: ClusterBank, asked: ShardQuestion, asof: Asof, missed: set[int] | None = None) -> None:
        """Use `ClusterBank.select`. What is narrowed from a selection shares its `missed`."""
        self._bank, self.asked, self.asof = bank, asked, asof
        self._missed = set[int]() if missed is None else missed
        self._ordinals: Tensor | None = None
        weakref.finalize(self, bank.release, asked.token).atexit = False

    @property
    def missed(self) -> tuple[int, ...]:
        """Shards that were lost when they were asked about this selection, or about a part of it."""
        return tuple(sorted(self._missed))

    def note(self, missed: Iterable[int]) -> None:
        """Take note of shards that were missed."""
        self._missed.update(missed)

    @property
    def documents(self) -> int:
        """How many there are; asks the shards."""
        return sum(self._bank.find("count", self).values())

    def key_blocks(self, group: str) -> Iterator[KeyBlock]:
        """Raises ConfigError: keys stay where they are."""
        raise ConfigError("routing keys of a cluster stay in its shards; open a shard's folder with read_only=True")

    def ordinals(self) -> Tensor:
        """Ordinals of all of them, ascending int64 [n]: eight bytes a document travel, once a selection."""
        if self._ordinals is None:
            found = {shard: unpack(ordinals) for shard, ordinals in self._bank.find("ordinals", self).items()}
            for shard, ordinals in found.items():
                self._bank.remember(shard, ordinals[:PLACES].tolist())
            self._ordinals = torch.cat([torch.empty(0, dtype=torch.int64), *found.values()]).sort().values
        return self._ordinals

    def admits(self, ordinals: Iterable[int]) -> set[int]:
        """Those of `ordinals` that are among them."""
        return set(self.only(ordinals).ordinals().tolist())

    def only(self, ordinals: Iterable[int]) -> ShardedSelection:
        """Those of them that have one of `ordinals`."""
        kept = frozenset(ordinals) if self.asked.only is None else self.asked.only & frozenset(ordinals)
        asked = self.asked._replace(token=self._bank.token(), only=kept, parent=self.asked.token)
        return ShardedSelection(self._bank, asked, self.asof, self._missed)
