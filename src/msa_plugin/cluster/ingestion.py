"""Adding documents to a cluster: the driver checks and numbers them, the shards encode and commit them side by side."""

from __future__ import annotations

from collections.abc import Iterator

from msa_plugin.cancellation import check_cancelled
from msa_plugin.cluster.bank import ClusterBank
from msa_plugin.encoding.ingestion import Changed, Ingestion
from msa_plugin.errors import InvalidDocumentError
from msa_plugin.types import Document

# That a shard is sent at once, on average: it becomes one segment, and a search pays for each segment that it reads.
_DOCUMENTS, _CHARACTERS = 1024, 1 << 20


class ClusterIngestion(Ingestion):
    """One `add` call. What one round of all shards has committed is acknowledged before the next begins."""

    bank: ClusterBank

    def checked(self, document: Document) -> Document:
        """Raises InvalidDocumentError for one that replaces others: those may lie with shards that do not know it."""
        if document.replaces:
            raise InvalidDocumentError(
                f"document {document.id!r}: replaces= is not for clusters, where a document and what it replaces may "
                "lie in different shards; give the old one a valid_until, or use a bank of one process"
            )
        return document

    def store(self, changed: Iterator[Changed]) -> None:
        """See `Ingestion.store`; a shard finds out itself which documents have new metadata only."""
        for documents in self._rounds(document for document, _ in changed):
            check_cancelled()
            for tokens in self.bank.store(documents, self.namespace):
                self.counted(tokens)
            self.stored(document.id for document in documents)

    def _rounds(self, documents: Iterator[Document]) -> Iterator[list[Document]]:
        shards = self.bank.shards.count
        portion: list[Document] = []
        characters = 0
        for document in documents:
            portion.append(document)
            characters += len(document.text)
            if len(portion) >= _DOCUMENTS * shards or characters >= _CHARACTERS * shards:
                yield portion
                portion, characters = [], 0
        if portion:
            yield portion
