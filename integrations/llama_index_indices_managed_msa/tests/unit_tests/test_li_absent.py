"""Relevance and "the memory does not say" in LlamaIndex: node scores, cutoffs, responses, streams and events."""

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.postprocessor import SimilarityPostprocessor

from facade import opened, saying
from llama_index.indices.managed.msa import MSAIndex
from llama_index.llms.msa import MSALLM
from msa_plugin import prompts
from tiny import judging, tiny_adapter

THERE, AWAY = "a text on beekeeping", "What is the capital of Peru?"


@pytest.fixture
def memory(tmp_path, backbone):
    with opened(tmp_path, backbone, judging(tiny_adapter(backbone)), lexical=1.0, instruction=None) as memory:
        yield memory


@pytest.fixture
def index(memory, documents):
    return MSAIndex.from_documents(documents, memory=memory)


@pytest.fixture
def absent(monkeypatch, backbone):
    """Every answer is the reader's word for what is not there."""
    saying(monkeypatch, backbone, prompts.ABSENT)


def test_scores_are_relevance_and_cutoffs_cut(index):
    nodes = index.as_retriever(similarity_top_k=8).retrieve(THERE)
    hits = index.memory.retrieve(THERE, k=8)
    assert [(n.node_id, n.score) for n in nodes] == [(h.id, h.relevance) for h in hits]
    cutoff = SimilarityPostprocessor(similarity_cutoff=0.5)
    assert [n.node_id for n in cutoff.postprocess_nodes(nodes)] == [hits[0].id]
    assert cutoff.postprocess_nodes(index.as_retriever(similarity_top_k=8).retrieve(AWAY)) == []


def test_the_model_says_that_memory_does_not(index):
    llm = MSALLM(index.memory, mode="memory")
    for response in (llm.complete(AWAY), llm.chat([ChatMessage(content=AWAY)]), list(llm.stream_complete(AWAY))[-1]):
        assert response.additional_kwargs["abstained"] and response.additional_kwargs["sources"] == []
        assert response.raw["finish_reason"] == "abstained"
    assert llm.complete(AWAY).text == prompts.UNKNOWN


def test_an_engine_that_abstains_has_no_sources(index, absent):
    response = index.as_query_engine(max_new_tokens=80).query(THERE)
    assert str(response) == prompts.UNKNOWN
    assert response.source_nodes == [] and response.metadata["abstained"] is True


def test_so_has_one_that_streams_once_it_has_ended(index, absent):
    response = index.as_query_engine(streaming=True, max_new_tokens=80).query(THERE)
    assert "".join(response.response_gen) == prompts.UNKNOWN
    assert response.source_nodes == [] and response.metadata["abstained"] is True


async def test_and_one_on_an_event_loop(index, absent):
    response = await index.as_query_engine(streaming=True, max_new_tokens=80).aquery(THERE)
    assert "".join([piece async for piece in response.async_response_gen()]) == prompts.UNKNOWN
    assert response.source_nodes == [] and response.metadata["abstained"] is True
