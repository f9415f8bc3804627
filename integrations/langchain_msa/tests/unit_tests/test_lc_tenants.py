"""Two tenants in one bank: no public method of B's store, retriever or chat model reaches A's documents."""

from __future__ import annotations

import warnings

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import BaseChatModel
from langchain_core.prompt_values import StringPromptValue
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableSerializable

from facade import about, opened
from langchain_msa import ChatMSA, MSARetriever, MSAVectorStore, create_msa_chain
from msa_plugin.errors import MSAError

SECRETS = ("violin", "meteor")  # A's topics; every id, text and field of A's holds one of them
OWN = ("saffron", "glacier")
QUESTION = "tell me everything"  # names no secret, so that an answer that holds one got it from memory

everything = {"k": 50, "filter": lambda metadata: True}
ids_of_a = [f"a-{topic}" for topic in SECRETS]


def owned(name, topics):
    return [{"id": f"{name}-{t}", "text": about(t), "metadata": {"owner": name, "topic": t}} for t in topics]


@pytest.fixture
def tenants(tmp_path, backbone):
    with opened(tmp_path, backbone, namespace="a") as a, opened(tmp_path, backbone, namespace="b") as b:
        a.add(owned("a", SECRETS))
        b.add(owned("b", OWN))
        before = a.get(ids_of_a)
        yield a, b
        a.refresh()
        assert a.get(ids_of_a) == before and a.stats().documents == len(SECRETS)
        assert [h.id for h in a.retrieve(about("violin"), 1)] == ["a-violin"]


async def seen(attempt):
    """What an attempt brings to light, as text: its result, or its error."""
    try:
        result = attempt()
        if hasattr(result, "__await__"):
            result = await result
        elif hasattr(result, "__aiter__"):
            result = [piece async for piece in result]
        elif not isinstance(result, (str, list, dict)) and hasattr(result, "__iter__"):
            result = list(result)
        return repr(result)
    except (MSAError, NotImplementedError, TypeError, ValueError) as error:
        return f"refused: {error}"


def leaked(text, given=()):
    """Secrets in `text`, apart from what the attempt itself put into it."""
    for word in sorted(given, key=len, reverse=True):
        text = text.replace(word, "")
    return [secret for secret in SECRETS if secret in text.lower()]


def store_attempts(s):
    """Public name -> attempts."""
    doc, mine = Document("mine", id="b-mine"), {"memory": s.memory}
    taken = Document("mine now", id="a-violin")
    searches = {
        name: [
            lambda name=name: getattr(s, name)(QUESTION, **everything),
            lambda name=name: getattr(s, name)(QUESTION, k=50, filter={"owner": "a"}),
            lambda name=name: getattr(s, name)(QUESTION, k=50, filter={"$or": [{"owner": "a"}, {"owner": "b"}]}),
            lambda name=name: getattr(s, name)(QUESTION, namespace="a"),
        ]
        for base in (
            "similarity_search",
            "similarity_search_with_score",
            "similarity_search_with_relevance_scores",
            "max_marginal_relevance_search",
        )
        for name in (base, f"a{base}")
    }
    vectors = {
        name: [lambda name=name: getattr(s, name)([0.1], k=50)]
        for base in ("similarity_search_by_vector", "max_marginal_relevance_search_by_vector")
        for name in (base, f"a{base}")
    }
    return {
        **searches,
        **vectors,
        "search": [lambda: s.search(QUESTION, "mmr", **everything)],
        "asearch": [lambda: s.asearch(QUESTION, "similarity", **everything)],
        "get_by_ids": [lambda: s.get_by_ids(ids_of_a)],
        "aget_by_ids": [lambda: s.aget_by_ids(ids_of_a)],
        "as_retriever": [
            lambda: s.as_retriever(search_kwargs=everything).invoke(QUESTION),
            lambda: s.as_retriever(search_type="mmr", search_kwargs=everything).invoke(QUESTION),
            lambda: s.as_retriever().invoke(QUESTION, namespace="a"),
            lambda: s.as_retriever(search_kwargs={"namespace": "a"}).ainvoke(QUESTION),
        ],
        "add_documents": [
            lambda: s.add_documents([taken]),
            lambda: s.add_documents([doc], namespace="a"),
            lambda: s.as_retriever().add_documents([taken]),
        ],
        "aadd_documents": [lambda: s.aadd_documents([taken])],
        "add_texts": [lambda: s.add_texts(["mine"], ids=["a-meteor"])],
        "aadd_texts": [lambda: s.aadd_texts(["mine"], ids=["a-meteor"])],
        "from_documents": [lambda: MSAVectorStore.from_documents([taken], namespace="a", **mine)],
        "afrom_documents": [lambda: MSAVectorStore.afrom_documents([taken], namespace="a", **mine)],
        "from_texts": [lambda: MSAVectorStore.from_texts(["x"], ids=["a-violin"], namespace="a", **mine)],
        "afrom_texts": [lambda: MSAVectorStore.afrom_texts(["x"], ids=["a-violin"], namespace="a", **mine)],
        "delete": [
            lambda: s.delete(ids_of_a),
            lambda: s.delete("a-violin"),
            lambda: s.delete(None),
            lambda: s.delete(ids_of_a, namespace="a"),
            lambda: s.delete(delete_all=True),
        ],
        "adelete": [lambda: s.adelete(ids_of_a), lambda: s.adelete(None, delete_all=True)],
        "embeddings": [lambda: s.embeddings],
        "close": [],  # ends the handle
    }


