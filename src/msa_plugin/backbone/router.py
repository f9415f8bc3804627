"""Routing queries and keys from a layer's input (paper section 3; golden spec 3.3, 3.4, 4.2).

Shapes: B rows, T tokens, C chunks, H heads, KV key heads, D router head dim, W = KV * D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import Backend, chunk_offsets, collapse_heads, pool_chunks
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import AdapterError


@dataclass(frozen=True)
class RouterLayer:
    """One layer's projections: `q_weight` [H*D, hidden], `k_weight` [KV*D, hidden], and biases or None."""

    q_weight: Tensor
    k_weight: Tensor
    q_bias: Tensor | None = None
    k_bias: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> RouterLayer:
        """The same with `change` made to everything that it has."""
        return RouterLayer(*(None if t is None else change(t) for t in vars(self).values()))  # type: ignore[arg-type]


class Router:
    """Projects hidden states to routing queries and keys, as `RoutingConfig` says.

    With `source="attention"` there are no projections: the backbone's own Q and K are compared.
    """

    def __init__(
        self,
        config: RoutingConfig,
        layers: Mapping[int, RouterLayer],
        token_weights: Tensor | None = None,
        kernels: Backend = "auto",
    ) -> None:
        """`token_weights` [vocab] pools tokens unevenly; zero leaves a token out. Raises AdapterError on bad shapes.

        Chunks are pooled by the `kernels` named, as `msa_kernels.use_triton` says.
        """
        self.config, self.kernels = config, kernels
        self.layers = dict(layers)
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
                    f"{tuple(layer.k_weight.shape)} as shapes, expected {c.heads * c.head_dim} and {c.key_width} rows"
                )

    def to(self, device: torch.device, kernels: Backend = "auto") -> Router:
        """A copy on `device`, in the dtypes it has, that pools by `kernels`."""
        layers = {index: layer.each(lambda t: t.to(device)) for index, layer in self.layers.items()}
        weights = None if self.token_weights is None else self.token_weights.to(device)
        return Router(self.config, layers, weights, kernels)

    def queries(self, layer: int, hidden: Tensor) -> Tensor:
        """Routing queries [B, H, T, D] of `hidden` [B, T, hidden]; normalised and scaled, no q_norm, no RoPE."""
        return self._finish_queries(self.query_part(layer, hidden))

    def attention_queries(self, query: Tensor) -> Tensor:
        """Routing queries from the attention's own Q [B, H, T, D] (after q_norm and RoPE)."""
        return self._finish_queries(query)

    def query_part(self, layer: int, hidden: Tensor) -> Tensor:
        """One layer's projected queries [B, H, T, D] of `hidden` [B, T, hidden], not yet normalised."""
        r, c = self.layers[layer], self.config
        flat = F.linear(hidden.to(r.q_weight), r.q_weight, r.q_bias)  # to its device too: layers may be spread
        return flat.view(*flat.shape[:-1], c.heads, c.head_dim).transpose(1, 2)

    def pooled_query_part(self, layer: int, hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """One query a row, [B, H, 1, D]: hidden states pooled over the voting tokens `mask` [B, T], then projected.

        Pooling before projecting is the same by linearity, and costs one product a row.
        """
        weights = mask.float() if self.token_weights is None else self.token_weights[ids] * mask
        weights = torch.where(weights.sum(1, keepdim=True) == 0, mask.float(), weights)
        pooled = torch.einsum("bt,bth->bh", weights, hidden.float()) / weights.sum(1, keepdim=True)
        return self.query_part(layer, pooled[:, None])

    def shared_queries(self, parts: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries of a shared selection from every routing layer's part [B, H, T, D].

        Returns queries [B, L * H, T, D] (`joint`: [B, 1, T, D]) and each layer's share of the collapsed query
        [L, B, T, W]: a document's score is the sum of its products with the shares.
        """
        ordered = [parts[layer].float() for layer in self.config.layers]
        if self.config.joint:
            total = torch.stack(ordered).sum(0)
            finished = self._finish_queries(total)
            scale = finished.norm(dim=-1, keepdim=True) / total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            return finished, torch.stack([(part * scale)[:, 0] for part in ordered])
        finished_parts = [self._finish_queries(part) for part in ordered]
        collapsed = [collapse_heads(part, self.config.kv_heads) for part in finished_parts]
        shares = [
            torch.cat([c if i == j else torch.zeros_like(c) for j, c in enumerate(collapsed)], dim=-1)
            for i in range(len(collapsed))
        ]
        return torch.cat(finished_parts, dim=1), torch.stack(shares)

    def pool_chunks(self, hidden: Tensor, ids: Tensor, windows: Tensor) -> Tensor:
        """Chunk means [C, hidden] of real tokens `hidden` [T, hidden] with `ids` [T], float32.

        `windows` int64 [B] are the lengths of the windows that the tokens come from, end to end; chunks do not cross
        them. Tokens weigh what the adapter says, and the window's own mean is mixed in where it says so.
        """
        weights = None if self.token_weights is None else self.token_weights[ids]
        states = hidden.float()
        offsets, chunks = chunk_offsets(windows, self.config.pooling)
        (pooled,) = pool_chunks([states], offsets, weights, backend=self.kernels)
        if self.config.document_mix:
            (whole,) = pool_chunks([states], F.pad(windows.cumsum(0), (1, 0)), weights, backend=self.kernels)
            pooled = pooled + self.config.document_mix * whole.repeat_interleave(chunks, dim=0)
        return pooled

    def key_part(self, layer: int, hidden: Tensor, ids: Tensor, windows: Tensor) -> Tensor:
        """One layer's projected keys [C, W] of `pool_chunks`; pooled before they are projected, not yet normalised.

        Golden spec 3.4; pooling and projection commute, and this order is one product a chunk.
        """
        return self.project_keys(layer, self.pool_chunks(hidden.to(self.layers[layer].k_weight.device), ids, windows))

    def project_keys(self, layer: int, pooled: Tensor) -> Tensor:
        """One layer's keys [C, W] of chunk means [C, hidden], which `pool_chunks` made; not yet normalised."""
        r = self.layers[layer]
        means = pooled.to(r.k_weight.device, torch.float32)
        return F.linear(means, r.k_weight.float(), None if r.k_bias is None else r.k_bias.float())

    def finish_keys(self, parts: Mapping[int, Tensor]) -> dict[str, Tensor]:
        """Routing keys by key group, [C, W] each, L2-normalised per head; a shared group needs every layer's part."""
        if self.config.selection == "per_layer":
            return {str(layer): self._unit(part.float()) for layer, part in parts.items()}
        ordered = [parts[layer].float() for layer in self.config.layers]
        if self.config.joint:
            return {"shared": self._unit(torch.stack(ordered).sum(0))}
        return {"shared": torch.cat([self._unit(part) for part in ordered], dim=1)}

    def _finish_queries(self, queries: Tensor) -> Tensor:
        queries = queries.float()
        if self.config.normalize:
            queries = F.normalize(queries, dim=-1, eps=1e-12)
        return queries * self.config.scale

    def _unit(self, flat: Tensor) -> Tensor:
        if not self.config.normalize:
            return flat
        heads = flat.view(*flat.shape[:-1], self.config.kv_heads, self.config.head_dim)
        return F.normalize(heads, dim=-1, eps=1e-12).flatten(1)
