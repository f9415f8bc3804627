"""The paired chain: a retriever finds documents, ChatMSA reads them by id out of its memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from operator import itemgetter
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import LanguageModelLike
from langchain_core.messages import BaseMessage
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
    RunnablePassthrough,
)
from langchain_core.runnables.utils import AddableDict
from langchain_core.vectorstores import VectorStore

from langchain_msa._convert import ids_of
from langchain_msa.chat_models import ChatMSA
from msa_plugin.errors import ConfigError, InvalidQueryError


def create_msa_chain(
    retriever_or_store: VectorStore | Runnable[str, list[Document]], llm: LanguageModelLike
) -> Runnable[str | Mapping[str, Any], dict[str, Any]]:
    """A chain from a question to {"input", "context", "answer", "sources", "abstained", "grounded"}.

    The question is a string or a mapping with it under "input", as `create_retrieval_chain` takes it; other fields of
    the mapping are handed through. "context" are the retriever's documents, "answer" is text, "sources" are those
    documents that were read, as {"id", "score", "hop", "relevance", "quotes"}, none of them where "abstained" is True.
    Documents reach the model by id and never as text, so they must come from the memory that `llm`, a ChatMSA, was
    built on; documents of another store raise InvalidQueryError or UnknownDocumentError. `stream` and `astream` yield
    the answer as it is decoded.

    Raises ConfigError for a retriever or an llm that is something else.
    """
    retriever = retriever_or_store.as_retriever() if isinstance(retriever_or_store, VectorStore) else retriever_or_store
    if not isinstance(retriever, Runnable):
        raise ConfigError(f"expected a vector store or a retriever, not {type(retriever).__name__}")
    model = _paired(llm)

    def read(found: dict[str, Any], config: RunnableConfig) -> Iterator[dict[str, Any]]:
        yield AddableDict({**found, "answer": ""})
        for message in model.stream(found["input"], config, documents=ids_of(found["context"])):
            yield from _pieces(message)

    async def aread(found: dict[str, Any], config: RunnableConfig) -> AsyncIterator[dict[str, Any]]:
        yield AddableDict({**found, "answer": ""})
        async for message in model.astream(found["input"], config, documents=ids_of(found["context"])):
            for piece in _pieces(message):
                yield piece

    reading: Any = RunnableLambda  # its signature does not know generators
    chain: Runnable[Any, Any] = (
        RunnableLambda(_input, name="question")
        | RunnablePassthrough.assign(context=itemgetter("input") | retriever)
        | reading(read, aread, name="read_by_id")
    )
    return chain.with_config(run_name="msa_chain")


def _paired(llm: object) -> Runnable[Any, Any]:
    """`llm` if it is a ChatMSA that may read by id, with or without bound arguments. Raises ConfigError."""
    inner = llm
    while isinstance(inner, RunnableBinding):
        inner = inner.bound
    if not isinstance(inner, ChatMSA):
        raise ConfigError(
            f"create_msa_chain pairs a retriever with a ChatMSA, not with {type(inner).__name__}; for another model "
            "put the retrieved text into its prompt, as before"
        )
    if inner.mode == "chat":
        raise ConfigError("create_msa_chain reads documents by id: build the model with ChatMSA(memory)")
    assert isinstance(llm, Runnable)
    return llm


def _input(question: object) -> dict[str, Any]:
    fields = {"input": question} if isinstance(question, str) else question
    if not isinstance(fields, Mapping) or not isinstance(fields.get("input"), str):
        raise InvalidQueryError('the chain takes a question: a string, or a mapping {"input": "..."}')
    return dict(fields)


def _pieces(message: BaseMessage) -> Iterator[dict[str, Any]]:
    if message.text:
        yield AddableDict({"answer": str(message.text)})
    told = {name: message.response_metadata.get(name) for name in ("sources", "abstained", "grounded")}
    if "sources" in message.response_metadata:
        yield AddableDict(told)