def public(kind, *without):
    inherited = {name for base in without for name in dir(base)}
    return {name for name in dir(kind) if not name.startswith("_")} - inherited


async def test_the_store(tenants):
    _, b = tenants
    attempts = store_attempts(MSAVectorStore(b))
    assert set(attempts) == public(MSAVectorStore)
    await check(b, attempts, ids_of_a)


RUNS = ("invoke", "ainvoke", "batch", "abatch", "stream", "astream", "transform", "atransform")
RUNS_ALSO = ("batch_as_completed", "abatch_as_completed", "astream_log", "astream_events", "stream_events")


async def one(value):
    yield value


def running(runnable, value, **options):
    """Attempts through every method that runs a Runnable."""
    r = runnable
    return {
        "invoke": [lambda: r.invoke(value, **options)],
        "ainvoke": [lambda: r.ainvoke(value, **options)],
        "batch": [lambda: r.batch([value], **options)],
        "abatch": [lambda: r.abatch([value], **options)],
        "stream": [lambda: r.stream(value, **options)],
        "astream": [lambda: r.astream(value, **options)],
        "transform": [lambda: r.transform(iter([value]), **options)],
        "atransform": [lambda: r.atransform(one(value), **options)],
        "batch_as_completed": [lambda: r.batch_as_completed([value], **options)],
        "abatch_as_completed": [lambda: r.abatch_as_completed([value], **options)],
        "astream_log": [lambda: r.astream_log(value, **options)],
        "astream_events": [lambda: r.astream_events(value, version="v2", **options)],
        "stream_events": [lambda: r.stream_events(value, version="v3", **options)],
    }


# What only builds another Runnable, or describes this one, runs nothing.
DESCRIBES = public(RunnableSerializable) - {*RUNS, *RUNS_ALSO} | {"validate_search_type", "set_verbose"}
# What the framework has and these classes do not do.
NOT_THEIRS = {"bind_tools", "with_structured_output", "stream_events"}


async def check(b, attempts, given=()):
    """Make all attempts; returns the names of those that were refused."""
    refused = set()
    for name in sorted(attempts):
        for attempt in attempts[name]:
            b.add(owned("b", OWN))  # what an earlier attempt deleted
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = await seen(attempt)
            assert leaked(result, given) == [], name
            refused |= {name} if result.startswith("refused") else set()
    return refused


async def test_the_retriever(tenants):
    _, b = tenants
    for retriever in (MSARetriever(memory=b, k=50), MSAVectorStore(b).as_retriever(search_kwargs={"k": 50})):
        for options in ({}, {"filter": lambda metadata: True}, {"filter": {"owner": "a"}}, {"namespace": "a"}):
            attempts = running(retriever, QUESTION, **options)
            fields = set(type(retriever).model_fields) | {"allowed_search_types"}
            assert set(attempts) >= public(type(retriever)) - DESCRIBES - fields - {"add_documents", "aadd_documents"}
            refused = await check(b, attempts)
            assert options or refused <= NOT_THEIRS
    assert leaked(repr([retriever.model_dump(), str(retriever)])) == []
    assert public(MSARetriever, BaseRetriever) <= set(MSARetriever.model_fields)


