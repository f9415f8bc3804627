"""Passages of nodes, and answers from what these are passages of."""

from __future__ import annotations

import pytest
from llama_index.core import Document
from llama_index.core.schema import NodeRelationship

from facade import TOPICS, about, manual
from llama_index.indices.managed.msa import MSAIndex
from msa_plugin.errors import InvalidQueryError

MANUAL = manual(*TOPICS)


@pytest.fixture
def index(memory):
    return MSAIndex.from_documents([Document(id_="manual", text=MANUAL, metadata={"year": 1900})], memory=memory)


def test_passages_say_where_they_are_and_what_of(index):
    found = index.as_retriever(similarity_top_k=2, by="passage").retrieve("violin")
    [whole] = index.as_retriever().retrieve("violin")
    assert len({n.node_id for n in found}) == 2 and "violin" in found[0].text
    for node in (n.node for n in found):
        assert MANUAL[node.start_char_idx : node.end_char_idx] == node.text
        assert node.relationships[NodeRelationship.SOURCE].node_id == whole.node_id
        assert node.metadata == {"year": 1900}


def test_the_memory_reads_what_they_are_passages_of(index, monkeypatch):
    asked = []
    stream = index.memory.stream
    monkeypatch.setattr(index.memory, "stream", lambda q, **o: asked.append(o["documents"]) or stream(q, **o))
    response = index.as_query_engine(by="passage", similarity_top_k=2, max_new_tokens=2).query("violin")
    [whole] = index.as_retriever().retrieve("violin")
    assert asked == [[whole.node_id] * 2] and len(response.source_nodes) == 2


def test_another_llm_reads_the_passages_as_text(index, other_llm):
    index.as_query_engine(other_llm, by="passage", similarity_top_k=1).query("violin")
    [prompt] = other_llm.prompts
    assert about("violin") in prompt and about("glacier") not in prompt


def test_something_else_is_refused(index):
    with pytest.raises(InvalidQueryError, match="by is"):
        index.as_retriever(by="sentence").retrieve("violin")
