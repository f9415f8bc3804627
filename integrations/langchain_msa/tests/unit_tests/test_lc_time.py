"""When documents are valid, through LangChain: stores, retrievers, chat models, and the agent middleware."""

from __future__ import annotations

import json
from datetime import date, timedelta

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, HumanMessage
from pydantic import ValidationError

from facade import about
from langchain_msa import ChatMSA, MSAMemoryMiddleware, MSARetriever, MSAVectorStore
from msa_plugin.errors import ConfigError, InvalidDocumentError, InvalidQueryError
from msa_plugin.types import Document as MemoryDocument

VIOLIN = about("violin")


@pytest.fixture
def store(memory):
    store = MSAVectorStore(memory)
    documents = [Document(f"{VIOLIN} {name}", id=name) for name in ("old", "new", "gone")]
    times = {"valid_from": ["2020-01-01", "2025-01-01", None], "valid_until": [None, None, date(2021, 1, 1)]}
    store.add_documents(documents, **times, replaces=[None, "old", None])
    return store


def names(documents):
    return {document.id for document in documents}


def test_stores_and_retrievers_find_what_is_valid(store, memory):
    assert names(store.similarity_search("violin")) == {"new"}
    assert names(store.similarity_search("violin", at="2022-01-01")) == {"old"}
    assert names(store.max_marginal_relevance_search("violin", at="2020-06-01")) == {"old", "gone"}
    kept = store.as_retriever(search_kwargs={"history": True}).invoke("violin")
    assert names(kept) == {"old", "new", "gone"}
    [old] = [d for d in kept if d.id == "old"]
    assert (old.metadata["valid_until"], old.metadata["replaced_by"]) == ("2025-01-01T00:00:00+00:00", "new")
    retriever = MSARetriever(memory=memory, history=True)
    assert len(retriever.invoke("violin")) == 3 and names(retriever.invoke("violin", at="2022-01-01")) == {"old"}
    assert names(retriever.invoke("violin", history=False)) == {"new"}
    assert store.get_by_ids(["gone"]) and memory.get("old")[0].valid_from == "2020-01-01T00:00:00+00:00"


def test_one_date_for_all_and_what_is_refused(store):
    assert store.add_texts(["One.", "Two."], valid_until="2020-01-01", ids=["1", "2"]) == ["1", "2"]
    assert names(store.similarity_search("one two", 9)) == {"new"}
    with pytest.raises(InvalidDocumentError, match="one for each"):
        store.add_texts(["One.", "Two."], valid_until=["2020-01-01"])
    with pytest.raises(InvalidDocumentError, match="UTC"):
        store.add_texts(["One."], valid_from="soon")
    with pytest.raises(InvalidQueryError, match="UTC"):
        store.similarity_search("violin", at="soon")
    with pytest.raises(ValidationError):
        MSARetriever(memory=store.memory, at=object())


def test_a_chat_model_answers_as_of_a_date(store, memory):
    model = ChatMSA(memory, mode="memory", max_tokens=1)

    def sources(**options):
        return {s["id"] for s in model.invoke([HumanMessage("violin?")], **options).response_metadata["sources"]}

    assert sources() <= {"new"} and sources(at="2022-01-01") <= {"old"}
    with pytest.raises(ConfigError, match="at"):
        ChatMSA(memory).invoke("violin?", at="2022-01-01")


def test_the_middleware_recalls_what_is_valid_and_relevant(memory):
    facts = [
        MemoryDocument("old", f"{VIOLIN} old"),
        MemoryDocument("new", f"{VIOLIN} new", valid_from="2025-01-01", replaces="old"),
    ]
    storing = MSAMemoryMiddleware(memory, store=lambda turn: facts, keep=timedelta(days=1000))
    turn = {"messages": [HumanMessage("violin"), AIMessage("Yes.")]}
    storing.after_agent(turn, None)
    [shown] = json.loads(storing.before_agent(turn, None)["recalled"])
    assert shown["id"] == "new" and shown["valid_from"] == "2025-01-01T00:00:00+00:00"
    assert memory.get("new")[0].valid_until == "2027-09-28T00:00:00+00:00"
    brief = MSAMemoryMiddleware(memory, store=lambda turn: ["Something brief."], keep=timedelta(microseconds=1))
    brief.after_agent(turn, None)
    assert [d.id for d in memory.documents()] == ["new"] and len(memory.documents(history=True)) == 3
    for wrong in ({"keep": timedelta()}, {"keep": 3}, {"min_relevance": 0.5}):  # this adapter knows no relevance
        with pytest.raises(ConfigError):
            MSAMemoryMiddleware(memory, **wrong)


def test_the_middleware_leaves_out_what_is_not_relevant(memory, monkeypatch):
    memory.add([{"id": "violin", "text": VIOLIN}])
    asked = []
    monkeypatch.setattr(type(memory), "check_relevance", lambda memory, least: None)
    monkeypatch.setattr(memory, "retrieve", lambda q, k, **options: asked.append(options) or [], raising=False)
    middleware = MSAMemoryMiddleware(memory, min_relevance=0.4)
    monkeypatch.setattr(middleware, "_place", lambda runtime: memory)
    assert middleware.before_agent({"messages": [HumanMessage("violin")]}, None) == {"recalled": ""}
    assert asked == [{"min_relevance": 0.4}]