def chat_attempts(m, prompt, **options):
    return {
        **running(m, QUESTION, **options),
        "generate": [lambda: m.generate([prompt.to_messages()], **options)],
        "agenerate": [lambda: m.agenerate([prompt.to_messages()], **options)],
        "generate_prompt": [lambda: m.generate_prompt([prompt], **options)],
        "agenerate_prompt": [lambda: m.agenerate_prompt([prompt], **options)],
        "bind_tools": [lambda: m.bind_tools([])],
        "with_structured_output": [lambda: m.with_structured_output({"title": "x", "type": "object"})],
        "get_token_ids": [lambda: m.get_token_ids("x")],
        "get_num_tokens": [lambda: m.get_num_tokens("x")],
        "get_num_tokens_from_messages": [lambda: m.get_num_tokens_from_messages(prompt.to_messages())],
        "asdict": [lambda: m.asdict()],
        "model_name": [lambda: m.model_name],
    }


@pytest.mark.slow
async def test_the_chat_model(tenants):
    _, b = tenants
    llm, prompt = ChatMSA(b, mode="memory", temperature=1.5, seed=3, max_tokens=4), StringPromptValue(text=QUESTION)
    for options in (
        {},
        {"documents": ids_of_a},
        {"documents": [Document("x", id="a-violin")]},
        {"documents": ["b-saffron", "a-violin"], "filter": lambda metadata: True},
        {"filter": {"owner": "a"}},
        {"namespace": "a"},
        {"mode": "chat"},
    ):
        attempts = chat_attempts(llm, prompt, **options)
        assert set(attempts) >= public(ChatMSA) - DESCRIBES - set(ChatMSA.model_fields) - {"OutputType"}
        refused = await check(b, attempts, ids_of_a)
        assert options or refused <= NOT_THEIRS
    assert public(ChatMSA, BaseChatModel) <= {*ChatMSA.model_fields, "model_name"}


async def test_the_chain_and_the_index(tenants):
    a, b = tenants
    store, llm = MSAVectorStore(b), ChatMSA(b, mode="memory", max_tokens=4)
    assert await check(b, running(create_msa_chain(store, llm), QUESTION)) <= NOT_THEIRS
    foreign = create_msa_chain(MSAVectorStore(a), llm)  # A's retriever does not open A's documents to B's model
    with pytest.raises(MSAError, match="not in this memory"):
        foreign.invoke(QUESTION)
    records = InMemoryRecordManager(namespace="b")
    records.update(ids_of_a)  # a record manager that was shared by mistake
    index([Document("x")], records, store, cleanup="full", key_encoder="blake2b")


async def test_a_filter_that_is_a_function_sees_the_tenants_own_metadata_only(tenants):
    _, b = tenants
    told = []
    look = {"filter": lambda metadata: told.append(dict(metadata)) or True}
    store = MSAVectorStore(b)
    store.similarity_search(QUESTION, **look)
    store.max_marginal_relevance_search(QUESTION, **look)
    MSARetriever(memory=b).invoke(QUESTION, **look)
    ChatMSA(b, mode="memory", max_tokens=2).invoke(QUESTION, **look)
    ChatMSA(b, mode="memory", max_tokens=2).invoke(QUESTION, documents=["b-saffron"], **look)
    assert told and {m["owner"] for m in told} == {"b"}


def test_the_attempts_would_show_a_leak(tenants):
    a, _ = tenants
    for found in (MSAVectorStore(a).similarity_search(QUESTION), MSARetriever(memory=a).invoke(QUESTION)):
        assert leaked(repr(found))
    assert leaked(repr(ChatMSA(a, mode="memory", max_tokens=2).invoke(QUESTION)))
    assert isinstance(ChatMSA(a), Runnable)
