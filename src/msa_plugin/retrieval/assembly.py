"""What a layer attends to: `[template head | selected documents' K, V | row]` (paper section 3.3; golden spec 4.6).

`BankSource` is the `MemorySource` over a bank: it routes where the reference routes (inside the forward, per layer) or
takes one selection made beforehand, and gathers only the chosen documents' content.
Shapes: B rows, H heads, T tokens, KV key/value heads, D head dim, S slots.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from msa_kernels import Backend, use_triton
from msa_plugin.attention_context import ChunkPages, LayerContext
from msa_plugin.backbone.attention import ActivationRecorder, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.paging import seen
from msa_plugin.bank.tiers import ContentTier
from msa_plugin.retrieval.gather import Gather
from msa_plugin.retrieval.scorer import RoutedDocuments

Route = Callable[[int, Tensor], RoutedDocuments]
Shift = Callable[[int, Tensor, int], Tensor]


class Extent(NamedTuple):
    """Part of a document's content: chunks `start` to `stop` (None: to the end), read `shift` positions further on."""

    ordinal: int
    start: int = 0
    stop: int | None = None
    shift: int = 0


@dataclass(frozen=True)
class TemplateHead:
    """K and V [KV, T, D] of the template's first tokens, in every layer (golden spec 3.5)."""

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]

    @property
    def length(self) -> int:
        """Tokens in the head."""
        return int(self.keys[0].shape[1])


class _HeadRecorder(ActivationRecorder):
    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def on_kv(self, layer: int, keys: Tensor, values: Tensor) -> None:
        self.keys[layer], self.values[layer] = keys[0].clone(), values[0].clone()


def encode_head(backbone: Backbone, ids: Sequence[int], lora: Lora | None = None) -> TemplateHead:
    """Run the template head alone, at positions from 0, with the `lora` of the passes that it will stand before."""
    recorder = _HeadRecorder()
    row = torch.tensor([list(ids)], device=backbone.device)
    positions = torch.arange(len(ids), device=backbone.device)[None]
    real = torch.ones_like(row, dtype=torch.bool)
    backbone.run(ForwardState(recorder=recorder, lora=lora), row, real, positions, logits="none")
    return TemplateHead(recorder.keys, recorder.values)


class BankSource:
    """Memory for one prefill: which documents each reading layer sees, and their K, V."""

    def __init__(
        self,
        store: ContentTier,
        reading: Sequence[int],
        head: TemplateHead,
        rows: int,
        *,
        route: Route | None = None,
        selected: Sequence[Sequence[Extent]] | None = None,
        shift: Shift | None = None,
        kernels: Backend = "torch",
    ) -> None:
        """Either `route` selects at each router layer, or `selected` gives each row's documents for all layers.

        `shift(layer, keys, by)` moves K along where a span asks for it. Where one of `kernels` reads chunks through an
        index, rows get pages and no copies.
        """
        self._reading, self._head, self._rows = frozenset(reading), head, rows
        self._route, self._selected, self._shift, self._kernels = route, selected, shift, kernels
        self._gather = Gather(store, reading, None if selected is None else _distinct(selected))
        self.routed: dict[int, RoutedDocuments] = {}
        self.queries: dict[int, Tensor] = {}
        self.seconds = {"route": 0.0, "gather": 0.0}

    def select(self, layer: int, queries: Tensor) -> None:
        """Route `queries` [B, H, T, D] at `layer` and remember what was chosen."""
        if self._route is None:
            return
        began = time.perf_counter()
        self.queries[layer], self.routed[layer] = queries, self._route(layer, queries)
        routed = time.perf_counter()
        if layer in self._reading:
            self._gather.send(layer, _distinct(self._spans(layer)))
        self.seconds["route"] += routed - began
        self.seconds["gather"] += time.perf_counter() - routed

    def context(self, layer: int) -> LayerContext | None:
        """Template head and, at reading layers, the selected documents' content, in ascending ordinal order."""
        began = time.perf_counter()
        rows = self._spans(layer) if layer in self._reading else [[]] * self._rows
        distinct = sorted({span for row in rows for span in row})
        found = self._gather.take(layer, _distinct(rows)) if distinct else {}
        parts = {span: self._part(layer, span, found[span.ordinal]) for span in distinct}
        head_k, head_v = self._head.keys[layer], self._head.values[layer]
        if parts and use_triton("decode attention", self._kernels, [head_k]):
            context = _paged(rows, parts, head_k, head_v, self._kernels)
        else:
            pieces = [torch.cat([parts[span] for span in row]) if row else None for row in rows]
            context = padded([with_head(head_k, head_v, piece) for piece in pieces])
        self.seconds["gather"] += time.perf_counter() - began
        return context

    def _part(self, layer: int, span: Extent, content: Tensor) -> Tensor:
        part = content[span.start : span.stop]
        if not span.shift or self._shift is None:
            return part
        part = part.to(self._head.keys[layer].device)
        return torch.stack([self._shift(layer, part[:, 0], span.shift), part[:, 1]], dim=1)

    def _spans(self, layer: int) -> list[list[Extent]]:
        if self._selected is not None:
            return [sorted(row) for row in self._selected]
        return [[Extent(int(o)) for o in sorted(row.tolist())] for row in self.routed[layer].ordinals]


