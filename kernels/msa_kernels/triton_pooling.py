"""Varlen chunk mean pooling in Triton: K, V and K^R of the same tokens in one launch, forward and backward.

Arithmetic, per token of widths W: every number is read once and 1/P of it written; the ranges and the weights are read
once per block of columns (4 bytes a token against 256). Backward reads the gradient of a chunk and writes each token's.
Shape legend: T tokens, C chunks, W width of one input.
"""

# mypy: disable-error-code="import-untyped, import-not-found, untyped-decorator"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INPUTS = 3
COLUMNS = 128
TOKENS = 64


@triton.jit
def _total(weights: tl.tensor, start: int, stop: int, TOKENS: tl.constexpr, WEIGHTED: tl.constexpr) -> tl.tensor:
    """Sum of a range's weights, 0 where it has none."""
    total = tl.zeros((TOKENS,), tl.float32)
    if WEIGHTED:
        for at in range(start, stop, TOKENS):
            token = at + tl.arange(0, TOKENS)
            total += tl.load(weights + token, mask=token < stop, other=0.0).to(tl.float32)
    return tl.sum(total, 0)


@triton.jit
def _share(
    weights: tl.tensor, token: tl.tensor, inside: tl.tensor, size: tl.tensor, total: tl.tensor, WEIGHTED: tl.constexpr
) -> tl.tensor:
    """Share of each token in its range's mean: its weight's, or an even one where all weights are zero."""
    share = tl.where(inside, 1.0 / size, 0.0)
    if WEIGHTED:
        weight = tl.load(weights + token, mask=inside, other=0.0).to(tl.float32)
        share = tl.where(total > 0, weight / tl.where(total > 0, total, 1.0), share)
    return share


@triton.jit
def _mean(
    x: tl.tensor, out: tl.tensor, weights: tl.tensor, chunk: tl.tensor, start: int, stop: int, block: tl.tensor,
    width: int, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr,
) -> None:  # fmt: skip
    """One block of columns of one range's mean."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    size = tl.maximum(stop - start, 1).to(tl.float32)
    total = _total(weights, start, stop, TOKENS, WEIGHTED)
    mean = tl.zeros((COLUMNS,), tl.float32)
    for at in range(start, stop, TOKENS):
        token = at + tl.arange(0, TOKENS)
        inside = token < stop
        share = _share(weights, token, inside, size, total, WEIGHTED)
        source = x + token.to(tl.int64)[:, None] * width + column[None, :]
        value = tl.load(source, mask=inside[:, None] & real[None, :], other=0.0).to(tl.float32)
        mean += tl.sum(value * share[:, None], 0)
    tl.store(out + chunk.to(tl.int64) * width + column, mean.to(out.dtype.element_ty), mask=real)


@triton.jit
def _spread(
    x: tl.tensor, grad: tl.tensor, into: tl.tensor, slopes: tl.tensor, weights: tl.tensor, chunk: tl.tensor,
    start: int, stop: int, block: tl.tensor, width: int, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    WEIGHTED: tl.constexpr, SLOPES: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of `_mean`: each token's, and for the weights this block's part of <token, gradient of its mean>."""
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    real = column < width
    size = tl.maximum(stop - start, 1).to(tl.float32)
    total = _total(weights, start, stop, TOKENS, WEIGHTED)
    pull = tl.load(grad + chunk.to(tl.int64) * width + column, mask=real, other=0.0).to(tl.float32)
    for at in range(start, stop, TOKENS):
        token = at + tl.arange(0, TOKENS)
        inside = token < stop
        share = _share(weights, token, inside, size, total, WEIGHTED)
        place = token.to(tl.int64)[:, None] * width + column[None, :]
        here = inside[:, None] & real[None, :]
        tl.store(into + place, (share[:, None] * pull[None, :]).to(into.dtype.element_ty), mask=here)
        if SLOPES:
            value = tl.load(x + place, mask=here, other=0.0).to(tl.float32)
            tl.store(slopes + token, tl.sum(value * pull[None, :], 1), mask=inside)


@triton.jit
def _mean_kernel(
    x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, out0: tl.tensor, out1: tl.tensor, out2: tl.tensor,
    weights: tl.tensor, offsets: tl.tensor, width0: int, width1: int, width2: int, BLOCKS0: tl.constexpr,
    BLOCKS1: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr,
) -> None:  # fmt: skip
    chunk, block = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(offsets + chunk), tl.load(offsets + chunk + 1)
    if block < BLOCKS0:
        _mean(x0, out0, weights, chunk, start, stop, block, width0, TOKENS, COLUMNS, WEIGHTED)
    elif block < BLOCKS0 + BLOCKS1:
        _mean(x1, out1, weights, chunk, start, stop, block - BLOCKS0, width1, TOKENS, COLUMNS, WEIGHTED)
    else:
        _mean(x2, out2, weights, chunk, start, stop, block - BLOCKS0 - BLOCKS1, width2, TOKENS, COLUMNS, WEIGHTED)


