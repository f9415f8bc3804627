"""One `generate` call of the reference, step by step (golden spec 5 and 6).

A batch of rows advances in lockstep through the stages retrieving, waiting and answering. What the default loop does
better is listed in docs/compatibility.md. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import reference_text as text_level
import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.answering.per_layer import LayerRow
from msa_plugin.attention_context import LayerContext
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.encoding.encoder import pad_left

HEAD_TOKENS = 3  # the reference has the template head's length in its code
_LONGEST_WRITTEN = 1000

Pick = Callable[[Tensor], list[int]]


class ReferencePass(ForwardState):
    """Attention of the reference: tokens fed together behind a cache see each other in both directions (5)."""

    def _build_mask(self, context: LayerContext | None, total: int, local: int, window: int | None) -> Tensor | None:
        if self._new in (1, local):
            return super()._build_mask(context, total, local, window)
        assert self.row_mask is not None
        own = self.row_mask | ~self.row_mask.any(1, keepdim=True)
        seen = own.new_ones(own.shape[0], total - local)
        if context is not None and context.mask is not None:
            seen = context.mask
        return torch.cat([seen, own], dim=1)[:, None, None].expand(-1, 1, self._new, -1)


class Start(Protocol):
    """Begins a call: prefills padded `ids`, `mask`, `votes` and `positions` [B, T]; returns the pass and logits."""

    def __call__(self, ids: Tensor, mask: Tensor, votes: Tensor, positions: Tensor) -> tuple[ForwardState, Tensor]:
        """The pass that routed, and logits [B, V] of each row's last token."""


@dataclass
class _RowState:
    """One row: what it has written in this call, the last token it was really fed, and that token's position."""

    last: int
    position: int
    written: list[int] = field(default_factory=list)
    text: str = ""
    finished: bool = False
    round_end: bool = False
    retrieved: bool = False

    @property
    def waits(self) -> bool:
        return self.round_end or self.retrieved


class ReferenceCall:
    """Rows of one call, and everything that was fed to the model for them."""

    def __init__(self, backbone: Backbone, texts: Mapping[int, str], rows: Sequence[LayerRow], top_k: int) -> None:
        """`texts` are all documents by number; rows start at 3 + `top_k`."""
        self.backbone, self.texts = backbone, texts
        self.pad = backbone.special(text_level.PADDING)
        device = backbone.device
        self.ids, self.mask = pad_left([row.ids for row in rows], device, self.pad)
        votes, _ = pad_left([row.votes for row in rows], device)
        self.votes = votes.bool() & self.mask
        self.positions = HEAD_TOKENS + top_k + (self.mask.cumsum(1) - 1).clamp(min=0)
        self.rows = [
            _RowState(int(last), int(at))
            for last, at in zip(self.ids[:, -1].tolist(), self.positions[:, -1].tolist(), strict=True)
        ]
        self._fed_ids, self._fed_mask = [self.ids], [self.mask]

    def run(self, start: Start, pick: Pick, max_tokens: int, ends: frozenset[int]) -> list[str]:
        """The transcripts of all rows, special tokens included; `pick` chooses from logits [B, V]."""
        state, logits = start(self.ids, self.mask, self.votes, self.positions)
        answering = False
        step = 0
        while step < max_tokens:
            tokens = self._take(pick(logits), ends)
            if all(row.finished for row in self.rows):
                break
            logits = self._step(state, tokens, answering)
            step += 1
            if answering:
                continue
            self._look()
            open_rows = [row for row in self.rows if not row.finished]
            if all(row.retrieved for row in open_rows):
                inserted = self._questions()
                if any(inserted):  # the reference feeds nothing here, and crashes
                    logits, step = self._insert(state, inserted), step + 1
                answering = True
            elif all(row.retrieved or row.round_end for row in open_rows):
                self._append(self._documents())
                break
        return self._transcripts()

    def _take(self, tokens: list[int], ends: frozenset[int]) -> list[int]:
        """What each row is given as its next token; a row that ended earlier gets padding."""
        taken = []
        for row, token in zip(self.rows, tokens, strict=True):
            taken.append(self.pad if row.finished else token)
            if not row.finished:
                row.written.append(token)
                row.finished = token in ends
        return taken

    def _step(self, state: ForwardState, tokens: list[int], answering: bool) -> Tensor:
        """Feed one token a row; a row that waits for the others gets its last one again, masked."""
        real = [answering or not row.waits for row in self.rows]
        for row, token, moves in zip(self.rows, tokens, real, strict=True):
            if moves:
                row.last, row.position = token, row.position + 1
        ids = self._column([row.last for row in self.rows])
        return self._feed(state, ids, self._column(real), self._column([row.position for row in self.rows]))

    def _column(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=self.backbone.device)[:, None]

    def _look(self) -> None:
        """Search what was written for markers, as the reference does."""
        for row in self.rows:
            row.text = self._decode(row.written)
            row.round_end = prompts.LIST_END in row.text
            row.retrieved = prompts.RETRIEVED in row.text or len(row.text) > _LONGEST_WRITTEN

    def _documents(self) -> list[str]:
        return ["" if row.finished else self._after_round(index) for index, row in enumerate(self.rows)]

    def _after_round(self, index: int) -> str:
        row = self.rows[index]
        return self._question(index) if row.retrieved else text_level.insertion(row.text, self.texts)

    def _questions(self) -> list[str]:
        return [
            self._question(index) if prompts.RETRIEVED in row.text and not row.finished else ""
            for index, row in enumerate(self.rows)
        ]

    def _question(self, index: int) -> str:
        return text_level.question_again(self._transcripts()[index])

    def _insert(self, state: ForwardState, texts: Sequence[str]) -> Tensor:
        """Feed the insertions of all rows at once, left padded to one length."""
        ids, mask = self._append(texts)
        width = ids.shape[1]
        lengths = mask.sum(1)
        first = self._column([row.position for row in self.rows]) + 1 - (width - lengths[:, None])
        positions = first + torch.arange(width, device=ids.device)
        for row, length in zip(self.rows, lengths.tolist(), strict=True):
            row.position += length
        logits = self.backbone.run(state, ids, mask, positions)
        assert logits is not None
        return logits[:, -1]

    def _append(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = pad_left([self.backbone.tokenize_frame(t) for t in texts], self.backbone.device, self.pad)
        self._fed_ids.append(ids)
        self._fed_mask.append(mask)
        return ids, mask

    def _feed(self, state: ForwardState, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self._fed_ids.append(ids)
        self._fed_mask.append(mask)
        logits = self.backbone.run(state, ids, mask, positions)
        assert logits is not None
        return logits[:, -1]

    def _transcripts(self) -> list[str]:
        """Everything fed, masked tokens first (6.5)."""
        ids, mask = torch.cat(self._fed_ids, dim=1), torch.cat(self._fed_mask, dim=1)
        order = mask.long().sort(dim=1, stable=True).indices
        return [self._decode(row) for row in ids.gather(1, order).tolist()]

    def _decode(self, ids: list[int]) -> str:
        text: str = self.backbone.tokenizer.decode(  # type: ignore[union-attr]
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
