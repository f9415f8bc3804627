"""Where routing keys live: on the compute device where that is not the CPU, else in the segments' memory maps.

Content K, V are never copied here: they stay memory-mapped, and only selected chunks are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from msa_plugin.types import KeyBlock


class KeyTier:
    """Keeps each segment's routing keys on `device` after their first use, for as long as the segment is mapped."""

    def __init__(self, device: torch.device) -> None:
        """On the CPU the memory maps themselves are the tier, and the operating system's page cache keeps them warm."""
        self.device = device
        self._resident = WeakTensorKeyDictionary()

    def blocks(self, blocks: Iterable[KeyBlock]) -> Iterator[KeyBlock]:
        """The same blocks with their keys on the device; a block in which nothing is allowed is left where it is."""
        for block in blocks:
            if self.device.type == "cpu" or (block.allowed is not None and not bool(block.allowed.any())):
                yield block
            else:
                scales = None if block.scales is None else self._on_device(block.scales)
                yield block._replace(keys=self._on_device(block.keys), scales=scales)

    def _on_device(self, keys: Tensor) -> Tensor:
        if keys not in self._resident:
            self._resident[keys] = keys.to(self.device)
        resident: Tensor = self._resident[keys]
        return resident
