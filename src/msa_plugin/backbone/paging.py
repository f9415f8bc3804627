"""Chunks that rows attend to without a copy of their own: one store for all rows, read through an index while decoding.

A prefill attends with many tokens at once and gathers them for as long as it lasts; a decoding step has one, for which
`msa_kernels.attend_ranges` reads the store where it is. Without a kernel for that, gathering at every step would cost
more than the copies do, so pages are made only where there is one.
Shapes: B rows, R ranges, S stored chunks, L slots of the longest row, H heads, KV key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import attend_ranges
from msa_plugin.attention_context import ChunkPages


def seen(pages: ChunkPages) -> Tensor:
    """Which of the L slots of `gathered` a row attends to, bool [B, L]."""
    counts = pages.ranges.diff(dim=2).sum((1, 2))
    inside: Tensor = torch.arange(pages.longest, device=counts.device)[None, :] < counts[:, None]
    return inside


def gathered(pages: ChunkPages, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V of every row's chunks, side by side: [B, KV, L, D] each, zeros to fill up."""
    device = pages.content.device
    rows = [torch.cat([torch.arange(*span) for span in spans]) for spans in pages.ranges.tolist()]
    index = torch.stack([F.pad(row, (0, pages.longest - len(row))) for row in rows]).to(device)
    content = pages.content[index].masked_fill(~seen(pages)[:, :, None, None, None], 0)
    keys, values = content.to(dtype).permute(2, 0, 3, 1, 4)
    return keys, values


def attend(
    pages: ChunkPages, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None
) -> Tensor:
    """Attention [B, 1, H, D] of one new token a row, `query` [B, H, 1, D], over its chunks and its cache.

    `keys` and `values` [B, KV, S', D] are the cache, `mask` bool [B, 1, 1, S'] what of it is seen (None: all).
    """
    content, own = pages.content, None if mask is None else mask[:, 0, 0]
    out = attend_ranges(
        query[:, :, 0], content[:, 0], content[:, 1], pages.ranges, keys, values, own,
        scale=scale, longest=pages.longest, backend=pages.kernels,
    )  # fmt: skip
    return out[:, None]


def joined(parts: Sequence[tuple[ChunkPages | None, Sequence[int]]]) -> ChunkPages | None:
    """The pages of the rows named of each part, in that order, over all stores together; None where there are none."""
    stores = [pages for pages, _ in parts if pages is not None]
    if not stores:
        return None
    ranges, start = [], 0
    for pages, rows in parts:
        if pages is None:
            ranges.append(stores[0].ranges.new_zeros(len(rows), 1, 2))
            continue
        ranges.append(pages.ranges[list(rows)] + start)
        start += pages.content.shape[0]
    widest = max(part.shape[1] for part in ranges)
    together = torch.cat([F.pad(part, (0, 0, 0, widest - part.shape[1])) for part in ranges])
    longest = int(together.diff(dim=2).sum((1, 2)).amax())
    return ChunkPages(torch.cat([pages.content for pages in stores]), together, longest, stores[0].kernels)