def _distinct(rows: Sequence[Sequence[Extent]]) -> list[int]:
    """Ordinals of the rows' documents, ascending: one that several rows chose is read once."""
    return sorted({span.ordinal for row in rows for span in row})


def with_head(keys: Tensor, values: Tensor, content: Tensor | None) -> tuple[Tensor, Tensor]:
    """K and V [KV, S, D] of the head's [KV, T, D] followed by the content [C, 2, KV, D]."""
    if content is None:
        return keys, values
    content = content.to(device=keys.device, dtype=keys.dtype)
    k, v = content.permute(1, 2, 0, 3)
    return torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)


def _paged(
    rows: Sequence[Sequence[Extent]], parts: Mapping[Extent, Tensor], keys: Tensor, values: Tensor, kernels: Backend
) -> LayerContext:
    """The head [KV, T, D] for every row, and pages of the documents' parts, each of them stored once."""
    content = torch.cat([*parts.values()]).to(device=keys.device, dtype=keys.dtype)
    stops = list(accumulate(part.shape[0] for part in parts.values()))
    place = {span: (stop - part.shape[0], stop) for (span, part), stop in zip(parts.items(), stops, strict=True)}
    most = max(map(len, rows))
    ranges = torch.tensor([[*(place[span] for span in row), *[(0, 0)] * (most - len(row))] for row in rows])
    longest = int(ranges.diff(dim=2).sum((1, 2)).max())
    pages = ChunkPages(content, ranges.to(keys.device), longest, kernels)
    head = torch.ones((len(rows), keys.shape[1]), dtype=torch.bool, device=keys.device)
    mask = torch.cat([seen(pages), head], dim=1)
    return LayerContext(keys.expand(len(rows), -1, -1, -1), values.expand(len(rows), -1, -1, -1), mask, pages)


def padded(rows: Sequence[tuple[Tensor, Tensor]]) -> LayerContext:
    """One context of rows' K and V [KV, S, D] of different lengths, right padded."""
    lengths = [k.shape[1] for k, _ in rows]
    longest = max(lengths)
    if min(lengths) == longest:
        return LayerContext(torch.stack([k for k, _ in rows]), torch.stack([v for _, v in rows]), None)
    heads, _, width = rows[0][0].shape
    keys = rows[0][0].new_zeros(len(rows), heads, longest, width)
    values = torch.zeros_like(keys)
    for index, (k, v) in enumerate(rows):
        keys[index, :, : lengths[index]], values[index, :, : lengths[index]] = k, v
    mask = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    return LayerContext(keys, values, mask.to(keys.device))
