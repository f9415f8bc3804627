"""Where latents live, under a byte budget for each tier: the compute device, host memory, the segments' memory maps.

Routing keys are read whole by every exact search, always in the same order, so a tensor that found room keeps it: with
a least-recently-used rule a bank slightly larger than its budget would find none of its keys when it comes to them.
Content is read by document, some far more often than others, so there the least recently read gives way.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from msa_plugin.bank.device_transfer import Arrival, DeviceTransfer, transfer_to
from msa_plugin.bank.spans import TILE_CHUNKS, spans
from msa_plugin.config import TierConfig
from msa_plugin.types import KeyBlock, TierStats

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle

# A tensor that was not searched for so long gives way to one that needs its place: its segment's documents are deleted,
# or nobody asks in its namespace any more. Every layer of a model has been searched several times meanwhile.
IDLE_SEARCHES = 1024


class Budget:
    """Bytes that may be held at a time (None: any number). Safe to share between threads."""

    def __init__(self, limit: int | None) -> None:
        """Nothing is held yet."""
        self.limit, self.used = limit, 0
        self._lock = threading.RLock()  # re-entered where a collection of garbage gives bytes back

    def take(self, count: int) -> bool:
        """Reserve bytes, before they are allocated; False where that would be too many."""
        with self._lock:
            if self.limit is not None and self.used + count > self.limit:
                return False
            self.used += count
            return True

    def give(self, count: int) -> None:
        """Return bytes."""
        with self._lock:
            self.used -= count


@dataclass(eq=False)
class _Copy:
    """One segment's routing keys of one group in the tier that they found room in; holds nothing of the segment.

    On the device `arrival` brings keys, offsets and scales; in host memory there are `keys` and `scales`.
    """

    arrival: Arrival | None = None
    keys: Tensor | None = None
    scales: Tensor | None = None
    searched: int = 0


class _Started(NamedTuple):
    """A block, and the copy of its keys to the device that is under way; `held` keeps a resident copy from leaving."""

    block: KeyBlock
    arrival: Arrival | None = None
    held: _Copy | None = None

    def ready(self) -> KeyBlock:
        if self.arrival is None:
            return self.block
        keys, offsets, *scales = self.arrival.wait()
        return self.block._replace(keys=keys, device_offsets=offsets, scales=scales[0] if scales else None)


class KeyTier:
    """Routing keys for searches: on the device while there is room, else from host memory or the maps.

    What is not resident is used in place where the device is the CPU, else sent tile by tile, one tile ahead.
    """

    def __init__(self, transfer: DeviceTransfer, device: Budget, host: Budget) -> None:
        """On the CPU a device budget of None makes no copies: the maps are in memory as far as the system has room."""
        self.transfer, self.device, self.host = transfer, device, host
        self.streamed = 0
        # By the segment's tensor, and gone with it.
        self._copies: MutableMapping[Tensor, _Copy] = WeakTensorKeyDictionary()
        self._searches, self._refused = 0, False
        self._lock = threading.RLock()

    def blocks(self, blocks: Iterable[KeyBlock], tile_chunks: int = TILE_CHUNKS) -> Iterator[KeyBlock]:
        """The same documents in blocks that lie on the device, in the same order.

        A block in which nothing is allowed stays where it is, and so does a document of more than `tile_chunks`: the
        search takes it in pieces.
        """
        self._begin()
        started = self._started(blocks, tile_chunks)
        present = next(started, None)
        while present is not None:
            coming = next(started, None)  # its copy runs while the present block is searched
            yield present.ready()
            present = coming

    def _begin(self) -> None:
        with self._lock:
            self._searches += 1
            if self._refused:
                for keys, copy in list(self._copies.items()):
                    if self._searches - copy.searched > IDLE_SEARCHES:
                        del self._copies[keys]
            self._refused = False

    def _started(self, blocks: Iterable[KeyBlock], tile_chunks: int) -> Iterator[_Started]:
        for block in blocks:
            if block.allowed is not None and not bool(block.allowed.any()):
                yield _Started(block)
                continue
            copy = self._copy(block)
            if copy is not None and copy.arrival is not None:
                yield _Started(block, copy.arrival, copy)
                continue
            if copy is not None and copy.keys is not None:
                block = block._replace(keys=copy.keys, scales=copy.scales)
            self.streamed += _bytes_to_read(block)
            if self.transfer.direct:
                yield _Started(block, None, copy)
            else:
                yield from self._tiles(block, tile_chunks, copy)

    def _tiles(self, block: KeyBlock, tile_chunks: int, copy: _Copy | None) -> Iterator[_Started]:
        for span in spans(block, tile_chunks):
            scales = None if block.scales is None else block.scales[span.rows]
            offsets = span.offsets - span.offsets[0]
            part = KeyBlock(block.keys[span.rows], offsets, span.ordinals, None, scales)
            yield _Started(part, self.transfer.send(_tensors(part)) if span.fits else None, copy)

    def _copy(self, block: KeyBlock) -> _Copy | None:
        """The copy of a block's keys, made now where there is room; from host memory it moves up when there is."""
        with self._lock:
            copy = self._copies.get(block.keys)
            if copy is None or copy.arrival is None:
                better = self._to_device(block) or (None if copy else self._to_host(block))
                if better is not None:
                    self._copies[block.keys] = copy = better
                self._refused |= copy is None or (copy.arrival is None and not self._in_place)
            if copy is not None:
                copy.searched = self._searches
            return copy

    @property
    def _in_place(self) -> bool:
        """Whether the device computes on the maps, and asks for no copies."""
        return self.transfer.direct and self.device.limit is None

    def _to_device(self, block: KeyBlock) -> _Copy | None:
        if self._in_place:
            return None
        parts = _tensors(block)
        with _reserved(self.device, sum(part.nbytes for part in parts)) as keep:
            if keep is None:
                return None
            sources = [self.transfer.kept(part) for part in parts] if self.transfer.direct else parts
            return keep(_Copy(arrival=self.transfer.send(sources)))

    def _to_host(self, block: KeyBlock) -> _Copy | None:
        parts = [block.keys] if block.scales is None else [block.keys, block.scales]
        with _reserved(self.host, sum(self.transfer.host_bytes(part.nbytes) for part in parts)) as keep:
            if keep is None:
                return None
            keys, *scales = [self.transfer.kept(part) for part in parts]
            return keep(_Copy(keys=keys, scales=scales[0] if scales else None))


