"""`MSALLM`: the backbone as a chat model, and the memory as a model."""

from __future__ import annotations

import pytest
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.memory import Memory
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from facade import about, count_runs
from llama_index.llms.msa import MSALLM
from msa_plugin.errors import ConfigError, EmptyMemoryError, InvalidQueryError, UnknownDocumentError

SETTINGS = {"temperature": 1.5, "seed": 3, "max_tokens": 12}
DRAWN = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}
TALK = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="Who are you?"),
    ChatMessage(role="assistant", content="A model."),
    ChatMessage(role="user", content="violin"),
]
PLAIN = [{"role": m.role.value, "content": m.content} for m in TALK]


@pytest.fixture(params=["chat", "memory"])
def llm(request, filled):
    return MSALLM(filled, mode=request.param, **SETTINGS)


def expected(llm, talk=True):
    if llm.mode == "memory":
        return llm.memory.ask("violin", **DRAWN)
    return llm.memory.chat(PLAIN if talk else [{"role": "user", "content": "violin"}], **DRAWN)


# -- every way to call it


def test_complete_and_chat(llm):
    assert llm.complete("violin").text == expected(llm, talk=False).text
    response = llm.chat(TALK)
    assert response.message.content == expected(llm).text
    assert response.message.role is MessageRole.ASSISTANT


async def test_complete_and_chat_awaited(llm):
    assert (await llm.acomplete("violin")).text == expected(llm, talk=False).text
    assert (await llm.achat(TALK)).message.content == expected(llm).text


async def test_streams(llm):
    streams = [
        list(llm.stream_complete("violin")),
        [r async for r in await llm.astream_complete("violin")],
        list(llm.stream_chat(TALK)),
        [r async for r in await llm.astream_chat(TALK)],
    ]
    for number, responses in enumerate(streams):
        whole = expected(llm, talk=number > 1).text
        assert len(responses) > 2 and "".join(r.delta for r in responses) == whole
        last = responses[-1]
        assert (last.text if number < 2 else last.message.content) == whole
        assert last.raw["usage"]["completion_tokens"] == 12
        assert len(last.additional_kwargs["sources"]) == len(expected(llm).sources)
        assert all(not r.additional_kwargs for r in responses[:-1])


async def test_leaving_a_stream_ends_the_decoding(filled, monkeypatch):
    runs = count_runs(monkeypatch)
    llm = MSALLM(filled, max_tokens=300)
    stream = llm.stream_complete("hello")
    next(stream)
    stream.close()
    responses = await llm.astream_chat(TALK)
    await anext(responses)
    await responses.aclose()
    assert len(runs) < 100 and list(stream) == []


async def test_prompts(llm):
    prompt = PromptTemplate("{word}")
    whole = expected(llm, talk=False).text
    assert llm.predict(prompt, word="violin") == await llm.apredict(prompt, word="violin") == whole
    assert "".join(llm.stream(prompt, word="violin")) == whole
    assert "".join([p async for p in await llm.astream(prompt, word="violin")]) == whole


# -- what comes with a response


def test_the_default_is_a_plain_chat_model(filled, monkeypatch):
    monkeypatch.setattr(type(filled), "ask", lambda *a, **k: pytest.fail("it routed on its prompt"))
    response = MSALLM(filled, max_tokens=2).complete(f"{about('violin')}\nWhat is this?")
    assert response.additional_kwargs == {"sources": []}


def test_the_memory_mode_reports_its_sources(filled):
    answer = filled.ask("violin", **DRAWN)
    response = MSALLM(filled, mode="memory", **SETTINGS).chat(TALK)
    sources = [{"id": s.id, "score": s.score, "round": s.round} for s in answer.sources]
    told = [{name: s[name] for name in ("id", "score", "round")} for s in response.additional_kwargs["sources"]]
    assert sources and told == sources
    assert response.message.additional_kwargs == {}  # LlamaIndex prints these into later prompts
    assert response.raw["model"] == "tiny-llama" and response.raw["finish_reason"] == "length"


def test_metadata(memory):
    metadata = MSALLM(memory, max_tokens=7).metadata
    assert (metadata.context_window, metadata.num_output, metadata.model_name) == (4096, 7, "tiny-llama")
    assert metadata.is_chat_model and not metadata.is_function_calling_model
    assert MSALLM(memory).metadata.num_output == memory.config.generation.max_new_tokens


def test_callbacks_and_token_counts(llm):
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), TokenCountingHandler(tokenizer=list)
    llm.callback_manager = CallbackManager([debug, counter])
    llm.chat(TALK)
    list(llm.stream_complete("violin"))
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 2
    trace = expected(llm).trace
    event = counter.llm_token_counts[0]
    assert (event.prompt_token_count, event.completion_token_count) == (trace.input_tokens, trace.output_tokens)


# -- settings


