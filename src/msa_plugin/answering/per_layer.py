"""A prefill in which every router layer selects documents for itself, as the reference does (golden spec 4.4).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from msa_plugin.answering.resume import Earlier, resume
from msa_plugin.backbone.attention import ActivationRecorder, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.lower import LowerLayers
from msa_plugin.backbone.router import Router
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.bank.tiers import ContentTier
from msa_plugin.config import RoutingConfig
from msa_plugin.encoding.encoder import pad_left
from msa_plugin.retrieval.assembly import BankSource, Extent, TemplateHead
from msa_plugin.retrieval.ranking import Ranked, score_routed
from msa_plugin.retrieval.scorer import RoutedDocuments
from msa_plugin.retrieval.search import Search


class LayerRow(NamedTuple):
    """A question's tokens, and which of them vote in routing."""

    ids: list[int]
    votes: list[bool]


class RoutedPass(NamedTuple):
    """A prefill that routed inside: `votes` [B, T], `logits` [B, 1, V] or None, next `positions` [B], total seconds.

    `hidden` [B, T, hidden] is the input of the first layer that routes or sees memory, where it was asked for.
    """

    state: ForwardState
    source: BankSource
    votes: Tensor
    logits: Tensor | None
    positions: Tensor
    seconds: float
    hidden: Tensor | None = None


@dataclass(frozen=True)
class RowRouting:
    """What one row of a prefill routed to."""

    bank: BankHandle
    config: RoutingConfig
    source: BankSource
    votes: Tensor
    row: int
    ranked: list[Ranked]

    def score(self, ordinals: Sequence[int]) -> list[Ranked]:
        """Any documents, scored, best first."""
        return score_routed(self.bank, self.config, self.source, self.votes, self.row, ordinals)


class LayerRouting:
    """Runs such prefills over one bank; a row starts `top_k` positions behind the template head (golden spec 2)."""

    def __init__(
        self,
        backbone: Backbone,
        router: Router,
        bank: BankHandle,
        reading: Sequence[int],
        top_k: int,
        search: Search,
        store: ContentTier,
        lora: Lora | None = None,
    ) -> None:
        """`reading` layers attend to what they selected by `search`, out of `store`.

        Prefills, and what is decoded after them, run with `lora`: routing and reading are one forward here.
        """
        self.backbone, self.router, self.bank, self.reading = backbone, router, bank, tuple(reading)
        self.lora = lora
        self.top_k, self._search, self._store = top_k, search, store

    @property
    def depth(self) -> int:
        """How many layers there are below the first that routes or sees memory."""
        return min(self.router.config.layers + self.reading)

    def run(
        self, rows: Sequence[LayerRow], head: TemplateHead, k: int, selection: Selected, *, answering: bool
    ) -> RoutedPass:
        """Prefill `rows` behind `head`; `k` documents a layer.

        It goes to the end and keeps its cache when `answering`, else it ends with the last router layer.
        """
        ids, mask, votes, positions = self._padded(rows, head)
        state, source = self._pass(votes, head, k, selection)
        if not answering:
            state.keep_cache, state.recorder = False, _UntilRouted(self.router.config.layers[-1])
        return self.finish(state, source, ids, mask, votes, positions, answering)

    def resume(
        self,
        rows: Sequence[LayerRow],
        head: TemplateHead,
        k: int,
        selection: Selected,
        earlier: Sequence[Earlier | None],
    ) -> RoutedPass:
        """`run` that answers, and below `depth` only on what is new in each row since its `earlier` prefill, if any."""
        began = time.perf_counter()
        ids, mask, votes, positions = self._padded(rows, head)
        state, source = self._pass(votes, head, k, selection)
        if self.depth:
            before = resume(self.backbone, state, self.depth, [row.ids for row in rows], positions, earlier)
            state.lower = LowerLayers(self.depth, None if before is None else before.hidden)
            state.caches |= {} if before is None else before.caches
        run = self.finish(state, source, ids, mask, votes, positions, True)
        hidden = None if state.lower is None else state.lower.hidden
        state.lower = None  # every layer decodes
        return run._replace(seconds=time.perf_counter() - began, hidden=hidden)

    def _padded(self, rows: Sequence[LayerRow], head: TemplateHead) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids, mask, votes and positions [B, T] of the rows, padded on the left."""
        ids, mask = pad_left([row.ids for row in rows], self.backbone.device)
        votes, _ = pad_left([row.votes for row in rows], self.backbone.device)
        return ids, mask, votes.bool(), head.length + self.top_k + (mask.cumsum(1) - 1).clamp(min=0)

    def routing(self, votes: Tensor, head: TemplateHead, k: int, selection: Selected) -> BankSource:
        """Where the layers of a pass select `k` documents each, by the tokens in `votes` [B, T]."""

        def route(layer: int, queries: Tensor) -> RoutedDocuments:
            return self._search.route(layer, queries, votes, k, selection)

        return BankSource(self._store, self.reading, head, votes.shape[0], route=route, kernels=self.router.kernels)

    def _pass(self, votes: Tensor, head: TemplateHead, k: int, selection: Selected) -> tuple[ForwardState, BankSource]:
        source = self.routing(votes, head, k, selection)
        return ForwardState(source=source, router=self.router, keep_cache=True, lora=self.lora), source

    def read(self, rows: Sequence[LayerRow], head: TemplateHead, selected: Sequence[Sequence[Extent]]) -> RoutedPass:
        """Prefill `rows` that read what was `selected` for each, without routing."""
        ids, mask, _, positions = self._padded(rows, head)
        source = BankSource(self._store, self.reading, head, len(rows), selected=selected, kernels=self.router.kernels)
        state = ForwardState(source=source, keep_cache=True, lora=self.lora)
        return self.finish(state, source, ids, mask, mask, positions, True)

    def finish(
        self,
        state: ForwardState,
        source: BankSource,
        ids: Tensor,
        mask: Tensor,
        votes: Tensor,
        positions: Tensor,
        answers: bool,
    ) -> RoutedPass:
        """Run a prepared pass over rows [B, T], padded on the left."""
        began = time.perf_counter()
        logits = self.backbone.run(state, ids, mask, positions, logits="last" if answers else "none")
        return RoutedPass(state, source, votes, logits, positions[:, -1] + 1, time.perf_counter() - began)


class _UntilRouted(ActivationRecorder):
    """Ends a forward at the last router layer, after it has routed."""

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def done_at(self, layer: int) -> bool:
        return layer == self._layer
