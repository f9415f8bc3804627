"""Routing queries made ready for the search: checked, folded where a reduction is linear, and cut into tiles.

Shape legend: B rows, T question tokens, H heads, KV key/value heads, D head dim, W routing-key width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_kernels import collapse_heads
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import InvalidQueryError


class Voters(NamedTuple):
    """Queries that remain to be searched: [B, H, T, D] or collapsed [B, T, W]; `votes` bool [B, T], None: all vote."""

    queries: Tensor
    votes: Tensor | None


class TokenTile(NamedTuple):
    """Queries of rows `rows` and a span of tokens, as left factors of matrix products.

    `parts` float32 [P, g * G * t, W / P]: one part for a mean over heads, one per KV head for a maximum; g rows,
    G heads of a group, t tokens (`shape` is (g, G, t)). `silent` bool [g, t, 1]: tokens that must not vote, None when
    all do. `share` [g, 1, t]: weights of a mean over tokens, None for a maximum. `first`: no tile before this one has
    these rows.
    """

    rows: slice
    parts: Tensor
    shape: tuple[int, int, int]
    silent: Tensor | None
    share: Tensor | None
    first: bool

    @property
    def plain(self) -> bool:
        """One row, one head, and a maximum over tokens that all vote, with nothing before it: no bookkeeping needed."""
        return self.first and self.silent is None and self.share is None and self.shape[:2] == (1, 1)


def key_width(config: RoutingConfig) -> int:
    """Width W of the one key matrix that a search reads (a shared selection has the layers' keys side by side)."""
    return next(iter(config.key_groups.values()))


def voters(queries: Tensor, mask: Tensor, config: RoutingConfig, tile_tokens: int) -> Voters:
    """Check a question, and fold its tokens into one where the reduction allows it (`last`, `pooled`, mean of means).

    `queries` [B, H, T, D] (a shared selection: the layers' heads one after the other) or collapsed [B, T, W], `mask`
    bool [B, T]. Raises InvalidQueryError for widths that do not fit, NaN or infinity, rows without a voting token, and
    collapsed queries where a reduction needs the heads.
    """
    _check_shapes(queries, mask, config)
    votes = mask.to(device=queries.device, dtype=torch.bool)
    if queries.shape[0] == 0 or not bool(votes.any(1).all()):
        raise InvalidQueryError("every row of a question needs at least one voting token")
    # aminmax hands NaN on and makes no temporary of the question's size.
    low, high = torch.aminmax(queries)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise InvalidQueryError("routing queries hold NaN or infinite numbers")
    how = config.query_reduce
    if how == "max" or (how == "mean" and config.head_reduce == "max"):
        return Voters(queries, None if bool(votes.all()) else votes)
    folded = _last(queries, votes, tile_tokens) if how == "last" else _mean(queries, votes, tile_tokens)
    if how == "pooled" and config.normalize:
        folded = F.normalize(folded, dim=-1, eps=1e-12) * config.scale
    return Voters(folded, None)


def collapsed(queries: Tensor, config: RoutingConfig) -> Tensor:
    """[B, H, T, D] or [B, T, W] -> [B, T, W]: mean over each layer's heads, sum over a shared selection's layers."""
    if queries.ndim == 3:
        return queries
    groups = queries.shape[1] // config.heads
    return collapse_heads(queries, config.kv_heads * groups) * groups


def _check_shapes(queries: Tensor, mask: Tensor, config: RoutingConfig) -> None:
    width = key_width(config)
    groups = width // config.key_width
    if queries.ndim == 4:
        heads, dim = queries.shape[1], queries.shape[3]
        if (heads, dim) != (config.heads * groups, config.head_dim):
            raise InvalidQueryError(
                f"queries have {heads} heads of width {dim}, the routing needs {config.heads * groups} of "
                f"{config.head_dim}"
            )
    elif queries.ndim == 3:
        if queries.shape[2] != width:
            raise InvalidQueryError(f"collapsed queries are {queries.shape[2]} wide, the routing keys {width}")
        if config.head_reduce == "max" or (config.query_reduce == "pooled" and config.normalize):
            raise InvalidQueryError("head_reduce='max' and normalised pooled queries need the heads: pass [B, H, T, D]")
    else:
        raise InvalidQueryError(f"queries must be [B, H, T, D] or [B, T, W], not {tuple(queries.shape)}")
    if not queries.is_floating_point():
        raise InvalidQueryError(f"queries must be floating point, not {queries.dtype}")
    if mask.shape != (queries.shape[0], queries.shape[-2]):
        raise InvalidQueryError(f"mask {tuple(mask.shape)} does not fit queries {tuple(queries.shape)}")


def _spread(per_token: Tensor, queries: Tensor) -> Tensor:
    """[B, t] -> [B, 1, t] beside collapsed queries, [B, 1, 1, t] beside queries with heads."""
    return per_token[:, None] if queries.ndim == 3 else per_token[:, None, None]


def _mean(queries: Tensor, votes: Tensor, tile: int) -> Tensor:
    """Mean query of the voting tokens, float32 [B, (H,) 1, D]; a tile at a time, to keep the workspace fixed."""
    total: Tensor | None = None
    for t in range(0, votes.shape[1], tile):
        weights = _spread(votes[:, t : t + tile].float(), queries)
        part = weights @ queries[..., t : t + tile, :].float()
        total = part if total is None else total + part
    assert total is not None
    return total / _spread(votes.sum(1, keepdim=True), queries)


def _last(queries: Tensor, votes: Tensor, tile: int) -> Tensor:
    """Query of each row's last voting token, float32 [B, (H,) 1, D]."""
    last = torch.zeros(votes.shape[0], dtype=torch.int64, device=votes.device)
    for t in range(0, votes.shape[1], tile):
        part = votes[:, t : t + tile]
        positions = torch.arange(t, t + part.shape[1], device=votes.device)
        last = torch.maximum(last, (part * positions).amax(1))
    rows = torch.arange(votes.shape[0], device=votes.device)
    return queries[rows, ..., last, :].unsqueeze(-2).float()


def token_tiles(voting: Voters, config: RoutingConfig, tile_tokens: int) -> Iterator[TokenTile]:
    """Cut the question into tiles of at most `tile_tokens` products per key (one token's heads are never parted)."""
    queries, votes = voting
    group = config.heads // config.kv_heads if config.head_reduce == "max" else 1
    tokens = queries.shape[-2]
    span = min(tokens, max(1, tile_tokens // group))
    together = max(1, tile_tokens // (span * group)) if span == tokens else 1
    for b in range(0, queries.shape[0], together):
        rows = slice(b, min(b + together, queries.shape[0]))
        for t in range(0, tokens, span):
            cut = slice(t, t + span)
            part = None if votes is None else votes[rows, cut]
            if part is None or bool(part.any()) or t == 0:
                yield _tile(queries[rows, ..., cut, :].float(), rows, part, voting, config, first=t == 0)


def _tile(q: Tensor, rows: slice, part: Tensor | None, voting: Voters, config: RoutingConfig, first: bool) -> TokenTile:
    count, tokens = q.shape[0], q.shape[-2]
    share = None
    if config.query_reduce == "mean" and voting.queries.shape[-2] > 1:
        share = _shares(voting, rows, part, count, tokens, q.device)
    silent = None if part is None or share is not None or bool(part.all()) else ~part[:, :, None]
    if config.head_reduce == "max":
        kv = q.shape[1] * config.kv_heads // config.heads
        group = q.shape[1] // kv
        parts = q.reshape(count, kv, group, tokens, -1).transpose(0, 1).reshape(kv, count * group * tokens, -1)
        return TokenTile(rows, parts, (count, group, tokens), silent, share, first)
    q = collapsed(q, config)
    return TokenTile(rows, q.reshape(1, count * tokens, -1), (count, 1, tokens), silent, share, first)


def _shares(voting: Voters, rows: slice, part: Tensor | None, count: int, tokens: int, device: torch.device) -> Tensor:
    """Weights [g, 1, t] of the tokens of a tile in the mean over the row's voting tokens."""
    if voting.votes is None or part is None:
        return torch.full((count, 1, tokens), 1.0 / voting.queries.shape[-2], device=device)
    return (part / voting.votes[rows].sum(1, keepdim=True))[:, None]
