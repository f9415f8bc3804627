"""Long-term memory for agents: a block for LlamaIndex's `Memory`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.memory.memory import BaseMemoryBlock

from msa_plugin.integrating import exchange
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document, Progress

_SESSION, _ROLES = "session_id", "roles"
_BETWEEN = "\n\n"


class MSAMemoryBlock(BaseMemoryBlock[str]):
    """Messages that leave the chat history are stored in a `LatentMemory` and recalled by the latest user message.

    A user message and the replies to it are one document, so that an answer is found by its question; the day on which
    it was stored, and the question before it that it answers, stand in front, as in `LatentMemory.add_turns`. A block
    recalls the turns of its own session; with `across_sessions`, those of every session in the memory's namespace.
    Storing the same turn of a session twice is free. Messages without text are left out.

        Memory.from_defaults(memory_blocks=[MSAMemoryBlock(memory)])

    With a `ReActAgent` give `Memory` insert_method="user" as well: that agent drops the system message that blocks
    are put into by default.
    """

    name: str = Field(default="long_term_memory", description="The name of the memory block.")
    similarity_top_k: int = Field(default=4, gt=0, description="Turns to recall at most.")
    across_sessions: bool = Field(default=False, description="Recall turns of other sessions too.")
    _memory: LatentMemory = PrivateAttr()

    def __init__(self, memory: LatentMemory, **settings: Any) -> None:
        """`memory` stays the caller's to close; `settings` are the fields above and those of every block."""
        super().__init__(**settings)
        self._memory = memory

    async def _aget(
        self, messages: list[ChatMessage] | None = None, session_id: str | None = None, **block_kwargs: Any
    ) -> str:
        """The turns that fit the latest user message, best first; empty when there is nothing to go by."""
        asked = [text for m in messages or [] if m.role is MessageRole.USER and (text := _text(m))]
        if not asked:
            return ""
        where: dict[str, Any] = {_ROLES: {"$exists": True}}
        if not self.across_sessions:
            where[_SESSION] = session_id
        return await asyncio.to_thread(self._recall, asked[-1], where)

    def _recall(self, question: str, where: dict[str, Any]) -> str:
        while self._memory.count_tokens(question) > self._memory.config.window // 2:
            question = question[len(question) // 2 :]  # what somebody asks stands at the end of what they paste
        return _BETWEEN.join(hit.text for hit in self._memory.retrieve(question, self.similarity_top_k, filter=where))

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Store `messages` as turns. Durable on return."""
        turns = list(_turns(messages))
        before = [None, *(turn[-1] for turn in turns)]
        documents = [_document(turn, last) for turn, last in zip(turns, before, strict=False)]
        if documents:
            await self._memory.aadd(documents, on_progress=_silent)

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        """`content` cut from its end, where the worst fits are, at blank lines; None when nothing is left."""
        pieces = content.split(_BETWEEN)
        removed = 0
        while pieces and removed < tokens_to_truncate:
            removed += self._memory.count_tokens(pieces.pop())
        return _BETWEEN.join(pieces) or None


def _turns(messages: Sequence[ChatMessage]) -> Iterator[list[ChatMessage]]:
    """Each user message with what follows it; messages without text are left out."""
    turn: list[ChatMessage] = []
    for message in messages:
        if not _text(message):
            continue
        if turn and message.role is MessageRole.USER:
            yield turn
            turn = []
        turn.append(message)
    if turn:
        yield turn


def _document(turn: Sequence[ChatMessage], before: ChatMessage | None) -> Document:
    session = next((m.additional_kwargs[_SESSION] for m in turn if _SESSION in m.additional_kwargs), None)
    said = [_said(message) for message in turn]
    document = exchange(
        said, session=str(session or "conversation"), before=_said(before) if before is not None else None
    )
    assert document is not None  # a turn's messages have text
    own = {_SESSION: session, _ROLES: [message["role"] for message in said]}
    return replace(document, metadata={**document.metadata, **own})


def _said(message: ChatMessage) -> dict[str, str]:
    return {"role": message.role.value, "content": _text(message)}


def _text(message: ChatMessage) -> str:
    return "".join(block.text for block in message.blocks if isinstance(block, TextBlock)).strip()


def _silent(progress: Progress) -> None:
    """A flush in the middle of a conversation draws no bar."""
