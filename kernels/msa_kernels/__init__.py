"""Tensor kernels, each behind one function; plain torch is the reference and the CPU path."""

from __future__ import annotations

from msa_kernels.reference import chunk_offsets, collapse_heads, mean_pool, plain_scores

__all__ = ["chunk_offsets", "collapse_heads", "mean_pool", "plain_scores"]
