"""Routing in Triton: one read of the keys, from products to document maxima, then the best k.

Arithmetic, per chunk of width W and e bytes a number: W * e must be read. Read and written besides: 4 bytes of owner
(and 4 of scale, and 1 of `allowed`), and about 12 bytes per document and row (its maximum is set, raised and read).
At W = 1024 in 16 bits and one row that is 2060 over 2048 bytes, at W = 192 some 396 over 384. Queries stay in the L2
cache; with more tokens than one tile (128) the keys are read again, from L2, where the work is bound by the products.
Products: the question is split into `PARTS` numbers of the keys' type (high and low), so that tensor cores multiply
exactly what is stored, with a relative error of 2^-17 (bfloat16) or 2^-22 (float16, int8) in the question.
Shape legend: B rows, T tokens, C chunks, W key width, D = W / groups, n documents.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from msa_kernels.reference_routing import SLAB_NUMBERS, Slab, TopDocuments, chunk_owners, slabs

NEVER = -(2**63)
LOWEST = -(2**31) + 0x7FFFFF  # -inf as an ordered integer
MAX_TOKENS = 128
TILE_DOCUMENTS = 1024
# Up to so many are picked inside a tile; more go to one sort over all documents of a slab.
MOST_PICKED = 128


class Plan(NamedTuple):
    """Tile sizes of the product: chunks, columns of a key, warps, and loads in flight. For tuning on a device."""

    chunks: int
    columns: int
    warps: int
    stages: int


# Chosen by what the compiler reports for sm_90: no spills, two programs on a multiprocessor up to 64 tokens. A tile of
# more chunks fetches the question less often from L2, which 64 tokens in two parts would keep busier than the keys do.
PLANS = {
    torch.float16: Plan(256, 32, 8, 4),
    torch.bfloat16: Plan(256, 32, 8, 4),
    torch.float32: Plan(128, 32, 8, 3),
    torch.int8: Plan(128, 64, 4, 3),
}


class _Question(NamedTuple):
    """Queries as the kernel reads them: `parts` [P, B', G, T', D'], `factors` [B', G, T'] (0: silent)."""

    parts: Tensor
    factors: Tensor
    tokens: int
    rows: int


@triton.jit
def _split_kernel(
    queries: tl.tensor, votes: tl.tensor, parts: tl.tensor, factors: tl.tensor, rows: int, groups: int, tokens: int,
    dim: int, stride: int, TOKENS: tl.constexpr, DIM: tl.constexpr, PARTS: tl.constexpr,
) -> None:  # fmt: skip
    """One token of one group: a power of two brings it near 2^10, then it is split; silent tokens get factor 0."""
    place = tl.program_id(0).to(tl.int64)
    token = place % TOKENS
    group = (place // TOKENS) % groups
    row = place // (TOKENS * groups)
    real = (row < rows) & (token < tokens)
    voting = tl.load(votes + row * tokens + token, mask=real, other=0) != 0
    column = tl.arange(0, DIM)
    source = queries + ((row * groups + group) * tokens + token) * dim + column
    rest = tl.load(source, mask=(column < dim) & voting, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(rest), 0)
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 12), 252)
    rest = rest * ((264 - exponent) << 23).to(tl.float32, bitcast=True)
    back = ((exponent - 10) << 23).to(tl.float32, bitcast=True)
    tl.store(factors + place, tl.where(voting, back, 0.0))
    for part in tl.static_range(PARTS):
        piece = rest.to(parts.dtype.element_ty)
        tl.store(parts + part * stride + place * DIM + column, piece)
        rest = rest - piece.to(tl.float32)


