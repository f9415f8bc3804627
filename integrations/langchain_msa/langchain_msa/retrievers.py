"""A LangChain retriever over a `LatentMemory`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import Field

from langchain_msa._convert import scored, to_langchain
from msa_plugin.integrating import By, When
from msa_plugin.memory import LatentMemory


class MSARetriever(BaseRetriever):
    """The documents that routing finds, best first, each with its routing score in `metadata["score"]`.

    `metadata["relevance"]` is how likely it answers (`Hit.relevance`), where the adapter was fitted to know.

    `MSARetriever(memory=memory, k=3).invoke("Who built the mill?")`; `k`, `filter`, `by`, `at` and `history` may also
    be given to `invoke`, where they replace the constructor's. A filter (a mapping over metadata as
    `LatentMemory.retrieve` takes it, or a function of a document's metadata) applies before the k best are taken.
    Raises what `LatentMemory.retrieve` does.

    `by="passage"` returns passages of some hundred tokens instead, with their document's id and metadata and, as text
    splitters do, `metadata["start_index"]`. Documents are the default: what was added comes back as it was, and
    `create_msa_chain` reads documents by id, picking the passages itself. Choose passages for a prompt of your own.
    """

    memory: LatentMemory = Field(exclude=True, repr=False)
    k: int = Field(default=4, ge=1)
    filter: Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | None = None
    at: When | None = None
    """Find what was valid then (UTC where it has no zone); None: now."""
    history: bool = False
    """Find what was superseded and what has expired too; `metadata["valid_until"]` says until when it was valid."""
    min_relevance: float | None = Field(default=None, ge=0.0, le=1.0)
    """Leave out what is less relevant (`Hit.relevance`), all of it where nothing fits; None: the k best, always."""
    score_key: str | None = "score"
    """Metadata field for the routing score, in the returned copy only; None leaves metadata as they were stored."""
    by: By = "document"
    layer_scores: bool = False
    """Also write the score's parts by routing layer into `metadata["layer_scores"]`."""

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | None = None,
        by: By | None = None,
        at: When | None = None,
        history: bool | None = None,
    ) -> list[Document]:
        wanted, where = self.k if k is None else k, self.filter if filter is None else filter
        least = self.min_relevance
        time: dict[str, Any] = {"at": self.at if at is None else at}
        time["history"] = self.history and at is None if history is None else history
        hits = self.memory.retrieve(query, wanted, filter=where, by=by or self.by, min_relevance=least, **time)
        return [to_langchain(hit, scored(hit, self.score_key, layers=self.layer_scores)) for hit in hits]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun | None = None, **kwargs: Any
    ) -> list[Document]:
        return await run_in_executor(None, self._get_relevant_documents, query, **kwargs)
