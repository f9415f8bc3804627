"""Routing search against two baselines, in one run: the formula written per head, and FAISS over the same vectors.

All three read the same documents (1 to 8 chunks each, unit-norm routing keys stored as float16) with the same number of
threads and the same float32 accumulation; timings are interleaved medians, so that drift of the machine hits all alike.
Shape legend: H heads, KV key/value heads, D head dim, T question tokens, W = KV * D, C chunks, N documents.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msa_kernels import collapse_heads
from msa_plugin.bench.case import REPEATS, Case, Row, Sizes, interleaved, option
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.faiss_library import load_faiss
from msa_plugin.retrieval.scorer import RoutedDocuments, route
from msa_plugin.types import KeyBlock

MAX_CHUNKS = 8
PIECE = 1 << 16
PANEL_NUMBERS = 1 << 18
SCORE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class RouteShape:
    """One question shape: heads, key/value heads, head dim and question tokens."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int

    @property
    def width(self) -> int:
        """Numbers per routing key."""
        return self.kv_heads * self.head_dim

    def config(self) -> RoutingConfig:
        """Settings of this shape, with the paper's reductions (equation 2)."""
        return RoutingConfig(layers=(0,), heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, pooling=64)


SHAPES = (
    RouteShape("tokens", heads=9, kv_heads=3, head_dim=64, tokens=24),
    RouteShape("pooled-384", heads=18, kv_heads=6, head_dim=64, tokens=1),
    RouteShape("pooled-512", heads=16, kv_heads=4, head_dim=128, tokens=1),
)


@dataclass(frozen=True)
class _Workload:
    shape: RouteShape
    block: KeyBlock
    queries: Tensor
    mask: Tensor
    index: Any
    k: int


class Route(Case):
    """Ratios are theirs over ours: above 1 ours is faster. `agree`: the three return the same.

    FAISS is timed at depth k per token, the least it could do, and checked at depth 8 k, which is enough to be exact
    (a document has at most 8 chunks). It spreads tokens over threads, so a single-token question runs on one.

    Example: msa bench route --chunks 10000,100000
    """

    columns: ClassVar = {
        "shape": "{name}",
        "chunks": "{chunks}",
        "ours ms": "{ours_ms:.2f}",
        "heads ms": "{heads_ms:.2f}",
        "faiss ms": "{faiss_ms:.2f}",
        "heads/ours": "{ratio_heads:.2f}",
        "faiss/ours": "{ratio_faiss:.2f}",
        "agree": "{agree}",
        "peak": "{peak_bytes:bytes}",
        "read GB/s": "{read_gb_s:.2f}",
        "of copy": "{bandwidth_share:.2f}",
    }
    chunks: Sizes = option("10000,100000,1000000", "Sizes of the memory in chunks, separated by commas.")
    k: int = option(16, "Documents that are found.", ge=1)
    repeats: int = option(5, REPEATS, ge=1)
    copy_bytes: int = option(1 << 28, "Bytes that are copied to measure the machine's own bandwidth.", ge=1)
    seed: int = option(0, "Which random vectors.")

    def about(self) -> str:
        """What runs."""
        return "routing over random unit vectors; 10^6 chunks need about 4 GB ..."

    def rows(self, shapes: Sequence[RouteShape] = SHAPES) -> Iterator[Row]:
        """Every shape at every size.

        `peak_bytes` is the most extra memory of ours, `read_gb_s` key bytes over our time, `bandwidth_share` that over
        what a copy reads and writes. Raises MissingExtraError without FAISS.
        """
        faiss = load_faiss()
        faiss.omp_set_num_threads(torch.get_num_threads())
        copy = copy_bandwidth(self.copy_bytes)
        for shape, chunks in product(shapes, self.chunks):
            workload = _workload(faiss, shape, chunks, self.k, self.seed)
            yield _measure(workload, self.repeats, copy) | {"seed": self.seed}


def copy_bandwidth(size: int, now: Callable[[], float] = time.perf_counter, repeats: int = 5) -> float:
    """Bytes per second that a memory copy of `size` bytes reads and writes together, median of `repeats`."""
    source = torch.ones(size, dtype=torch.uint8)
    target = source.clone()
    return 2 * size / median(_seconds(lambda: target.copy_(source), now) for _ in range(repeats))


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hooks unannotated
    """Counts the bytes of storages that come to life inside the context, and the most that were alive together."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._see((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._see(result, new=True)
        return result

    def _see(self, tree: Any, *, new: bool) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                name, size = storage._cdata, storage.nbytes() if new else 0
                self._known[name] = weakref.ref(storage, partial(self._gone, name, size))
                self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, name: int, size: int, _: object) -> None:
        self._known.pop(name, None)
        self.live -= size


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that tensors made during `call` held at once; a library's own buffers inside a kernel are not seen."""
    tracker = _LiveBytes()
    with tracker:
        call()
    return tracker.peak


def _seconds(call: Callable[[], object], now: Callable[[], float] = time.perf_counter) -> float:
    start = now()
    call()
    return now() - start


def _rested(call: Callable[[], object]) -> float:
    """Torch and FAISS have their own thread pools: one's workers still spin for a moment after it returns."""
    time.sleep(0.005)
    call()
    return _seconds(call)


