"""Answers from nodes by id, over what the memory keeps of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers import BaseSynthesizer, get_response_synthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, QueryType
from llama_index.core.types import RESPONSE_TEXT_TYPE

from llama_index.indices.managed.msa.records import passage_of
from llama_index.llms.msa import MSALLM
from llama_index.llms.msa.events import atold, told
from msa_plugin.errors import ConfigError
from msa_plugin.integrating import AnswerStream, AsyncAnswerStream
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer

_log = logging.getLogger(__name__)


class MSASynthesizer(BaseSynthesizer):
    """Reads the retrieved nodes by id, in the memory's reading mode, instead of putting their text in a prompt.

    The nodes must be the memory's, or passages of those, which are read then. When a postprocessor has changed a node's
    text, or a node comes from elsewhere, there is nothing in memory that says the same: all nodes of that query are
    then put into the prompt as text, and a log record says so. The response's metadata say whether the memory
    `abstained` (then it has no source nodes) and whether the answer is `grounded`; those of a stream, once it has
    ended. No nodes give "Empty Response". `options` are those of `LatentMemory.ask`: max_new_tokens, temperature,
    top_p, seed, stop.
    """

    def __init__(
        self,
        memory: LatentMemory,
        *,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> None:
        """`memory` stays the caller's to close."""
        self._memory, self._options = memory, options
        self._plain = MSALLM(memory)
        super().__init__(llm=self._plain, callback_manager=callback_manager, streaming=streaming)

    def synthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """Answer `query` from `nodes`; a streaming synthesizer returns a StreamingResponse."""
        documents = self._held(nodes)
        return super().synthesize(
            _bundle(query), nodes, additional_source_nodes, documents=documents, **response_kwargs
        )

    async def asynthesize(
        self,
        query: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """`synthesize`, awaited; a streaming synthesizer returns an AsyncStreamingResponse."""
        documents = await asyncio.to_thread(self._held, nodes)
        return await super().asynthesize(
            _bundle(query), nodes, additional_source_nodes, documents=documents, **response_kwargs
        )

    def get_response(
        self, query_str: str, text_chunks: Sequence[str], documents: list[str] | None = None, **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The answer's text, from `documents` by id, or from `text_chunks` when there are none."""
        if documents is None:
            return self._from_text().get_response(query_str, text_chunks, **response_kwargs)
        options = {**self._options, **response_kwargs}
        if self._streaming:
            return _Pieces(self._memory.stream(query_str, documents=documents, **options))
        *_, answer = told(self._memory.stream(query_str, documents=documents, **options))
        assert isinstance(answer, Answer)  # it comes last
        return _Text(answer)

    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], documents: list[str] | None = None, **response_kwargs: Any
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response`, awaited."""
        if documents is None:
            return await self._from_text().aget_response(query_str, text_chunks, **response_kwargs)
        options = {**self._options, **response_kwargs}
        if self._streaming:
            return _AsyncPieces(self._memory.astream(query_str, documents=documents, **options))
        stream = self._memory.astream(query_str, documents=documents, **options)
        answer = [event async for event in atold(stream)][-1]
        assert isinstance(answer, Answer)  # it comes last
        return _Text(answer)

    def _prepare_response_output(
        self, response_str: RESPONSE_TEXT_TYPE | None, source_nodes: list[NodeWithScore]
    ) -> RESPONSE_TYPE:
        response = super()._prepare_response_output(response_str, source_nodes)
        if isinstance(response_str, _Text):
            _settle(response, response_str.answer)
        elif isinstance(response_str, _Pieces | _AsyncPieces):
            response_str.response = response
        return response

    def _held(self, nodes: Sequence[NodeWithScore]) -> list[str] | None:
        """Ids of the nodes, or of those they are passages of, if the memory holds every one as it is, else None."""
        places = [passage_of(n.node) or (n.node_id, None, None) for n in nodes]
        stored = {document.id: document.text for document in self._memory.get([name for name, _, _ in places])}
        foreign = [
            node.node_id
            for node, (name, start, end) in zip(nodes, places, strict=True)
            if name not in stored or stored[name][start:end] != node.get_content(metadata_mode=MetadataMode.NONE)
        ]
        if not foreign:
            return [name for name, _, _ in places]
        _log.warning("%d of %d nodes are not in memory as given; their text is read instead", len(foreign), len(nodes))
        return None

    def _from_text(self) -> BaseSynthesizer:
        llm = MSALLM(self._memory, callback_manager=self._callback_manager, **_llm_settings(self._options))
        return get_response_synthesizer(llm=llm, streaming=self._streaming, callback_manager=self._callback_manager)

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if prompts:
            raise ConfigError(
                f"there are no prompts {sorted(prompts)} to change here; set the memory's instruction=, "
                "or give the query engine llm= to read text with prompts of your own"
            )


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


def _llm_settings(options: dict[str, Any]) -> dict[str, Any]:
    names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "seed": "seed"}
    settings = {names[key]: value for key, value in options.items() if key in names}
    return settings | ({"stop": list(options["stop"])} if "stop" in options else {})


def _settle(response: RESPONSE_TYPE | None, answer: Answer) -> None:
    """Let a response say what became of the answer."""
    if response is not None:
        response.metadata = {**(response.metadata or {}), "abstained": answer.abstained, "grounded": answer.grounded}
        if answer.abstained:
            response.source_nodes = []


class _Text(str):
    """An answer's text, and the answer."""

    answer: Answer

    def __new__(cls, answer: Answer) -> _Text:
        text = super().__new__(cls, answer.text)
        text.answer = answer
        return text


class _Pieces(Generator[str, None, None]):
    """The pieces of an answer; `response` is told of it once it is whole."""

    def __init__(self, stream: AnswerStream) -> None:
        self.response: RESPONSE_TYPE | None = None
        self._inner = self._told(stream)

    def _told(self, stream: AnswerStream) -> Generator[str, None, None]:
        with closing(told(stream)) as events:
            for event in events:
                if isinstance(event, str):
                    yield event
                else:
                    _settle(self.response, event)

    def send(self, value: None) -> str:
        """The next piece."""
        return self._inner.send(value)

    def throw(self, *error: Any) -> str:
        """Raise where the stream stands."""
        return self._inner.throw(*error)

    def close(self) -> None:
        """Stop decoding."""
        self._inner.close()


class _AsyncPieces(AsyncGenerator[str, None]):
    """`_Pieces`, for an event loop."""

    def __init__(self, stream: AsyncAnswerStream) -> None:
        self.response: RESPONSE_TYPE | None = None
        self._inner = self._told(stream)

    async def _told(self, stream: AsyncAnswerStream) -> AsyncGenerator[str, None]:
        async with aclosing(atold(stream)) as events:
            async for event in events:
                if isinstance(event, str):
                    yield event
                else:
                    _settle(self.response, event)

    async def asend(self, value: None) -> str:
        """The next piece."""
        return await self._inner.asend(value)

    async def athrow(self, *error: Any) -> str:
        """Raise where the stream stands."""
        return await self._inner.athrow(*error)

    async def aclose(self) -> None:
        """Stop decoding."""
        await self._inner.aclose()
