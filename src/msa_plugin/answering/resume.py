"""A prefill that goes on from an earlier one: layers that see no memory run on what is new in the row only.

The K, V of those layers are taken from the pass that has decoded since, so between rounds nothing is held for it but
one hidden state a token. Shapes: B rows, T tokens, S key slots, KV key/value heads, D head dim, P tokens that a row
has in common with its earlier prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from msa_plugin.backbone.attention import ActivationRecorder, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.kv_cache import LayerCache
from msa_plugin.backbone.lower import LowerLayers
from msa_plugin.encoding.encoder import pad_left


class Kept(NamedTuple):
    """What stays true of a prefilled row: its `ids`, and `hidden` [T, hidden], the first upper layer's input."""

    ids: list[int]
    hidden: Tensor


class Earlier(NamedTuple):
    """A row's prefill before: what was kept of it, and the pass and row that hold its K, V."""

    kept: Kept
    state: ForwardState
    row: int


class Resumed(NamedTuple):
    """The lower layers' part of a prefill, done: what they put out [B, T, hidden], and their caches."""

    hidden: Tensor
    caches: dict[int, LayerCache]


def kept_rows(rows: Sequence[list[int]], hidden: Tensor) -> list[Kept]:
    """What to keep of a prefill of left-padded `rows`; copies, so that the batch's own [B, T, hidden] can go."""
    return [Kept(ids, one[-len(ids) :].clone()) for ids, one in zip(rows, hidden, strict=True)]


def in_common(row: Sequence[int], earlier: Earlier | None) -> int:
    """Tokens at the beginning of `row` that its earlier prefill had too; at most all but one, so that one is run."""
    if earlier is None:
        return 0
    pairs = zip(row[:-1], earlier.kept.ids, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def resume(
    backbone: Backbone,
    state: ForwardState,
    depth: int,
    rows: Sequence[list[int]],
    positions: Tensor,
    earlier: Sequence[Earlier | None],
) -> Resumed | None:
    """Run the layers below `depth` for left-padded `rows` [B, T] at `positions`, on the tokens that are new to them.

    `state` is the pass of the prefill to come. None when no row has anything in common with its `earlier` prefill.
    """
    common = [in_common(row, before) for row, before in zip(rows, earlier, strict=True)]
    if not any(common):
        return None
    ids, mask = pad_left([row[start:] for row, start in zip(rows, common, strict=True)], backbone.device)
    lower = LowerLayers(depth)
    new = ForwardState(source=state.source, recorder=_Until(depth), keep_cache=True, lora=state.lora)
    new.lower = lower
    past = [(before, start) for before, start in zip(earlier, common, strict=True)]
    new.row_mask = torch.arange(max(common), device=ids.device) >= max(common) - ids.new_tensor(common)[:, None]
    for layer in range(depth):
        new.caches[layer] = _cache_before(new, layer, past)
    backbone.run(new, ids, mask, positions[:, -ids.shape[1] :], logits="none")
    assert lower.hidden is not None
    before = _left([_hidden(e, start, lower.hidden) for e, start in past])
    hidden = torch.cat([before, lower.hidden], dim=1)
    return _aligned(new, hidden, positions.shape[1])


class _Until(ActivationRecorder):
    """Ends a forward where the lower layers end."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def done_before(self, layer: int) -> bool:
        return layer == self._depth


def _cache_before(new: ForwardState, layer: int, past: Sequence[tuple[Earlier | None, int]]) -> LayerCache:
    """The layer's template head, and K, V of what each row has in common with before, padded on the left."""
    context = new.context_of(layer)
    assert context is not None
    own = [_own(before, layer, start, context.keys) for before, start in past]
    keys, values = (_left([kv[part] for kv in own], dim=1) for part in (0, 1))
    return LayerCache(torch.cat([context.keys, keys], dim=2), torch.cat([context.values, values], dim=2))


def _own(before: Earlier | None, layer: int, start: int, like: Tensor) -> Tensor:
    """K and V [2, KV, P, D] of the row's first `start` tokens; `like` [B, KV, S, D] has the shape of none."""
    if before is None or not start:
        return like.new_zeros(2, like.shape[1], 0, like.shape[3])
    assert before.state.row_mask is not None
    cache = before.state.caches[layer].current
    real = before.state.row_mask[before.row].nonzero()[:start, 0]
    slots = (cache[0].shape[2] - before.state.row_mask.shape[1] + real).to(cache[0].device)
    return torch.stack([part[before.row].index_select(1, slots) for part in cache])


def _hidden(before: Earlier | None, start: int, like: Tensor) -> Tensor:
    return like.new_zeros(0, like.shape[2]) if before is None else before.kept.hidden[:start]


def _left(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors stacked, padded on the left of `dim` to one length."""
    longest = max(part.shape[dim] for part in parts)
    shape = list(parts[0].shape)
    shape[dim] = longest
    stacked = parts[0].new_zeros(len(parts), *shape)
    for row, part in zip(stacked, parts, strict=True):
        row.narrow(dim, longest - part.shape[dim], part.shape[dim]).copy_(part)
    return stacked


def _aligned(new: ForwardState, hidden: Tensor, width: int) -> Resumed:
    """The same with each row's padding, which may lie in its middle, moved to its left and cut to `width` columns."""
    assert new.row_mask is not None
    if bool(new.row_mask.all()):
        return Resumed(hidden, new.caches)
    order = new.row_mask.long().sort(dim=1, stable=True).indices[:, -width:]
    local = new.row_mask.shape[1]
    caches = {
        layer: LayerCache(*(_reordered(part, order.to(part.device), part.shape[2] - local) for part in cache.current))
        for layer, cache in new.caches.items()
    }
    rows = torch.arange(len(order), device=hidden.device)[:, None]
    return Resumed(hidden[rows, order.to(hidden.device)], caches)


def _reordered(kv: Tensor, order: Tensor, head: int) -> Tensor:
    """K or V [B, KV, S, D] whose slots after the first `head` are those that `order` [B, T] names, in that order."""
    wide = order[:, None, :, None].expand(-1, kv.shape[1], -1, kv.shape[3])
    return torch.cat([kv[:, :, :head], kv[:, :, head:].gather(2, wide)], dim=2)
