"""Decode attention in Triton over ranges of a chunk store, read where they lie, and the row's own cache.

Arithmetic, per row and KV head: K and V of every attended position are read once (all heads of the group together) and
nothing is gathered or written first; gathering reads and writes them once more before it reads them. Each split adds
4 * (D + 1) bytes a head, written and read back.
Shape legend: B rows, H heads, KV key/value heads, G = H / KV, D head dim, S stored chunks, R ranges, L own tokens.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

POSITIONS = 64
# A split shorter than this costs more in its own overhead than it wins.
SMALLEST_SPLIT = 256
LOG2_E = 1.4426950408889634


@triton.jit
def _absorb(
    query: tl.tensor, key: tl.tensor, value: tl.tensor, seen: tl.tensor, scale: float, best: tl.tensor,
    mass: tl.tensor, mixed: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Online softmax over one block of positions, in powers of two."""
    logits = tl.dot(query, tl.trans(key), input_precision="tf32x3") * scale
    logits = tl.where(seen[None, :], logits, float("-inf"))
    top = tl.maximum(best, tl.max(logits, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    weights = tl.exp2(logits - base[:, None])
    kept = tl.exp2(best - base)
    mass = mass * kept + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(value.dtype), value, mixed * kept[:, None], input_precision="tf32x3")
    return top, mass, mixed


@triton.jit
def _attend_kernel(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, ranges: tl.tensor, own_keys: tl.tensor,
    own_values: tl.tensor, own_mask: tl.tensor, parts: tl.tensor, levels: tl.tensor, scale: float, span: int,
    range_count: int, own: int, heads: int, dim: int, key_chunk: int, key_head: int, value_chunk: int, value_head: int,
    own_key_row: int, own_key_head: int, own_key_token: int, own_value_row: int, own_value_head: int,
    own_value_token: int, GROUP: tl.constexpr, PADDED_GROUP: tl.constexpr, DIM: tl.constexpr, RANGES: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
) -> None:  # fmt: skip
    """One split of one KV head of one row: `parts` float32 [B, H, splits, D] and its log2 mass `levels`."""
    split, head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    member, column, number = tl.arange(0, PADDED_GROUP), tl.arange(0, DIM), tl.arange(0, RANGES)
    real, wide = member < GROUP, column < dim
    query_place = (row * heads + head * GROUP + member)[:, None] * dim + column[None, :]
    query = tl.load(queries + query_place, mask=real[:, None] & wide[None, :], other=0.0)
    bounds = ranges + (row * range_count + number) * 2
    starts = tl.load(bounds, mask=number < range_count, other=0).to(tl.int32)
    stops = tl.load(bounds + 1, mask=number < range_count, other=0).to(tl.int32)
    lengths = tl.maximum(stops - starts, 0)
    ends = tl.cumsum(lengths, 0)
    stored = tl.sum(lengths, 0)
    low = split * span
    high = tl.minimum(low + span, stored + own)
    best = tl.full((PADDED_GROUP,), float("-inf"), tl.float32)
    mass = tl.zeros((PADDED_GROUP,), tl.float32)
    mixed = tl.zeros((PADDED_GROUP, DIM), tl.float32)
    for at in range(low, tl.minimum(high, stored), BLOCK):
        position = at + tl.arange(0, BLOCK)
        seen = position < tl.minimum(high, stored)
        inside = (position[:, None] >= (ends - lengths)[None, :]) & (position[:, None] < ends[None, :])
        place = position[:, None] - (ends - lengths - starts)[None, :]
        chunk = tl.sum(tl.where(inside, place, 0), 1).to(tl.int64)
        here = seen[:, None] & wide[None, :]
        key = tl.load(keys + chunk[:, None] * key_chunk + head * key_head + column[None, :], mask=here, other=0.0)
        value_place = chunk[:, None] * value_chunk + head * value_head + column[None, :]
        value = tl.load(values + value_place, mask=here, other=0.0)
        best, mass, mixed = _absorb(query, key.to(query.dtype), value.to(query.dtype), seen, scale, best, mass, mixed)
    for at in range(tl.maximum(low, stored), high, BLOCK):
        token = at - stored + tl.arange(0, BLOCK)
        seen = token < high - stored
        if MASKED:
            seen = seen & (tl.load(own_mask + row * own + token, mask=seen, other=0) != 0)
        here = seen[:, None] & wide[None, :]
        key_place = row * own_key_row + head * own_key_head + token[:, None].to(tl.int64) * own_key_token
        key = tl.load(own_keys + key_place + column[None, :], mask=here, other=0.0)
        value_place = row * own_value_row + head * own_value_head + token[:, None].to(tl.int64) * own_value_token
        value = tl.load(own_values + value_place + column[None, :], mask=here, other=0.0)
        best, mass, mixed = _absorb(query, key, value, seen, scale, best, mass, mixed)
    mixed = mixed / tl.where(mass > 0, mass, 1.0)[:, None]
    level = tl.where(mass > 0, best + tl.log2(tl.where(mass > 0, mass, 1.0)), float("-inf"))
    place = (row * heads + head * GROUP + member) * tl.num_programs(0) + split
    tl.store(levels + place, level, mask=real)
    tl.store(parts + place[:, None] * dim + column[None, :], mixed, mask=real[:, None] & wide[None, :])


@triton.jit
def _merge_kernel(
    parts: tl.tensor, levels: tl.tensor, out: tl.tensor, splits: int, dim: int, SPLITS: tl.constexpr, DIM: tl.constexpr
) -> None:
    """One head of one row: its splits, weighed by their mass; zeros where it attended to nothing."""
    head = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, SPLITS), tl.arange(0, DIM)
    level = tl.load(levels + head * splits + split, mask=split < splits, other=float("-inf"))
    top = tl.max(level, 0)
    weights = tl.exp2(level - tl.where(top == float("-inf"), 0.0, top))
    here = (split < splits)[:, None] & (column < dim)[None, :]
    part = tl.load(parts + (head * splits + split)[:, None] * dim + column[None, :], mask=here, other=0.0)
    total = tl.sum(weights, 0)
    mixed = tl.sum(part * weights[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(out + head * dim + column, mixed.to(out.dtype.element_ty), mask=column < dim)


def attend_ranges(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    ranges: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_mask: Tensor | None,
    scale: float,
    longest: int,
    splits: int | None = None,
) -> Tensor:
    """Attention [B, H, D] of one token a row, as `msa_kernels.attend_ranges` says; `splits` overrides the choice."""
    rows, heads, dim = queries.shape
    kv_heads, own = own_keys.shape[1], own_keys.shape[2]
    group = heads // kv_heads
    total = max(longest + own, 1)
    splits = splits or _splits(total, rows * kv_heads, queries.device)
    span = triton.cdiv(triton.cdiv(total, splits), POSITIONS) * POSITIONS
    splits = triton.cdiv(total, span)
    parts = torch.empty((rows, heads, splits, dim), device=queries.device)
    levels = torch.empty((rows, heads, splits), device=queries.device)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    padded = max(16, triton.next_power_of_2(dim))
    _attend_kernel[(splits, kv_heads, rows)](
        queries.contiguous(), keys, values, ranges.contiguous(), own_keys, own_values,
        ranges if own_mask is None else own_mask.contiguous().view(torch.uint8), parts, levels, scale * LOG2_E, span,
        ranges.shape[1], own, heads, dim, *keys.stride()[:2], *values.stride()[:2], *own_keys.stride()[:3],
        *own_values.stride()[:3], GROUP=group, PADDED_GROUP=max(16, triton.next_power_of_2(group)), DIM=padded,
        RANGES=triton.next_power_of_2(max(ranges.shape[1], 1)), BLOCK=POSITIONS, MASKED=own_mask is not None,
        num_warps=4, num_stages=2,
    )  # fmt: skip
    _merge_kernel[(rows * heads,)](parts, levels, out, splits, dim, SPLITS=triton.next_power_of_2(splits), DIM=padded)
    return out


def _splits(total: int, pairs: int, device: torch.device) -> int:
    """As many as fill the device twice over, none shorter than `SMALLEST_SPLIT`."""
    busy = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    return max(1, min(-(-total // SMALLEST_SPLIT), 2 * busy // max(pairs, 1)))
