"""Plain-torch kernels: the CPU path, and what every faster backend is compared with.

Shape legend: B rows, T tokens, H heads, KV key/value heads (head h reads KV head h // (H / KV)), D head dim,
W = KV * D routing-key width, C chunks, n documents. Source of all formulas: MSA, arXiv 2603.23516, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

NORMALIZE_EPS = 1e-12


def _accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def chunk_offsets(lengths: Sequence[int] | Tensor, pooling: int) -> tuple[Tensor, Tensor]:
    """Token offsets of every chunk of P = `pooling` tokens, for documents laid end to end.

    `lengths` [n] holds tokens per document. Returns `offsets` int64 [C + 1] and `chunks` int64 [n], the number of
    chunks of each document: ceil(length / P), the last one short, none crossing two documents (an empty document has
    none). Raises ValueError for a pooling below 1 or a negative length.
    """
    sizes = torch.as_tensor(lengths, dtype=torch.int64)
    if pooling < 1:
        raise ValueError(f"pooling must be at least 1, not {pooling}")
    if sizes.ndim != 1 or bool((sizes < 0).any()):
        raise ValueError("lengths must be one non-negative number per document")
    chunks = (sizes + pooling - 1) // pooling
    widths = torch.full((int(chunks.sum()),), pooling, dtype=torch.int64, device=sizes.device)
    filled = chunks > 0
    widths[chunks.cumsum(0)[filled] - 1] = (sizes - (chunks - 1) * pooling)[filled]
    return F.pad(widths.cumsum(0), (1, 0)), chunks


def mean_pool(x: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over consecutive ranges of the first axis (chunk-wise mean pooling, paper section 3, equation 1).

    `x` [T, ...] floating; `offsets` int64 [C + 1] from 0 to T; `weights` [T], not negative, or None for the plain
    mean. Returns [C, ...] in x's dtype, accumulated in float32 (float64 stays). A range whose weights are all zero
    gets its plain mean; an empty range gets zeros. Differentiable in `x` and `weights`. Raises ValueError where the
    shapes do not fit.
    """
    total = x.shape[0]
    if offsets.ndim != 1 or offsets.numel() == 0 or (weights is not None and weights.shape != (total,)):
        raise ValueError(f"offsets {tuple(offsets.shape)} or weights do not fit x {tuple(x.shape)}")
    sizes = offsets.diff()
    if sizes.numel() == 0:
        return x.new_empty((0, *x.shape[1:]))
    # Sums per range, not differences of a prefix sum: those lose precision with the length of the whole row.
    owner = torch.repeat_interleave(torch.arange(sizes.numel(), device=x.device), sizes.to(x.device), output_size=total)
    values = x.to(_accumulation_dtype(x))
    tail = (1,) * (x.ndim - 1)
    shares = _shares(owner, sizes.to(x.device), weights, values.dtype).view(-1, *tail)
    pooled = values.new_zeros((sizes.numel(), *x.shape[1:])).index_add(0, owner, values * shares)
    return pooled.to(x.dtype)


