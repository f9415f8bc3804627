"""Routing queries and keys from a layer's input (paper section 3; golden spec 3.3, 3.4, 4.2).

Shapes: B rows, T tokens, C chunks, H heads, KV key heads, D router head dim, W = KV * D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import mean_pool
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import AdapterError


@dataclass(frozen=True)
class RouterLayer:
    """One layer's projections: `q_weight` [H*D, hidden], `k_weight` [KV*D, hidden], and biases or None."""

    q_weight: Tensor
    k_weight: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None


class Router:
    """Projects hidden states to routing queries and keys, as `RoutingConfig` says.

    With `source="attention"` there are no projections: the backbone's own Q and K are compared.
    """

    def __init__(
        self, config: RoutingConfig, layers: Mapping[int, RouterLayer] | None = None, token_weights: Tensor | None = None
    ) -> None:
        """`token_weights` [vocab] pools tokens unevenly; zero leaves a token out. Raises AdapterError on bad shapes."""
        self.config = config
        self.layers = dict(layers or {})
        self.token_weights = token_weights
        self._check()

    def _check(self) -> None:
        c = self.config
        if c.token_weighted != (self.token_weights is not None):
            raise AdapterError("token_weighted and the presence of token weights must agree")
        if c.source == "attention":
            return
        for index in c.layers:
            if index not in self.layers:
                raise AdapterError(f"router layer {index} has no projections")
            layer = self.layers[index]
            if layer.q_weight.shape[0] != c.heads * c.head_dim or layer.k_weight.shape[0] != c.key_width:
                raise AdapterError(
                    f"router layer {index}: projections have {tuple(layer.q_weight.shape)} and "
                    f"{tuple(layer.k_weight.shape)} rows and columns, expected {c.heads * c.head_dim} and {c.key_width} rows"
                )

    def to(self, device: torch.device) -> Router:
        """A copy on `device`, in the dtypes it has."""

        def move(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(device)

        layers = {
            i: RouterLayer(move(r.q_weight), move(r.k_weight), move(r.q_bias), move(r.k_bias))  # type: ignore[arg-type]
            for i, r in self.layers.items()
        }
        return Router(self.config, layers, move(self.token_weights))

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """Routing queries [B, H, T, D] of `hidden` [B, T, hidden]; normalised and scaled, no q_norm, no RoPE."""
        r, c = self.layers[layer], self.config
        flat = F.linear(hidden.to(r.q_weight.dtype), r.q_weight, r.q_bias)
        return self._finish_queries(flat.unflatten(-1, (c.heads, c.head_dim)).transpose(1, 2))

    def attention_queries(self, query: Tensor) -> Tensor:
        """Routing queries from the attention's own Q [B, H, T, D] (after q_norm and RoPE)."""
        return self._finish_queries(query)

    def pooled_queries(self, layer: int, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """One query a row, [B, H, 1, D]: hidden states pooled over the voting tokens `mask` [B, T], then projected.

        Pooling before projecting is the same by linearity, and costs one product a row.
        """
        weights = mask.float() if self.token_weights is None else self.token_weights[ids] * mask
        empty = weights.sum(1, keepdim=True) == 0
        weights = torch.where(empty, mask.float(), weights)
        pooled = torch.einsum("bt,bth->bh", weights, hidden.float()) / weights.sum(1, keepdim=True)
        return self.queries(layer, pooled[:, None])

    def keys(self, layer: int, hidden: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        """Routing keys [C, W] of real tokens `hidden` [T, hidden], `ids` [T], pooled over chunks `offsets` [C + 1].

        Pool first, then project, then L2-normalise each head (golden spec 3.4); float32.
        """
        r = self.layers[layer]
        weights = None if self.token_weights is None else self.token_weights[ids]
        pooled = mean_pool(hidden.float(), offsets, weights)
        bias = None if r.k_bias is None else r.k_bias.float()
        return self._finish_keys(F.linear(pooled, r.k_weight.float(), bias))

    def attention_keys(self, pooled: Tensor) -> Tensor:
        """Routing keys [C, W] from pooled attention K [C, KV, D]."""
        return self._finish_keys(pooled.float().flatten(1))

    def _finish_queries(self, queries: Tensor) -> Tensor:
        queries = queries.float()
        if self.config.normalize:
            queries = F.normalize(queries, dim=-1, eps=1e-12)
        return queries * self.config.scale

    def _finish_keys(self, flat: Tensor) -> Tensor:
        if not self.config.normalize:
            return flat
        heads = flat.unflatten(-1, (self.config.kv_heads, self.config.head_dim))
        return F.normalize(heads, dim=-1, eps=1e-12).flatten(1)