@triton.jit
def _maxima_kernel(
    parts: tl.tensor, factors: tl.tensor, keys: tl.tensor, scales: tl.tensor, owners: tl.tensor, allowed: tl.tensor,
    best: tl.tensor, start: int, stop: int, first: int, documents: int, rows: int, token_count: int, part_stride: int,
    key_stride: int, GROUPS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr, TOKENS: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr, FILTERED: tl.constexpr,
    SCALED: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Raise the maxima `best` int32 [B, documents] (ordered integers) to the scores of one tile of chunks."""
    chunk = start + tl.program_id(0) * CHUNKS + tl.arange(0, CHUNKS)
    live = chunk < stop
    owner = tl.load(owners + chunk, mask=live, other=0)
    if FILTERED:
        # Keys of documents that may not be returned are never loaded.
        live = live & (tl.load(allowed + owner, mask=live, other=0) != 0)
    last = tl.max(tl.where(live, owner, -1), 0)
    if last >= 0:
        lowest = tl.min(tl.where(live, owner, 2147483647), 0)
        lane = tl.arange(0, ROWS * TOKENS)
        for row in range(0, rows, ROWS):
            score = tl.full((CHUNKS, ROWS), float("-inf"), tl.float32)
            for token in range(0, token_count, TOKENS):
                for group in range(GROUPS):
                    place = ((row + lane // TOKENS) * GROUPS + group) * token_count + token + lane % TOKENS
                    products = tl.zeros((CHUNKS, ROWS * TOKENS), tl.float32)
                    for at in range(0, DIM, COLUMNS):
                        column = at + tl.arange(0, COLUMNS)
                        wanted = live[:, None]
                        if DIM % COLUMNS != 0:
                            wanted = wanted & (column < DIM)[None, :]
                        source = keys + chunk.to(tl.int64)[:, None] * key_stride + (group * DIM + column)[None, :]
                        key = tl.load(source, mask=wanted, other=0).to(parts.dtype.element_ty)
                        for part in tl.static_range(PARTS):
                            query = tl.load(parts + part * part_stride + place[:, None] * PADDED + column[None, :])
                            products = tl.dot(key, tl.trans(query), products, input_precision=PRECISION)
                    factor = tl.load(factors + place)[None, :]
                    products = tl.where(factor > 0, products * factor, float("-inf"))
                    score = tl.maximum(score, tl.max(tl.reshape(products, (CHUNKS, ROWS, TOKENS)), 2))
            if SCALED:
                score = score * tl.load(scales + chunk, mask=live, other=1.0).to(tl.float32)[:, None]
            # Not a number and infinities never win; both zeros are one score.
            score = tl.where(live[:, None] & (tl.abs(score) < float("inf")), score, float("-inf"))
            score = tl.where(score == 0.0, 0.0, score)
            ordered = score.to(tl.int32, bitcast=True)
            ordered = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
            to = row + tl.arange(0, ROWS)
            target = best + to.to(tl.int64) * documents - first
            if lowest == last:
                # One document fills the tile: a single update instead of many on one address.
                tl.atomic_max(target + last, tl.max(ordered, 0), mask=to < rows, sem="relaxed")
            else:
                keep = live[:, None] & (to < rows)[None, :]
                tl.atomic_max(target[None, :] + owner[:, None], ordered, mask=keep, sem="relaxed")


@triton.jit
def _pick_kernel(
    best: tl.tensor, allowed: tl.tensor, found: tl.tensor, first: int, documents: int, K: tl.constexpr,
    TILE: tl.constexpr, PICK: tl.constexpr, FILTERED: tl.constexpr, NEVER: tl.constexpr,
) -> None:  # fmt: skip
    """The best K of a tile of documents (or all of them), each as score and index in one integer [B, tiles, K].

    The score stands in the high half, the complement of the index in the low one: integers in descending order are
    scores in descending order with ties by the lower index, and no two are equal.
    """
    tile, row = tl.program_id(0), tl.program_id(1)
    document = tile * TILE + tl.arange(0, TILE)
    inside = document < documents
    value = tl.load(best + row.to(tl.int64) * documents + document, mask=inside, other=0)
    if FILTERED:
        inside = inside & (tl.load(allowed + first + document, mask=inside, other=0) != 0)
    packed = (value.to(tl.int64) << 32) | (0x7FFFFFFF - (first + document)).to(tl.int64)
    packed = tl.where(inside, packed, NEVER)
    out = found + (row * tl.num_programs(0) + tile).to(tl.int64) * K
    if PICK:
        for i in range(K):
            top = tl.max(packed, 0)
            tl.store(out + i, top)
            packed = tl.where(packed == top, NEVER, packed)
    else:
        tl.store(out + tl.arange(0, TILE), packed)


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
    plan: Plan | None = None,
) -> TopDocuments:
    """The k best documents of each row, as `msa_kernels.route_topk` says."""
    rows, documents = queries.shape[0], offsets.shape[0] - 1
    plan = plan or PLANS[keys.dtype]
    question = _split(queries, votes, keys.dtype, plan)
    owners = chunk_owners(offsets, keys.shape[0]) if owners is None else owners.contiguous()
    allowed = None if allowed is None else allowed.contiguous().view(torch.uint8)
    scales = None if scales is None else scales.contiguous()
    held = torch.empty((rows, 0), dtype=torch.int64, device=keys.device)
    for slab in slabs(offsets, keys.shape[0], rows, slab_numbers):
        best = torch.full((rows, slab.last - slab.first), LOWEST, dtype=torch.int32, device=keys.device)
        _maxima(question, queries.shape[1], keys, scales, owners, allowed, best, slab, plan)
        held = torch.cat((held, _pick(best, allowed, slab.first, k)), 1)
        held = held.topk(min(k, held.shape[1])).values
    return _unpacked(held[:, : min(k, documents)])


def _split(queries: Tensor, votes: Tensor, dtype: torch.dtype, plan: Plan) -> _Question:
    rows, groups, tokens, dim = queries.shape
    tile = min(MAX_TOKENS, triton.next_power_of_2(max(tokens, 1)))
    together = max(1, 64 // tile)
    tile = max(tile, 16 // together)
    padded_rows, padded_tokens = -(-rows // together) * together, -(-tokens // tile) * tile
    padded = max(triton.next_power_of_2(dim), plan.columns)
    element = torch.float16 if dtype == torch.int8 else dtype
    pieces = 1 if dtype == torch.float32 else 2
    parts = torch.empty((pieces, padded_rows, groups, padded_tokens, padded), dtype=element, device=queries.device)
    factors = torch.empty((padded_rows, groups, padded_tokens), device=queries.device)
    _split_kernel[(factors.numel(),)](
        queries.contiguous(), votes.contiguous().view(torch.uint8), parts, factors, rows, groups, tokens, dim,
        parts[0].numel(), TOKENS=padded_tokens, DIM=padded, PARTS=pieces,
    )  # fmt: skip
    return _Question(parts, factors, tile, together)


def _maxima(
    question: _Question, groups: int, keys: Tensor, scales: Tensor | None, owners: Tensor, allowed: Tensor | None,
    best: Tensor, slab: Slab, plan: Plan,
) -> None:  # fmt: skip
    if slab.stop == slab.start:
        return
    parts = question.parts
    _maxima_kernel[(triton.cdiv(slab.stop - slab.start, plan.chunks),)](
        parts, question.factors, keys, keys if scales is None else scales, owners,
        owners if allowed is None else allowed, best, slab.start, slab.stop, slab.first, best.shape[1], best.shape[0],
        parts.shape[3], parts[0].numel(), keys.stride(0), GROUPS=groups, DIM=keys.shape[1] // groups,
        PADDED=parts.shape[4], PARTS=parts.shape[0], ROWS=question.rows, TOKENS=question.tokens, CHUNKS=plan.chunks,
        COLUMNS=plan.columns, FILTERED=allowed is not None, SCALED=scales is not None,
        PRECISION="tf32x3" if keys.dtype == torch.float32 else "tf32", num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip


def _pick(best: Tensor, allowed: Tensor | None, first: int, k: int) -> Tensor:
    rows, documents = best.shape
    tiles = triton.cdiv(documents, TILE_DOCUMENTS)
    pick = k <= MOST_PICKED
    width = k if pick else TILE_DOCUMENTS
    found = torch.empty((rows, tiles * width), dtype=torch.int64, device=best.device)
    _pick_kernel[(tiles, rows)](
        best, best if allowed is None else allowed, found, first, documents, K=width, TILE=TILE_DOCUMENTS, PICK=pick,
        FILTERED=allowed is not None, NEVER=NEVER,
    )  # fmt: skip
    return found


def _unpacked(held: Tensor) -> TopDocuments:
    ordered = (held >> 32).to(torch.int32)
    scores = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
    index = 0x7FFFFFFF - (held & 0xFFFFFFFF)
    never = held == NEVER
    return TopDocuments(scores.masked_fill(never, -torch.inf), index.masked_fill(never, -1))