def _shares(owner: Tensor, sizes: Tensor, weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Share [T] of each token in its range's mean; the shares of a range sum to one."""
    even = sizes.clamp(min=1).to(dtype).reciprocal()[owner]
    if weights is None:
        return even
    given = weights.to(dtype)
    totals = given.new_zeros(sizes.numel()).index_add(0, owner, given)[owner]
    safe = torch.where(totals > 0, totals, torch.ones_like(totals))
    return torch.where(totals > 0, given / safe, even)


def collapse_heads(queries: Tensor, kv_heads: int) -> Tensor:
    """Fold H query heads into one vector per token, so that the mean over heads is a single product.

    mean_h <q_h, k_kv(h)> = <concat over KV heads of (sum of that group's q_h) / H, concat of k_kv> (follows from
    equation 2 with head mean). `queries` [..., H, T, D] -> [..., T, KV * D], float32 (float64 stays). Differentiable.
    Raises ValueError unless H is a multiple of `kv_heads`.
    """
    heads, tokens, dim = queries.shape[-3:]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads are not a multiple of {kv_heads} KV heads")
    grouped = queries.reshape(*queries.shape[:-3], kv_heads, heads // kv_heads, tokens, dim)
    sums = grouped.sum(-3, dtype=_accumulation_dtype(queries)) / heads
    return sums.transpose(-3, -2).reshape(*queries.shape[:-3], tokens, kv_heads * dim)


def plain_scores(
    queries: Tensor,
    mask: Tensor,
    keys: Tensor,
    offsets: Tensor,
    *,
    kv_heads: int,
    head_reduce: str = "mean",
    query_reduce: str = "max",
    chunk_reduce: str = "max",
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Document scores by the definition (paper equation 2), every head and token written out: slow, for comparison.

    `queries` [B, H, T, D], already normalised and scaled; `mask` bool [B, T], the voting tokens; `keys` [C, KV * D];
    `offsets` int64 [n + 1], chunk range of each document. Heads are reduced first, then tokens, then chunks.
    `query_reduce`: "max" or "mean" over voting tokens, "last" voting token, or "pooled": the mean of the voting
    tokens' queries, normalised again per head (times `scale`) where `normalize` is on. Returns float32 [B, n]; a row
    without voting tokens and a document without chunks score -inf. Raises ValueError for an unknown reduction.
    """
    votes = mask.bool()
    q = queries.float()
    if query_reduce == "pooled":
        q = _pooled(q, votes, normalize, scale)
        votes = votes.any(1, keepdim=True)
    per_head = (
        keys.float().reshape(keys.shape[0], kv_heads, q.shape[3]).repeat_interleave(q.shape[1] // kv_heads, dim=1)
    )
    products = torch.einsum("bhtd,chd->bhtc", q, per_head)
    by_token = products.amax(1) if _is(head_reduce, "max", "mean") else products.mean(1)
    by_chunk = _reduce_tokens(by_token, votes, query_reduce)
    columns = [_reduce_chunks(by_chunk[:, a:b], chunk_reduce) for a, b in _ranges(offsets)]
    scores = torch.stack(columns, 1) if columns else by_chunk.new_empty((q.shape[0], 0))
    return scores.masked_fill(~votes.any(1, keepdim=True), -torch.inf)


def _is(value: str, wanted: str, other: str) -> bool:
    if value not in (wanted, other):
        raise ValueError(f"unknown reduction {value!r}: expected {wanted!r} or {other!r}")
    return value == wanted


def _ranges(offsets: Tensor) -> list[tuple[int, int]]:
    return list(pairwise(offsets.tolist()))


def _pooled(q: Tensor, votes: Tensor, normalize: bool, scale: float) -> Tensor:
    """Mean of the voting tokens' queries, [B, H, 1, D]."""
    share = votes.float() / votes.sum(1, keepdim=True).clamp(min=1)
    mean = torch.einsum("bt,bhtd->bhd", share, q).unsqueeze(2)
    return F.normalize(mean, dim=-1, eps=NORMALIZE_EPS) * scale if normalize else mean


def _reduce_tokens(by_token: Tensor, votes: Tensor, query_reduce: str) -> Tensor:
    """[B, T, C] -> [B, C] over the voting tokens; the others are masked with -inf, since a zero could win."""
    tokens = by_token.shape[1]
    if query_reduce in ("max", "pooled"):
        return by_token.masked_fill(~votes[:, :, None], -torch.inf).amax(1)
    if query_reduce == "last":
        position = (votes * torch.arange(1, tokens + 1, device=votes.device)).amax(1).clamp(min=1) - 1
        return by_token[torch.arange(by_token.shape[0], device=votes.device), position]
    if query_reduce != "mean":
        raise ValueError(f"unknown query reduction {query_reduce!r}")
    return (by_token * votes[:, :, None]).sum(1) / votes.sum(1, keepdim=True).clamp(min=1)


def _reduce_chunks(scores: Tensor, chunk_reduce: str) -> Tensor:
    """[B, c] -> [B] over one document's chunks."""
    if scores.shape[1] == 0:
        return scores.new_full((scores.shape[0],), -torch.inf)
    return scores.amax(1) if _is(chunk_reduce, "max", "mean") else scores.mean(1)
