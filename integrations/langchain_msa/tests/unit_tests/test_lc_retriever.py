"""The retriever, and LangChain's retriever tools over store and retriever."""

from __future__ import annotations

import pytest
from langchain_classic.retrievers import EnsembleRetriever
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import create_retriever_tool
from pydantic import ValidationError

from facade import about
from langchain_msa import MSARetriever, MSAVectorStore
from msa_plugin.errors import InvalidQueryError


class Fixed(BaseRetriever):
    """Returns what it was given."""

    found: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.found


async def test_k_and_filter_in_the_constructor_and_in_a_call(filled):
    retriever = MSARetriever(memory=filled, k=3, filter={"even": True})
    for found in (retriever.invoke("violin"), await retriever.ainvoke("violin")):
        assert len(found) == 3 and all(d.metadata["even"] for d in found)
    for found in (
        retriever.invoke("violin", k=1, filter={"number": 5}),
        await retriever.ainvoke("violin", k=1, filter=lambda metadata: metadata["number"] == 5),
    ):
        assert [d.id for d in found] == ["compiler"]
    assert [len(d) for d in await retriever.abatch(["violin", "glacier"], k=2)] == [2, 2]


def test_scores_are_in_metadata_by_layer_if_asked(filled):
    hits = filled.retrieve("violin", 2)
    for hit, document in zip(hits, MSARetriever(memory=filled, k=2).invoke("violin"), strict=True):
        assert document.id == hit.id and document.page_content == hit.text
        assert document.metadata == {"title": hit.title, **hit.metadata, "score": hit.score}
    layered = MSARetriever(memory=filled, k=1, layer_scores=True, score_key="routing").invoke("violin")[0].metadata
    assert layered["routing"] == hits[0].score and "score" not in layered
    assert layered["layer_scores"] == {str(layer): score for layer, score in hits[0].layer_scores.items()}
    assert "score" not in MSARetriever(memory=filled, score_key=None).invoke("violin")[0].metadata


def test_a_score_of_the_users_own_stays_in_the_store(memory):
    store = MSAVectorStore.from_texts(["one"], metadatas=[{"score": "A+"}], memory=memory, ids=["a"])
    assert isinstance(store.as_retriever().invoke("one")[0].metadata["score"], float)
    assert store.similarity_search("one")[0].metadata == {"score": "A+"}


def test_bad_arguments(filled):
    with pytest.raises(ValidationError):
        MSARetriever(memory=filled, k=0)
    with pytest.raises(ValidationError):
        MSARetriever(k=1)
    retriever = MSARetriever(memory=filled)
    for wrong in ({"k": 0}, {"k": -3}, {"filter": {"$nor": []}}):
        with pytest.raises(InvalidQueryError):
            retriever.invoke("violin", **wrong)
    with pytest.raises(TypeError, match="namespace"):
        retriever.invoke("violin", namespace="other")
    assert "memory" not in repr(retriever)


async def test_in_an_ensemble(store):
    other = Fixed(found=[Document("elsewhere", id="x"), Document(about("violin"), id="violin")])
    ensemble = EnsembleRetriever(retrievers=[store.as_retriever(search_kwargs={"k": 2}), other], weights=[0.5, 0.5])
    for found in (ensemble.invoke(about("violin")), await ensemble.ainvoke(about("violin"))):
        assert found[0].page_content == about("violin")
        assert {"x", "violin"} <= {d.id for d in found} and len(found) == 3


async def test_as_a_tool(filled, store):
    for retriever in (store.as_retriever(search_kwargs={"k": 1}), MSARetriever(memory=filled, k=1)):
        tool = create_retriever_tool(retriever, "search_notes", "Searches notes.")
        for text in (tool.invoke({"query": about("violin")}), await tool.ainvoke({"query": about("violin")})):
            assert text == about("violin")
