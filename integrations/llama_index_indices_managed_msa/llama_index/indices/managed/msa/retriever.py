"""The memory as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.indices.managed.msa.records import to_node
from llama_index.llms.msa.filters import memory_filter
from msa_plugin.integrating import By, When, asof, listed
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Hit


class Searched(Protocol):
    """What a retriever takes from an `MSAIndex`."""

    @property
    def object_map(self) -> dict[str, Any]:
        """What nodes stand for."""

    @property
    def memory(self) -> LatentMemory:
        """Where the nodes are."""

    @property
    def callback_manager(self) -> CallbackManager:
        """Who is told."""


class MSARetriever(BaseRetriever):
    """The `similarity_top_k` nodes with the highest routing scores, best first.

    A node's score is its relevance (`Hit.relevance`, from 0 to 1), which means the same for every question, so that
    cutoffs such as `SimilarityPostprocessor(similarity_cutoff=0.3)` do; where the adapter was not fitted to know it,
    the routing score. The order is that of routing scores, which may differ a little.

    `filters` (and `doc_ids`, ids of whole LlamaIndex documents) apply before the best are taken. A query bundle with
    `custom_embedding_strs`, as HyDE makes them, is routed once for each of its strings; a node keeps its best score.
    Asynchronous retrieval runs on a worker thread.

    `by="passage"` returns passages of nodes instead: text nodes of some hundred tokens, with `start_char_idx` and
    `end_char_idx` in the node that is their source. Nodes are the default: they come back as they were inserted, and
    the memory's own reading picks passages itself. Choose passages where another llm reads long documents.

    Nodes are those that are valid now, or as of `at` (UTC where it has no zone), or with `history` of all times;
    where validity has bounds the returned copy's metadata has `valid_from`, `valid_until` and `replaced_by`.
    """

    def __init__(
        self,
        index: Searched,
        similarity_top_k: int = 4,
        filters: MetadataFilters | None = None,
        doc_ids: Sequence[str] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: Mapping[str, Any] | None = None,
        verbose: bool = False,
        by: By = "document",
        at: When | None = None,
        history: bool = False,
    ) -> None:
        """Raises InvalidQueryError for filters that the memory cannot apply, and for what is no date."""
        self._memory, self._by, self._at, self._history = index.memory, by, at, history
        asof(at, history)
        self.similarity_top_k = similarity_top_k
        self._filter = memory_filter(filters, doc_ids)
        super().__init__(callback_manager=callback_manager or index.callback_manager, verbose=verbose)
        # The index's own map, not a copy, so that objects inserted later are found.
        self.object_map = index.object_map if object_map is None else {**index.object_map, **object_map}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        given = query_bundle.custom_embedding_strs
        questions = listed("custom_embedding_strs", given) if given else [query_bundle.query_str]
        time: dict[str, Any] = {"at": self._at, "history": self._history}
        rows = self._memory.retrieve(questions, self.similarity_top_k, filter=self._filter, by=self._by, **time)
        best: dict[tuple[str, int], Hit] = {}
        for hit in (hit for row in rows for hit in row):
            name = (hit.id, hit.passage.start if hit.passage else -1)
            if name not in best or hit.score > best[name].score:
                best[name] = hit
        ranked = sorted(best.values(), key=lambda hit: -hit.score)[: self.similarity_top_k]
        return [NodeWithScore(node=to_node(hit), score=_score(hit)) for hit in ranked]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _score(hit: Hit) -> float:
    return float(hit.score if hit.relevance is None else hit.relevance)
