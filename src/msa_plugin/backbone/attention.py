"""The surgery: one attention function, one pre-hook, and the state of a call that travels as a keyword.

Stock layers pass unknown keywords of the model's forward through to the attention function, so a `ForwardState`
reaches it without any global. `installed` switches the function in and always switches it out again.

Shapes: B rows, T new tokens, S keys, H heads, KV key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from msa_plugin.attention_context import ChunkPages, LayerContext, MemorySource
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.kv_cache import LayerCache
from msa_plugin.backbone.paging import attend, gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from msa_plugin.backbone.eight_bits import EightBits
    from msa_plugin.backbone.lora import Lora
    from msa_plugin.backbone.lower import LowerLayers
    from msa_plugin.backbone.router import Router

NAME = "msa"
KEYWORD = "msa_pass"


class DepthReached(Exception):
    """Ends a forward once its last wanted state has been captured; never leaves `Backbone.run`."""


class ActivationRecorder:
    """Receives states of a pass as they appear and says when nothing deeper is wanted; by default it wants nothing."""

    def on_input(self, layer: int, hidden: Tensor) -> None:
        """Layer input after input_layernorm [B, T, hidden]."""

    def on_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """K after norm and RoPE, and V, each [B, KV, T, D]."""

    def done_before(self, layer: int) -> bool:
        """True when `layer`'s input was the last state wanted."""
        return False

    def done_at(self, layer: int) -> bool:
        """True when `layer`'s K and V were the last states wanted."""
        return False


