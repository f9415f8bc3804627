"""Async methods: the event loop stays free, no forward runs on its thread, and ending a stream ends the decoding."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time

import pytest
from langchain_core.documents import Document

from facade import about, count_runs
from langchain_msa import ChatMSA, MSARetriever, MSAVectorStore, create_msa_chain

WORK = ("add", "delete", "get", "retrieve", "routing_keys", "stream", "stream_chat", "ids")
PATIENCE = 10.0  # seconds without a heartbeat until the loop counts as blocked


async def exhausted(stream):
    return [piece async for piece in stream]


CALLS = {
    "aadd_documents": lambda s, r, m: s.aadd_documents([Document("x")]),
    "aadd_texts": lambda s, r, m: s.aadd_texts(["x"]),
    "adelete": lambda s, r, m: s.adelete(["violin"]),
    "aget_by_ids": lambda s, r, m: s.aget_by_ids(["violin"]),
    "asimilarity_search": lambda s, r, m: s.asimilarity_search("x"),
    "asimilarity_search_with_score": lambda s, r, m: s.asimilarity_search_with_score("x"),
    "relevance": lambda s, r, m: s.asimilarity_search_with_relevance_scores("x"),
    "amax_marginal_relevance_search": lambda s, r, m: s.amax_marginal_relevance_search("x"),
    "asearch": lambda s, r, m: s.asearch("x", "mmr"),
    "afrom_texts": lambda s, r, m: MSAVectorStore.afrom_texts(["x"], memory=s.memory),
    "afrom_documents": lambda s, r, m: MSAVectorStore.afrom_documents([Document("x")], memory=s.memory),
    "retriever": lambda s, r, m: r.ainvoke("x"),
    "retriever with k": lambda s, r, m: r.ainvoke("x", k=1),
    "store as retriever": lambda s, r, m: s.as_retriever().ainvoke("x"),
    "chat": lambda s, r, m: m.ainvoke("x"),
    "chat over documents": lambda s, r, m: m.ainvoke("x", documents=["violin"]),
    "plain chat": lambda s, r, m: m.ainvoke("x", mode="chat"),
    "batch": lambda s, r, m: m.abatch(["x", "y"]),
    "stream": lambda s, r, m: exhausted(m.astream("x")),
    "plain stream": lambda s, r, m: exhausted(m.astream("x", mode="chat")),
    "chain": lambda s, r, m: create_msa_chain(s, m).ainvoke("x"),
    "chain, streamed": lambda s, r, m: exhausted(create_msa_chain(r, m).astream("x")),
}


class Heart:
    """A task that keeps beating while the loop is free."""

    def __init__(self):
        self.beats, self.stalled = 0, False

    async def beat(self):
        while True:
            await asyncio.sleep(0.005)
            self.beats += 1

    def wait(self):
        """Called from the work: returns after three more beats, however slow the machine, or notes that none came."""
        enough, until = self.beats + 3, time.monotonic() + PATIENCE
        while self.beats < enough and not self.stalled:
            time.sleep(0.005)
            self.stalled = time.monotonic() > until


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_loop_stays_free(filled, store, llm, monkeypatch, call):
    threads, heart = set(), Heart()

    def watched(work):
        def slow(*args, **kwargs):
            threads.add(threading.get_ident())
            heart.wait()
            return work(*args, **kwargs)

        return slow

    for name in WORK:
        monkeypatch.setattr(filled, name, watched(getattr(filled, name)))
    count_runs(monkeypatch, lambda: threads.add(threading.get_ident()))
    beating = asyncio.create_task(heart.beat())
    await call(store, MSARetriever(memory=filled), llm)
    beating.cancel()
    assert threads and threading.get_ident() not in threads
    assert heart.beats >= 3 and not heart.stalled


def test_every_async_method_of_the_store_is_covered():
    own = {n for n, _ in inspect.getmembers(MSAVectorStore, inspect.iscoroutinefunction)}
    without_work = {"asimilarity_search_by_vector", "amax_marginal_relevance_search_by_vector"}
    covered = {*CALLS, "asimilarity_search_with_relevance_scores", *without_work}
    assert {n for n in own if not n.startswith("_")} <= covered


async def settled(runs):
    """The number of forwards once no more are made."""
    while True:
        before = len(runs)
        await asyncio.sleep(0.5)
        if len(runs) == before:
            return before


async def test_leaving_a_stream_ends_the_decoding(filled, monkeypatch):
    llm = ChatMSA(filled, mode="memory", temperature=1.5, seed=3, max_tokens=2000)
    runs = count_runs(monkeypatch)
    stream = llm.astream("x")
    await anext(stream)
    await stream.aclose()
    assert await settled(runs) < 1000


async def test_cancelling_a_call_ends_the_decoding(filled, monkeypatch):
    llm = ChatMSA(filled, mode="memory", temperature=1.5, seed=3, max_tokens=2000)
    started, loop = asyncio.Event(), asyncio.get_running_loop()
    runs = count_runs(monkeypatch, lambda: loop.call_soon_threadsafe(started.set))
    task = asyncio.create_task(llm.ainvoke("x"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await settled(runs) < 1000


async def test_calls_may_overlap(filled, store, llm):
    expected = [llm.invoke(q).content for q in ("x", "y")]
    found = await asyncio.gather(
        llm.ainvoke("x"), store.asimilarity_search(about("violin")), llm.ainvoke("y"), store.aadd_texts(["new"])
    )
    assert [found[0].content, found[2].content] == expected and found[1][0].id == "violin"
