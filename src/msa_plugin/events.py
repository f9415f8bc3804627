"""What happens while a question is answered, as typed events, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from msa_plugin.types import Answer, Source

EndReason: TypeAlias = Literal["model", "empty", "repeated", "rounds", "budget", "scores", "given"]


@dataclass(frozen=True)
class RoundStarted:
    """A round of retrieval began; `round` counts from 1, `query` is what it routes on, as text."""

    round: int
    query: str


@dataclass(frozen=True)
class DocumentsChosen:
    """The documents that a round chose, by id, with their routing scores."""

    round: int
    ids: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class DocumentsFetched:
    """Documents that the answer will be read from, with the text that was put in front of the model."""

    round: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class RetrievalEnded:
    """No further round, and why.

    `model`: the model said so; `empty`, `repeated`: it named no document, or none that was new; `rounds`, `budget`:
    the bounds on rounds and on the tokens of documents; `scores`: nothing cleared the cut, or the score-driven rounds
    are over; `given`: the caller chose the documents.
    """

    rounds: int
    reason: EndReason


@dataclass(frozen=True)
class Abstained:
    """The memory does not say it; the sentence that says so follows.

    `relevance`: nothing that was found is relevant enough, and nothing was read; `reader`: the answer is not in what
    was read.
    """

    reason: Literal["relevance", "reader"]


@dataclass(frozen=True)
class AnswerPiece:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The whole answer; nothing follows."""

    answer: Answer


RetrievalEvent: TypeAlias = RoundStarted | DocumentsChosen | DocumentsFetched | RetrievalEnded | Abstained
Event: TypeAlias = RetrievalEvent | AnswerPiece | Answered
# Of several questions: the row that a piece of text, an event or the whole answer belongs to, and what it is.
Events: TypeAlias = Generator[tuple[int, str | Answer | RetrievalEvent], None, None]
