"""The exact search over a bank's blocks: where their keys lie, in which tiles they are read, and by which kernels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from msa_kernels import Backend
from msa_plugin.bank.spans import TILE_CHUNKS
from msa_plugin.bank.tiers import KeyTier
from msa_plugin.config import MemoryConfig, RoutingConfig
from msa_plugin.retrieval.scorer import TILE_TOKENS, RoutedDocuments, route
from msa_plugin.types import KeyBlock


@dataclass(frozen=True)
class KeySearch:
    """Settings of a memory's searches; `tier` keeps keys on the compute device between them."""

    tier: KeyTier
    tile_chunks: int = TILE_CHUNKS
    tile_tokens: int = TILE_TOKENS
    kernels: Backend = "auto"

    @classmethod
    def of(cls, tier: KeyTier, config: MemoryConfig) -> KeySearch:
        """As a memory's settings say."""
        return cls(tier, config.tile_chunks, config.tile_tokens, config.kernels)

    def route(
        self, queries: Tensor, votes: Tensor, blocks: Iterable[KeyBlock], k: int, config: RoutingConfig
    ) -> RoutedDocuments:
        """`scorer.route` over a bank's blocks."""
        return route(
            queries,
            votes,
            self.tier.blocks(blocks, self.tile_chunks),
            k,
            config,
            tile_chunks=self.tile_chunks,
            tile_tokens=self.tile_tokens,
            kernels=self.kernels,
        )
