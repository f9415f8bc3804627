"""When nodes are valid, through LlamaIndex: the index, its retrievers and engines, and the language model."""

from __future__ import annotations

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import Document

from facade import about
from llama_index.indices.managed.msa import MSAIndex
from llama_index.llms.msa import MSALLM
from msa_plugin.errors import ConfigError, InvalidDocumentError, InvalidQueryError

VIOLIN = about("violin")


@pytest.fixture
def index(memory):
    index = MSAIndex(memory=memory)
    index.insert(Document(text=f"{VIOLIN} old", id_="old"), valid_from="2020-01-01")
    index.insert(Document(text=f"{VIOLIN} gone", id_="gone"), valid_until="2021-01-01")
    index.insert(Document(text=f"{VIOLIN} new", id_="new"), valid_from="2025-01-01", replaces="old")
    return index


def said(nodes):
    return {node.text.rsplit(" ", 1)[1] for node in nodes}


def test_retrievers_and_engines_find_what_is_valid(index):
    assert said(index.as_retriever().retrieve("violin")) == {"new"}
    assert said(index.as_retriever(at="2022-01-01").retrieve("violin")) == {"old"}
    kept = index.as_retriever(history=True).retrieve("violin")
    assert said(kept) == {"old", "new", "gone"}
    [old] = [node for node in kept if node.text.endswith("old")]
    assert old.metadata["valid_until"] == "2025-01-01T00:00:00+00:00" and old.metadata["replaced_by"]
    answer = index.as_query_engine(at="2020-06-01", max_new_tokens=1).query("violin?")
    assert said(answer.source_nodes) == {"old", "gone"}


def test_a_model_in_mode_memory_answers_as_of_a_date(index):
    model = MSALLM(index.memory, mode="memory", max_tokens=1)
    for options in ({"at": "2022-01-01"}, {"history": True}, {}):
        assert model.chat([ChatMessage("violin?")], **options).raw


def test_what_is_refused(index):
    with pytest.raises(InvalidQueryError, match="UTC"):
        index.as_retriever(at="soon")
    with pytest.raises(InvalidDocumentError, match="UTC"):
        index.insert(Document(text="A.", id_="a"), valid_until="soon")
    with pytest.raises(ConfigError, match="valid_until"):
        index.insert(Document(text="A.", id_="a"), valid_til="2020-01-01")
