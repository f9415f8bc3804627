"""Answers as they are decoded: an iterator of text pieces, and its twin for an event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from threading import Lock

from msa_plugin.answering.answers import Events
from msa_plugin.cancellation import on_thread
from msa_plugin.events import Answered, AnswerPiece, Event
from msa_plugin.types import Answer


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they are decoded; `answer` holds the whole one once the stream is exhausted.

    `events()` tells all that happens on the way instead: rounds, documents, pieces, and the answer last.
    """

    def __init__(self, events: Events, question: str = "") -> None:
        """`events` come from `Engine.ask` for one `question` ("" of a conversation)."""
        self._events, self.question = events, question
        self._turn = Lock()  # closing from one thread waits for the piece that another one is decoding
        self.answer: Answer | None = None

    def __next__(self) -> str:
        """The next piece of text."""
        while (event := self._next_event()) is not None:
            if isinstance(event, AnswerPiece):
                return event.text
        raise StopIteration

    def events(self) -> Iterator[Event]:
        """What happens from here on, in order; `close`, or leaving the iterator, ends it at any moment."""
        while (event := self._next_event()) is not None:
            yield event

    def _next_event(self) -> Event | None:
        with self._turn:
            for _, event in self._events:
                if isinstance(event, Answer):
                    self.answer = event
                    return Answered(event)
                return AnswerPiece(event) if isinstance(event, str) else event
        return None

    def close(self) -> None:
        """Stop decoding; no piece follows, and `answer` stays None unless the stream was exhausted."""
        with self._turn:
            self._events.close()


class AsyncAnswerStream(AsyncIterator[str]):
    """`AnswerStream` for an event loop: every piece is decoded on a worker thread."""

    def __init__(self, start: Callable[[], AnswerStream], question: str = "") -> None:
        """`start` opens the stream; it is called on a worker thread, with the first piece."""
        self._start, self.question = start, question
        self._stream: AnswerStream | None = None
        self._closed = False

    @property
    def answer(self) -> Answer | None:
        """The whole answer, once the stream is exhausted."""
        return None if self._stream is None else self._stream.answer

    async def __anext__(self) -> str:
        """The next piece of text."""
        piece = await on_thread(self._next)
        if piece is None:
            raise StopAsyncIteration
        return piece

    def _next(self) -> str | None:
        stream = self._opened()
        return None if stream is None else next(stream, None)

    async def events(self) -> AsyncIterator[Event]:
        """`AnswerStream.events`, each event from a worker thread."""
        while (event := await on_thread(self._next_event)) is not None:
            yield event

    def _next_event(self) -> Event | None:
        stream = self._opened()
        return None if stream is None else stream._next_event()

    def _opened(self) -> AnswerStream | None:
        if self._closed:
            return None
        if self._stream is None:
            self._stream = self._start()
        return self._stream

    async def aclose(self) -> None:
        """Stop decoding; no piece follows."""
        self._closed = True
        if self._stream is not None:
            await on_thread(self._stream.close)
