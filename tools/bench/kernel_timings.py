"""Kernels beside their plain-torch twins and beside the device's own copy, as ratios.

Every figure is a median over runs in one process, over data several times larger than a GPU's caches; bytes are what
must be read and written once. Made for a GPU: on a CPU it times the twins against themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench_shell import Row
from torch import Tensor

from msa_kernels import attend_ranges, chunk_offsets, chunk_owners, pool_chunks, route_topk

RUNS = 20
WARM_UP = 3


def kernel_timings(device: torch.device, *, chunks: int = 1_000_000, runs: int = RUNS) -> Iterator[Row]:
    """Time every kernel on `device`; `chunks` of routing keys of width 1024 (at a million 2 GB in 16 bits).

    Of each the seconds of kernel and twin, the bytes that must move, `of_copy` (1: as fast as the device copies) and
    `speedup` over the twin. The first row is the copy itself.
    """
    copied = _copy(device, chunks * 2048, runs)
    yield copied
    copy = copied["copy_bytes_per_s"]
    for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.float32):
        for tokens in (16, 64, 128):
            yield _routing(device, chunks, tokens, dtype, copy, runs)
    yield _routing(device, chunks, 64, torch.bfloat16, copy, runs, width=192)
    yield from _pooling(device, chunks // 64, copy, runs)
    for rows, stored in ((1, 256), (1, 65_536), (32, 4096)):
        yield _attention(device, chunks, rows, stored, copy, runs)


def _copy(device: torch.device, size: int, runs: int) -> Row:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _median(lambda: target.copy_(source), device, runs)
    return _row("copy", 2 * size, seconds, seconds, 2 * size / seconds)


def _routing(
    device: torch.device, chunks: int, tokens: int, dtype: torch.dtype, copy: float, runs: int, width: int = 1024
) -> Row:
    keys = torch.randint(-127, 128, (chunks, width), dtype=torch.int8, device=device)
    scales = torch.rand(chunks, device=device) + 0.5 if dtype == torch.int8 else None
    keys = keys if dtype == torch.int8 else keys.to(dtype)
    offsets = torch.arange(0, chunks + 1, 4, device=device)
    queries = torch.randn(1, 1, tokens, width, device=device)
    votes = torch.ones(1, tokens, dtype=torch.bool, device=device)
    fixed = {"scales": scales, "owners": chunk_owners(offsets, chunks)}
    size = keys.numel() * keys.element_size() + (4 * chunks if scales is not None else 0)
    name = f"routing {str(dtype)[6:]} width {width} tokens {tokens}"
    return _both(
        name, size, lambda how: route_topk(queries, votes, keys, offsets, 16, backend=how, **fixed), device, copy, runs
    )


def _pooling(device: torch.device, chunks: int, copy: float, runs: int) -> Iterator[Row]:
    offsets = chunk_offsets(torch.full((chunks // 8,), 512), 64)[0].to(device)
    tokens = int(offsets[-1])
    inputs = [torch.randn(tokens, 1024, device=device).to(torch.bfloat16).requires_grad_() for _ in range(3)]
    size = 3 * 2048 * (tokens + chunks)

    def forward(how: Any) -> tuple[Tensor, ...]:
        return pool_chunks(inputs, offsets, backend=how)

    def both_ways(how: Any) -> None:
        torch.autograd.grad([p.sum() for p in forward(how)], inputs)

    yield _both("pooling bfloat16, 3 x 1024", size, forward, device, copy, runs)
    yield _both("pooling and its gradients", 2 * size, both_ways, device, copy, runs)


def _attention(device: torch.device, chunks: int, rows: int, stored: int, copy: float, runs: int) -> Row:
    stored = min(stored, chunks // 2)
    content = torch.randn(max(chunks // 4, stored), 2, 8, 128, device=device).to(torch.bfloat16)
    starts = torch.randint(0, content.shape[0] - stored // 16 + 1, (rows, 16, 1), dtype=torch.int32, device=device)
    ranges = torch.cat([starts, starts + stored // 16], 2)
    queries = torch.randn(rows, 32, 128, device=device).to(torch.bfloat16)
    own = torch.randn(2, rows, 8, 256, 128, device=device).to(torch.bfloat16)
    size = rows * (stored // 16 * 16 + 256) * 2 * 8 * 128 * 2

    def attend(how: Any) -> Tensor:
        return attend_ranges(queries, content[:, 0], content[:, 1], ranges, own[0], own[1], longest=stored, backend=how)

    return _both(f"decode attention, {rows} rows, {stored} chunks", size, attend, device, copy, runs)


def _both(what: str, size: int, call: Callable[[Any], object], device: torch.device, copy: float, runs: int) -> Row:
    kernel = _median(lambda: call("auto"), device, runs)
    return _row(what, size, kernel, _median(lambda: call("torch"), device, min(runs, 3)), copy)


def _row(what: str, size: int, kernel: float, twin: float, copy: float) -> Row:
    row = {"what": what, "bytes": size, "kernel_s": kernel, "twin_s": twin, "copy_bytes_per_s": copy}
    return row | {"of_copy": size / kernel / copy, "speedup": twin / kernel}


def _median(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """Median seconds of a call, by the device's own clock where it has one."""
    for _ in range(min(WARM_UP, runs)):
        call()
    return statistics.median(_once(call, device) for _ in range(runs))


def _once(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3
