"""Passes put together and taken apart by rows, so that questions in different phases share decoding forwards.

Shapes: B rows, S key slots, KV heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from msa_plugin.attention_context import LayerContext
from msa_plugin.backbone import paging
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.kv_cache import LayerCache

Part = tuple[ForwardState, Sequence[int]]


def joined(parts: Sequence[Part]) -> ForwardState:
    """One pass, to be decoded further, with the rows named of each of `parts`, in that order.

    The passes have been prefilled with a cache, all with the same LoRA. Slots that no chosen row uses are dropped;
    rows of different lengths are padded on the left, where masks hide it, so each row goes on exactly as it would have
    alone.
    """
    [lora] = {state.lora for state, _ in parts}
    result = ForwardState(keep_cache=True, lora=lora)
    masks = [state.row_mask[list(rows)] for state, rows in parts if state.row_mask is not None]
    used = [mask.any(0) for mask in masks]
    width = max(int(columns.sum()) for columns in used)
    result.row_mask = torch.cat([_left(mask[:, columns], width) for mask, columns in zip(masks, used, strict=True)])
    for layer in parts[0][0].caches:
        _join_layer(result, layer, parts, used, width)
    return result


def _join_layer(result: ForwardState, layer: int, parts: Sequence[Part], used: Sequence[Tensor], width: int) -> None:
    memories, owns, seen, paged = [], [], [], []
    for (state, rows), columns in zip(parts, used, strict=True):
        both = torch.stack(state.caches[layer].current)[:, list(rows)]  # [2, B, KV, S, D]
        memory = both.shape[3] - columns.shape[0]
        context = state.context_of(layer)
        mask = both.new_ones(len(rows), memory, dtype=torch.bool)
        if context is not None and context.mask is not None:
            slots = context.mask.shape[1] - memory  # those of pages come first, and no cache has them
            mask = context.mask[list(rows), slots:].to(both.device)
        paged.append((None if context is None else context.pages, rows))
        real = mask.any(0)
        memories.append(both[:, :, :, :memory][:, :, :, real])
        seen.append(mask[:, real])
        owns.append(_slots(both[:, :, :, memory:][:, :, :, columns.to(both.device)], width))
    longest = max(mask.shape[1] for mask in seen)
    memory_kv = torch.cat([_slots(part, longest) for part in memories], dim=1)
    mask = torch.cat([_left(part, longest) for part in seen])
    keys, values = torch.cat([memory_kv, torch.cat(owns, dim=1)], dim=3)
    result.caches[layer] = LayerCache(keys, values)
    pages = paging.joined(paged)
    if pages is not None:
        mask = torch.cat([paging.seen(pages).to(mask.device), mask], dim=1)
    padding = None if pages is None and bool(mask.all()) else mask
    result.set_context(layer, LayerContext(memory_kv[0], memory_kv[1], padding, pages))


def _left(mask: Tensor, width: int) -> Tensor:
    return F.pad(mask, (width - mask.shape[1], 0), value=False)


def _slots(kv: Tensor, width: int) -> Tensor:
    return F.pad(kv, (0, 0, width - kv.shape[3], 0))