def test_settings_are_overridden_by_the_call(memory):
    llm = MSALLM(memory, max_tokens=12, temperature=1.5, seed=3)
    assert llm.complete("x", max_tokens=3).raw["usage"]["completion_tokens"] == 3
    text = llm.complete("x").text
    assert llm.complete("x", seed=4).text != text
    stop = text[3]
    assert llm.complete("x", stop=[stop]).text == llm.complete("x", stop=stop).text == text[: text.index(stop)]
    assert MSALLM(memory, **SETTINGS, stop=[stop]).complete("x").text == text[: text.index(stop)]
    with pytest.raises(ConfigError, match="tools"):
        llm.complete("x", tools=[])
    with pytest.raises(ConfigError, match="documents"):
        llm.complete("x", documents=["violin::0"])


def test_the_memory_mode_takes_documents_and_filters(filled):
    llm = MSALLM(filled, mode="memory", **SETTINGS)
    node = TextNode(id_="saffron::0", text=about("saffron"))
    for documents in (["saffron::0"], [NodeWithScore(node=node)], [node]):
        response = llm.complete("violin", documents=documents)
        assert [s["id"] for s in response.additional_kwargs["sources"]] == ["saffron::0"]
    even = MetadataFilters(filters=[MetadataFilter(key="even", value=1)])
    for response in (
        llm.complete("violin", filters=even),
        MSALLM(filled, mode="memory", filters=even, max_tokens=1).complete("violin"),
    ):
        ids = [s["id"].split("::")[0] for s in response.additional_kwargs["sources"]]
        assert ids and all(filled.get(f"{i}::0")[0].metadata["even"] for i in ids)
    assert llm.complete("violin", max_rounds=1).additional_kwargs["sources"]
    with pytest.raises(UnknownDocumentError):
        llm.complete("violin", documents=["nobody"])
    with pytest.raises(InvalidQueryError, match="takes a list"):
        llm.complete("violin", documents="violin::0")


def test_a_question_that_holds_what_is_found_is_told(filled, caplog):
    text = about("library") * 2
    filled.add({"id": "library", "text": text})
    llm = MSALLM(filled, mode="memory", max_tokens=2)
    for call in (llm.complete, lambda prompt: list(llm.stream_complete(prompt))):
        caplog.clear()
        call(f"Context: {text}\nWhat is in the library?")
        assert "already holds the text of 'library'" in caplog.text
    caplog.clear()
    llm.complete("What is in the library?")
    MSALLM(filled, max_tokens=2).complete(f"Context: {text}\nWhat is in the library?")
    assert "already holds" not in caplog.text


def test_serialisation_leaves_the_memory_out(memory):
    data = MSALLM(memory, max_tokens=3, mode="memory").to_dict()
    assert "memory" not in data and data["max_tokens"] == 3
    again = MSALLM.from_dict(data, memory=memory)
    assert again.mode == "memory" and again.memory is memory


# -- what it cannot do


def test_an_empty_memory_is_said(memory):
    with pytest.raises(EmptyMemoryError):
        MSALLM(memory, mode="memory").complete("violin")
    assert MSALLM(memory, max_tokens=2).complete("violin").text is not None


@pytest.mark.parametrize("mode", ["chat", "memory"])
async def test_what_is_not_text_is_refused(filled, mode):
    llm = MSALLM(filled, mode=mode)
    image = ChatMessage(role="user", blocks=[TextBlock(text="see"), ImageBlock(url="http://localhost/x.png")])
    with pytest.raises(InvalidQueryError, match="image"):
        llm.chat([image])
    with pytest.raises(InvalidQueryError):
        await llm.achat([ChatMessage(role="tool", content="42")])
    with pytest.raises(InvalidQueryError):
        list(llm.stream_chat([]))


def test_every_role_of_a_conversation_has_a_place(memory):
    as_is = MSALLM(memory, **SETTINGS).chat(TALK).message.content
    renamed = [
        ChatMessage(role={"system": "developer", "assistant": "model"}.get(m.role.value, m.role), content=m.content)
        for m in TALK
    ]
    assert MSALLM(memory, **SETTINGS).chat(renamed).message.content == as_is


async def test_an_agent_runs_on_it(memory, monkeypatch):
    said = "Thought: I can answer without using any more tools.\nAnswer: forty-two"
    chat = type(memory).chat
    prompts = []

    def scripted(self, messages, **options):
        prompts.append(messages)
        answer = chat(self, messages[-1:], **options)
        return type(answer)(said, answer.sources, answer.trace)

    monkeypatch.setattr(type(memory), "chat", scripted)
    agent = ReActAgent(llm=MSALLM(memory, max_tokens=2), tools=[], streaming=False)
    response = await agent.run("what?", memory=Memory.from_defaults(token_limit=2000))
    assert str(response) == "forty-two"
    assert prompts[0][-1] == {"role": "user", "content": "what?"}
