"""Rounds and documents reach LangChain's callbacks while ChatMSA answers, in order, and stop when the caller does."""

from __future__ import annotations

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.runnables import RunnableLambda

from langchain_msa import create_msa_chain

ONE_ROUND = ["msa_round_started", "msa_documents_chosen", "msa_retrieval_ended", "msa_documents_fetched"]


class Heard(BaseCallbackHandler):
    def __init__(self):
        self.events, self.order, self.runs = [], [], set()

    def on_custom_event(self, name, data, *, run_id, **kwargs):
        self.events.append((name, data))
        self.order.append(name)
        self.runs.add(run_id)

    def on_llm_new_token(self, token, **kwargs):
        self.order.append("token")


class HeardAsync(AsyncCallbackHandler):
    def __init__(self):
        self.order = []

    async def on_custom_event(self, name, data, **kwargs):
        self.order.append(name)


def test_rounds_documents_and_the_end_of_retrieval_come_before_the_answer(llm):
    heard = Heard()
    pieces = list(llm.stream("the violin", config={"callbacks": [heard]}, max_rounds=1))
    assert [name for name in heard.order if name != "token"] == ONE_ROUND
    assert heard.order[: len(ONE_ROUND)] == ONE_ROUND and "token" in heard.order
    assert len(heard.runs) == 1
    told = dict(heard.events)
    [sources] = [p.response_metadata["sources"] for p in pieces if "sources" in p.response_metadata]
    chosen, fetched = told["msa_documents_chosen"], told["msa_documents_fetched"]
    assert {s["id"] for s in sources} <= set(chosen["ids"]) and len(chosen["ids"]) == len(chosen["scores"])
    assert [s["id"] for s in fetched["sources"]] == [s["id"] for s in sources]
    assert told["msa_round_started"] == {"round": 1, "query": "the violin"}


def test_every_round_is_told_and_invoke_tells_as_stream_does(llm):
    streamed, invoked = Heard(), Heard()
    list(llm.stream("the violin", config={"callbacks": [streamed]}, max_rounds=3, cut=0.0))
    answer = llm.invoke("the violin", config={"callbacks": [invoked]}, max_rounds=3, cut=0.0)
    assert streamed.events == invoked.events
    rounds = [data["round"] for name, data in invoked.events if name == "msa_round_started"]
    assert rounds == list(range(1, len(rounds) + 1)) and len(rounds) == len(answer.response_metadata["rounds"]) > 1


async def test_async_calls_tell_the_same(llm):
    for handler in (Heard(), HeardAsync()):
        await llm.ainvoke("the violin", config={"callbacks": [handler]}, max_rounds=1)
        assert [name for name in handler.order if name != "token"] == ONE_ROUND


async def test_they_are_part_of_astream_events(store, llm):
    chain = create_msa_chain(store.as_retriever(search_kwargs={"k": 2}), llm)
    seen = [e async for e in chain.astream_events("the violin", version="v2") if e["event"] == "on_custom_event"]
    assert [e["name"] for e in seen] == ["msa_retrieval_ended", "msa_documents_fetched"]
    assert seen[0]["data"]["reason"] == "given"


async def test_a_model_that_is_only_invoked_tells_whoever_streams_the_chain(llm):
    async def node(question):
        return (await llm.ainvoke(question, max_rounds=1)).content

    seen = [e async for e in RunnableLambda(node).astream_events("the violin", version="v2")]
    assert [e["name"] for e in seen if e["event"] == "on_custom_event"] == ONE_ROUND


def test_a_plain_chat_has_nothing_to_tell(llm):
    heard = Heard()
    llm.invoke("hello", config={"callbacks": [heard]}, mode="chat")
    assert heard.events == []


def test_a_stream_that_is_closed_early_tells_no_more(llm):
    heard = Heard()
    stream = llm.stream("the violin", config={"callbacks": [heard]}, max_rounds=1)
    next(stream)
    told = len(heard.order)
    stream.close()
    assert len(heard.order) == told
    assert llm.invoke("the violin").content


@pytest.mark.parametrize("handler", [Heard])
def test_handlers_that_ignore_custom_events_hear_none(llm, handler):
    class Deaf(handler):
        ignore_custom_event = True

    heard = Deaf()
    llm.invoke("the violin", config={"callbacks": [heard]}, max_rounds=1)
    assert heard.events == []
