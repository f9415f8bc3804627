"""The memory as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.indices.managed.msa.filters import memory_filter
from llama_index.indices.managed.msa.records import to_node
from msa_plugin.arguments import listed
from msa_plugin.types import Hit

if TYPE_CHECKING:
    from llama_index.indices.managed.msa.base import MSAIndex


class MSARetriever(BaseRetriever):
    """The `similarity_top_k` nodes with the highest routing scores, best first.

    `filters` (and `doc_ids`, ids of whole LlamaIndex documents) apply before the best are taken. A query bundle with
    `custom_embedding_strs`, as HyDE makes them, is routed once for each of its strings; a node keeps its best score.
    Asynchronous retrieval runs on a worker thread.
    """

    def __init__(
        self,
        index: MSAIndex,
        similarity_top_k: int = 4,
        filters: MetadataFilters | None = None,
        doc_ids: Sequence[str] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: Mapping[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        """Raises InvalidQueryError for filters that the memory cannot apply."""
        self._memory = index.memory
        self.similarity_top_k = similarity_top_k
        self._filter = memory_filter(filters, doc_ids)
        super().__init__(callback_manager=callback_manager or index.callback_manager, verbose=verbose)
        # The index's own map, not a copy, so that objects inserted later are found.
        self.object_map = index.object_map if object_map is None else {**index.object_map, **object_map}

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        given = query_bundle.custom_embedding_strs
        questions = listed("custom_embedding_strs", given) if given else [query_bundle.query_str]
        rows = self._memory.retrieve(questions, self.similarity_top_k, filter=self._filter)
        best: dict[str, Hit] = {}
        for hit in (hit for row in rows for hit in row):
            if hit.id not in best or hit.score > best[hit.id].score:
                best[hit.id] = hit
        ranked = sorted(best.values(), key=lambda hit: -hit.score)[: self.similarity_top_k]
        return [NodeWithScore(node=to_node(hit), score=float(hit.score)) for hit in ranked]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)
