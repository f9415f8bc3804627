"""Questions in different phases share forwards: those that need a prefill have one together, the rest decode together.

Each question is a `Conversation`; a row that finished its prefill joins the others' pass and leaves it when it needs
another or is done. Rows do not see each other, so a question gets what it would have got alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msa_plugin.answering.generative.state import Conversation, IdPhase, Step
from msa_plugin.answering.per_layer import RowRouting
from msa_plugin.answering.resume import Earlier, Kept
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.batching import joined
from msa_plugin.cancellation import check_cancelled
from msa_plugin.encoding.encoder import pad_left

ROWS = 16


@dataclass(frozen=True)
class Started:
    """A prefill of several rows: their pass, logits [B, V], next positions, lengths, routing, and seconds by stage.

    `kept` is what each row's next prefill can go on from; empty where every one starts anew.
    """

    state: ForwardState
    logits: Tensor
    positions: list[int]
    lengths: list[int]
    routed: Sequence[RowRouting | None]
    seconds: dict[str, float]
    kept: Sequence[Kept] = ()


Prefill = Callable[[Sequence[Conversation], Sequence[Earlier | None]], Started]


class Scheduler:
    """Steps conversations until all are done."""

    def __init__(self, backbone: Backbone, prefill: Prefill) -> None:
        """At most `ROWS` questions are on their way at a time."""
        self.backbone, self._prefill = backbone, prefill
        self._batch: list[Conversation] = []
        self._state: ForwardState | None = None
        self._kept: dict[Conversation, Kept] = {}

    def run(self, conversations: Sequence[Conversation]) -> Iterator[tuple[Conversation, Step | None]]:
        """Everything that happens, in order, with the conversation it happens to; (conversation, None) when done."""
        waiting, live = deque(conversations), list[Conversation]()
        while waiting or live:
            check_cancelled()
            while waiting and len(live) < ROWS:
                live.append(waiting.popleft())
            starting = [c for c in live if c.phase is IdPhase.PREFILL]
            if starting:
                yield from self._start(starting)
            else:
                yield from self._step()
            for c in [c for c in live if c.phase is IdPhase.DONE]:
                self._kept.pop(c, None)
                live.remove(c)
                yield c, None

    def _start(self, starting: Sequence[Conversation]) -> Iterator[tuple[Conversation, Step]]:
        for c in starting:
            yield from ((c, step) for step in c.begin())
        run = self._prefill(starting, [self._earlier(c) for c in starting])
        for index, c in enumerate(starting):
            for stage, seconds in run.seconds.items():
                c.spend(stage, seconds / len(starting))
            c.prefilled(run.routed[index], run.positions[index], run.lengths[index])
            yield from ((c, step) for step in c.take(run.logits[index]))
        self._join(run.state, starting)
        # A question that answers needs no further prefill.
        self._kept |= {c: kept for c, kept in zip(starting, run.kept, strict=False) if c.phase is IdPhase.CHOOSING}

    def _earlier(self, conversation: Conversation) -> Earlier | None:
        """What the conversation's last prefill left, with the row that has decoded since."""
        kept = self._kept.pop(conversation, None)
        if kept is None or self._state is None or conversation not in self._batch:
            return None
        return Earlier(kept, self._state, self._batch.index(conversation))

    def _join(self, state: ForwardState, rows: Sequence[Conversation]) -> None:
        """Let rows that have tokens to feed decode with the others; rows that have none any more leave."""
        arriving = [i for i, c in enumerate(rows) if c.pending and c.phase is not IdPhase.DONE]
        staying = [i for i, c in enumerate(self._batch) if self._decodes(c) and c not in rows]
        parts = [] if self._state is None or not staying else [(self._state, staying)]
        parts += [(state, arriving)] if arriving else []
        self._batch = [self._batch[i] for i in staying] + [rows[i] for i in arriving]
        self._state = joined(parts) if parts else None

    @staticmethod
    def _decodes(conversation: Conversation) -> bool:
        return bool(conversation.pending) and conversation.phase in (IdPhase.CHOOSING, IdPhase.ANSWERING)

    def _step(self) -> Iterator[tuple[Conversation, Step]]:
        """One forward for all rows that decode; a row feeds one token, or several that were decided at once."""
        moving = [c for c in self._batch if self._decodes(c)]
        assert self._state is not None and moving
        if len(moving) <= len(self._batch) // 2:
            kept = [i for i, c in enumerate(self._batch) if self._decodes(c)]
            self._state, self._batch = joined([(self._state, kept)]), moving
        began = time.perf_counter()
        ids, mask = pad_left([c.pending if c in moving else [] for c in self._batch], self.backbone.device)
        first = torch.tensor([c.position for c in self._batch], device=ids.device)[:, None]
        logits = self.backbone.run(self._state, ids, mask, first + (mask.cumsum(1) - 1).clamp(min=0))
        assert logits is not None
        seconds = time.perf_counter() - began
        for index, c in enumerate(self._batch):
            if c in moving:
                c.spend("decode", seconds / len(moving))
                c.fed()
                yield from ((c, step) for step in c.take(logits[index, -1]))
