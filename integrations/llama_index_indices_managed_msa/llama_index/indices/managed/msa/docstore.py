"""The document store of an `MSAIndex`: a live view of what the memory holds, so that the two cannot disagree.

A store of its own would say after a restart that deleted documents are still there, and `refresh_ref_docs` would
believe it. Ids and hashes are kept in RAM, read once when first needed and again when somebody else has written to
the bank; texts and metadata stay in the bank.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NoReturn

from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.keyval_docstore import KVDocumentStore
from llama_index.core.storage.docstore.types import DEFAULT_PERSIST_PATH
from llama_index.core.storage.docstore.utils import doc_to_json
from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

from llama_index.indices.managed.msa.records import node_hash, source, to_node
from msa_plugin.errors import BankReadOnlyError
from msa_plugin.memory import LatentMemory

_PAGE = 500


class Ledger:
    """Which nodes the memory holds, of which documents; safe to share between threads."""

    def __init__(self, memory: LatentMemory) -> None:
        """Nothing is read until it is asked for."""
        self._memory = memory
        self._lock = threading.RLock()
        self._version: int | None = None  # of the bank, when the maps below were true
        self._nodes: dict[str, tuple[str | None, str | None]] = {}  # node -> its document, its hash
        self._documents: dict[str, tuple[list[str], str | None]] = {}  # document -> its nodes, its hash

    @contextmanager
    def current(self) -> Iterator[Ledger]:
        """Hold the ledger in step with what this handle sees of the bank."""
        with self._lock:
            self._catch_up()
            yield self

    @contextmanager
    def changing(self) -> Iterator[Ledger]:
        """Be the bank's only writer; the caller tells `stored` and `deleted` what it did.

        Raises BankLockedError when another process does not finish in time, and BankReadOnlyError.
        """
        with self._lock, self._memory.writing():
            self._catch_up()
            self._version = None  # an error midway leaves the truth unknown
            yield self
            self._version = self._memory.version

    def nodes(self) -> list[str]:
        """Ids of all nodes."""
        return list(self._nodes)

    def documents(self) -> list[str]:
        """Ids of all documents that nodes were made from."""
        return list(self._documents)

    def nodes_of(self, document: str) -> list[str]:
        """Ids of a document's nodes; empty for one that is not known."""
        return list(self._documents.get(document, ([], None))[0])

    def record(self, key: str) -> dict[str, Any] | None:
        """Hash, and for a node its document, as LlamaIndex's stores keep them."""
        if key in self._documents:
            return _filled(doc_hash=self._documents[key][1])
        if key in self._nodes:
            document, digest = self._nodes[key]
            return _filled(doc_hash=digest, ref_doc_id=document)
        return None

    def stored(self, documents: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Note nodes, given as id and the metadata they were stored with."""
        for node, metadata in documents:
            self.deleted([node])
            name, digest = source(metadata)
            self._nodes[node] = (name, node_hash(metadata))
            if name is not None:
                known, _ = self._documents.get(name, ([], None))
                self._documents[name] = ([*known, node], digest)

    def deleted(self, nodes: Iterable[str]) -> None:
        """Forget nodes, and documents that have none left."""
        for node in nodes:
            name, _ = self._nodes.pop(node, (None, None))
            if name is not None:
                known, digest = self._documents[name]
                rest = [other for other in known if other != node]
                if rest:
                    self._documents[name] = (rest, digest)
                else:
                    del self._documents[name]

    def _catch_up(self) -> None:
        while self._version != (version := self._memory.version):
            self._nodes, self._documents = {}, {}
            ids = self._memory.ids()
            while page := list(islice(ids, _PAGE)):
                known = self._memory.metadata(page)
                self.stored((i, known[i]) for i in page if i in known)
            self._version = version


class _BankStore(BaseKVStore):
    """The three collections of a `KVDocumentStore`, read from the memory."""

    def __init__(self, memory: LatentMemory, ledger: Ledger) -> None:
        self._memory, self._ledger = memory, ledger

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        if collection.endswith("/data"):
            found = self._memory.get([key])
            return doc_to_json(to_node(found[0])) if found else None
        with self._ledger.current() as ledger:
            if collection.endswith("/metadata"):
                return ledger.record(key)
            nodes = ledger.nodes_of(key)
        if not nodes:
            return None
        found = self._memory.get(nodes[:1])
        return {"node_ids": nodes, "metadata": dict(to_node(found[0]).metadata) if found else {}}

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        with self._ledger.current() as ledger:
            nodes, documents = ledger.nodes(), ledger.documents()
        keys = {"data": nodes, "metadata": [*nodes, *documents]}.get(collection.rpartition("/")[2], documents)
        return {key: value for key in keys if (value := self.get(key, collection)) is not None}

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        if self.get(key, collection) is not None:
            self._refuse()
        return False

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self._refuse()

    def put_all(self, kv_pairs: Any, collection: str = DEFAULT_COLLECTION, batch_size: int = 1) -> None:
        self._refuse()

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        return await asyncio.to_thread(self.get, key, collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        return await asyncio.to_thread(self.get_all, collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        return await asyncio.to_thread(self.delete, key, collection)

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        self._refuse()

    async def aput_all(self, kv_pairs: Any, collection: str = DEFAULT_COLLECTION, batch_size: int = 1) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BankReadOnlyError(
            "this document store shows what the memory holds; change it through the index (insert_nodes, "
            "delete_nodes, ...), or give the index a storage_context with a document store that has nodes of its own"
        )


class MSADocumentStore(KVDocumentStore):
    """Document store that reads the memory's nodes. Changing it raises BankReadOnlyError: change the index."""

    def __init__(self, memory: LatentMemory) -> None:
        """`memory` stays the caller's to close."""
        self.ledger = Ledger(memory)
        super().__init__(_BankStore(memory, self.ledger))

    def persist(self, persist_path: str = DEFAULT_PERSIST_PATH, fs: Any = None) -> None:
        """Write an empty store, for `StorageContext.from_defaults(persist_dir=...)` to find; the bank has the nodes."""
        SimpleDocumentStore().persist(persist_path, fs=fs)


def _filled(**fields: str | None) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
