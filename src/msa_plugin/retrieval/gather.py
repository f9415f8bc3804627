"""Content of selected documents on its way to the backbone's device, ahead of its use as far as the selection allows.

A shared selection is known before the forward: its first layer's content is sent for before the forward begins, and
each next layer's while the one before is at work. Where every layer selects for itself, a layer's content can be named
only once its input has been routed, so that its copy has that layer's own projections to hide behind and no more. On a
CPU nothing is sent, and content is read when a layer asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from msa_plugin.bank.device_transfer import Arrival, Arrived
from msa_plugin.bank.tiers import ContentTier


class _Coming(NamedTuple):
    ordinals: Sequence[int]
    sizes: Sequence[int]
    arrival: Arrival

    def ready(self) -> dict[int, Tensor]:
        tensors = self.arrival.wait()
        parts = tensors if len(tensors) == len(self.sizes) else tensors[0].split_with_sizes(list(self.sizes))
        return dict(zip(self.ordinals, parts, strict=True))


class Gather:
    """One prefill's content, layer by layer."""

    def __init__(self, store: ContentTier, layers: Sequence[int], selected: Sequence[int] | None) -> None:
        """`selected` are the documents of all `layers`; None where each layer's are said by `send`."""
        self._store, self._ahead = store, not store.transfer.direct
        self._order = sorted(layers)
        self._selected = selected
        self._coming: dict[int, _Coming] = {}
        if selected and self._order:
            self.send(self._order[0], selected)

    def send(self, layer: int, ordinals: Sequence[int]) -> None:
        """Start to bring the documents' content of a layer, where that can be done beside something else."""
        if self._ahead and layer not in self._coming:
            self._coming[layer] = self._started(layer, ordinals)

    def take(self, layer: int, ordinals: Sequence[int]) -> dict[int, Tensor]:
        """Content [C', 2, KV, D] of each document; the next layer's starts on its way."""
        coming = self._coming.pop(layer, None)
        if coming is None or list(coming.ordinals) != list(ordinals):
            coming = self._started(layer, ordinals)
        found = coming.ready()
        behind = [later for later in self._order if later > layer]
        if self._selected and behind:
            self.send(behind[0], self._selected)
        return found

    def _started(self, layer: int, ordinals: Sequence[int]) -> _Coming:
        rows = self._store.content(ordinals, layer)
        sizes = [row.shape[0] for row in rows]
        # In one piece: a copy of its own for each document would cost more than it moves.
        arrival = self._store.transfer.send([torch.cat(rows)]) if self._ahead and rows else Arrived(rows)
        return _Coming(ordinals, sizes, arrival)