class ForwardState:
    """State of a prefill and the decode steps that follow it, for one batch of rows.

    `feed` announces the real tokens of the next forward. Every row token sees all of its layer's memory context and
    the row's earlier real tokens (bottom-right causal; golden spec 4.6); sliding windows limit the row's own tokens
    only, since a memory's positions are not the row's.
    """

    def __init__(
        self,
        *,
        source: MemorySource | None = None,
        router: Router | None = None,
        recorder: ActivationRecorder | None = None,
        keep_cache: bool = False,
        lora: Lora | None = None,
    ) -> None:
        """`source` supplies memory, `router` makes the queries for `source.select`, `recorder` records states.

        All forwards of the pass run with the updates of `lora`, and the next ones as `lower` says once it is set, those
        of a few tokens with the weights of `eight_bits`.
        """
        self.source, self.router, self.recorder, self.lora = source, router, recorder, lora
        self.keep_cache = keep_cache
        self.lower: LowerLayers | None = None
        self.eight_bits: EightBits | None = None
        self.caches: dict[int, LayerCache] = {}
        self.row_mask: Tensor | None = None
        self._contexts: dict[int, LayerContext | None] = {}
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}
        self._new = 0

    def feed(self, mask: Tensor) -> None:
        """Announce the next tokens: `mask` bool [B, T], True for real tokens."""
        self.row_mask = mask if self.row_mask is None else torch.cat([self.row_mask, mask], dim=1)
        self._new = mask.shape[1]
        self._masks.clear()

    def rewind(self, columns: int) -> None:
        """Forget what was fed after the first `columns` of tokens."""
        assert self.row_mask is not None
        for cache in self.caches.values():
            cache.cut(self.row_mask.shape[1] - columns)
        self.row_mask = self.row_mask[:, :columns]

    def weights(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """Inside, `model` has the weights that the tokens just announced are for."""
        assert self.row_mask is not None
        if self.eight_bits is not None and self.row_mask.shape[0] * self._new <= self.eight_bits.few:
            return self.eight_bits.added(model, self.lora)
        return nullcontext() if self.lora is None else self.lora.added(model)

    def wants_input(self, layer: int) -> bool:
        """Whether the pre-hook has anything to do at `layer`."""
        return self.recorder is not None or self._routes_at(layer)

    def see_input(self, layer: int, hidden: Tensor) -> None:
        """Pre-hook: record the layer's input, route if this is a router layer, stop if nothing deeper is wanted."""
        if self.recorder is not None:
            self.recorder.on_input(layer, hidden)
        if self._routes_at(layer) and self.router is not None and self.router.config.source == "projection":
            self._select(layer, self.router.queries(layer, hidden))
        if self.recorder is not None and self.recorder.done_before(layer):
            raise DepthReached

    def see_attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Record K and V, and route on the attention query where the router shares it."""
        if self.recorder is not None:
            self.recorder.on_kv(layer, key, value)
        if self._routes_at(layer) and self.router is not None and self.router.config.source == "attention":
            self._select(layer, self.router.attention_queries(query))
        if self.recorder is not None and self.recorder.done_at(layer):
            raise DepthReached

    def assemble(
        self, layer: int, key: Tensor, value: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """K, V [B, KV, S, D] that the new tokens attend to, and the mask [B, 1, T, S] (None: plain causal).

        Chunks of the layer's pages come first.
        """
        context = self.context_of(layer)
        keys, values = self._cached(layer, context, key, value)
        if context is not None and context.pages is not None:
            chunk_keys, chunk_values = gathered(context.pages, keys.dtype)
            keys, values = torch.cat([chunk_keys, keys], dim=2), torch.cat([chunk_values, values], dim=2)
        mask = self._mask(context, keys.shape[2], window)
        return keys, values, None if mask is None else mask.to(keys.device)

    def beside_pages(
        self, layer: int, key: Tensor, value: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`assemble` without the chunks of the layer's pages, which are read as they lie."""
        keys, values = self._cached(layer, self.context_of(layer), key, value)
        mask = self._mask(None, keys.shape[2], window)
        return keys, values, None if mask is None else mask.to(keys.device)

    def _cached(self, layer: int, context: LayerContext | None, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What the layer attends to but for pages, the new tokens included; kept for the next ones."""
        cache = self.caches.get(layer)
        if cache is not None:
            return cache.append(key, value)
        if context is not None:
            key = torch.cat([context.keys.to(key.dtype), key], dim=2)
            value = torch.cat([context.values.to(value.dtype), value], dim=2)
        if self.keep_cache:
            self.caches[layer] = LayerCache(key, value)
        return key, value

    def _routes_at(self, layer: int) -> bool:
        """A prefill routes once per router layer; decoding does not (golden spec section 5)."""
        if self.router is None or self.source is None or layer in self.caches:
            return False
        return layer in self.router.config.layers

    def _select(self, layer: int, queries: Tensor) -> None:
        assert self.source is not None
        self.source.select(layer, queries)

    def context_of(self, layer: int) -> LayerContext | None:
        """What `layer` attends to besides its rows; asked of the source once."""
        if layer not in self._contexts:
            self._contexts[layer] = None if self.source is None else self.source.context(layer)
        return self._contexts[layer]

    def pages_of(self, layer: int) -> ChunkPages | None:
        """Chunks that the layer reads through an index while it decodes."""
        context = self.context_of(layer)
        return None if context is None else context.pages

    def set_context(self, layer: int, context: LayerContext) -> None:
        """Say what `layer` attends to, where it lies in the cache already."""
        self._contexts[layer] = context

    def _mask(self, context: LayerContext | None, total: int, window: int | None) -> Tensor | None:
        assert self.row_mask is not None
        local = self.row_mask.shape[1]
        window = window if window is not None and window < local else None
        key = (total, id(context.mask) if context is not None and context.mask is not None else 0, window)
        if key not in self._masks:
            self._masks[key] = self._build_mask(context, total, local, window)
        return self._masks[key]

    def _build_mask(self, context: LayerContext | None, total: int, local: int, window: int | None) -> Tensor | None:
        assert self.row_mask is not None
        new, rows = self._new, self.row_mask
        memory = total - local
        all_real = bool(rows.all()) and (context is None or context.mask is None)
        if window is None and all_real and (new == 1 or (memory == 0 and new == local)):
            return None
        index = torch.arange(local, device=rows.device)
        distance = index[local - new :, None] - index[None, :]
        own = (distance >= 0)[None] & rows[:, None, :]
        if window is not None:  # counted in the row's own tokens: others may have been fed without it
            order = rows.cumsum(1)
            own = own & (order[:, local - new :, None] - order[:, None, :] < window)
        # A padding token must see something, or its softmax is 0/0 and the NaN spreads; nobody reads its output.
        own = own | (distance == 0)[None]
        if memory == 0:
            return own[:, None]
        seen = rows.new_ones(rows.shape[0], memory)
        if context is not None and context.mask is not None:
            seen = context.mask.to(rows.device)
        return torch.cat([seen[:, None, :].expand(-1, new, -1), own], dim=2)[:, None]


class CausalRows(ForwardState):
    """A pass over right-padded rows without memory: plain causal attention needs no mask for real tokens."""

    def _build_mask(self, context: LayerContext | None, total: int, local: int, window: int | None) -> Tensor | None:
        if window is None:
            return None
        assert self.row_mask is not None
        index = torch.arange(local, device=self.row_mask.device)
        distance = index[:, None] - index[None, :]
        return ((distance >= 0) & (distance < window))[None, None]


def msa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over `[memory context | row]` (golden spec 4.6), in the signature of `AttentionInterface`."""
    state: ForwardState = kwargs[KEYWORD]
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    state.see_attention(layer, query, key, value)
    pages = state.pages_of(layer) if query.shape[2] == 1 and softcap is None else None
    if pages is not None:
        return attend(pages, query, *state.beside_pages(layer, key, value, sliding_window), scaling), None
    keys, values, mask = state.assemble(layer, key, value, sliding_window)
    if softcap is not None:
        return _softcapped(module, query, keys, values, mask, scaling, softcap), None
    return sdpa_attention_forward(module, query, keys, values, mask, scaling=scaling)  # type: ignore[no-any-return]


def _softcapped(
    module: nn.Module,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    cap: float,
) -> Tensor:
    """Attention with logits squashed to ±cap before the softmax (Gemma 2), which SDPA cannot do."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = torch.tanh(query @ keys.transpose(2, 3) * scale / cap) * cap
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], keys.shape[2], dtype=torch.bool, device=query.device).tril()
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    weights = logits.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values).transpose(1, 2).contiguous()


AttentionInterface.register(NAME, msa_attention)


@contextmanager
def installed(model: PreTrainedModel, state: ForwardState) -> Iterator[None]:
    """Run `model` with memory attention, `state.lora` and `state.lower`; then it is the stock model again, always.

    The caller must pass `msa_pass=state` to the forward, and must not share the model between threads meanwhile.
    """
    before = model.config._attn_implementation
    handles = [
        layer.get_submodule("self_attn").register_forward_pre_hook(_input_hook(state, index), with_kwargs=True)
        for index, layer in enumerate(decoder_layers(model))
        if state.wants_input(index)
    ]
    try:
        model.config._attn_implementation = NAME
        with (
            state.weights(model),
            nullcontext() if state.lower is None else state.lower.installed(model),
        ):
            yield
    finally:
        model.config._attn_implementation = before
        for handle in handles:
            handle.remove()


def _input_hook(state: ForwardState, layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state.see_input(layer, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    return hook