@triton.jit
def _spread_kernel(
    x0: tl.tensor, x1: tl.tensor, x2: tl.tensor, grad0: tl.tensor, grad1: tl.tensor, grad2: tl.tensor,
    into0: tl.tensor, into1: tl.tensor, into2: tl.tensor, slopes: tl.tensor, weights: tl.tensor, offsets: tl.tensor,
    tokens: int, width0: int, width1: int, width2: int, BLOCKS0: tl.constexpr, BLOCKS1: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr, WEIGHTED: tl.constexpr, SLOPES: tl.constexpr,
) -> None:  # fmt: skip
    chunk, block = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(offsets + chunk), tl.load(offsets + chunk + 1)
    own = slopes + block.to(tl.int64) * tokens
    if block < BLOCKS0:
        _spread(x0, grad0, into0, own, weights, chunk, start, stop, block, width0, TOKENS, COLUMNS, WEIGHTED, SLOPES)
    elif block < BLOCKS0 + BLOCKS1:
        block -= BLOCKS0
        _spread(x1, grad1, into1, own, weights, chunk, start, stop, block, width1, TOKENS, COLUMNS, WEIGHTED, SLOPES)
    else:
        block -= BLOCKS0 + BLOCKS1
        _spread(x2, grad2, into2, own, weights, chunk, start, stop, block, width2, TOKENS, COLUMNS, WEIGHTED, SLOPES)


class _Pool(torch.autograd.Function):
    """Inputs [T, W] of one length, pooled by the same ranges and weights."""

    @staticmethod
    def forward(ctx: Any, offsets: Tensor, weights: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        chunks = offsets.shape[0] - 1
        outs = [x.new_empty((chunks, x.shape[1])) for x in inputs]
        blocks = _blocks(inputs)
        if chunks and sum(blocks):
            _mean_kernel[(chunks, sum(blocks))](
                *_three(inputs), *_three(outs), offsets if weights is None else weights, offsets, *_widths(inputs),
                BLOCKS0=blocks[0], BLOCKS1=blocks[1], TOKENS=TOKENS, COLUMNS=COLUMNS, WEIGHTED=weights is not None,
            )  # fmt: skip
        ctx.save_for_backward(offsets, weights, *inputs)
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        offsets, weights, *inputs = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        into = [torch.empty_like(x) for x in inputs]
        chunks, blocks, tokens = offsets.shape[0] - 1, _blocks(inputs), inputs[0].shape[0]
        slopes = ctx.needs_input_grad[1]
        parts = torch.empty((sum(blocks), tokens) if slopes else (0, 0), device=offsets.device)
        if chunks and sum(blocks):
            _spread_kernel[(chunks, sum(blocks))](
                *_three(inputs), *_three(grads), *_three(into), parts, offsets if weights is None else weights,
                offsets, tokens, *_widths(inputs), BLOCKS0=blocks[0], BLOCKS1=blocks[1], TOKENS=TOKENS,
                COLUMNS=COLUMNS, WEIGHTED=weights is not None, SLOPES=slopes,
            )  # fmt: skip
        return None, _weight_grad(parts.sum(0), weights, offsets) if slopes else None, *into


def _weight_grad(slopes: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """Through w_t / sum(w): (slope_t - mean slope of the range) / sum(w), and nothing where all weights are zero."""
    sizes = offsets.diff()
    owner = torch.repeat_interleave(
        torch.arange(sizes.shape[0], device=sizes.device), sizes, output_size=slopes.shape[0]
    )
    given = weights.float()
    totals = slopes.new_zeros(sizes.shape[0]).index_add(0, owner, given)
    safe = torch.where(totals > 0, totals, 1.0)
    means = slopes.new_zeros(sizes.shape[0]).index_add(0, owner, given * slopes) / safe
    return torch.where(totals[owner] > 0, (slopes - means[owner]) / safe[owner], 0.0).to(weights.dtype)


def _blocks(inputs: Sequence[Tensor]) -> list[int]:
    counts = [triton.cdiv(x.shape[1], COLUMNS) for x in inputs]
    return counts + [0] * (INPUTS - len(counts))


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [*tensors, *[tensors[0]] * (INPUTS - len(tensors))]


def _widths(inputs: Sequence[Tensor]) -> list[int]:
    return [x.shape[1] for x in _three(inputs)]


def pool_chunks(inputs: Sequence[Tensor], offsets: Tensor, weights: Tensor | None) -> tuple[Tensor, ...]:
    """Means [C, ...] of up to three inputs [T, ...], as `msa_kernels.pool_chunks` says."""
    flat = [(x[:, None] if x.ndim == 1 else x.flatten(1)).contiguous() for x in inputs]
    offsets = offsets.to(flat[0].device).contiguous()
    pooled: list[Tensor] = []
    for i in range(0, len(flat), INPUTS):
        pooled += _Pool.apply(offsets, None if weights is None else weights.contiguous(), *flat[i : i + INPUTS])  # type: ignore[no-untyped-call]
    return tuple(p.reshape(p.shape[0], *x.shape[1:]) for p, x in zip(pooled, inputs, strict=True))
