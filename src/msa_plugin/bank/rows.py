"""Documents' rows within a segment, compared with their checksums when they are first read.

A bank is too large to be read whole before it is used, and damage must not be served. So each document is checked on
its own, once for each opening: a question that scores every key pays for every key once, and reading a document pays
for that document.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Rows:
    """Rows `offsets[n]` to `offsets[n + 1]` of several tensors, then row `n` of others; CRC-32 in this order `sums[n]`.

    Without sums nothing can be checked, and everything passes.
    """

    def __init__(
        self, tensors: Sequence[Tensor], offsets: Tensor, sums: Tensor | None, others: Sequence[Tensor] = ()
    ) -> None:
        """Reads nothing yet."""
        self._offsets, self._sums = offsets, sums
        self._parts, self._others = _parts(tensors), _parts(others)
        with torch.inference_mode(False):  # a question may come first, and a compaction note more outside of one
            self._sound = torch.zeros(0 if sums is None else len(sums), dtype=torch.bool)

    def altered(self, positions: Tensor | None = None) -> list[int]:
        """Those of `positions` (int64; None: all) whose rows are not what was written."""
        if self._sums is None:
            return []
        left = (~self._sound).nonzero()[:, 0] if positions is None else positions[~self._sound[positions]]
        if not len(left):
            return []
        spans = zip(left.tolist(), self._offsets[left].tolist(), self._offsets[left + 1].tolist(), strict=True)
        sound = torch.tensor([self._sum(*span) for span in spans]) == self._sums[left]
        self._sound[left] = sound
        return left[~sound].tolist()

    def _sum(self, position: int, first: int, last: int) -> int:
        total = 0
        for data, row in self._parts:
            total = zlib.crc32(data[first * row : last * row], total)
        for data, row in self._others:
            total = zlib.crc32(data[position * row : (position + 1) * row], total)
        return total

    @property
    def checked(self) -> bool:
        """Whether all of them were found sound, or nothing can be checked."""
        return bool(self._sound.all())

    def found_sound(self) -> None:
        """All of them were compared by their fold."""
        self._sound[:] = True


def fold(tensors: Iterable[Tensor]) -> int:
    """A checksum of tensors' rows, three times as fast as CRC-32: that of the sums of each row's numbers, as integers.

    One changed row always differs. It says that all is well, or nothing: which row it is, `Rows` finds out.
    """
    total = 0
    for tensor in tensors:
        if tensor.numel():
            row = tensor[0].numel() * tensor.element_size()
            kind = next(kind for kind in _INTEGERS if row % kind.itemsize == 0)
            numbers = torch.frombuffer(memory_of(tensor), dtype=kind).view(len(tensor), -1)
            total = zlib.crc32(memory_of(numbers.sum(1, dtype=torch.int64)), total)
    return total


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def _parts(tensors: Sequence[Tensor]) -> list[tuple[memoryview, int]]:
    """The bytes of each tensor that has rows, and of one row."""
    return [(memory_of(tensor), tensor[0].numel() * tensor.element_size()) for tensor in tensors if len(tensor)]


def memory_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it lies in one piece in ordinary memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
