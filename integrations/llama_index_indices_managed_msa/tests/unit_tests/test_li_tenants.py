"""Two tenants on one bank: every public method of tenant B is tried against tenant A's documents."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from llama_index.core import Document, StorageContext
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from facade import opened
from llama_index.indices.managed.msa import MSAIndex, MSAMemoryBlock, MSARetriever, MSASynthesizer
from llama_index.llms.msa import MSALLM
from msa_plugin.errors import MSAError

SECRET = "the password of tenant A is zanzibar"
ASKED = "what is the password of tenant A?"
HELLO = [ChatMessage(role="user", content=ASKED)]
ANYTHING = MetadataFilters(
    filters=[MetadataFilter(key="owner", value="nobody", operator=FilterOperator.NE)], condition="or"
)


@pytest.fixture
def tenants(tmp_path, backbone, adapter):
    with (
        opened(tmp_path, backbone, adapter, namespace="a") as a,
        opened(tmp_path, backbone, adapter, namespace="b") as b,
    ):
        secret = Document(id_="secret", text=SECRET, metadata={"owner": "zanzibar"})
        first = MSAIndex.from_documents([secret], memory=a)
        asyncio.run(MSAMemoryBlock(a).aput([ChatMessage(role="user", content=SECRET)], session_id="s"))
        b.refresh()
        second = MSAIndex.from_documents([Document(id_="own", text="tenant B has nothing to hide")], memory=b)
        a.refresh()
        yield first, second


def stolen(*, text=""):
    return [NodeWithScore(node=TextNode(id_="secret::0", text=text), score=1.0)]


async def everything(stream):
    return [piece async for piece in stream]


INDEX = {
    "as_retriever": lambda i: i.as_retriever(100, ANYTHING, doc_ids=None).retrieve(ASKED),
    "as_query_engine": lambda i: i.as_query_engine(similarity_top_k=100, max_new_tokens=2).query(ASKED),
    "as_chat_engine": lambda i: i.as_chat_engine(ChatMode.CONTEXT).chat(ASKED).source_nodes,
    "build_index_from_nodes": lambda i: i.build_index_from_nodes([]),
    "callback_manager": lambda i: i.callback_manager,
    "close": lambda i: i.close(),
    "adelete_nodes": lambda i: i.adelete_nodes(["secret::0"]),
    "delete_nodes": lambda i: i.delete_nodes(["secret::0"]),
    "adelete_ref_doc": lambda i: i.adelete_ref_doc("secret"),
    "delete": lambda i: i.delete("secret"),
    "delete_ref_doc": lambda i: i.delete_ref_doc("secret", delete_from_docstore=True),
    "docstore": lambda i: (i.docstore.docs, i.docstore.get_nodes(["secret::0"], raise_error=False)),
    "from_documents": lambda i: MSAIndex.from_documents([], memory=i.memory).ref_doc_info,
    "from_persist_dir": lambda i: MSAIndex.from_persist_dir("nowhere", memory=i.memory),
    "index_id": lambda i: i.index_id,
    "index_struct": lambda i: i.index_struct,
    "index_struct_cls": lambda i: i.index_struct_cls,
    "insert": lambda i: i.insert(Document(id_="secret", text="overwritten")),
    "ainsert": lambda i: i.ainsert(Document(id_="secret", text="overwritten")),
    "insert_nodes": lambda i: i.insert_nodes([TextNode(id_="secret::0", text="overwritten")]),
    "ainsert_nodes": lambda i: i.ainsert_nodes([TextNode(id_="secret::0", text="overwritten")]),
    "memory": lambda i: (list(i.memory.ids()), i.memory.get(["secret::0"]), i.memory.routing_keys(["secret::0"])),
    "object_map": lambda i: i.object_map,
    "persist": None,  # tried below
    "ref_doc_info": lambda i: i.ref_doc_info,
    "refresh": lambda i: i.refresh([Document(id_="secret", text=SECRET)]),
    "refresh_ref_docs": lambda i: i.refresh_ref_docs([Document(id_="secret", text="overwritten")]),
    "arefresh_ref_docs": lambda i: i.arefresh_ref_docs([Document(id_="secret", text="overwritten")]),
    "set_index_id": lambda i: i.set_index_id("a"),
    "storage_context": lambda i: (i.storage_context.docstore.docs, i.storage_context.vector_stores),
    "summary": lambda i: i.summary,
    "update": lambda i: i.update(Document(id_="secret", text="overwritten")),
    "update_ref_doc": lambda i: i.update_ref_doc(Document(id_="secret", text="overwritten")),
    "aupdate_ref_doc": lambda i: i.aupdate_ref_doc(Document(id_="secret", text="overwritten")),
}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_every_public_method_of_the_index_is_tried():
    assert public(MSAIndex) == set(INDEX)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n, call in INDEX.items() if call])
async def test_the_index_of_another_tenant_reaches_nothing(tenants, name):
    first, second = tenants
    try:
        result = INDEX[name](second)
        result = await result if inspect.isawaitable(result) else result
    except MSAError as error:
        result = error
    if name not in ("refresh",):  # there the caller brought the text himself
        assert "zanzibar" not in repr(result)
    unharmed(first)


def unharmed(first):
    first.memory.refresh()
    assert first.docstore.get_node("secret::0").text == SECRET
    assert first.as_retriever(similarity_top_k=1).retrieve(SECRET)[0].node_id == "secret::0"


READERS = {
    "retriever": lambda m, i: MSARetriever(i, 100).retrieve(QueryBundle(SECRET, custom_embedding_strs=[SECRET, "x"])),
    "aretriever": lambda m, i: MSARetriever(i, 100, ANYTHING).aretrieve(SECRET),
    "retriever, doc_ids": lambda m, i: MSARetriever(i, doc_ids=["secret"]).retrieve(ASKED),
    "synthesizer": lambda m, i: MSASynthesizer(m, max_new_tokens=3).synthesize(ASKED, stolen()),
    "asynthesizer": lambda m, i: MSASynthesizer(m, max_new_tokens=3).asynthesize(ASKED, stolen(text="x")),
    "get_response": lambda m, i: MSASynthesizer(m).get_response(ASKED, [], documents=["secret::0"]),
    "aget_response": lambda m, i: MSASynthesizer(m).aget_response(ASKED, [], documents=["secret::0"]),
    "complete": lambda m, i: MSALLM(m, mode="memory").complete(ASKED, documents=["secret::0"]),
    "acomplete": lambda m, i: MSALLM(m, mode="memory").acomplete(ASKED, documents=["secret::0"]),
    "chat": lambda m, i: MSALLM(m, mode="memory", max_tokens=3).chat(HELLO, filters=ANYTHING),
    "achat": lambda m, i: MSALLM(m, mode="memory", max_tokens=3).achat(HELLO, documents=stolen(text=SECRET)),
    "stream_complete": lambda m, i: list(MSALLM(m, mode="memory").stream_complete(ASKED, documents=["secret::0"])),
    "stream_chat": lambda m, i: list(MSALLM(m, mode="memory", max_tokens=3).stream_chat(HELLO)),
    "plain chat": lambda m, i: MSALLM(m, max_tokens=3).chat(HELLO),
    "block": lambda m, i: MSAMemoryBlock(m, across_sessions=True).aget(HELLO, session_id="s"),
    "block of the session": lambda m, i: MSAMemoryBlock(m).aget(HELLO, session_id="s"),
    "a new index": lambda m, i: MSAIndex(memory=m, storage_context=StorageContext.from_defaults()).docstore.docs,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
async def test_nothing_that_reads_reaches_it(tenants, reader):
    first, second = tenants
    try:
        result = reader(second.memory, second)
        result = await result if inspect.isawaitable(result) else result
    except MSAError as error:
        result = error
    assert "zanzibar" not in repr(result)
    sources = getattr(result, "additional_kwargs", {}).get("sources", [])
    assert all(source["id"] != "secret::0" for source in sources)
    unharmed(first)


def test_the_same_attempts_succeed_for_the_owner(tenants):
    first, _ = tenants
    assert "zanzibar" in repr(INDEX["as_retriever"](first))
    assert "zanzibar" in repr(INDEX["ref_doc_info"](first))
    assert "zanzibar" in repr(INDEX["docstore"](first))
    assert READERS["complete"](first.memory, first).additional_kwargs["sources"][0]["id"] == "secret::0"
    assert "zanzibar" in asyncio.run(READERS["block of the session"](first.memory, first))


def test_a_persisted_index_opens_its_own_namespace_only(tenants, tmp_path, backbone, adapter):
    first, second = tenants
    second.persist(tmp_path / "storage")
    with MSAIndex.from_persist_dir(tmp_path / "storage", model=backbone, adapter=adapter) as again:
        assert set(again.ref_doc_info) == {"own"}
    for wrong in ({"namespace": "a"}, {"memory": first.memory}):
        with pytest.raises(MSAError, match="namespace"):
            MSAIndex.from_persist_dir(tmp_path / "storage", **wrong)


def test_tenants_may_use_the_same_ids(tenants):
    first, second = tenants
    second.insert(Document(id_="secret", text="my own secret"))
    unharmed(first)
    assert second.docstore.get_node("secret::0").text == "my own secret"
    second.delete_ref_doc("secret")
    unharmed(first)
