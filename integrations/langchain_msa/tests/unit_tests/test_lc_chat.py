"""The chat model's three modes, streaming, metadata, options, and what it warns of or refuses."""

from __future__ import annotations

import warnings

import pytest
from langchain_classic.chains import RetrievalQA, create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField

from facade import about, opened
from langchain_msa import ChatMSA, MSAVectorStore
from msa_plugin.errors import ConfigError, EmptyMemoryError, InvalidQueryError, MSAError, UnknownDocumentError

OPTIONS = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}
TALK = [SystemMessage("Be brief."), HumanMessage("Who are you?"), AIMessage("A model."), HumanMessage("Since when?")]
PLAIN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Since when?"},
]


def source_ids(message):
    return [s["id"] for s in message.response_metadata["sources"]]


def test_memory_mode_routes_by_itself(filled, llm):
    message, answer = llm.invoke("the glacier?"), filled.ask("the glacier?", **OPTIONS)
    assert message.content == answer.text != ""
    metadata = message.response_metadata
    told = [{name: s[name] for name in ("id", "score", "hop")} for s in metadata["sources"]]
    assert told == [{"id": s.id, "score": s.score, "hop": s.round} for s in answer.sources]
    assert metadata["abstained"] is False and metadata["grounded"] is answer.grounded
    assert {s["hop"] for s in metadata["sources"]} == {1, 2}
    assert [r["selected"] for r in metadata["rounds"]] == [list(r.selected) for r in answer.trace.rounds]
    assert metadata["mode"] == "memory" and metadata["model_name"] == "tiny-llama"
    assert metadata["finish_reason"] == answer.trace.finish
    trace = answer.trace
    assert message.usage_metadata == {
        "input_tokens": trace.input_tokens,
        "output_tokens": trace.new_tokens,
        "total_tokens": trace.input_tokens + trace.new_tokens,
    }


async def test_documents_are_read_by_id_and_nothing_is_routed(filled, store, llm):
    chosen = ["meteor", "violin"]
    expected = filled.ask("why?", documents=chosen, **OPTIONS).text
    changed = [Document("other words", id="meteor"), *store.get_by_ids(["violin"])]
    for message in (
        llm.invoke("why?", documents=chosen),
        llm.invoke("why?", documents=changed),
        llm.bind(documents=tuple(chosen)).invoke("why?"),
        await llm.ainvoke("why?", documents=chosen),
    ):
        assert message.content == expected and source_ids(message) == chosen
        assert message.response_metadata["mode"] == "documents" and message.response_metadata["rounds"] == []
    closed = llm.invoke("why?", documents=[])
    assert source_ids(closed) == [] and closed.content == filled.ask("why?", documents=[], **OPTIONS).text


def test_documents_are_read_from_cached_keys_and_values(tmp_path, backbone):
    with opened(tmp_path, backbone, reading="kv") as memory:
        MSAVectorStore.from_texts([about("meteor"), about("violin")], ids=["meteor", "violin"], memory=memory)
        message = ChatMSA(memory, temperature=1.5, seed=3, max_tokens=12).invoke("why?", documents=["violin"])
        answer = memory.ask("why?", documents=["violin"], **OPTIONS)
    assert message.content == answer.text and source_ids(message) == ["violin"]
    # The document's tokens count as input although they were not in the prompt.
    assert message.usage_metadata["input_tokens"] == answer.trace.input_tokens > answer.trace.prompt_tokens + 50


@pytest.mark.parametrize(
    ("documents", "error"),
    [
        (["nowhere"], UnknownDocumentError),
        ([Document("text without an id")], InvalidQueryError),
        ([3], InvalidQueryError),
        ("violin", InvalidQueryError),
        (Document("x", id="violin"), InvalidQueryError),
        (3, InvalidQueryError),
    ],
)
def test_documents_that_cannot_be_read_are_refused(llm, documents, error):
    with pytest.raises(error):
        llm.invoke("why?", documents=documents)


