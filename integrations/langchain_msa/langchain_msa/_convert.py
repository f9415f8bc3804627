"""LangChain's data into the memory's and back: documents, messages, and the memory that a constructor was given."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, SystemMessage

from msa_plugin.errors import ConfigError, DuplicateDocumentError, InvalidDocumentError, InvalidQueryError
from msa_plugin.integrating import listed
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document as MemoryDocument
from msa_plugin.types import Hit

OnInvalid: TypeAlias = Literal["raise", "skip"]
Message: TypeAlias = dict[str, str]

_LOG = logging.getLogger("langchain_msa")


def opened(memory: LatentMemory | None, path: str | Path | None, settings: Mapping[str, Any]) -> LatentMemory:
    """The memory that was given, or one opened from `path` with `settings`. Raises ConfigError unless it is one."""
    if memory is None and path is None:
        raise ConfigError("give memory=LatentMemory.open(...), or path= (a folder, created when absent)")
    if memory is None:
        assert path is not None
        return LatentMemory.open(path, **settings)
    if not isinstance(memory, LatentMemory):
        raise ConfigError(f"memory= takes a LatentMemory, not {type(memory).__name__}; for a folder use path=")
    extra = sorted([*settings, *(["path"] if path is not None else [])])
    if extra:
        raise ConfigError(f"{', '.join(extra)} cannot be changed on a memory that is open; leave out memory= or these")
    return memory


def to_memory(
    documents: Iterable[Document], ids: Sequence[str | None] | None, on_invalid: OnInvalid = "raise"
) -> list[MemoryDocument]:
    """Documents as the memory takes them, each under its entry in `ids`, else its own id, else one from its content.

    Raises ValueError when there are not as many ids as documents, DuplicateDocumentError when an id is given to two
    documents that differ, InvalidDocumentError where a list is text, and unless `on_invalid` is "skip" also for what
    cannot be stored.
    """
    if on_invalid not in get_args(OnInvalid):
        raise ConfigError(f"on_invalid is 'raise' or 'skip', not {on_invalid!r}")
    given = listed("documents", documents, InvalidDocumentError)
    names: Sequence[str | None] = [None] * len(given) if ids is None else listed("ids", ids, InvalidDocumentError)
    if len(names) != len(given):
        raise ValueError(f"there are {len(names)} ids for {len(given)} documents; give one id for each")
    stored: dict[str, MemoryDocument] = {}
    result = []
    for document, name in zip(given, names, strict=True):
        try:
            one = _checked(document, name)
        except InvalidDocumentError as error:
            if on_invalid == "raise":
                raise
            _LOG.warning("skipped: %s", error)
            continue
        if stored.setdefault(one.id, one) != one:
            raise DuplicateDocumentError(f"id {one.id!r} was given to two documents that differ; keep one of them")
        result.append(one)
    return result


def _checked(document: Document, name: str | None) -> MemoryDocument:
    if not isinstance(document, Document):
        raise InvalidDocumentError(f"expected a LangChain Document, not {type(document).__name__}")
    name = name if name is not None else document.id
    metadata = dict(document.metadata)
    for key, value in metadata.items():
        if problem := _not_json(value):
            raise InvalidDocumentError(
                f"document {name or document.page_content[:40]!r}: metadata[{key!r}] cannot be kept as JSON "
                f"({problem}); make it a string, a number or a list of these first"
            )
    title = metadata.get("title")
    title = title if isinstance(title, str) and title.strip() else ""
    made = name if name is not None else _content_id(document.page_content, metadata)
    return MemoryDocument.of(MemoryDocument(made, document.page_content, title, metadata))


def _not_json(value: object) -> str:
    """Why JSON cannot hold `value`, or ""."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error) or type(error).__name__
    return ""


def _content_id(text: str, metadata: Mapping[str, Any]) -> str:
    """The same for the same text and metadata, so that adding a document again costs nothing."""
    try:
        content = json.dumps([text, metadata], sort_keys=True)
    except TypeError as error:  # keys of several types cannot be sorted
        raise InvalidDocumentError(f"document {text[:40]!r}: metadata must have string keys") from error
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def to_langchain(found: MemoryDocument | Hit, extra: Mapping[str, Any] | None = None) -> Document:
    """A stored document as LangChain's, with `extra` metadata; a title that metadata does not hold is put there.

    A hit that is a passage has its document's id, and `start_index` says where in the document it begins.
    """
    more = {"title": found.title} if found.title else {}
    place = {"start_index": found.passage.start} if isinstance(found, Hit) and found.passage else {}
    metadata = {**more, **found.metadata, **place, **(extra or {})}
    return Document(id=found.id, page_content=found.text, metadata=metadata)


def scored(hit: Hit, score_key: str | None, *, layers: bool = False) -> dict[str, Any]:
    """What a retriever writes into a document's metadata, JSON-ready."""
    extra: dict[str, Any] = {} if score_key is None else {score_key: float(hit.score)}
    if score_key is not None and hit.relevance is not None:
        extra["relevance"] = float(hit.relevance)
    extra |= {name: value for name, value in hit.validity._asdict().items() if value is not None}
    if layers:
        extra["layer_scores"] = {str(layer): float(score) for layer, score in hit.layer_scores.items()}
    return extra


def ids_of(documents: object) -> list[str]:
    """Ids of the documents that a model is to read. Raises InvalidQueryError for one that has none."""
    if isinstance(documents, str | Document | Mapping) or not isinstance(documents, Iterable):
        raise InvalidQueryError("documents= takes a list of Documents or of ids")
    found = []
    for document in documents:
        name = document.id if isinstance(document, Document) else document
        if not isinstance(name, str):
            raise InvalidQueryError(
                f"documents= are read by id, and {str(document)[:60]!r} has none; hand on documents that an MSA "
                "retriever or store returned, or their ids"
            )
        found.append(name)
    return found


def question_of(messages: Sequence[BaseMessage]) -> tuple[str, list[str]]:
    """The last human message, and the kinds of all others. Raises InvalidQueryError when there is none."""
    at = next((i for i in reversed(range(len(messages))) if isinstance(messages[i], HumanMessage)), None)
    if at is None:
        raise InvalidQueryError("a question over memory is a human message; there is none")
    return text_of(messages[at]), [m.type for i, m in enumerate(messages) if i != at]


def conversation(messages: Sequence[BaseMessage]) -> list[Message]:
    """Messages as `LatentMemory.chat` takes them. Raises InvalidQueryError for kinds that a plain model cannot read."""
    return [{"role": _role(m), "content": text_of(m)} for m in messages]


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        return message.role
    for kind, role in ((HumanMessage, "user"), (AIMessage, "assistant"), (SystemMessage, "system")):
        if isinstance(message, kind):
            return role
    raise InvalidQueryError(f"ChatMSA reads human, ai and system messages, not {message.type}; it calls no tools")


def text_of(message: BaseMessage) -> str:
    """A message's text. Raises InvalidQueryError for images and the like."""
    content = message.content
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        kind = "text" if isinstance(block, str) else block.get("type")
        if kind != "text":
            raise InvalidQueryError(f"ChatMSA reads text only; a message holds a part of type {kind!r}")
        parts.append(block if isinstance(block, str) else str(block.get("text", "")))
    return "".join(parts)
