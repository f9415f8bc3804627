"""A block of routing keys in runs of whole documents that may be returned, each at most a tile long.

Shape legend: C chunks, n documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from msa_plugin.errors import InvalidQueryError
from msa_plugin.types import KeyBlock

TILE_CHUNKS = 16384


class ChunkSpan(NamedTuple):
    """A run of whole documents that may be returned.

    `ordinals` int64 [n]; `offsets` int64 [n + 1], chunk range of each; `rows`: where their keys are in the block, a
    slice, or int64 [c] where documents that may not be returned lie between them. `fits`: they fit one tile; otherwise
    it is a single document of more chunks than a tile.
    """

    ordinals: Tensor
    offsets: Tensor
    rows: slice | Tensor
    fits: bool


def spans(block: KeyBlock, tile_chunks: int) -> Iterator[ChunkSpan]:
    """Cut a block into runs of whole documents of at most `tile_chunks` chunks; a larger document stands alone."""
    offsets = block.offsets.cpu()
    if block.allowed is not None:
        yield from _allowed_spans(offsets, block.ordinals, block.allowed.cpu(), tile_chunks)
        return
    count, first = offsets.shape[0] - 1, 0
    while first < count:
        start = int(offsets[first])
        fitting = int(torch.searchsorted(offsets, start + tile_chunks, right=True)) - 1
        last = max(fitting, first + 1)
        rows = slice(start, int(offsets[last]))
        yield ChunkSpan(block.ordinals[first:last], offsets[first : last + 1], rows, fits=fitting > first)
        first = last


def _allowed_spans(offsets: Tensor, ordinals: Tensor, allowed: Tensor, tile_chunks: int) -> Iterator[ChunkSpan]:
    """The same of the allowed documents, however far apart they lie; looks at a tile's worth of the mask at a time."""
    held = torch.empty(0, dtype=torch.int64)
    for start in range(0, allowed.shape[0], tile_chunks):
        held = torch.cat((held, allowed[start : start + tile_chunks].nonzero()[:, 0] + start))
        starts = offsets[held]
        bounds = torch.cat((starts.new_zeros(1), (offsets[held + 1] - starts).cumsum(0)))
        first, ended = 0, start + tile_chunks >= allowed.shape[0]
        while first < held.shape[0] and (ended or int(bounds[-1] - bounds[first]) >= tile_chunks):
            full = int(torch.searchsorted(bounds, int(bounds[first]) + tile_chunks, right=True)) - 1
            last = max(full, first + 1)
            span = bounds[first : last + 1] - bounds[first]
            at = int(starts[first])
            rows = _rows(starts[first:last], span) if full > first else slice(at, at + int(span[-1]))
            yield ChunkSpan(ordinals[held[first:last].to(ordinals.device)], span, rows, fits=full > first)
            first = last
        held = held[first:]


def _rows(starts: Tensor, bounds: Tensor) -> Tensor:
    """Where the chunks of documents that begin at `starts` are, one document after another: int64 [c]."""
    count = int(bounds[-1])
    return torch.repeat_interleave(starts - bounds[:-1], bounds.diff(), output_size=count) + torch.arange(count)


def check_block(block: KeyBlock, width: int) -> None:
    """Raises InvalidQueryError for a block that does not fit itself, or keys that are not [C, width]."""
    count = block.ordinals.shape[0]
    if block.keys.ndim != 2 or block.keys.shape[1] != width:
        raise InvalidQueryError(f"routing keys are {tuple(block.keys.shape)}, the routing needs [C, {width}]")
    if block.offsets.shape != (count + 1,) or (block.allowed is not None and block.allowed.shape != (count,)):
        raise InvalidQueryError(f"offsets or allowed do not fit a block of {count} documents")
    if (block.keys.dtype == torch.int8) != (block.scales is not None):
        raise InvalidQueryError(f"routing keys are {block.keys.dtype}: int8 keys, and no others, come with scales")
    if block.scales is not None and block.scales.shape != block.keys.shape[:1]:
        raise InvalidQueryError(f"{block.scales.shape[0]} scales do not fit {block.keys.shape[0]} keys")
