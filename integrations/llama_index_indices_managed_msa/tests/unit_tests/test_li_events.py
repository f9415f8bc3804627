"""Rounds and documents are events of LlamaIndex's instrumentation, in order, whoever answers and however."""

from __future__ import annotations

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler

from llama_index.llms.msa import MSALLM
from llama_index.llms.msa.events import (
    MSADocumentsChosen,
    MSADocumentsFetched,
    MSARetrievalEnded,
    MSARoundStarted,
)

OURS = (MSARoundStarted, MSADocumentsChosen, MSADocumentsFetched, MSARetrievalEnded)
ONE_ROUND = [MSARoundStarted, MSADocumentsChosen, MSARetrievalEnded, MSADocumentsFetched]
GIVEN = [MSARetrievalEnded, MSADocumentsFetched]


@pytest.fixture
def heard():
    events = []

    class Handler(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, OURS):
                events.append(event)

    root = get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(Handler())
    yield events
    root.event_handlers = before


@pytest.fixture
def llm(index):
    return MSALLM(index.memory, mode="memory", max_tokens=4)


def kinds(events):
    return [type(event) for event in events]


def test_a_question_to_memory_tells_its_rounds(llm, heard):
    response = llm.complete("the violin", max_rounds=1)
    assert kinds(heard) == ONE_ROUND
    started, chosen, ended, fetched = heard
    assert (started.round, ended.reason) == (1, "scores") and "violin" in started.query
    assert fetched.ids == [s["id"] for s in response.additional_kwargs["sources"]]
    assert set(fetched.ids) <= set(chosen.ids) and len(fetched.texts) == len(fetched.ids)


def test_streams_tell_the_same(llm, heard):
    llm.complete("the violin", max_rounds=1)
    whole = [event.model_dump(exclude={"id_", "timestamp", "span_id"}) for event in heard]
    heard.clear()
    list(llm.stream_complete("the violin", max_rounds=1))
    assert [event.model_dump(exclude={"id_", "timestamp", "span_id"}) for event in heard] == whole


async def test_async_calls_tell_the_same(llm, heard):
    await llm.acomplete("the violin", max_rounds=1)
    assert kinds(heard) == ONE_ROUND
    heard.clear()
    async for _ in await llm.astream_complete("the violin", max_rounds=1):
        pass
    assert kinds(heard) == ONE_ROUND


async def test_a_query_engine_tells_what_is_read(index, heard):
    index.as_query_engine(similarity_top_k=2).query("the violin")
    assert kinds(heard) == GIVEN and heard[0].reason == "given" and len(heard[1].ids) == 2
    heard.clear()
    await index.as_query_engine(similarity_top_k=2).aquery("the violin")
    assert kinds(heard) == GIVEN
    heard.clear()
    str(index.as_query_engine(similarity_top_k=2, streaming=True).query("the violin"))
    assert kinds(heard) == GIVEN


def test_a_plain_chat_has_nothing_to_tell(index, heard):
    MSALLM(index.memory, max_tokens=2).complete("hello")
    assert heard == []
