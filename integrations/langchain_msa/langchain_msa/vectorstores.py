"""A LangChain vector store over a `LatentMemory`: no embedding model and no vectors, the same calls."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_msa._convert import OnInvalid, opened, scored, to_langchain, to_memory
from msa_plugin.errors import ConfigError, InvalidDocumentError, InvalidQueryError
from msa_plugin.integrating import By, When, dated, listed
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Filter, Hit, OnProgress, Period

Store = TypeVar("Store", bound="MSAVectorStore")
# Keywords of from_documents() and from_texts() that are add_documents()'s; the rest opens the memory.
_ADDING = ("ids", "batch_size", "on_invalid", "on_progress", *Period._fields)


class MSAVectorStore(VectorStore):
    """Drop-in for an embedding model and its vector store: `MSAVectorStore.from_documents(docs, path="bank/")`.

    Documents are encoded whole by the language model itself and kept in a folder; searches return what routing finds.
    `Document.id` is the memory's id and metadata come back as they were given, as JSON keeps them (a tuple becomes a
    list). `metadata["title"]` is also the memory's title: it is encoded and read in front of the text.

    `filter=` of every search is a mapping over metadata ({"year": {"$lt": 1900}}, {"tag": {"$in": [...]}}; see
    `msa_plugin.bank.filters`) or a function of a document's metadata, and applies before the k best are taken.
    A store sees one namespace of the bank, the memory's, and no argument leads out of it.

    `by="passage"` of every search (`search_kwargs={"by": "passage"}` of a retriever) returns passages of some hundred
    tokens, with their document's id and metadata and `metadata["start_index"]`. Documents are the default: searches of
    a store return what was added to it, and `create_msa_chain` reads documents by id, picking the passages itself.
    Searches find what is valid now, or with `at=` as of a date, or with `history=True` superseded documents too.
    """

    def __init__(self, memory: LatentMemory, embedding: Embeddings | None = None) -> None:
        """Wrap an open memory; `embedding` is accepted for old call sites and ignored with a warning."""
        _ignore_embedding(embedding)
        self.memory = opened(memory, None, {})

    @classmethod
    def from_documents(
        cls: type[Store], documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Store:
        """Open a memory and add `documents`.

        Takes `memory=`, or `path=` and settings of `LatentMemory.open` (model, adapter, namespace, ...), and what
        `add_documents` takes. A memory that this call opened stays open with the store (`store.close()`), and is
        closed again when adding fails.
        """
        _ignore_embedding(embedding)
        adding = {name: kwargs.pop(name) for name in _ADDING if name in kwargs}
        given, path = kwargs.pop("memory", None), kwargs.pop("path", None)
        memory = opened(given, path, kwargs)
        try:
            store = cls(memory)
            store.add_documents(documents, **adding)
        except BaseException:
            if given is None:
                memory.close()
            raise
        return store

    @classmethod
    async def afrom_documents(
        cls: type[Store], documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Store:
        """`from_documents`, awaited."""
        return await run_in_executor(None, cls.from_documents, documents, embedding, **kwargs)

    @classmethod
    def from_texts(
        cls: type[Store],
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        memory: LatentMemory | None = None,
        path: str | Path | None = None,
        **kwargs: Any,
    ) -> Store:
        """Open a memory and add `texts`; see `from_documents`."""
        _ignore_embedding(embedding)
        documents = list(_documents(texts, metadatas))
        return cls.from_documents(documents, ids=ids, memory=memory, path=path, **kwargs)

    @classmethod
    async def afrom_texts(
        cls: type[Store],
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Store:
        """`from_texts`, awaited."""
        return await run_in_executor(None, cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs)

    @property
    def embeddings(self) -> None:
        """None: no embedding model is involved."""
        return None

    def close(self) -> None:
        """Close the memory, also for whatever else uses it. Idempotent."""
        self.memory.close()

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        on_invalid: OnInvalid = "raise",
        on_progress: OnProgress | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store documents; durable on return. Returns their ids, in order.

        An id comes from `ids`, else from `Document.id`, else from text and metadata. A known id is replaced when its
        text, title or metadata differ and costs nothing when not. Everything is checked first; then every `batch_size`
        documents (default: all) are one call of `LatentMemory.add`. `on_invalid="skip"` leaves out, and logs, what
        cannot be stored (empty pages of a PDF, for example). `valid_from`, `valid_until` and `replaces` (see
        `msa_plugin.types.Document`) are one for all, or a list of one for each. Other keywords are ignored with a
        warning.

        Raises InvalidDocumentError, DuplicateDocumentError, ValueError for a wrong number of ids, and what
        `LatentMemory.add` raises.
        """
        time = {name: kwargs.pop(name) for name in Period._fields if name in kwargs}
        _ignore(kwargs)
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        stored = dated(to_memory(documents, ids, on_invalid), time)
        size = batch_size or max(len(stored), 1)
        for start in range(0, len(stored), size):
            self.memory.add(stored[start : start + size], on_progress=on_progress)
        return [document.id for document in stored]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Encode and store texts; see `add_documents`."""
        return self.add_documents(_documents(texts, metadatas), ids=ids, **kwargs)

    def delete(self, ids: list[str] | None = None, *, delete_all: bool = False, **kwargs: Any) -> bool:
        """Forget documents by id; ids that are not there are no error. Returns True.

        Without ids this raises ConfigError instead of emptying the store, since a None is more often a mistake;
        `delete(delete_all=True)` forgets everything in this namespace. An empty list deletes nothing.
        """
        if kwargs:
            raise ConfigError(f"delete() takes ids or delete_all=True, not {', '.join(sorted(kwargs))}")
        if ids is None and not delete_all:
            raise ConfigError("delete() needs ids; to forget everything in this namespace say delete(delete_all=True)")
        if ids is not None and delete_all:
            raise ConfigError("delete() takes ids or delete_all=True, not both")
        self.memory.delete(list(self.memory.ids()) if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Stored documents, in the order of `ids`; unknown ids are left out."""
        return [to_langchain(document) for document in self.memory.get(ids)]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` best documents, best first. `filter=` as in the class description.

        Raises InvalidQueryError for a blank query, a bad filter, k < 1 or keywords that are not known: one that was
        meant to narrow the search must not be passed over.
        """
        return [to_langchain(hit) for hit in self._hits(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """`similarity_search` with routing scores: higher is better, within `memory.score_bounds`."""
        return [(to_langchain(hit), float(hit.score)) for hit in self._hits(query, k, **kwargs)]

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """What LangChain's thresholds are compared with: `Hit.relevance`, which means the same for every question.

        An adapter that was not fitted to know it has the score instead, on a scale from its lowest to its highest.
        """
        return [(to_langchain(hit), self._relevance(hit)) for hit in self._hits(query, k, **kwargs)]

    def _relevance(self, hit: Hit) -> float:
        return self._select_relevance_score_fn()(hit.score) if hit.relevance is None else float(hit.relevance)

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The `k` of the `fetch_k` best documents that are relevant and unlike each other (`lambda_mult` 1: relevance).

        Likeness is the cosine of pooled routing keys, relevance the routing score on the same scale. `filter=` applies
        before the `fetch_k` best are taken.
        """
        return [to_langchain(hit) for hit in self._diverse(query, k, fetch_k, lambda_mult, **kwargs)]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> NoReturn:
        """Not available: there are no embedding vectors. Raises NotImplementedError."""
        raise NotImplementedError("a latent memory has no embedding vectors; search with the text itself")

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> NoReturn:
        """Not available: there are no embedding vectors. Raises NotImplementedError."""
        raise NotImplementedError("a latent memory has no embedding vectors; search with the text itself")

    def as_retriever(self, **kwargs: Any) -> MSAVectorStoreRetriever:
        """A retriever (`search_type` similarity, mmr or similarity_score_threshold) with scores in metadata."""
        tags = kwargs.pop("tags", None) or self._get_retriever_tags()
        return MSAVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        low, high = self.memory.score_bounds
        if math.isinf(low) or math.isinf(high):  # keys of arbitrary length: no linear scale has ends
            return lambda score: 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, score))))
        # Rounding may leave a score a little outside the bounds.
        return lambda score: min(1.0, max(0.0, (float(score) - low) / (high - low)))

    def _hits(
        self,
        query: str,
        k: int,
        *,
        filter: Filter | None = None,
        min_relevance: float | None = None,
        fetch_k: int | None = None,
        by: By = "document",
        at: When | None = None,
        history: bool = False,
        **unknown: Any,
    ) -> list[Hit]:
        """`fetch_k` is what stores that filter after the search need; here it changes nothing."""
        if unknown:
            raise InvalidQueryError(
                f"unknown search arguments: {', '.join(sorted(unknown))}; there are k, filter, by, min_relevance, at "
                "and history, and fetch_k and lambda_mult for mmr. A namespace is chosen when the memory is opened"
            )
        return self.memory.retrieve(query, k, filter=filter, by=by, min_relevance=min_relevance, at=at, history=history)

    def _diverse(
        self, query: str, k: int, fetch_k: int, lambda_mult: float, *, filter: Filter | None = None, **unknown: Any
    ) -> list[Hit]:
        if not 0.0 <= lambda_mult <= 1.0:
            raise InvalidQueryError(f"lambda_mult must be from 0 to 1, not {lambda_mult}")
        if k < 1:
            raise InvalidQueryError(f"k must be at least 1, not {k}")
        hits = self._hits(query, max(fetch_k, k), filter=filter, **unknown)
        vectors = self.memory.routing_keys([hit.id for hit in hits])
        hits = [hit for hit in hits if hit.id in vectors]  # another thread may have deleted one since
        if not hits:
            return []
        relevance = self._select_relevance_score_fn()
        asked = np.array([2.0 * relevance(hit.score) - 1.0 for hit in hits])
        keys = np.stack([vectors[hit.id] for hit in hits])
        return [hits[row] for row in _diversified(asked, keys @ keys.T, lambda_mult, k)]


class MSAVectorStoreRetriever(VectorStoreRetriever):
    """What `MSAVectorStore.as_retriever` returns: `VectorStoreRetriever` that keeps scores.

    `metadata["score"]` (`score_key`; None: nothing is written) of every returned document is its routing score, for
    all search types. Under `similarity_score_threshold`, `metadata["relevance_score"]` is the number from 0 to 1 that
    was compared with the threshold: the hit's relevance, or where the adapter knows none the score on such a scale.
    What is stored is not changed.
    """

    score_key: str | None = "score"

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[Document]:
        store, options = self.vectorstore, {**self.search_kwargs, **kwargs}
        assert isinstance(store, MSAVectorStore)
        if self.search_type == "mmr":
            spread = {"k": 4, "fetch_k": 20, "lambda_mult": 0.5, **options}
            return [to_langchain(hit, scored(hit, self.score_key)) for hit in store._diverse(query, **spread)]
        threshold = options.pop("score_threshold", None) if self.search_type != "similarity" else None
        hits = store._hits(query, **{"k": 4, **options})
        if self.search_type == "similarity":
            return [to_langchain(hit, scored(hit, self.score_key)) for hit in hits]
        return [
            to_langchain(hit, scored(hit, self.score_key) | ({"relevance_score": share} if self.score_key else {}))
            for hit, share in ((hit, store._relevance(hit)) for hit in hits)
            if threshold is None or share >= threshold
        ]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, self._get_relevant_documents, query, **kwargs)


def _diversified(asked: np.ndarray, alike: np.ndarray, weight: float, k: int) -> list[int]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): rows in the order they are chosen.

    `asked` [n] is likeness to the query, `alike` [n, n] that of documents to each other.
    """
    chosen = [int(asked.argmax())]
    left = [row for row in range(len(asked)) if row != chosen[0]]
    while left and len(chosen) < k:
        repeated = alike[np.ix_(left, chosen)].max(axis=1)
        best = int((weight * asked[left] - (1.0 - weight) * repeated).argmax())
        chosen.append(left.pop(best))
    return chosen


def _documents(texts: Iterable[str], metadatas: Sequence[dict[str, Any]] | None) -> Iterator[Document]:
    given = listed("texts", texts, InvalidDocumentError)
    metadatas = None if metadatas is None else listed("metadatas", metadatas, InvalidDocumentError)
    if metadatas and len(metadatas) != len(given):
        raise ValueError(f"there are {len(metadatas)} metadatas for {len(given)} texts; give one for each")
    return (Document(page_content=t, metadata=m or {}) for t, m in zip(given, metadatas or cycle([{}]), strict=False))


def _ignore_embedding(embedding: object) -> None:
    if embedding is not None:
        warnings.warn(
            f"MSAVectorStore does not use {type(embedding).__name__}: the language model's own states take the place "
            "of embeddings; leave the argument out",
            stacklevel=3,
        )


def _ignore(keywords: dict[str, Any]) -> None:
    if keywords:
        warnings.warn(f"MSAVectorStore ignores {', '.join(sorted(keywords))}", stacklevel=3)
