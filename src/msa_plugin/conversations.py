"""Conversations in memory: every turn a document that says when, by whom, and what it answers.

A turn alone often does not say what it is about ("Yes, last Friday!"). So what is encoded, found and read is the date,
the last question of the turn before it in the same session, and the turn: whole turns in front make turns alike.
`metadata` has `session`, `speaker`, `at` and `said`: where, in characters of the text, the turn itself begins.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from msa_plugin import dates
from msa_plugin.async_twins import awaited
from msa_plugin.dates import When, instant
from msa_plugin.errors import InvalidDocumentError, InvalidQueryError, UnknownDocumentError
from msa_plugin.types import AddReport, Asof, Document, DocumentsLike, Hit

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle

Message: TypeAlias = Mapping[str, Any]
_LONGEST = 400  # characters of a question that is repeated, from its end
_SENTENCES = re.compile(r"(?<=[.!?\u061f\uff1f])\s+|\n+")
_ASKS = ("?", "\u061f", "\uff1f")
_FIELDS = ({"speaker", "role"}, {"content", "text"}, {"at"}, {"id"}, {"metadata"})


class Turn(NamedTuple):
    """What somebody said, and when (ISO 8601 in UTC)."""

    speaker: str
    text: str
    at: str
    id: str | None = None
    metadata: Mapping[str, Any] = {}

    @property
    def line(self) -> str:
        """The turn as it stands in a text."""
        return f"{self.speaker}: {self.text}"


class Conversations:
    """Mixin for `LatentMemory`."""

    def add_turns(self, messages: Message | Iterable[Message], *, session: str, at: When | None = None) -> AddReport:
        """Store what was said in a session, after what it holds already; durable on return.

        Messages are mappings {"role" or "speaker", "content" or "text", "at"?, "id"?, "metadata"?}; `at` is when those
        were said that do not say so (a datetime, a date or ISO text; UTC where it has no zone; None: now). Blank ones
        are left out. The same turn at the same time again is free, so give times where a call may be repeated.
        Found is a turn with the question that it answers; `hit.text[hit.metadata["said"]:]` is the turn alone. Filter
        by `session`, `speaker` or `at`, which is text in UTC: {"at": {"$gte": "2026-03-01"}}.

        Raises InvalidDocumentError for messages and dates that are none, and what `add` raises.
        """
        if not isinstance(session, str) or not session:
            raise InvalidDocumentError(f"session= names a conversation, a non-empty string, not {session!r}")
        turns = turns_of(messages, at)
        names = ids_of(turns, session)
        with self._bank_().writing():  # what the session ends with is not to change in between
            known = {document.id for document in self.get(names)}
            last = self._last_of(session) if turns and names[0] not in known else None
            documents = documents_of(turns, names, session, last)
            return self.add([document for document in documents if document.id not in known])

    aadd_turns = awaited(add_turns)

    def turns_around(self, turn: str | Hit, count: int = 1) -> list[Document]:
        """A turn by id or hit, in what was said: up to `count` turns of its session before it, itself, and after it.

        Raises UnknownDocumentError for what is no turn of this memory, InvalidQueryError for a negative count.
        """
        if not isinstance(count, int) or count < 0:
            raise InvalidQueryError(f"count is a whole number from 0, not {count!r}")
        [name, namespace] = [turn.id, turn.namespace] if isinstance(turn, Hit) else [turn, self.namespace]
        with self._bank_().one_moment():
            known = self._bank_().lookup([name], namespace).get(name)
            if known is None or "said" not in known.metadata:
                raise UnknownDocumentError(f"{name!r} is no turn of a conversation in this memory; see add_turns")
            said = self._said(known.metadata["session"], namespace)
            at = said.index(known.ordinal)
            stored = self._bank_().documents(said[max(0, at - count) : at + count + 1])
        return [one.document for one in stored]

    def _last_of(self, session: str) -> Turn | None:
        """The turn that a session ends with."""
        for ordinal in self._said(session, self.namespace)[-1:]:
            [stored] = self._bank_().documents([ordinal])
            speaker, line = stored.metadata["speaker"], stored.text[stored.metadata["said"] :]
            return Turn(speaker, line.removeprefix(f"{speaker}: "), stored.metadata["at"])
        return None

    def _said(self, session: str, namespace: str) -> list[int]:
        """Ordinals of a session's turns, in order."""
        where = {"session": session, "said": {"$gte": 0}}
        return self._bank_().select(namespace, where, asof=Asof(history=True)).ordinals().tolist()

    if TYPE_CHECKING:  # what the memory has beside this
        namespace: str

        def _bank_(self) -> BankHandle: ...
        def get(self, ids: str | Sequence[str]) -> list[Document]:
            """Stored documents."""

        def add(self, documents: DocumentsLike) -> AddReport:
            """Store documents."""


