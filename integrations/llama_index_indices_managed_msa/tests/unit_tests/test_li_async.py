"""Asynchronous methods: the event loop keeps turning, and arguments arrive."""

from __future__ import annotations

import asyncio
import threading

import pytest
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import TextNode

from facade import TOPICS, about, count_runs
from llama_index.indices.managed.msa import MSAIndex, MSAMemoryBlock
from llama_index.llms.msa import MSALLM
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory

HELLO = [ChatMessage(role="user", content="hello")]


async def collect(stream):
    return [piece async for piece in await stream]


async def streamed(index):
    response = await index.as_query_engine(streaming=True, max_new_tokens=3).aquery("violin")
    return [piece async for piece in response.async_response_gen()]


CALLS = {
    "ainsert": lambda i: i.ainsert(Document(text="new", id_="new")),
    "ainsert_nodes": lambda i: i.ainsert_nodes([TextNode(text="new")]),
    "aupdate_ref_doc": lambda i: i.aupdate_ref_doc(Document(text="new", id_="violin")),
    "arefresh_ref_docs": lambda i: i.arefresh_ref_docs([Document(text="new", id_="violin")]),
    "aretrieve": lambda i: i.as_retriever().aretrieve("violin"),
    "aquery": lambda i: i.as_query_engine(max_new_tokens=3).aquery("violin"),
    "aquery, streaming": streamed,
    "acomplete": lambda i: MSALLM(i.memory, max_tokens=3).acomplete("violin"),
    "achat": lambda i: MSALLM(i.memory, max_tokens=3).achat(HELLO),
    "achat, memory": lambda i: MSALLM(i.memory, mode="memory", max_tokens=3).achat(HELLO),
    "astream_complete": lambda i: collect(MSALLM(i.memory, max_tokens=3).astream_complete("violin")),
    "astream_chat": lambda i: collect(MSALLM(i.memory, mode="memory", max_tokens=3).astream_chat(HELLO)),
    "block.aput": lambda i: MSAMemoryBlock(i.memory).aput(HELLO),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_the_loop_turns_while_the_backbone_works(index, monkeypatch, call):
    ticked = threading.Event()
    waited = []
    # Every forward waits for the loop to tick: a loop that was blocked would never set the event.
    count_runs(monkeypatch, also=lambda: (ticked.clear(), waited.append(ticked.wait(20))))

    async def tick():
        while True:
            ticked.set()
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.wait_for(call(index), 120)
    ticking.cancel()
    assert waited and all(waited)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("delete", lambda i: i.adelete_ref_doc("violin")),
        ("delete", lambda i: i.adelete_nodes(["violin::0"])),
        ("get", lambda i: i.docstore.aget_node("violin::0")),
        ("ids", lambda i: MSAIndex(memory=i.memory).docstore.aget_all_ref_doc_info()),
        ("retrieve", lambda i: MSAMemoryBlock(i.memory).aget(HELLO)),
    ],
    ids=["adelete_ref_doc", "adelete_nodes", "aget_node", "aget_all_ref_doc_info", "block.aget"],
)
async def test_the_bank_is_not_waited_for_on_the_loop(index, monkeypatch, method, call):
    threads, original = [], getattr(LatentMemory, method)

    def noted(self, *args, **kwargs):
        threads.append(threading.current_thread())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LatentMemory, method, noted)
    await call(index)
    assert threads and threading.main_thread() not in threads


# -- pitfall: ainsert_nodes() of LlamaIndex calls the synchronous _insert() without its arguments


async def test_arguments_arrive(memory):
    index, seen = MSAIndex(memory=memory), []
    await index.ainsert_nodes([TextNode(text="a"), TextNode(text="b")], on_progress=seen.append)
    assert [p.documents for p in seen] == [1, 2]
    await index.ainsert_nodes([TextNode(text=" ")], on_invalid="skip")
    await index.ainsert(Document(text="c", id_="c"), on_progress=seen.append)
    await index.aupdate_ref_doc(Document(text="d", id_="c"), insert_kwargs={"on_progress": seen.append})
    await index.arefresh_ref_docs([Document(text="e", id_="c")], insert_kwargs={"on_progress": seen.append})
    assert len(seen) == 5
    with pytest.raises(ConfigError, match="nonsense"):
        await index.ainsert_nodes([TextNode(text="a")], nonsense=1)


async def test_awaited_calls_do_what_the_others_do(index, memory, documents):
    assert await index.arefresh_ref_docs([*documents, Document(text="x", id_="extra")]) == [False] * 8 + [True]
    await index.aupdate_ref_doc(Document(text="y", id_="extra"))
    assert memory.get("extra::0")[0].text == "y"
    await index.adelete_ref_doc("extra")
    await index.adelete_nodes(["violin::0"])
    assert set(index.ref_doc_info) == set(TOPICS) - {"violin"}
    await index.adelete_ref_doc("nobody")


async def test_many_at_once(index, memory):
    documents = [Document(text=about(f"word{n}"), id_=f"d{n}") for n in range(12)]
    retriever = index.as_retriever(similarity_top_k=1)
    await asyncio.gather(
        *(index.ainsert(d) for d in documents), *(retriever.aretrieve(about(t)) for t in TOPICS),
        *(index.adelete_ref_doc(t) for t in TOPICS[:4]),
    )  # fmt: skip
    assert set(index.ref_doc_info) == {d.id_ for d in documents} | set(TOPICS[4:])
    assert index.ref_doc_info == MSAIndex(memory=memory).ref_doc_info
