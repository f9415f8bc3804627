"""Adding documents: validate, skip what is already there, encode the rest, commit in bounded portions.

Whatever has been committed is durable at once; an error midway leaves it in place and says nothing was half stored.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.config import MemoryConfig
from msa_plugin.engine.engine import Engine
from msa_plugin.errors import DuplicateDocumentError, InvalidDocumentError
from msa_plugin.types import (
    AddReport,
    Document,
    DocumentLike,
    DocumentsLike,
    EncodedDocument,
    OnProgress,
    Progress,
)

OnInvalid = Literal["raise", "skip"]
_LOOKUP = 256


def as_stream(documents: DocumentsLike) -> tuple[Iterable[DocumentLike], int | None]:
    """An iterable of documents and their number if known; one string, mapping or Document counts as one document."""
    if isinstance(documents, (str, Document)) or hasattr(documents, "keys"):
        return [documents], 1  # type: ignore[list-item]
    if not isinstance(documents, Iterable):
        raise InvalidDocumentError(f"documents must be iterable, not {type(documents).__name__}")
    if isinstance(documents, Sequence):
        return documents, len(documents)
    return documents, None


class Ingestion:
    """One `add` call: a pipeline from documents to commits, with its report."""

    def __init__(
        self,
        engine: Engine,
        bank: MemoryBank,
        namespace: str,
        config: MemoryConfig,
        on_invalid: OnInvalid = "raise",
        on_progress: OnProgress | None = None,
    ) -> None:
        """`on_invalid="skip"` leaves out documents that cannot be stored and reports them."""
        self.engine, self.bank, self.namespace, self.config = engine, bank, namespace, config
        self.on_invalid, self.on_progress = on_invalid, on_progress
        self._seen: dict[str, str] = {}
        self._added: list[str] = []
        self._updated: list[str] = []
        self._unchanged: list[str] = []
        self._skipped: list[tuple[str, str]] = []
        self._existing: set[str] = set()
        self._buffer: list[EncodedDocument] = []
        self._bytes = self._tokens = self._done = 0
        self._total: int | None = None

    def run(self, documents: DocumentsLike) -> AddReport:
        """Add everything; a sequence is validated as a whole before anything is encoded."""
        began = time.perf_counter()
        stream, self._total = as_stream(documents)
        if self._total is not None:
            stream = list(self._valid(stream))
            self._seen.clear()
        with self.bank.writing():
            for encoded in self.engine.encode(self._to_encode(self._valid(stream))):
                self._take(encoded)
            self._commit()
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
                document = Document.of(item)
            except InvalidDocumentError as error:
                if self.on_invalid == "raise":
                    raise
                self._skipped.append((str(getattr(item, "id", None) or f"document {position}"), str(error)))
                continue
            known = self._seen.get(document.id)
            if known is None:
                self._seen[document.id] = document.content_hash
                yield document
            elif known != document.content_hash:
                raise DuplicateDocumentError(
                    f"this call gives id {document.id!r} to two different texts; use distinct ids, or two calls"
                )

    def _to_encode(self, documents: Iterator[Document]) -> Iterator[Document]:
        """Documents that need the backbone; unchanged ones and those with only new metadata take a shortcut."""
        while portion := list(islice(documents, _LOOKUP)):
            known = self.bank.lookup([d.id for d in portion], self.namespace)
            for document in portion:
                live = known.get(document.id)
                if live is None:
                    yield document
                    continue
                ordinal, content_hash, metadata = live
                if content_hash != document.content_hash:
                    self._existing.add(document.id)
                    yield document
                elif metadata != dict(document.metadata):
                    self._existing.add(document.id)
                    stored = self.bank.latents(ordinal)
                    self._take(EncodedDocument(document, stored.tokens, stored.keys, stored.content))
                else:
                    self._unchanged.append(document.id)
                    self._progress(0)

    def _take(self, encoded: EncodedDocument) -> None:
        self._buffer.append(encoded)
        tensors = [*encoded.keys.values(), *encoded.content.values()]
        self._bytes += sum(t.numel() * t.element_size() for t in tensors)
        self._progress(encoded.tokens)
        if self._bytes >= self.config.segment_bytes or len(self._buffer) >= self.config.segment_documents:
            self._commit()

    def _commit(self) -> None:
        if not self._buffer:
            return
        self.bank.commit(self._buffer, self.namespace)
        for encoded in self._buffer:
            name = encoded.document.id
            (self._updated if name in self._existing else self._added).append(name)
            self._existing.discard(name)
        self._buffer, self._bytes = [], 0

    def _progress(self, tokens: int) -> None:
        self._done += 1
        self._tokens += tokens
        if self.on_progress is not None:
            self.on_progress(Progress(self._done, self._tokens, self._total))
