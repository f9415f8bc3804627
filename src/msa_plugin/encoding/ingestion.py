"""Adding documents: validate, skip what is already there, encode the rest, commit in bounded portions.

Whatever has been committed is durable at once; an error midway leaves it in place and says nothing was half stored.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from typing import Any, get_args

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.documents import Known
from msa_plugin.bank.handle import BankHandle
from msa_plugin.config import MemoryConfig
from msa_plugin.encoding.encoder import Encoder
from msa_plugin.errors import ConfigError, DuplicateDocumentError, InvalidDocumentError
from msa_plugin.types import (
    AddReport,
    Document,
    DocumentLike,
    DocumentsLike,
    EncodedDocument,
    OnInvalid,
    OnProgress,
    Progress,
)

Changed = tuple[Document, Known | None]
_LOOKUP = 256


def as_stream(documents: DocumentsLike) -> tuple[Iterable[DocumentLike], int | None]:
    """An iterable of documents and their number if known; one string, mapping or Document counts as one document."""
    if isinstance(documents, (str, Document)) or hasattr(documents, "keys"):
        return [documents], 1  # type: ignore[list-item]
    given: object = documents
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray)):
        raise InvalidDocumentError(f"documents must be iterable, not {type(documents).__name__}")
    if isinstance(documents, Sequence):
        return documents, len(documents)
    return documents, None


class Ingestion(ABC):
    """One `add` call: a pipeline from documents to commits, with its report; subclasses know how a bank stores."""

    def __init__(
        self,
        encoder: Encoder,
        bank: BankHandle,
        namespace: str,
        config: MemoryConfig,
        on_invalid: OnInvalid = "raise",
        on_progress: OnProgress | None = None,
    ) -> None:
        """`on_invalid="skip"` leaves out documents that cannot be stored and reports them.

        Raises ConfigError for any other word than that and "raise".
        """
        if on_invalid not in get_args(OnInvalid):
            raise ConfigError(f"on_invalid must be one of {get_args(OnInvalid)}, not {on_invalid!r}")
        self.encoder, self.bank, self.namespace, self.config = encoder, bank, namespace, config
        self.on_invalid, self.on_progress = on_invalid, on_progress
        self._seen: dict[str, bytes] = {}
        self._added: list[str] = []
        self._updated: list[str] = []
        self._unchanged: list[str] = []
        self._skipped: list[tuple[str, str]] = []
        self._existing: set[str] = set()
        self._tokens = self._done = 0
        self._total: int | None = None

    def run(self, documents: DocumentsLike) -> AddReport:
        """Add everything; a sequence is validated as a whole before anything is encoded."""
        began = time.perf_counter()
        stream, self._total = as_stream(documents)
        if self._total is not None:
            stream = list(self._valid(stream))
            self._total = len(stream)
            self._seen.clear()
        with self.bank.writing():
            self.store(self._changed(self._valid(stream)))
        return AddReport(
            added=tuple(self._added),
            updated=tuple(self._updated),
            unchanged=tuple(self._unchanged),
            skipped=tuple(self._skipped),
            tokens=self._tokens,
            seconds=time.perf_counter() - began,
        )

    def _valid(self, stream: Iterable[DocumentLike]) -> Iterator[Document]:
        """Normalised documents, each id once; the same id with other content is an error."""
        for position, item in enumerate(stream):
            try:
                document = self.checked(Document.of(item))
            except InvalidDocumentError as error:
                if self.on_invalid == "raise":
                    raise
                self._skipped.append((_name(item, position), str(error)))
                continue
            digest = sha256(f"{document.content_hash}{_as_json(document.metadata)}{document.period}".encode()).digest()
            known = self._seen.setdefault(document.id, digest)
            if known is digest:
                yield document
            elif known != digest:
                raise DuplicateDocumentError(
                    f"this call gives id {document.id!r} to two documents that differ; use distinct ids, or two calls"
                )

    def checked(self, document: Document) -> Document:
        """The document, where this bank can hold it. Raises InvalidDocumentError."""
        return document

    @abstractmethod
    def store(self, changed: Iterator[Changed]) -> None:
        """Store documents durably, calling `counted` and `stored` for each; the caller is the only writer.

        A document whose content is in the bank already, only with other metadata or dates, comes with what is known.
        """

    def _changed(self, documents: Iterator[Document]) -> Iterator[Changed]:
        """Documents that are not there as they are."""
        while portion := list(islice(documents, _LOOKUP)):
            known = self.bank.lookup([d.id for d in portion], self.namespace)
            for document in portion:
                live = known.get(document.id)
                if live is None:
                    yield document, None
                elif live.content_hash != document.content_hash:
                    self._existing.add(document.id)
                    yield document, None
                elif live.period != document.period or _as_json(live.metadata) != _as_json(document.metadata):
                    self._existing.add(document.id)
                    # With a numbering it gets another ordinal, and its latents hold the number.
                    yield document, live if self.encoder.numbering is None else None
                else:
                    self._unchanged.append(document.id)
                    self.counted(0)

    def stored(self, names: Iterable[str]) -> None:
        """Documents of these ids are durable."""
        for name in names:
            (self._updated if name in self._existing else self._added).append(name)
            self._existing.discard(name)

    def counted(self, tokens: int) -> None:
        """One more document is done, or about to be committed; `tokens` went through the backbone for it."""
        self._done += 1
        self._tokens += tokens
        if self.on_progress is not None:
            self.on_progress(Progress(self._done, self._tokens, self._total))


class BankIngestion(Ingestion):
    """Encodes in this process and commits in portions that the settings bound."""

    bank: MemoryBank

    def store(self, changed: Iterator[Changed]) -> None:
        """See `Ingestion.store`."""
        self._buffer: list[EncodedDocument] = []
        self._bytes = 0
        self._committed = time.monotonic()
        for encoded in self.encoder.encode(self._to_encode(changed), self.bank.next_ordinal):
            self._take(encoded)
        self._commit()

    def _to_encode(self, changed: Iterator[Changed]) -> Iterator[Document]:
        """Documents that need the backbone; those with only new metadata take a shortcut.

        Whenever the encoder asks for more it has handed over all that it has encoded: the moment to commit.
        """
        for document, live in changed:
            if time.monotonic() - self._committed >= self.config.commit_seconds:
                self._commit()
            if live is None:
                yield document
            else:
                self._take(replace(self.bank.latents(live.ordinal), document=document), encoded=False)

    def _take(self, document: EncodedDocument, *, encoded: bool = True) -> None:
        self._buffer.append(document)
        self._bytes += document.bytes
        self.counted(document.tokens if encoded else 0)
        if self._bytes >= self.config.segment_bytes or len(self._buffer) >= self.config.segment_documents:
            self._commit()

    def _commit(self) -> None:
        if self._buffer:
            self.bank.commit(self._buffer, self.namespace)
            self.stored(encoded.document.id for encoded in self._buffer)
            self._buffer, self._bytes = [], 0
        self._committed = time.monotonic()


def _name(item: object, position: int) -> str:
    """What a report calls a document that could not be stored."""
    given = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
    return given if isinstance(given, str) and given else f"document {position}"


def _as_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as the bank returns it, so that a tuple equals a list while True and 1 differ."""
    return json.dumps(json.loads(json.dumps(dict(metadata))), sort_keys=True)
