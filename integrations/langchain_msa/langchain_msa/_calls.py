"""One call of ChatMSA, settled, what it warns of, and several that are answered together."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any, Literal

from langchain_core.messages.ai import UsageMetadata

from msa_plugin.errors import MSAError
from msa_plugin.events import Answered, AnswerPiece, DocumentsFetched, Event, Events, RetrievalEvent
from msa_plugin.integrating import AnswerStream, pasted
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer

_SHORT = 160  # characters: a prompt with retrieved text is longer than a bare question


@dataclass(frozen=True)
class Call:
    """One call, settled: what is asked, how it is read, and under which options of the memory."""

    mode: Literal["memory", "documents", "chat"]
    asked: Any
    options: dict[str, Any]
    timeout: float | None
    began: float

    def check_pasted(self, event: RetrievalEvent) -> None:
        """Warn of a question that holds what memory has found for it, before it is read a second time."""
        if isinstance(event, DocumentsFetched) and (name := pasted(self.asked, event.sources)) is not None:
            warnings.warn(
                f"the question already holds the text of {name!r}, which memory now gives the model a second time: "
                "answer such prompts with ChatMSA(memory), or ask the bare question (create_msa_chain)",
                stacklevel=2,
            )

    def check_time(self) -> None:
        if self.timeout is not None and time.monotonic() - self.began > self.timeout:
            raise TimeoutError(f"no answer within timeout={self.timeout} s; allow more, or lower max_tokens")


def read(answer: Answer) -> dict[str, Any]:
    """What a message tells of what was read for it, JSON-ready."""
    sources = [
        {
            "id": s.id,
            "score": float(s.score),
            "hop": s.round,
            "relevance": s.relevance,
            "quotes": [asdict(quote) for quote in s.quotes],
        }
        for s in answer.sources
    ]
    return {"sources": sources, "abstained": answer.abstained, "grounded": answer.grounded}


def usage(answer: Answer) -> UsageMetadata:
    read, written = answer.trace.input_tokens, answer.trace.output_tokens
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)


def warn_unread(kinds: Sequence[str]) -> None:
    warnings.warn(
        "ChatMSA in mode 'memory' answers the last human message; other messages "
        f"({', '.join(sorted(set(kinds)))}) are not read. Use ChatMSA(memory) for a prompt that is complete in itself, "
        "and LatentMemory.open(instruction=...) for a system message",
        stacklevel=2,
    )


def warn_untold(messages: Sequence[Mapping[str, str]]) -> None:
    """Warn of a prompt that looks like a bare question, which memory was perhaps to answer."""
    text = messages[0]["content"].strip()
    if len(messages) > 1 or len(text) >= _SHORT or "\n" in text:
        return
    warnings.warn(
        "ChatMSA(memory) answers what its prompt says and does not look into memory; for answers from memory build "
        "ChatMSA(memory, mode='memory'), and say mode='chat' where this is what is wanted",
        stacklevel=2,
    )


class Together:
    """Questions of one `batch`; the first to be asked has all of them answered, in shared forwards."""

    def __init__(self, questions: Sequence[str]) -> None:
        """Nothing is asked yet."""
        self._questions = list(questions)
        self._lock = Lock()
        self._rows: dict[str, list[AnswerStream]] | None = None

    def take(self, memory: LatentMemory, call: Call) -> AnswerStream | None:
        """What happened for the call's question; None where it is to be asked alone."""
        if call.mode == "chat" or call.timeout is not None or call.asked not in self._questions:
            return None
        with self._lock:
            if self._rows is None:
                self._rows = self._answered(memory, dict(call.options))
            rows = self._rows.get(call.asked)
            return rows.pop() if rows else None

    def _answered(self, memory: LatentMemory, options: dict[str, Any]) -> dict[str, list[AnswerStream]]:
        told: list[list[Event]] = [[] for _ in self._questions]
        if "documents" in options:
            options["documents"] = [options["documents"]] * len(told)
        try:
            answers = memory.ask(self._questions, on_event=lambda row, event: told[row].append(event), **options)
        except MSAError:  # one of them may be at fault, and each is to have its own error
            return {}
        rows: dict[str, list[AnswerStream]] = {}
        for question, events, answer in zip(self._questions, told, answers, strict=True):
            rows.setdefault(question, []).append(AnswerStream(_again(events, answer), question))
        return rows


def _again(events: Sequence[Event], answer: Answer) -> Events:
    """What was told, as a stream tells it."""
    for event in events:
        if isinstance(event, AnswerPiece):
            yield 0, event.text
        elif not isinstance(event, Answered):
            yield 0, event
    yield 0, answer


_together: ContextVar[Together | None] = ContextVar("together", default=None)


@contextmanager
def answered_together(questions: Sequence[str]) -> Iterator[None]:
    """Calls inside, on whatever thread, answer these questions together."""
    token = _together.set(Together(questions) if len(questions) > 1 else None)
    try:
        yield
    finally:
        _together.reset(token)


def together() -> Together | None:
    """The questions that the running call may be answered with."""
    return _together.get()
