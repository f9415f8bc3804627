"""What happens while memory answers, as events of LlamaIndex's instrumentation, in the order in which it happens.

An event handler on the root dispatcher hears them: `get_dispatcher().add_event_handler(...)`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Generator

import llama_index.core.instrumentation as instrument
from llama_index.core.instrumentation.events import BaseEvent

from msa_plugin.events import (
    Abstained,
    Answered,
    AnswerPiece,
    DocumentsChosen,
    DocumentsFetched,
    RetrievalEvent,
    RoundStarted,
)
from msa_plugin.integrating import AnswerStream, AsyncAnswerStream, pasted
from msa_plugin.types import Answer

_log = logging.getLogger(__name__)
_dispatcher = instrument.get_dispatcher(__name__)  # type: ignore[attr-defined]


class MSARoundStarted(BaseEvent):
    """A round of retrieval began; `round` counts from 1, `query` is what it routes on."""

    round: int
    query: str

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "MSARoundStarted"


class MSADocumentsChosen(BaseEvent):
    """Ids of the nodes that a round chose, with their routing scores."""

    round: int
    ids: list[str]
    scores: list[float]

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "MSADocumentsChosen"


class MSADocumentsFetched(BaseEvent):
    """Ids of nodes that the answer is read from, with the text that was put in front of the model."""

    round: int
    ids: list[str]
    texts: list[str]

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "MSADocumentsFetched"


class MSARetrievalEnded(BaseEvent):
    """No further round, and why; see `msa_plugin.events.RetrievalEnded`."""

    rounds: int
    reason: str

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "MSARetrievalEnded"


class MSAAbstained(BaseEvent):
    """The memory does not say it; see `msa_plugin.events.Abstained`."""

    reason: str

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "MSAAbstained"


def told(stream: AnswerStream) -> Generator[str | Answer, None, None]:
    """The pieces of an answer, then the whole one; everything else goes to the dispatcher.

    Where the question holds what memory has found for it, a log record says so.
    """
    try:
        for event in stream.events():
            if isinstance(event, AnswerPiece):
                yield event.text
            elif isinstance(event, Answered):
                yield event.answer
            else:
                _check_pasted(stream.question, event)
                _dispatcher.event(_translated(event))
    finally:
        stream.close()


async def atold(stream: AsyncAnswerStream) -> AsyncGenerator[str | Answer, None]:
    """`told`, for an event loop."""
    try:
        async for event in stream.events():
            if isinstance(event, AnswerPiece):
                yield event.text
            elif isinstance(event, Answered):
                yield event.answer
            else:
                _check_pasted(stream.question, event)
                _dispatcher.event(_translated(event))
    finally:
        await stream.aclose()


def _check_pasted(question: str, event: RetrievalEvent) -> None:
    if isinstance(event, DocumentsFetched) and (name := pasted(question, event.sources)) is not None:
        _log.warning(
            "the question already holds the text of %r, which memory now gives the model a second time: answer such "
            "prompts with MSALLM(memory) in mode 'chat', or ask the bare question",
            name,
        )


def _translated(event: RetrievalEvent) -> BaseEvent:
    if isinstance(event, RoundStarted):
        return MSARoundStarted(round=event.round, query=event.query)
    if isinstance(event, DocumentsChosen):
        return MSADocumentsChosen(round=event.round, ids=list(event.ids), scores=list(event.scores))
    if isinstance(event, DocumentsFetched):
        ids, texts = [s.id for s in event.sources], [s.text for s in event.sources]
        return MSADocumentsFetched(round=event.round, ids=ids, texts=texts)
    if isinstance(event, Abstained):
        return MSAAbstained(reason=event.reason)
    return MSARetrievalEnded(rounds=event.rounds, reason=event.reason)