def _workload(faiss: Any, shape: RouteShape, chunks: int, k: int, seed: int) -> _Workload:
    """Random unit-norm keys and queries, made in pieces: FAISS holds float32, twice the keys' own size."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty((chunks, shape.width), dtype=torch.float16)
    index = faiss.IndexFlatIP(shape.width)
    for start in range(0, chunks, PIECE):
        part = keys[start : start + PIECE]
        numbers = torch.randn((part.shape[0], shape.kv_heads, shape.head_dim), generator=generator)
        part.copy_(F.normalize(numbers, dim=-1).flatten(1))
        index.add(part.float().numpy())
    sizes = torch.randint(1, MAX_CHUNKS + 1, (chunks,), generator=generator).cumsum(0)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), sizes[sizes < chunks], torch.tensor([chunks])))
    block = KeyBlock(keys, offsets, torch.arange(offsets.shape[0] - 1), None)
    queries = F.normalize(torch.randn((1, shape.heads, shape.tokens, shape.head_dim), generator=generator), dim=-1)
    return _Workload(shape, block, queries, torch.ones((1, shape.tokens), dtype=torch.bool), index, k)


def _ours(w: _Workload) -> RoutedDocuments:
    return route(w.queries, w.mask, [w.block], w.k, w.shape.config())


def _heads(w: _Workload) -> RoutedDocuments:
    """The formula with all H heads, tiled in panels of the same cache-friendly size, with reused buffers."""
    keys, shape = w.block.keys, w.shape
    group = shape.heads // shape.kv_heads
    queries = w.queries[0].reshape(shape.kv_heads, group * shape.tokens, shape.head_dim)
    rows = max(64, PANEL_NUMBERS * torch.get_num_threads() // shape.width // 64 * 64)
    panel = torch.empty((rows, shape.kv_heads, shape.head_dim))
    products = torch.empty((shape.heads, shape.tokens, rows))
    scores = torch.empty(keys.shape[0])
    for start, part in _panels(keys, rows):
        size = part.shape[0]
        panel[:size].copy_(part.view(size, shape.kv_heads, shape.head_dim))
        for kv in range(shape.kv_heads):
            out = products[kv * group : (kv + 1) * group].view(group * shape.tokens, rows)
            torch.mm(queries[kv], panel[:, kv].T, out=out)
        torch.amax(products.mean(0)[:, :size], 0, out=scores[start : start + size])
    documents = torch.segment_reduce(scores, "max", offsets=w.block.offsets, unsafe=True)
    best = documents.topk(min(w.k, documents.shape[0]))
    return RoutedDocuments(best.indices[None], best.values[None])


def _panels(keys: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, keys.shape[0], rows):
        yield start, keys[start : start + rows]


def _faiss_search(w: _Workload, depth: int) -> RoutedDocuments:
    """FAISS: the question's tokens as queries, each token's best `depth` chunks, merged by maximum per document."""
    vectors = collapse_heads(w.queries, w.shape.kv_heads)[0]
    values, found = w.index.search(vectors.numpy(), min(depth, w.index.ntotal))
    owners = torch.searchsorted(w.block.offsets, torch.from_numpy(found).flatten(), right=True) - 1
    names, inverse = torch.unique(owners, return_inverse=True)
    scores = torch.full(names.shape, -torch.inf).scatter_reduce_(0, inverse, torch.from_numpy(values).flatten(), "amax")
    best = scores.topk(min(w.k, names.shape[0]))
    return RoutedDocuments(names[best.indices][None], best.values[None])


def _agree(a: RoutedDocuments, b: RoutedDocuments) -> bool:
    """Same scores rank by rank, and the same documents up to those that tie with the last one.

    Different libraries add up in different orders, so documents closer than float32 noise may swap places.
    """
    if a.scores.shape != b.scores.shape or not torch.allclose(a.scores, b.scores, rtol=0, atol=SCORE_TOLERANCE):
        return False
    last = float(a.scores[0, -1]) + 2 * SCORE_TOLERANCE
    clear = [set(r.ordinals[0][r.scores[0] > last].tolist()) for r in (a, b)]
    every = [set(r.ordinals[0].tolist()) for r in (a, b)]
    return clear[0] <= every[1] and clear[1] <= every[0]


def _measure(w: _Workload, repeats: int, copy: float) -> dict[str, Any]:
    calls: dict[str, Callable[[], RoutedDocuments]] = {
        "ours": lambda: _ours(w),
        "heads": lambda: _heads(w),
        "faiss": lambda: _faiss_search(w, w.k),
    }
    ours = _ours(w)
    agree = _agree(ours, _heads(w)) and _agree(ours, _faiss_search(w, MAX_CHUNKS * w.k))
    seconds = interleaved({name: partial(_rested, call) for name, call in calls.items()}, repeats)
    read = w.block.keys.nbytes / seconds["ours"]
    return asdict(w.shape) | {
        "width": w.shape.width,
        "chunks": w.block.keys.shape[0],
        "documents": w.block.ordinals.shape[0],
        "k": w.k,
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        **{f"{name}_ms": value * 1e3 for name, value in seconds.items()},
        "ratio_heads": seconds["heads"] / seconds["ours"],
        "ratio_faiss": seconds["faiss"] / seconds["ours"],
        "agree": agree,
        "peak_bytes": peak_bytes(calls["ours"]),
        "read_gb_s": read / 1e9,
        "copy_gb_s": copy / 1e9,
        "bandwidth_share": read / copy,
    }
