"""The exact search as one kernel a block (`msa_kernels.route_topk`) where Triton runs; elsewhere tiles are faster.

Shape legend: B rows, T question tokens, H heads, KV key/value heads, W routing-key width, n documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from msa_kernels import heads_apart, route_topk
from msa_plugin.bank.spans import check_block
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.queries import collapsed, key_width, voters
from msa_plugin.types import KeyBlock


def without_kernel(config: RoutingConfig) -> str:
    """Why no kernel makes scores as `config` says; empty where one does."""
    if config.chunk_reduce != "max":
        return "it takes a document's best chunk, and this adapter the mean of its chunks"
    if config.query_reduce == "mean" and config.head_reduce == "max":
        return "it takes the best token, and this adapter the mean of the tokens' best heads"
    return ""


class FusedSearch:
    """One question against block after block."""

    def __init__(self, queries: Tensor, mask: Tensor, config: RoutingConfig, k: int, tile_tokens: int) -> None:
        """Arguments and errors as for `scorer.route`, where `use_triton` allows it and nothing is `without_kernel`."""
        folded, votes = voters(queries, mask, config, tile_tokens)
        if votes is None:
            votes = torch.ones((folded.shape[0], folded.shape[-2]), dtype=torch.bool, device=folded.device)
        if config.head_reduce == "max":
            self._question = heads_apart(folded, votes, config.kv_heads)
        else:
            self._question = collapsed(folded, config)[:, None], votes
        self._k, self._width, self._device = k, key_width(config), queries.device

    def takes(self, block: KeyBlock) -> bool:
        """Whether the block lies where the question does."""
        return block.keys.device == self._device

    def search(self, block: KeyBlock) -> tuple[Tensor, Tensor]:
        """Scores [B, k'] and ordinals [B, k'] of the best documents, ties by the lower one; k' = min(k, allowed)."""
        check_block(block, self._width)
        offsets = block.offsets if block.device_offsets is None else block.device_offsets
        allowed = None if block.allowed is None else block.allowed.to(self._device)
        queries, votes = self._question
        found = route_topk(
            queries, votes, block.keys, offsets.to(self._device), self._k, scales=block.scales, allowed=allowed,
            backend="triton",
        )  # fmt: skip
        documents = found.documents.cpu()  # a few numbers; the ordinals of a block are many
        # Every row has as many: the allowed documents are the same for all.
        kept = int((documents[0] >= 0).sum())
        return found.scores[:, :kept], block.ordinals[documents[:, :kept]].to(self._device)
