"""Relevance and "the memory does not say" in LangChain: scores, thresholds, messages, chains and events."""

import pytest
from langchain_core.callbacks import BaseCallbackHandler

from facade import opened, topics
from langchain_msa import ChatMSA, MSARetriever, MSAVectorStore, create_msa_chain
from msa_plugin import prompts
from tiny import judging, tiny_adapter

THERE, AWAY = "a text on beekeeping", "What is the capital of Peru?"


@pytest.fixture
def memory(tmp_path, backbone):
    with opened(tmp_path, backbone, judging(tiny_adapter(backbone)), lexical=1.0, instruction=None) as memory:
        memory.add(topics())
        yield memory


def test_relevance_scores_are_relevance(memory):
    store = MSAVectorStore(memory)
    hits = memory.retrieve(THERE, k=3)
    found = store.similarity_search_with_relevance_scores(THERE, k=3)
    assert [(d.id, s) for d, s in found] == [(h.id, h.relevance) for h in hits]
    assert [d.id for d, _ in store.similarity_search_with_relevance_scores(THERE, k=8, score_threshold=0.5)] == [
        "beekeeping"
    ]
    assert store.similarity_search_with_relevance_scores(AWAY, k=8, score_threshold=0.5) == []


def test_thresholds_of_retrievers_are_relevance(memory):
    store = MSAVectorStore(memory)
    threshold = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"k": 8, "score_threshold": 0.5}
    )
    [only] = threshold.invoke(THERE)
    assert only.id == "beekeeping" and only.metadata["relevance_score"] == only.metadata["relevance"] > 0.5
    assert threshold.invoke(AWAY) == []
    assert store.as_retriever(search_kwargs={"min_relevance": 0.5}).invoke(AWAY) == []
    retriever = MSARetriever(memory=memory, k=8, min_relevance=0.5)
    assert [d.id for d in retriever.invoke(THERE)] == ["beekeeping"] and retriever.invoke(AWAY) == []
    assert len(MSARetriever(memory=memory, k=8).invoke(AWAY)) == 8


def test_messages_say_that_memory_does_not(memory):
    heard = []

    class Ears(BaseCallbackHandler):
        def on_custom_event(self, name, data, **rest):
            heard.append((name, data))

    message = ChatMSA(memory, mode="memory").invoke(AWAY, config={"callbacks": [Ears()]})
    assert message.content == prompts.UNKNOWN
    assert message.response_metadata["abstained"] and message.response_metadata["sources"] == []
    assert message.response_metadata["finish_reason"] == "abstained"
    assert ("msa_abstained", {"reason": "relevance"}) in heard
    assert "".join(chunk.text for chunk in ChatMSA(memory, mode="memory").stream(AWAY)) == prompts.UNKNOWN
    answered = ChatMSA(memory, mode="memory", max_tokens=4).invoke(THERE)
    assert not answered.response_metadata["abstained"]
    assert answered.response_metadata["sources"][0]["relevance"] > 0.5
    assert all(set(s) == {"id", "score", "hop", "relevance", "quotes"} for s in answered.response_metadata["sources"])


def test_a_chain_over_a_threshold_reads_nothing_it_should_not(memory):
    retriever = MSARetriever(memory=memory, min_relevance=0.5)
    said = create_msa_chain(retriever, ChatMSA(memory, max_tokens=4)).invoke(THERE)
    assert [s["id"] for s in said["sources"]] == ["beekeeping"] and said["abstained"] is False