def turns_of(messages: object, at: When | None = None) -> list[Turn]:
    """Messages as turns, those without text left out. Raises InvalidDocumentError."""
    given: Any = [messages] if isinstance(messages, Mapping) else messages
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidDocumentError('messages are mappings {"role": ..., "content": ...}, one or a list of them')
    said = dates.clock() if at is None else instant(at, "at", InvalidDocumentError)
    turns = [_turn(message, said) for message in given]
    return [turn for turn in turns if turn.text]


def _turn(message: object, at: str) -> Turn:
    if not isinstance(message, Mapping):
        raise InvalidDocumentError(f"a message is a mapping with a speaker and a text, not {message!r:.80}")
    if unknown := sorted(set(map(str, message)) - set().union(*_FIELDS)):
        raise InvalidDocumentError(f"unknown message fields {unknown}; put them under 'metadata'")
    speaker, text = message.get("speaker", message.get("role")), message.get("content", message.get("text"))
    if not isinstance(speaker, str) or not speaker.strip() or not isinstance(text, str):
        raise InvalidDocumentError(
            f"a message needs 'role' (or 'speaker') and 'content' (or 'text'), both text: {dict(message)!r:.80}"
        )
    own, metadata = message.get("at"), message.get("metadata")
    said = at if own is None else instant(own, "at", InvalidDocumentError)
    if metadata is not None and not isinstance(metadata, Mapping):
        raise InvalidDocumentError(f"a message's metadata is a mapping, not {metadata!r:.80}")
    name = message.get("id")
    if name is not None and not isinstance(name, str):
        raise InvalidDocumentError(f"a message's id is text, not {name!r:.80}")
    return Turn(" ".join(speaker.split()), text.strip(), said, name, metadata or {})


def ids_of(turns: Iterable[Turn], session: str) -> list[str]:
    """The ids that turns bring along, or made of session, speaker, text and time, and which of several such it is."""
    names: list[str] = []
    again: Counter[tuple[str, str, str]] = Counter()
    for turn in turns:
        what = turn.speaker, turn.text, turn.at
        said = "\x1f".join((session, *what, str(again[what])))
        again[what] += 1
        made = f"turn-{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:24]}"
        names.append(made if turn.id is None else turn.id)
    return names


def documents_of(
    turns: Iterable[Turn], names: Iterable[str], session: str, last: Turn | None = None
) -> Iterator[Document]:
    """The documents of turns that follow each other, under these ids; `last` is the one before the first."""
    for turn, name in zip(turns, names, strict=True):
        head = f"[{day(turn.at)}] {'' if last is None else _asked(last)}"
        own = {"session": session, "speaker": turn.speaker, "at": turn.at, "said": len(head)}
        yield Document(name, head + turn.line, metadata={**turn.metadata, **own})
        last = turn


def exchange(
    messages: Iterable[Message], *, session: str, at: When | None = None, before: Message | None = None
) -> Document | None:
    """What was said and answered as one document, in the form of `add_turns`; None where nobody said anything.

    The day, the question of the message `before` that the first of `messages` answers, and all that these say. The same
    again in a session has the same id. Raises InvalidDocumentError as `add_turns`.
    """
    turns, last = turns_of(messages, at), [] if before is None else turns_of(before, at)
    if not turns:
        return None
    whole = turns[0]._replace(text="\n".join([turns[0].text, *(turn.line for turn in turns[1:])]))
    [document] = documents_of([whole], ids_of([whole._replace(at="")], session), session, *last)
    return document


def day(at: str) -> str:
    """A moment's day as people write it: 8 May 2023."""
    moment = datetime.fromisoformat(at)
    return f"{moment.day} {moment:%B} {moment.year}"


def _asked(turn: Turn) -> str:
    """The last question in a turn, as a line; empty where it asks nothing."""
    questions = [sentence for sentence in _SENTENCES.split(turn.text) if sentence.endswith(_ASKS)]
    if not questions:
        return ""
    last = questions[-1] if len(questions[-1]) <= _LONGEST else f"... {questions[-1][-_LONGEST:]}"
    return f"{turn.speaker}: {last}\n"
