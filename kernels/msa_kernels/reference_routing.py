"""Plain-torch twin of the routing kernel: exact search with ties by the lower index.

Shape legend: B rows, T question tokens, KV key/value heads, W routing-key width, C chunks, n documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_CHUNKS = 16384
TILE_TOKENS = 256
# Document scores held at a time, over all rows: 16 MiB, whatever the number of documents.
SLAB_NUMBERS = 1 << 22


class TopDocuments(NamedTuple):
    """`scores` float32 [B, k'] descending, `documents` int64 [B, k'], ties by lower index; past the end -inf, -1."""

    scores: Tensor
    documents: Tensor


class Slab(NamedTuple):
    """Documents [first, last) whose scores are held together, and their chunks [start, stop)."""

    first: int
    last: int
    start: int
    stop: int


def chunk_owners(offsets: Tensor, chunks: int) -> Tensor:
    """The document of every chunk, int32 [C], from `offsets` int64 [n + 1]; worth keeping with the keys."""
    documents = torch.arange(offsets.shape[0] - 1, dtype=torch.int32, device=offsets.device)
    return torch.repeat_interleave(documents, offsets.diff(), output_size=chunks)


def heads_apart(queries: Tensor, votes: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """Queries [B, H, T, D] and votes [B, T] for a maximum over heads: [B, KV, G * T, D] and [B, G * T].

    A maximum over heads and tokens is one maximum; only the heads of a KV head read the same columns of a key.
    Raises ValueError unless H is a multiple of `kv_heads`.
    """
    rows, heads, tokens, dim = queries.shape
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads are not a multiple of {kv_heads} KV heads")
    group = heads // kv_heads
    return queries.reshape(rows, kv_heads, group * tokens, dim), votes.repeat(1, group)


def slabs(offsets: Tensor, chunks: int, rows: int, numbers: int = SLAB_NUMBERS) -> Iterator[Slab]:
    """Runs of documents whose scores [B, documents] are at most `numbers`; a single run needs no look at offsets."""
    documents = offsets.shape[0] - 1
    size = max(1, numbers // max(rows, 1))
    if documents <= size:
        yield Slab(0, documents, 0, chunks)
        return
    firsts = list(range(0, documents, size))
    starts = [*offsets[firsts].tolist(), chunks]
    for i, first in enumerate(firsts):
        yield Slab(first, min(first + size, documents), starts[i], starts[i + 1])


def top_documents(
    queries: Tensor,
    votes: Tensor,
    keys: Tensor,
    offsets: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    allowed: Tensor | None = None,
    owners: Tensor | None = None,
    slab_numbers: int = SLAB_NUMBERS,
) -> TopDocuments:
    """The k best documents of each row, as `msa_kernels.route_topk` says, by a stable sort."""
    rows, documents = queries.shape[0], offsets.shape[0] - 1
    scores = torch.empty((rows, 0), device=queries.device)
    index = torch.empty((rows, 0), dtype=torch.int64, device=queries.device)
    owners = chunk_owners(offsets, keys.shape[0]) if owners is None else owners
    for slab in slabs(offsets, keys.shape[0], rows, slab_numbers):
        best = torch.full((rows, slab.last - slab.first), -torch.inf, device=queries.device)
        for start in range(slab.start, slab.stop, TILE_CHUNKS):
            cut = torch.arange(start, min(start + TILE_CHUNKS, slab.stop), device=keys.device)
            if allowed is not None:
                cut = cut[allowed[owners[cut]]]
            found = _chunk_scores(queries, votes, keys[cut], None if scales is None else scales[cut])
            owner = (owners[cut] - slab.first).long().expand(rows, -1)
            best.scatter_reduce_(1, owner, found, "amax")
        kept = torch.arange(slab.first, slab.last, device=queries.device)
        if allowed is not None:
            here = allowed[slab.first : slab.last]
            kept, best = kept[here], best[:, here]
        merged, names = torch.cat((scores, best), 1), torch.cat((index, kept.expand(rows, -1)), 1)
        order = merged.sort(dim=1, descending=True, stable=True).indices[:, :k]
        scores, index = merged.gather(1, order), names.gather(1, order)
    missing = min(k, documents) - scores.shape[1]
    return TopDocuments(F.pad(scores, (0, missing), value=-torch.inf), F.pad(index, (0, missing), value=-1))


def _chunk_scores(queries: Tensor, votes: Tensor, keys: Tensor, scales: Tensor | None) -> Tensor:
    """Scores [B, c] of some keys: the best voting token, -inf where that is not a finite number."""
    rows, groups, tokens, dim = queries.shape
    parts = keys.float().reshape(keys.shape[0], groups, dim).permute(1, 2, 0)
    best = torch.full((rows, keys.shape[0]), -torch.inf, device=keys.device)
    for t in range(0, tokens, TILE_TOKENS):
        cut = slice(t, t + TILE_TOKENS)
        products = (queries[:, :, cut].float() @ parts).masked_fill(~votes[:, None, cut, None], -torch.inf)
        best = torch.maximum(best, products.amax((1, 2)))
    best = best if scales is None else best * scales.float()
    return torch.where(best.isfinite(), best, -torch.inf)
