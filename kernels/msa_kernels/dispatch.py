"""One function per kernel, with one switch: `backend` "auto", "torch" or "triton" (see `msa_kernels.backend`).

Triton is imported here and nowhere else outside the `triton_*` modules, and only when it is about to run.
Shape legend: B rows, T tokens, H heads, KV key/value heads, G = H / KV, D head dim, W = KV * D routing-key width,
C chunks, n documents, S stored chunks, R ranges, L own tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msa_kernels import reference_attention, reference_routing
from msa_kernels.backend import Backend, use_triton
from msa_kernels.reference import mean_pool
from msa_kernels.reference_routing import TopDocuments

KEY_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int8)
FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32)


@torch.no_grad()
def route_topk(
    queries: Tensor,
    votes: Tensor,
    keys: Tensor,
    offsets: Tensor,
    k: int,
    *,
    scales: Tensor | None = None,
    allowed: Tensor | None = None,
    owners: Tensor | None = None,
    backend: Backend = "auto",
) -> TopDocuments:
    """The k best documents of each row: max over chunks, tokens and groups of <query, key>, in one read of keys.

    `queries` [B, G', T, W / G'] floating: G' = 1 of `collapse_heads` for a mean over heads, G' = KV of `heads_apart`
    for a maximum. `votes` bool [B, T]. `keys` [C, W] float16, bfloat16, float32, or int8 with `scales` [C], a positive
    factor for each chunk. `offsets` int64 [n + 1] from 0 to C, chunk range of each document; `owners` int32 [C] as
    `chunk_owners` makes it, made anew where it is None. `allowed` bool [n]: other documents are never returned and
    their keys never count; Triton does not read them.

    Products add up in float32. Returns [B, min(k, n)], scores descending, ties by the lower index; documents that have
    no chunks or no finite score come last with -inf, then, where fewer are allowed, index -1. Beside its result it
    needs one copy of the question, 4 bytes a chunk where `owners` is None, and a fixed workspace. Raises ValueError for
    shapes and types that do not fit, BackendUnavailableError as `use_triton` does.
    """
    _check_routing(queries, votes, keys, offsets, k, scales, allowed, owners)
    given = [t for t in (queries, votes, keys, offsets, scales, allowed, owners) if t is not None]
    unsupported = "" if keys.stride(1) == 1 else "the numbers of a key do not lie side by side"
    if max(keys.shape[0], offsets.shape[0]) >= 2**31 - 1:
        unsupported = "more than 2^31 chunks or documents"
    if use_triton("routing", backend, given, unsupported):
        from msa_kernels import triton_routing

        return triton_routing.top_documents(
            queries, votes, keys, offsets, k, scales=scales, allowed=allowed, owners=owners
        )
    return reference_routing.top_documents(
        queries, votes, keys, offsets, k, scales=scales, allowed=allowed, owners=owners
    )


def _check_routing(
    queries: Tensor, votes: Tensor, keys: Tensor, offsets: Tensor, k: int, scales: Tensor | None,
    allowed: Tensor | None, owners: Tensor | None,
) -> None:  # fmt: skip
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if queries.ndim != 4 or votes.shape != (queries.shape[0], queries.shape[2]) or votes.dtype != torch.bool:
        raise ValueError(
            f"queries {tuple(queries.shape)} and votes {tuple(votes.shape)}: expected [B, G, T, D], [B, T]"
        )
    if keys.ndim != 2 or keys.shape[1] != queries.shape[1] * queries.shape[3]:
        raise ValueError(f"keys {tuple(keys.shape)} do not fit queries {tuple(queries.shape)}")
    if keys.dtype not in KEY_TYPES or (keys.dtype == torch.int8) != (scales is not None):
        raise ValueError(f"keys are {keys.dtype}: expected float16, bfloat16 or float32, or int8 with scales")
    if (owners is not None and owners.dtype != torch.int32) or (allowed is not None and allowed.dtype != torch.bool):
        raise ValueError("owners must be int32, as chunk_owners makes them, and allowed must be bool")
    chunks, documents = keys.shape[0], offsets.shape[0] - 1
    for name, tensor, size in (("scales", scales, chunks), ("owners", owners, chunks), ("allowed", allowed, documents)):
        if tensor is not None and tensor.shape != (size,):
            raise ValueError(f"{name} {tuple(tensor.shape)} do not fit {chunks} chunks of {documents} documents")


def pool_chunks(
    inputs: Sequence[Tensor], offsets: Tensor, weights: Tensor | None = None, *, backend: Backend = "auto"
) -> tuple[Tensor, ...]:
    """`mean_pool` of several inputs (K, V, K^R) of the same tokens, each [T, ...] of its own width, in one pass.

    Returns one [C, ...] per input in its dtype; `offsets` (from 0 to T), `weights` [T], gradients and errors as
    `mean_pool`'s. Raises ValueError for inputs of different lengths, BackendUnavailableError as `use_triton` does.
    """
    if not inputs or len({x.shape[0] for x in inputs}) != 1:
        raise ValueError("inputs must be one or more tensors of the same number of tokens")
    if offsets.ndim != 1 or offsets.numel() == 0 or (weights is not None and weights.shape != inputs[0].shape[:1]):
        raise ValueError(f"offsets {tuple(offsets.shape)} or weights do not fit {inputs[0].shape[0]} tokens")
    types = {x.dtype for x in inputs} | ({weights.dtype} if weights is not None else set())
    odd = sorted(str(t) for t in types.difference(FLOAT_TYPES))
    unsupported = f"no kernel for {', '.join(odd)}" if odd else ""
    tensors = [*inputs, *([] if weights is None else [weights])]
    if use_triton("pooling", backend, tensors, unsupported):
        from msa_kernels import triton_pooling

        return triton_pooling.pool_chunks(inputs, offsets, weights)
    return tuple(mean_pool(x, offsets, weights) for x in inputs)


@torch.no_grad()
def attend_ranges(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    ranges: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_mask: Tensor | None = None,
    *,
    scale: float | None = None,
    longest: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Attention of one new token a row over stored chunks, read through an index, and the row's own cache.

    `queries` [B, H, D]; `keys` and `values` [S, KV, D], the store, in any floating dtype (content [S, 2, KV, D] is
    `content[:, 0]` and `content[:, 1]`); `ranges` integer [B, R, 2], chunks [start, stop) of each range, within the
    store, empty ones to fill up. `own_keys`, `own_values` [B, KV, L, D] in the queries' dtype, with the new token's
    own; `own_mask` bool [B, L], None: all are seen. `scale` of the logits, D^-0.5 unless given. `longest`: most stored
    chunks of any row, an upper bound; None asks the device, which waits for it.

    Returns [B, H, D] in the queries' dtype, accumulated in float32; a row that sees nothing gets zeros. Raises
    ValueError for shapes that do not fit, BackendUnavailableError as `use_triton` does.
    """
    _check_attention(queries, keys, values, ranges, own_keys, own_values, own_mask)
    scale = queries.shape[2] ** -0.5 if scale is None else scale
    given = [queries, keys, values, ranges, own_keys, own_values, *([] if own_mask is None else [own_mask])]
    if not use_triton("decode attention", backend, given, _attention_obstacle(given)):
        return reference_attention.attend_gathered(queries, keys, values, ranges, own_keys, own_values, own_mask, scale)
    from msa_kernels import triton_attention

    if longest is None:
        longest = int(ranges.diff(dim=2).clamp(min=0).sum((1, 2)).amax()) if ranges.numel() else 0
    return triton_attention.attend_ranges(queries, keys, values, ranges, own_keys, own_values, own_mask, scale, longest)


