"""Tensor kernels, each behind one function; plain torch is the reference and the CPU path."""

from __future__ import annotations

from msa_kernels.backend import Backend, BackendUnavailableError, use_triton
from msa_kernels.dispatch import attend_ranges, pool_chunks, route_topk
from msa_kernels.reference import chunk_offsets, collapse_heads, mean_pool, plain_scores
from msa_kernels.reference_routing import TopDocuments, chunk_owners, heads_apart

__all__ = [
    "Backend",
    "BackendUnavailableError",
    "TopDocuments",
    "attend_ranges",
    "chunk_offsets",
    "chunk_owners",
    "collapse_heads",
    "heads_apart",
    "mean_pool",
    "plain_scores",
    "pool_chunks",
    "route_topk",
    "use_triton",
]
