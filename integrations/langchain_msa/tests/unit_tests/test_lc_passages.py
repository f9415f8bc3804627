"""Passages instead of documents, from the retriever and the store."""

from __future__ import annotations

import pytest

from facade import TOPICS, manual
from langchain_msa import MSARetriever, MSAVectorStore, create_msa_chain
from msa_plugin.errors import InvalidQueryError

MANUAL = manual(*TOPICS)


@pytest.fixture
def store(filled):
    filled.delete(list(filled.ids()))
    store = MSAVectorStore(filled)
    store.add_texts([MANUAL], [{"title": "Manual", "year": 1900}], ids=["manual"])
    return store


def test_passages_have_their_documents_id_and_metadata_and_say_where_they_begin(store):
    retriever = MSARetriever(memory=store.memory, k=2, by="passage")
    for found in (
        retriever.invoke("violin"),
        store.similarity_search("violin", 2, by="passage"),
        store.as_retriever(search_kwargs={"k": 2, "by": "passage"}).invoke("violin"),
        [d for d, _ in store.similarity_search_with_score("violin", 2, by="passage")],
        MSARetriever(memory=store.memory, k=2).invoke("violin", by="passage"),
    ):
        assert [d.id for d in found] == ["manual", "manual"]
        for document in found:
            start = document.metadata["start_index"]
            assert MANUAL[start : start + len(document.page_content)] == document.page_content
            assert document.metadata["year"] == 1900
        assert "violin" in found[0].page_content


def test_documents_are_the_default_and_come_back_as_they_were(store):
    for found in (store.similarity_search("violin"), store.get_by_ids(["manual"])):
        [document] = found
        assert (document.page_content, document.metadata) == (MANUAL, {"title": "Manual", "year": 1900})


def test_something_else_is_refused(store):
    with pytest.raises(InvalidQueryError, match="by is"):
        store.similarity_search("violin", by="sentence")


def test_a_chain_over_passages_reads_their_documents(store, llm):
    chain = create_msa_chain(MSARetriever(memory=store.memory, k=3, by="passage"), llm)
    assert {s["id"] for s in chain.invoke("violin")["sources"]} == {"manual"}
