"""From chosen documents to a prefill: as text in the prompt, or as stored K, V in front of the question.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from msa_kernels import Backend
from msa_plugin import prompts
from msa_plugin.answering.copying import Spellings
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.eight_bits import EightBits
from msa_plugin.backbone.families import shift_keys
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.positions import WindowLayout
from msa_plugin.bank.tiers import ContentTier
from msa_plugin.config import ContentConfig, ReadingMode
from msa_plugin.encoding.encoder import pad_left
from msa_plugin.errors import InvalidQueryError
from msa_plugin.retrieval.assembly import BankSource, Extent, TemplateHead, encode_head
from msa_plugin.types import Passage


@dataclass(frozen=True)
class Excerpt:
    """The part of a document that is read: its text in a prompt, and the token range [start, stop) it was cut from.

    `passage` is the same as users see it, where it was cut as one.
    """

    ordinal: int
    text: str
    start: int
    stop: int
    passage: Passage | None = None


@dataclass(frozen=True)
class Prefill:
    """Ready to decode: `logits` [B, V] of each row's last token, `positions` [B] of the next one, and the costs.

    With `spellings` an answer is to be in words of the passages that were read.
    """

    state: ForwardState
    logits: Tensor
    positions: Tensor
    prompt_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    seconds: dict[str, float]
    head_tokens: int = 0
    spellings: Spellings | None = None


def allowances(lengths: Sequence[int], budget: int) -> list[int]:
    """Tokens granted to each document: short ones whole, long ones an equal share of what is left."""
    granted = [0] * len(lengths)
    left = budget
    for done, index in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        granted[index] = min(lengths[index], left // (len(lengths) - done))
        left -= granted[index]
    return granted


def around(position: int, size: int, total: int) -> tuple[int, int]:
    """A range of `size` within [0, total) with `position` a third of the way in, so that more follows than precedes."""
    start = max(0, min(position - size // 3, total - size))
    return start, min(total, start + size)


class Reader:
    """Builds prompts and runs their prefill, in one of the three reading modes."""

    def __init__(
        self,
        backbone: Backbone,
        store: ContentTier,
        mode: ReadingMode,
        content: ContentConfig | None,
        layout: WindowLayout,
        top_k: int,
        instruction: str | None = None,
        lora: Lora | None = None,
        kernels: Backend = "torch",
        *,
        trained: bool = False,
        eight_bits: EightBits | None = None,
    ) -> None:
        """`content` is what the bank keeps in `store` (None in text mode), of documents cut as `layout` says.

        Prefills, and what is decoded after them, run with `lora`; `kernels` read stored K, V, as in `BankSource`.
        A `lora` that was `trained` to answer is asked as it was in training; conversations stay the stock model's.
        What is decoded a few tokens at a time runs with `eight_bits`, if there are any.
        """
        self.instruction, self.lora, self.kernels, self.trained = instruction, lora, kernels, trained
        self.eight_bits = eight_bits
        self._heads: dict[Lora | None, TemplateHead] = {}
        self.backbone, self.store, self.mode, self.content = backbone, store, mode, content
        self.layout, self.top_k = layout, top_k

    @cached_property
    def frame(self) -> prompts.Frame:
        """The chat frame of the backbone around a question over memory."""
        if self.trained:
            return prompts.reader_frame(self.backbone.tokenizer)
        return prompts.chat_frame(self.backbone.tokenizer, self.instruction)

    @cached_property
    def head_ids(self) -> list[int]:
        """Token ids of the frame before the user's message."""
        return self.backbone.tokenize_pieces(self.frame.pieces)

    @cached_property
    def tail_ids(self) -> list[int]:
        """Token ids of the frame after the user's message."""
        return self.backbone.tokenize_frame(self.frame.tail)

    @cached_property
    def spellings(self) -> Spellings | None:
        """What answers in words of their passages are written with, as a trained reader's are; None for others."""
        return Spellings(self.backbone) if self.trained else None

    @property
    def head(self) -> TemplateHead:
        """K and V of the frame's head in every layer, computed once."""
        return self.head_with(self.lora)

    def head_with(self, lora: Lora | None) -> TemplateHead:
        """The head before passes that run with `lora`, which is not the reader's where one forward routes and reads."""
        if lora not in self._heads:
            self._heads[lora] = encode_head(self.backbone, self.head_ids, lora)
        return self._heads[lora]

    def prefill(self, questions: Sequence[str], excerpts: Sequence[Sequence[Excerpt]]) -> Prefill:
        """Prefill one row per question over the excerpts chosen for it."""
        briefly = self.instruction is None and not self.trained
        asked = self.backbone.tokenize_batch([prompts.question_part(q, briefly=briefly) for q in questions])
        if self.mode == "text":
            return self._text(asked, excerpts)
        return self._stored(asked, excerpts)

    def converse(self, messages: Sequence[Mapping[str, str]], room: int) -> Prefill:
        """Prefill a conversation, without memory; `room` tokens are to follow. Raises InvalidQueryError."""
        try:
            pieces = prompts.conversation(self.backbone.tokenizer, messages)
        except ValueError as error:
            raise InvalidQueryError(str(error)) from error
        row = self.backbone.tokenize_pieces(pieces)
        longest = self.backbone.spec.max_positions
        if len(row) + room > longest:
            raise InvalidQueryError(
                f"the messages have {len(row)} tokens, and with {room} for the answer that is more than the "
                f"{longest} that {self.backbone.name} reads; shorten them, or add() long texts to the memory"
            )
        return self._run([row], [0], [0], None, None if self.trained else self.lora)

    def _text(self, asked: Sequence[list[int]], excerpts: Sequence[Sequence[Excerpt]]) -> Prefill:
        rows, context = [], []
        for question, chosen in zip(asked, excerpts, strict=True):
            parts = self.backbone.tokenize_batch(prompts.reading_parts([e.text for e in chosen])) if chosen else []
            documents = [t for part in parts for t in part]
            rows.append(documents + question + self.tail_ids)
            context.append(len(documents))
        source = BankSource(self.store, (), self.head, len(rows))
        return self._run(rows, [self.head.length] * len(rows), context, source, self.lora)

    def _stored(self, asked: Sequence[list[int]], excerpts: Sequence[Sequence[Excerpt]]) -> Prefill:
        assert self.content is not None
        placed = [self._placed(chosen, self.content.pooling) for chosen in excerpts]
        source = BankSource(
            self.store,
            self.content.layers,
            self.head,
            len(asked),
            selected=[spans for spans, _ in placed],
            shift=partial(shift_keys, self.backbone.model),
            kernels=self.kernels,
        )
        rows = [question + self.tail_ids for question in asked]
        context = [sum(e.stop - e.start for e in chosen) for chosen in excerpts]
        return self._run(rows, [start for _, start in placed], context, source, self.lora)

    def _placed(self, chosen: Sequence[Excerpt], pooling: int) -> tuple[list[Extent], int]:
        """What to read of each document, and the position of the question's first token.

        Latents stay at the positions they were encoded at, and the question starts where it did in training: after
        the template head and `top_k` (golden spec section 2). Stored K, V for an untrained backbone are laid out one
        after another behind the head, since that is the only kind of context it knows.
        """
        if self.mode == "latent":
            return [self._whole(e, pooling) for e in chosen], self.head.length + self.top_k
        spans, at = [], self.head.length
        for span in (self._whole(e, pooling) for e in chosen):
            for start, stop in self._by_window(span, pooling):
                position = start % self.layout.chunks_per_window(pooling) * pooling
                spans.append(Extent(span.ordinal, start, stop, at - position))
                at += (stop - start) * pooling
        return spans, at

    def _whole(self, excerpt: Excerpt, pooling: int) -> Extent:
        first = self.layout.chunk_of_token(excerpt.start, pooling) if excerpt.start else 0
        return Extent(excerpt.ordinal, first, self.layout.chunk_of_token(max(excerpt.stop - 1, 0), pooling) + 1)

    def _by_window(self, span: Extent, pooling: int) -> Iterator[tuple[int, int]]:
        """First and last chunk (exclusive) of the span's part in each window: positions start again with a window."""
        size, start = self.layout.chunks_per_window(pooling), span.start
        while span.stop is not None and start < span.stop:
            stop = min(span.stop, (start // size + 1) * size)
            yield start, stop
            start = stop

    def _run(
        self,
        rows: list[list[int]],
        starts: list[int],
        context: list[int],
        source: BankSource | None,
        lora: Lora | None,
    ) -> Prefill:
        began = time.perf_counter()
        ids, mask = pad_left(rows, self.backbone.device)
        first = torch.tensor(starts, device=ids.device)[:, None]
        positions = first + (mask.cumsum(1) - 1).clamp(min=0)
        state = ForwardState(source=source, keep_cache=True, lora=lora)
        logits = self.backbone.run(state, ids, mask, positions)
        assert logits is not None
        state.eight_bits = self.eight_bits  # for what follows
        gather = 0.0 if source is None else source.seconds["gather"]
        seconds = {"gather": gather, "prefill": time.perf_counter() - began - gather}
        lengths = tuple(map(len, rows))
        head = 0 if source is None else self.head.length
        ready = Prefill(state, logits[:, -1], positions[:, -1] + 1, lengths, tuple(context), seconds, head)
        return ready if source is None else replace(ready, spellings=self.spellings)
