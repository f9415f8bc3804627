"""`MSAIndex`: a LlamaIndex index whose store, embedding model and reader is one `LatentMemory`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.llms.utils import LLMType
from llama_index.core.schema import BaseNode, Document, IndexNode, TransformComponent
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import DEFAULT_PERSIST_FNAME, RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.types import MetadataFilters, VectorStoreQueryMode

from llama_index.indices.managed.msa import storage
from llama_index.indices.managed.msa.docstore import MSADocumentStore
from llama_index.indices.managed.msa.engines import language_model, query_engine
from llama_index.indices.managed.msa.records import several, to_document
from llama_index.indices.managed.msa.retriever import MSARetriever
from llama_index.indices.managed.msa.transform import WholeDocument, sourced
from msa_plugin.errors import ConfigError
from msa_plugin.integrating import dated, id_list
from msa_plugin.memory import LatentMemory
from msa_plugin.types import OnInvalid, OnProgress, Period, Progress

_log = logging.getLogger(__name__)


class MSAIndex(BaseIndex[IndexDict]):
    """Documents in, nodes and answers out; no embedding model and no vector store.

    Construct it over an open `memory`, or with `path` and the settings of `LatentMemory.open` (namespace, model, ...)
    to have it opened, and closed by `close()` or at the end of a `with` block. The memory is the only store: what is
    inserted or deleted is durable on return, and an index opened later on the same path has it. Documents are encoded
    whole (`WholeDocument`) unless `transformations` are given. Their metadata is kept for filters and for the answers'
    sources; of it, only a "title" is encoded with the text.

    Inserting a document whose id is known replaces it. Asynchronous methods run on worker threads. `on_invalid="skip"`
    logs documents that cannot be stored, such as empty pages, instead of raising InvalidDocumentError.
    """

    index_struct_cls = storage.MSAIndexStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        objects: Sequence[IndexNode] | None = None,
        index_struct: IndexDict | None = None,
        storage_context: StorageContext | None = None,
        callback_manager: CallbackManager | None = None,
        transformations: Sequence[TransformComponent] | None = None,
        show_progress: bool = False,
        *,
        memory: LatentMemory | None = None,
        path: str | Path | None = None,
        on_invalid: OnInvalid = "raise",
        embed_model: object = None,
        **settings: Any,
    ) -> None:
        """Open the index, and insert `nodes` and `objects` if there are any.

        Of `storage_context` the document store is used if it holds nodes or is not a SimpleDocumentStore; otherwise
        the index's own shows what the memory holds. `embed_model` is accepted for code that passes one, and ignored
        with a warning. Raises ConfigError unless exactly one of `memory` and `path` is given, and what
        `LatentMemory.open` and `LatentMemory.add` raise.
        """
        if embed_model is not None:
            _log.warning("MSAIndex uses no embedding model; embed_model is ignored")
        self._memory, self._origin = storage.open_memory(memory, path, settings)
        self._owns_memory = memory is None
        self._on_invalid: OnInvalid = on_invalid
        self._own_docstore = MSADocumentStore(self._memory)
        try:
            super().__init__(
                nodes=None if index_struct is not None else several("nodes", nodes or []),
                objects=list(objects) if objects else None,
                index_struct=index_struct,
                storage_context=self._context(storage_context),
                callback_manager=callback_manager,
                transformations=list(transformations or [WholeDocument()]),
                show_progress=show_progress,
            )
        except BaseException:
            self.close()
            raise

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: Sequence[TransformComponent] | None = None,
        **kwargs: Any,
    ) -> MSAIndex:
        """An index with these documents; `kwargs` are those of the constructor (`memory` or `path`, ...).

        The memory may hold documents already: they stay, unchanged ones cost nothing, changed ones are replaced.
        """
        index = cls(
            storage_context=storage_context,
            show_progress=show_progress,
            callback_manager=callback_manager,
            transformations=transformations,
            **kwargs,
        )
        try:
            with index.callback_manager.as_trace("index_construction"):
                index._replace(documents, index._transform(documents))
        except BaseException:
            index.close()
            raise
        return index

    @property
    def memory(self) -> LatentMemory:
        """The memory below."""
        return self._memory

    @property
    def callback_manager(self) -> CallbackManager:
        """Callback manager of the index and of what it makes."""
        return self._callback_manager

    @property
    def object_map(self) -> dict[str, Any]:
        """Objects that index nodes stand for, by index id."""
        return self._object_map

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """Node ids and metadata of every document."""
        return self.docstore.get_all_ref_doc_info() or {}

    # -- inserting -------------------------------------------------------------------------------------------------

    def build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        """Insert the constructor's nodes."""
        return self._build_index_from_nodes(nodes, **build_kwargs)

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> IndexDict:
        self._put(nodes, **build_kwargs)
        return storage.MSAIndexStruct()

    def insert(self, document: Document, **insert_kwargs: Any) -> None:
        """Insert a document, or replace it.

        `insert_kwargs` are on_progress and on_invalid of `LatentMemory.add`, and valid_from, valid_until (see
        `msa_plugin.types.Document`) and replaces, ids of documents or nodes; all of its nodes get them.
        """
        with self._callback_manager.as_trace("insert"):
            self._replace([document], self._transform([document]), **insert_kwargs)

    async def ainsert(self, document: Document, **insert_kwargs: Any) -> None:
        """`insert`, awaited."""
        with self._callback_manager.as_trace("ainsert"):
            nodes = await self._atransform([document])
            await asyncio.to_thread(self._replace, [document], nodes, **insert_kwargs)

    def insert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Insert nodes, as `IngestionPipeline.run` returns them; those with a known id are replaced."""
        with self._callback_manager.as_trace("insert_nodes"):
            self._put(nodes, **insert_kwargs)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """`insert_nodes`, awaited."""
        with self._callback_manager.as_trace("ainsert_nodes"):
            await asyncio.to_thread(self._put, nodes, **insert_kwargs)

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        self._put(nodes, **insert_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replace a document; if the new one cannot be stored, the old one stays."""
        self.insert(document, **update_kwargs.get("insert_kwargs", {}))

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """`update_ref_doc`, awaited."""
        await self.ainsert(document, **update_kwargs.get("insert_kwargs", {}))

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Insert new documents and replace changed ones, all in one go; says of each whether it was one of them."""
        with self._callback_manager.as_trace("refresh_ref_docs"):
            changed = self._changed(documents)
            chosen = [document for document, flag in zip(documents, changed, strict=True) if flag]
            self._replace(chosen, self._transform(chosen), **update_kwargs.get("insert_kwargs", {}))
            return changed

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """`refresh_ref_docs`, awaited."""
        with self._callback_manager.as_trace("arefresh_ref_docs"):
            changed = await asyncio.to_thread(self._changed, documents)
            chosen = [document for document, flag in zip(documents, changed, strict=True) if flag]
            nodes = await self._atransform(chosen)
            await asyncio.to_thread(self._replace, chosen, nodes, **update_kwargs.get("insert_kwargs", {}))
            return changed

    def _changed(self, documents: Sequence[Document]) -> list[bool]:
        given = several("documents", documents)
        return [self.docstore.get_document_hash(d.id_) != d.hash for d in given]

    def _transform(self, documents: Sequence[Document]) -> list[BaseNode]:
        hashes = {d.id_: d.hash for d in several("documents", documents)}
        return sourced(run_transformations(documents, self._transformations, show_progress=self._show_progress), hashes)

    async def _atransform(self, documents: Sequence[Document]) -> list[BaseNode]:
        hashes = {d.id_: d.hash for d in several("documents", documents)}
        nodes = await arun_transformations(documents, self._transformations, show_progress=self._show_progress)
        return sourced(nodes, hashes)

    def _replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Store the nodes made of `documents`, then drop what is left of the documents' former nodes."""
        self._put(nodes, replaced=[d.id_ for d in documents], **insert_kwargs)
        if self.docstore is not self._own_docstore:
            self.docstore.set_document_hashes({d.id_: d.hash for d in documents})

    def _put(
        self,
        nodes: Sequence[BaseNode],
        replaced: Sequence[str] = (),
        on_progress: OnProgress | None = None,
        on_invalid: OnInvalid | None = None,
        **time: Any,
    ) -> None:
        if unknown := sorted(set(time) - set(Period._fields)):
            raise ConfigError(f"unknown {unknown}; there are on_progress, on_invalid, {', '.join(Period._fields)}")
        if not nodes and not replaced:
            return  # without a write lock, so that a memory opened for reading can be an index
        nodes = sourced(several("nodes", nodes))
        self._detach_objects(nodes)
        progress = on_progress or (None if self._show_progress else _silent)
        with self._own_docstore.ledger.changing() as ledger:
            if (given := time.get("replaces")) is not None:  # documents of LlamaIndex's, or nodes
                names = [given] if isinstance(given, str) else id_list(given)
                time["replaces"] = [[n for name in names for n in ledger.nodes_of(name) or [name]]] * len(nodes)
            documents = dated([to_document(node) for node in nodes], time)
            report = self._memory.add(documents, on_progress=progress, on_invalid=on_invalid or self._on_invalid)
            kept = set(report.ids)
            ledger.stored((d.id, d.metadata) for d in documents if d.id in kept)
            failed = {node.ref_doc_id for node in nodes if node.node_id not in kept}
            former = [n for name in replaced if name not in failed for n in ledger.nodes_of(name) if n not in kept]
            if former:
                self._memory.delete(former)
                ledger.deleted(former)
        for name, reason in report.skipped:
            _log.warning("left out %s: %s", name, reason)
        self._tell_docstore([node for node in nodes if node.node_id in kept], former)

    def _detach_objects(self, nodes: Iterable[BaseNode]) -> None:
        """Keep objects that cannot be stored (engines, retrievers) beside the index, as every LlamaIndex index does."""
        for node in nodes:
            if isinstance(node, IndexNode):
                try:
                    node.to_dict()
                except ValueError:
                    self._object_map[node.index_id] = node.obj
                    node.obj = None

    def _tell_docstore(self, nodes: Sequence[BaseNode], deleted: Sequence[str]) -> None:
        """A document store that was given is kept in step; the index's own needs no telling."""
        if self.docstore is self._own_docstore:
            return
        self.docstore.add_documents(nodes, allow_update=True)
        for node in deleted:
            self.docstore.delete_document(node, raise_error=False)

    # -- deleting --------------------------------------------------------------------------------------------------

    def delete_nodes(self, node_ids: Sequence[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Forget nodes, durably; unknown ids are ignored. `delete_from_docstore` is for a document store you gave."""
        node_ids = id_list(node_ids)
        with self._own_docstore.ledger.changing() as ledger:
            self._memory.delete(node_ids)
            ledger.deleted(node_ids)
        if delete_from_docstore:
            self._tell_docstore([], node_ids)

    async def adelete_nodes(
        self, node_ids: Sequence[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes`, awaited."""
        await asyncio.to_thread(self.delete_nodes, node_ids, delete_from_docstore, **delete_kwargs)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        self.delete_nodes([node_id], **delete_kwargs)

    # -- using -----------------------------------------------------------------------------------------------------

    def as_retriever(
        self,
        similarity_top_k: int = 4,
        filters: MetadataFilters | None = None,
        doc_ids: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> MSARetriever:
        """A retriever; of `kwargs`, by, at, history, object_map, callback_manager and verbose are used.

        Raises ConfigError for `node_ids` and for query modes of vector stores, which a memory has nothing like.
        """
        if kwargs.get("node_ids") is not None:
            raise ConfigError("node_ids cannot restrict a search; use doc_ids, or filters over metadata")
        mode = kwargs.get("vector_store_query_mode", VectorStoreQueryMode.DEFAULT)
        if mode != VectorStoreQueryMode.DEFAULT:
            raise ConfigError(f"vector_store_query_mode={mode!r} is for vector stores; leave it out")
        taken = ("by", "at", "history", "object_map", "callback_manager", "verbose")
        chosen = {key: kwargs[key] for key in taken if key in kwargs}
        return MSARetriever(self, similarity_top_k, filters, doc_ids, **chosen)

    def as_query_engine(self, llm: LLMType | None = None, **kwargs: Any) -> BaseQueryEngine:
        """A query engine: retrieval by routing, then reading by id in the memory's reading mode.

        With another `llm`, or with prompt templates, a response_mode or output_cls, it is text RAG: the retrieved
        nodes' text in a prompt, for `llm` or else for the memory's backbone. `Settings.llm` is never used. `kwargs`
        are those of `as_retriever`, of `RetrieverQueryEngine.from_args`, and the generation settings.
        """
        return query_engine(self, llm, **kwargs)

    def as_chat_engine(
        self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **kwargs: Any
    ) -> BaseChatEngine:
        """A chat engine. ChatMode.BEST without `llm` condenses the question and asks the query engine above."""
        if llm is None and chat_mode == ChatMode.BEST:
            chat_mode = ChatMode.CONDENSE_QUESTION
        return super().as_chat_engine(chat_mode, llm=language_model(self, llm), **kwargs)

    # -- keeping ---------------------------------------------------------------------------------------------------

    def persist(self, persist_dir: str | Path) -> None:
        """Write where the memory is and how it was opened; its contents are on disk already.

        The place is kept relative to `persist_dir`, so that both folders can be moved together. A document store that
        was given is written too.
        """
        storage.write(Path(persist_dir), self._origin, self.index_id)
        if self.docstore is not self._own_docstore:
            self.docstore.persist(str(Path(persist_dir) / DEFAULT_PERSIST_FNAME))

    @classmethod
    def from_persist_dir(
        cls, persist_dir: str | Path, *, memory: LatentMemory | None = None, **kwargs: Any
    ) -> MSAIndex:
        """The index that `persist` wrote, opened as it was, or over an open `memory` of the same namespace.

        `kwargs` are those of the constructor; a model that was given as a loaded `Backbone` has to be given again.
        Raises BankNotFoundError, BankFormatError, and ConfigError for another namespace.
        """
        folder = Path(persist_dir)
        origin, index_id = storage.read(folder)
        storage.check_namespace(origin, memory.namespace if memory else kwargs.get("namespace", origin.namespace))
        if memory is None:
            kept = {} if "config" in kwargs else origin.settings
            kwargs = {"path": origin.bank, **replace(origin, settings=kept).open_settings(), **kwargs}
        if "storage_context" not in kwargs and (folder / DEFAULT_PERSIST_FNAME).is_file():
            docstore = SimpleDocumentStore.from_persist_dir(str(folder))
            kwargs["storage_context"] = StorageContext.from_defaults(docstore=docstore)
        return cls(index_struct=storage.MSAIndexStruct(index_id=index_id), memory=memory, **kwargs)

    def close(self) -> None:
        """Close the memory, if this index opened it; idempotent."""
        if self._owns_memory:
            self._memory.close()

    def __enter__(self) -> MSAIndex:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _context(self, given: StorageContext | None) -> StorageContext:
        context = given or StorageContext.from_defaults()
        store = context.docstore
        empty = isinstance(store, SimpleDocumentStore) and not store.get_all_document_hashes()
        if empty or isinstance(store, MSADocumentStore):
            return replace(context, docstore=self._own_docstore)
        return context


def _silent(progress: Progress) -> None:
    """LlamaIndex shows no progress unless asked to."""


INDEX_STRUCT_TYPE_TO_INDEX_CLASS[storage.TYPE] = MSAIndex  # type: ignore[index]