def _check_attention(
    queries: Tensor, keys: Tensor, values: Tensor, ranges: Tensor, own_keys: Tensor, own_values: Tensor,
    own_mask: Tensor | None,
) -> None:  # fmt: skip
    if queries.ndim != 3 or own_keys.ndim != 4 or keys.ndim != 3 or ranges.ndim != 3:
        raise ValueError("expected queries [B, H, D], keys [S, KV, D], ranges [B, R, 2] and own_keys [B, KV, L, D]")
    rows, heads, dim = queries.shape
    kv_heads, own = own_keys.shape[1:3]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads are not a multiple of {kv_heads} KV heads")
    if keys.shape[1:] != (kv_heads, dim) or values.shape != keys.shape or own_values.shape != own_keys.shape:
        raise ValueError(f"keys {tuple(keys.shape)} and values {tuple(values.shape)} do not fit the rows")
    if own_keys.shape != (rows, kv_heads, own, dim) or ranges.shape[0] != rows or ranges.shape[2] != 2:
        raise ValueError(f"own_keys {tuple(own_keys.shape)} or ranges {tuple(ranges.shape)} do not fit {rows} rows")
    if own_mask is not None and (own_mask.shape != (rows, own) or own_mask.dtype != torch.bool):
        raise ValueError(f"own_mask must be bool [{rows}, {own}]")


def _attention_obstacle(given: Sequence[Tensor]) -> str:
    queries, keys, values, _, own_keys, own_values = given[:6]
    floats = (queries, keys, values, own_keys, own_values)
    odd = sorted({str(t.dtype) for t in floats if t.dtype not in FLOAT_TYPES})
    if odd:
        return f"no kernel for {', '.join(odd)}"
    if own_keys.dtype != queries.dtype or own_values.dtype != queries.dtype:
        return "the row's cache has another dtype than the queries"
    return "" if all(t.stride(-1) == 1 for t in floats[1:]) else "the numbers of a head do not lie side by side"
