"""The paired chain, and chains of LangChain's own parts over the store."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough

from facade import about
from langchain_msa import ChatMSA, MSARetriever, create_msa_chain
from msa_plugin.errors import ConfigError, InvalidQueryError, UnknownDocumentError

OPTIONS = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}


def names(documents):
    return [d.id if isinstance(d, Document) else d["id"] for d in documents]


@pytest.fixture
def chain(store, llm):
    return create_msa_chain(store.as_retriever(search_kwargs={"k": 2}), llm)


async def test_the_retriever_finds_and_the_model_reads_these(filled, chain):
    hits = [h.id for h in filled.retrieve("violin", 2)]
    expected = filled.ask("violin", documents=hits, **OPTIONS)
    for out in (chain.invoke("violin"), await chain.ainvoke({"input": "violin"})):
        assert out["input"] == "violin" and out["answer"] == expected.text
        assert names(out["context"]) == names(out["sources"]) == hits
        assert [d.metadata["score"] for d in out["context"]] == [s["score"] for s in out["sources"]]


async def test_batches_and_streams(chain):
    questions = ["violin", "glacier", "saffron"]
    one_by_one = [chain.invoke(q) for q in questions]
    assert chain.batch(questions) == one_by_one == await chain.abatch(questions)
    for chunks in (list(chain.stream("violin")), [chunk async for chunk in chain.astream("violin")]):
        assert [bool(c.get("context")) for c in chunks] == [True] + [False] * (len(chunks) - 1)
        assert len([c for c in chunks if c.get("answer")]) > 1
        assert sum(chunks[1:], chunks[0]) == one_by_one[0]
    events = [e async for e in chain.astream_events("violin", version="v2")]
    kinds = {e["event"] for e in events}
    assert {"on_retriever_end", "on_chat_model_stream", "on_chat_model_end"} <= kinds
    started = next(e for e in events if e["event"] == "on_chat_model_start")
    assert about("violin") not in str(started)  # ids were handed on, no text


def test_no_text_is_put_into_the_question(filled, store, llm, monkeypatch):
    asked = []
    stream = filled.stream
    monkeypatch.setattr(filled, "stream", lambda q, **k: asked.append((q, k["documents"])) or stream(q, **k))
    create_msa_chain(store, llm).invoke("violin")
    assert asked == [("violin", [h.id for h in filled.retrieve("violin", 4)])]


def test_any_retriever_of_documents_of_this_memory_will_do(filled, store, llm):
    for retriever in (
        store,
        MSARetriever(memory=filled, k=4),
        RunnableLambda(lambda q: store.similarity_search(q)),
        store.as_retriever(search_type="mmr"),
    ):
        assert len(create_msa_chain(retriever, llm).invoke("violin")["sources"]) == 4


def test_other_fields_are_handed_through_and_bound_arguments_count(store, llm):
    out = create_msa_chain(store, llm.bind(max_tokens=2).with_config(tags=["x"])).invoke({"input": "violin", "user": 7})
    assert out["user"] == 7 and len(out["answer"]) <= 2


def test_what_does_not_pair_is_refused(filled, store, llm, chain):
    with pytest.raises(ConfigError, match="FakeListChatModel"):
        create_msa_chain(store, FakeListChatModel(responses=["x"]))
    with pytest.raises(ConfigError, match="build the model with"):
        create_msa_chain(store, ChatMSA(filled, mode="chat"))
    with pytest.raises(ConfigError, match="retriever"):
        create_msa_chain("bank", llm)
    for wrong in ({"question": "violin"}, 3, {"input": 3}):
        with pytest.raises(InvalidQueryError, match="input"):
            chain.invoke(wrong)
    with pytest.raises(UnknownDocumentError):
        create_msa_chain(RunnableLambda(lambda q: [Document("x", id="elsewhere")]), llm).invoke("violin")
    with pytest.raises(InvalidQueryError, match="by id"):
        create_msa_chain(RunnableLambda(lambda q: [Document("x")]), llm).invoke("violin")


async def test_the_usual_chain_over_the_store(filled, store):
    def pasted(documents):
        return "\n".join(d.page_content for d in documents)

    llm = ChatMSA(filled, mode="chat", temperature=1.5, seed=3, max_tokens=12)
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    retriever = store.as_retriever(search_kwargs={"k": 1})
    chain = {"context": retriever | pasted, "question": RunnablePassthrough()} | prompt | llm | StrOutputParser()
    expected = [
        filled.chat([{"role": "user", "content": f"{about(t)}\n\n{about(t)}"}], **OPTIONS).text
        for t in ("violin", "glacier")
    ]
    questions = [about("violin"), about("glacier")]
    assert chain.batch(questions) == expected == await chain.abatch(questions)
    pieces = [piece async for piece in chain.astream(questions[0])]
    assert len(pieces) > 1 and "".join(pieces) == expected[0]


async def test_with_another_model_the_store_alone_is_swapped(store):
    seen = []
    other = FakeListChatModel(responses=["elsewhere"])
    prompt = ChatPromptTemplate.from_template("{context} {question}")
    look = RunnableLambda(lambda value: seen.append(str(value)) or value)
    chain = {"context": store.as_retriever(), "question": RunnablePassthrough()} | prompt | look | other
    assert (await chain.ainvoke("violin")).content == "elsewhere"
    assert about("violin") in seen[0]