def test_chat_mode_reads_the_whole_prompt_and_no_memory(filled, llm):
    expected = filled.chat(PLAIN, **OPTIONS)
    plain = ChatMSA(filled, mode="chat", temperature=1.5, seed=3, max_tokens=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in (plain.invoke(TALK), llm.invoke(TALK, mode="chat")):
            assert message.content == expected.text and source_ids(message) == []
            assert message.usage_metadata["input_tokens"] == expected.trace.input_tokens
    blocks = [HumanMessage([{"type": "text", "text": "Since "}, "when?"]), ChatMessage("a", role="assistant")]
    same = [{"role": "user", "content": "Since when?"}, {"role": "assistant", "content": "a"}]
    assert plain.invoke(blocks).content == filled.chat(same, **OPTIONS).text


def test_chat_mode_works_on_an_empty_memory_and_memory_mode_says_why_not(memory):
    assert ChatMSA(memory, mode="chat", max_tokens=4).invoke("hello") is not None
    with pytest.raises(EmptyMemoryError):
        ChatMSA(memory, mode="memory").invoke("hello")


@pytest.mark.parametrize("options", [{"documents": ["violin"]}, {"filter": {"even": True}}, {"max_rounds": 1}])
def test_options_that_contradict_the_mode_are_refused(llm, options):
    with pytest.raises(ConfigError, match="does not touch memory"):
        llm.invoke("x", mode="chat", **options)


def test_what_memory_mode_does_not_read_is_said(filled, llm):
    with pytest.warns(UserWarning, match=r"\(ai, human, system\) are not read"):
        message = llm.invoke(TALK)
    assert message.content == llm.invoke("Since when?").content


async def test_a_stuffed_prompt_is_noticed(llm, store):
    store.add_texts([about("library") * 2], ids=["library"])
    text = store.get_by_ids(["library"])[0].page_content
    stuffed = f"Context: {text}\nWhat is in the library?"
    for documents in (["library"], ["library", "violin"]):
        with pytest.warns(UserWarning, match="already holds the text of 'library'"):
            llm.invoke(stuffed, documents=documents)
        with pytest.warns(UserWarning, match="already holds"):
            await llm.ainvoke(stuffed, documents=documents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.invoke("What is in the library?", documents=["library"])
        llm.invoke(stuffed, mode="chat")


def test_messages_that_cannot_be_read_are_refused(llm):
    for messages in ([SystemMessage("x")], [HumanMessage([{"type": "image", "url": "x"}])], [HumanMessage(" ")]):
        with pytest.raises(InvalidQueryError):
            llm.invoke(messages)
    with pytest.raises(InvalidQueryError, match="tool"):
        llm.invoke([HumanMessage("x"), ToolMessage("y", tool_call_id="1")], mode="chat")
    with pytest.raises(NotImplementedError):
        llm.bind_tools([])


@pytest.mark.parametrize("options", [{}, {"documents": ["violin"]}, {"mode": "chat"}])
async def test_streaming_is_the_same_in_pieces(llm, options):
    whole = llm.invoke("why?", **options)
    for chunks in (
        list(llm.stream("why?", **options)),
        [chunk async for chunk in llm.astream("why?", **options)],
    ):
        assert len([c for c in chunks if c.content]) > 1
        assert all(not c.response_metadata and not c.usage_metadata for c in chunks[:-1])
        full = sum(chunks[1:], chunks[0])
        assert full.content == whole.content and full.usage_metadata == whole.usage_metadata
        assert full.response_metadata == whole.response_metadata and full.chunk_position == "last"


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.pieces, self.runs = [], []

    def on_llm_new_token(self, token, **kwargs):
        self.pieces.append(token)

    def on_llm_end(self, response, **kwargs):
        self.runs.append(response.generations[0][0].message.response_metadata)


async def test_callbacks_see_tokens_sources_rounds_and_usage(llm):
    tokens, usage = Tokens(), UsageMetadataCallbackHandler()
    config = {"callbacks": [tokens, usage]}
    text = "".join(str(c.content) for c in llm.stream("why?", config))
    assert "".join(tokens.pieces) == text and len(tokens.pieces) > 1
    await llm.ainvoke("why?", config)
    assert [r["rounds"] != [] and r["sources"] != [] for r in tokens.runs] == [True, True]
    assert usage.usage_metadata["tiny-llama"]["output_tokens"] == 24
    events = [e["event"] async for e in llm.astream_events("why?", version="v2")]
    assert events[0] == "on_chat_model_start" and events.count("on_chat_model_stream") > 1


def test_options_reach_the_decoder(filled, llm):
    text = llm.invoke("why?", max_tokens=40).content
    middle = text[len(text) // 2]
    cut = llm.invoke("why?", max_tokens=40, stop=[middle])
    assert cut.content == text[: text.index(middle)] and cut.response_metadata["finish_reason"] == "stop"
    always = ChatMSA(filled, mode="memory", temperature=1.5, seed=3, max_tokens=40, stop=[middle])
    assert always.invoke("why?").content == cut.content
    assert always.invoke("why?", stop=[]).content == text
    assert llm.invoke("why?", max_tokens=3).usage_metadata["output_tokens"] == 3
    assert llm.invoke("why?", seed=4).content != llm.invoke("why?").content
    assert (
        llm.invoke("why?", temperature=0).content
        == ChatMSA(filled, mode="memory", temperature=0, max_tokens=12).invoke("why?").content
    )
    assert len(llm.invoke("why?", max_rounds=1).response_metadata["rounds"]) == 1
    assert len(llm.invoke("why?", cut=0.0, reads=1).response_metadata["sources"]) == 1
    assert source_ids(llm.invoke("why?", filter={"number": 3})) == ["violin"]
    assert source_ids(ChatMSA(filled, mode="memory", filter={"number": 3}).invoke("why?")) == ["violin"]


async def test_a_timeout_ends_the_decoding(llm):
    with pytest.raises(TimeoutError, match="timeout=0"):
        llm.invoke("why?", timeout=0)
    with pytest.raises(TimeoutError):
        await llm.ainvoke("why?", timeout=0)
    assert llm.invoke("why?", timeout=60).content


def test_unknown_options_are_refused(llm):
    for wrong in ({"tools": []}, {"max_token": 3}, {"mode": "stuff"}, {"model": "other"}, {"temperature": -1}):
        with pytest.raises(ConfigError):
            llm.invoke("why?", **wrong)
    assert llm.invoke("why?", model="tiny-llama").content


def test_constructing(tmp_path, backbone, adapter, filled):
    opening = {"path": tmp_path / "bank", "model": backbone, "adapter": adapter, "namespace": "n"}
    built = ChatMSA(**opening, instruction="Be brief.", max_tokens=4, max_retries=2, timeout=60)
    assert built.memory.namespace == "n" and built.memory.config.instruction == "Be brief."
    built.memory.close()
    for wrong in ({}, {"memory": filled, "path": "x"}, {"memory": filled, "namespace": "x"}, {"memory": "bank"}):
        with pytest.raises(ConfigError):
            ChatMSA(**wrong)
    with pytest.raises(ValueError, match="mode"):
        ChatMSA(filled, mode="stuff")
    with pytest.warns(UserWarning, match="ignores api_key, base_url"):
        ChatMSA(filled, api_key="x", base_url="y")
    assert "memory" not in repr(ChatMSA(filled)).replace("mode='memory'", "")


def test_construction_says_what_is_answered_from(filled, store, recwarn):
    """The line that one writes first: retrieved text stands in the prompt, and the prompt is answered."""
    told = {"temperature": 1.5, "seed": 3, "max_tokens": 12}
    prompt = ChatPromptTemplate.from_template("{context}\n\nQuestion: {question}")
    asked = {"context": about("violin"), "question": "What is the text on?"}
    text = prompt.invoke(asked).to_string().removeprefix("Human: ")
    answer = (prompt | ChatMSA(store.memory, **told)).invoke(asked)
    assert answer.content == filled.chat([{"role": "user", "content": text}], **OPTIONS).text
    assert answer.response_metadata["mode"] == "chat" and source_ids(answer) == []
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    with pytest.warns(UserWarning, match="mode='memory'"):
        untold = ChatMSA(filled, **told).invoke("why?")
    assert untold.response_metadata["mode"] == "chat"
    assert ChatMSA(filled, mode="memory", **told).invoke("why?").response_metadata["mode"] == "memory"
    assert source_ids(ChatMSA(filled, **told).invoke("why?", documents=["violin"])) == ["violin"]
    for wrong in ({"filter": {"number": 3}}, {"max_rounds": 1}, {"filter": {"number": 3}, "mode": "chat"}):
        with pytest.raises(ConfigError, match="mode='memory'"):
            ChatMSA(filled, **wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ChatMSA(filled, mode="chat", max_tokens=2).invoke("why?")


def test_a_stuffed_question_is_told_before_it_is_read(filled, monkeypatch):
    """With every document of the memory in it, a question used to be read for minutes before the warning came."""
    filled.add([{"id": "library", "text": about("library") * 2}])
    told = []
    monkeypatch.setattr(warnings, "warn", lambda *a, **k: told.append(a[0]))
    monkeypatch.setattr(type(filled.engine.reader), "prefill", lambda *a: pytest.fail("it was read"))
    with pytest.raises(pytest.fail.Exception):
        ChatMSA(filled, mode="memory").invoke(f"{about('library') * 2}\nWhat is in the library?")
    assert any("already holds the text of 'library'" in one for one in told)


def test_tools_are_refused_with_what_to_do_instead(llm):
    for call in (
        lambda: llm.bind_tools([{"name": "add", "description": "", "parameters": {}}]),
        lambda: llm.with_structured_output({"title": "x", "description": "", "type": "object", "properties": {}}),
    ):
        with pytest.raises(NotImplementedError, match="create_retriever_tool") as refused:
            call()
        assert isinstance(refused.value, MSAError)


def test_fields_can_be_made_configurable(llm):
    flexible = llm.configurable_fields(max_tokens=ConfigurableField(id="length"))
    message = flexible.invoke("why?", {"configurable": {"length": 2}})
    assert message.usage_metadata["output_tokens"] == 2


def test_tokens_are_counted_as_the_backbone_counts(filled, llm):
    assert llm.get_num_tokens("glacier") == filled.count_tokens("glacier") == 7
    assert llm.get_num_tokens_from_messages([HumanMessage("glacier")]) >= 7


def test_answers_are_cached_only_when_asked_for_and_never_across_tenants(tmp_path, backbone):
    cache = InMemoryCache()
    with opened(tmp_path, backbone, namespace="a") as a, opened(tmp_path, backbone, namespace="b") as b:
        for memory, topic in ((a, "violin"), (b, "saffron")):
            MSAVectorStore.from_texts([about(topic)], memory=memory, ids=[topic])
            message = ChatMSA(memory, mode="memory", cache=cache, max_tokens=2).invoke("why?")
            assert source_ids(message) == [topic]
        MSAVectorStore(a).delete(["violin"])
        assert source_ids(ChatMSA(a, mode="memory", cache=cache, max_tokens=2).invoke("why?")) == [
            "violin"
        ]  # asked for
        assert ChatMSA(a).cache is False


def test_tracing_parameters(llm):
    assert llm._get_ls_params(stop=["x"], temperature=0.5) == {
        "ls_provider": "msa",
        "ls_model_type": "chat",
        "ls_model_name": "tiny-llama",
        "ls_temperature": 0.5,
        "ls_max_tokens": 12,
        "ls_stop": ["x"],
    }


async def test_in_chains_that_paste_text_into_their_prompt(filled, store):
    llm = ChatMSA(filled, mode="chat", temperature=1.5, seed=3, max_tokens=12)
    retriever = store.as_retriever(search_kwargs={"k": 1})
    prompt = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
    chain = create_retrieval_chain(retriever, create_stuff_documents_chain(llm, prompt))
    expected = filled.chat(
        [{"role": "system", "content": about("violin")}, {"role": "user", "content": about("violin")}], **OPTIONS
    ).text
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for out in (chain.invoke({"input": about("violin")}), (await chain.abatch([{"input": about("violin")}]))[0]):
            assert out["answer"] == expected and [d.id for d in out["context"]] == ["violin"]
        qa = RetrievalQA.from_chain_type(llm, retriever=retriever, return_source_documents=True)
        out = qa.invoke({"query": about("violin")})
    assert out["result"] and [d.id for d in out["source_documents"]] == ["violin"]