@contextmanager
def _reserved(budget: Budget, size: int) -> Iterator[Callable[[_Copy], _Copy] | None]:
    """Bytes for a copy, given back with it or where it cannot be made; None where there is no room."""
    if not budget.take(size):
        yield None
        return

    def keep(copy: _Copy) -> _Copy:
        weakref.finalize(copy, budget.give, size).atexit = False
        return copy

    try:
        yield keep
    except BaseException:
        budget.give(size)
        raise


def _tensors(block: KeyBlock) -> list[Tensor]:
    """Keys, offsets and, if there are any, scales."""
    return [block.keys, block.offsets, *([] if block.scales is None else [block.scales])]


def _bytes_to_read(block: KeyBlock) -> int:
    """Bytes of the keys and scales of the documents that may be returned."""
    chunks = block.keys.shape[0] if block.allowed is None else int(block.offsets.diff()[block.allowed].sum())
    scale = 0 if block.scales is None else block.scales.element_size()
    return chunks * (block.keys.shape[1] * block.keys.element_size() + scale)


class ContentTier:
    """Documents' K, V out of a bank, those read most recently also in host memory; an ordinal's never change."""

    def __init__(self, bank: BankHandle, transfer: DeviceTransfer, host: Budget) -> None:
        """Copies are made where `host` has room for any."""
        self.bank, self.transfer, self.host = bank, transfer, host
        self.gathered = self.held = 0
        self._copies: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._lock = threading.RLock()

    def content(self, ordinals: Sequence[int], layer: int) -> list[Tensor]:
        """Content [C_i', 2, KV, D] of each document, in host memory. Raises as `MemoryBank.content`."""
        with self._lock:
            known = {o: self._copies[layer, o] for o in ordinals if (layer, o) in self._copies}
        missing = [o for o in ordinals if o not in known]
        found = dict(zip(missing, self.bank.content(missing, layer), strict=True)) if missing else {}
        rows = [known[o] if o in known else self._kept(layer, o, found[o]) for o in ordinals]
        with self._lock:
            self.gathered += sum(row.nbytes for row in rows)
            for key in ((layer, o) for o in ordinals):
                if key in self._copies:
                    self._copies.move_to_end(key)
        return rows

    def forget(self, ordinals: Iterable[int]) -> None:
        """Let go of deleted documents."""
        with self._lock:
            gone = set(ordinals)
            for key in [key for key in self._copies if key[1] in gone]:
                self._drop(key)

    def _kept(self, layer: int, ordinal: int, rows: Tensor) -> Tensor:
        size = self.transfer.host_bytes(rows.nbytes)
        if self.host.limit == 0:
            return rows
        with self._lock:
            if (layer, ordinal) in self._copies:  # by another thread, meanwhile
                return self._copies[layer, ordinal]
            while not self.host.take(size):
                # What routing keys hold of the budget stays theirs: no room can be made by dropping content alone.
                if not self._copies or self.host.limit is None or self.host.used - self.held + size > self.host.limit:
                    return rows
                self._drop(next(iter(self._copies)))
            self._copies[layer, ordinal] = copy = self.transfer.kept(rows)
            self.held += size
            return copy

    def _drop(self, key: tuple[int, int]) -> None:
        size = self.transfer.host_bytes(self._copies.pop(key).nbytes)
        self.held -= size
        self.host.give(size)


class Tiers:
    """A memory's tiers: `keys` for searches, `content` for reading, and the `transfer` to the device that computes."""

    def __init__(self, bank: BankHandle, config: TierConfig, device: torch.device) -> None:
        """Over `bank`, for a backbone on `device`; nothing is copied before it is first used."""
        self.transfer = transfer_to(device)
        self._device, self._host = Budget(config.device_bytes), Budget(config.host_bytes)
        self.keys = KeyTier(self.transfer, self._device, self._host)
        self.content = ContentTier(bank, self.transfer, self._host)

    def stats(self) -> TierStats:
        """What each tier holds at this moment, and what was read from beyond it so far."""
        return TierStats(
            device=str(self.transfer.device),
            device_budget=self._device.limit,
            device_keys=self._device.used,
            host_budget=self._host.limit or 0,
            host_keys=self._host.used - self.content.held,
            host_content=self.content.held,
            keys_streamed=self.keys.streamed,
            content_gathered=self.content.gathered,
        )
