"""The memory's backbone as a LlamaIndex LLM, with or without the memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index.llms.msa.events import atold, told
from llama_index.llms.msa.filters import memory_filter
from llama_index.llms.msa.messages import node_ids, plain, question
from msa_plugin.integrating import AnswerStream, AsyncAnswerStream
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer

Response = TypeVar("Response", CompletionResponse, ChatResponse)
Piece = tuple[str, str, Answer | None]  # text so far, what is new of it, the answer once it is whole

_OF_MEMORY = ("filters", "documents", "at", "history")  # of a call in mode "memory", beside generation settings


class MSALLM(CustomLLM):
    """The backbone of a `LatentMemory` as a language model.

    In mode "chat", the default, it is the plain chat model that the backbone is: what is in the prompt is all it
    reads, so it fits any pipeline that puts retrieved text there. In mode "memory" the last user message is a
    question to the memory: it is routed, over several rounds if need be, and answered from what was found; earlier
    messages are not read. A call in that mode takes `documents=` (nodes or their ids) to read exactly those, and
    `filters=`, `at=`, `history=`, besides the generation settings and `max_rounds`, `per_round`, `cut`, `reads`.

    Settings that are None are the memory's own. Responses have the documents read in `additional_kwargs["sources"]`
    (id, score, round, relevance, quotes), there too "abstained" (the memory does not say it; the text says so) and
    "grounded" (whether the answer's words stand in the sources), and tokens in `raw["usage"]`. Rounds, chosen and
    fetched nodes and the end of retrieval are events of LlamaIndex's instrumentation (`llama_index.llms.msa.events`).
    Asynchronous calls run on worker threads.
    """

    mode: Literal["chat", "memory"] = Field(default="chat", description="Plain chat model, or answers from memory.")
    max_tokens: int | None = Field(default=None, description="Tokens to write at most.")
    temperature: float | None = Field(default=None, description="0 decodes greedily.")
    top_p: float | None = Field(default=None, description="Nucleus to sample from.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: list[str] | None = Field(default=None, description="Strings that end the answer.")
    filters: MetadataFilters | None = Field(default=None, description='Which documents mode "memory" may read.')
    _memory: LatentMemory = PrivateAttr()

    def __init__(self, memory: LatentMemory, **settings: Any) -> None:
        """`memory` stays the caller's to close; `settings` are the fields above and those of every LLM."""
        super().__init__(**settings)
        self._memory = memory

    @classmethod
    def class_name(cls) -> str:
        """Name for serialisation."""
        return "msa_llm"

    @property
    def memory(self) -> LatentMemory:
        """The memory it answers from."""
        return self._memory

    @property
    def metadata(self) -> LLMMetadata:
        """Context window (tokens) and name of the backbone."""
        return LLMMetadata(
            context_window=self._memory.context_window,
            num_output=self.max_tokens or self._memory.config.generation.max_new_tokens,
            is_chat_model=True,
            model_name=self._memory.model_name,
        )

    # -- completions -----------------------------------------------------------------------------------------------

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer one prompt. Raises InvalidQueryError for one that is blank or too long, EmptyMemoryError."""
        answer = self._answer(self._as_messages(prompt, formatted), kwargs)
        return self._completion((answer.text, "", answer), streamed=False)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """`complete` as it is decoded; the last response has an empty delta, the sources and the usage."""
        stream = self._open(self._as_messages(prompt, formatted), kwargs)
        return _pieces(stream, self._completion)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete`, awaited."""
        answer = await self._aanswer(self._as_messages(prompt, formatted), kwargs)
        return self._completion((answer.text, "", answer), streamed=False)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` for an event loop."""
        stream = self._aopen(self._as_messages(prompt, formatted), kwargs)
        return _apieces(stream, self._completion)

    # -- chats -----------------------------------------------------------------------------------------------------

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Continue a conversation. Raises InvalidQueryError for what is not text and for tool messages."""
        answer = self._answer(messages, kwargs)
        return self._chat((answer.text, "", answer), streamed=False)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` as it is decoded; the last response has an empty delta, the sources and the usage."""
        return _pieces(self._open(messages, kwargs), self._chat)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat`, awaited."""
        answer = await self._aanswer(messages, kwargs)
        return self._chat((answer.text, "", answer), streamed=False)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` for an event loop."""
        return _apieces(self._aopen(messages, kwargs), self._chat)

    # -- to the memory ---------------------------------------------------------------------------------------------

    def _answer(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Answer:
        if self.mode == "chat":
            return self._memory.chat(plain(messages), **self.generation_options(kwargs))
        *_, answer = told(self._open(messages, kwargs))
        assert isinstance(answer, Answer)  # it comes last
        return answer

    def _open(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> AnswerStream:
        if self.mode == "chat":
            return self._memory.stream_chat(plain(messages), **self.generation_options(kwargs))
        return self._memory.stream(question(messages), **self._asking(kwargs))

    async def _aanswer(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Answer:
        if self.mode == "chat":
            return await self._memory.achat(plain(messages), **self.generation_options(kwargs))
        answer = [event async for event in atold(self._aopen(messages, kwargs))][-1]
        assert isinstance(answer, Answer)  # it comes last
        return answer

    def _aopen(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> AsyncAnswerStream:
        if self.mode == "chat":
            return self._memory.astream_chat(plain(messages), **self.generation_options(kwargs))
        return self._memory.astream(question(messages), **self._asking(kwargs))

    def generation_options(self, kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The generation settings as `LatentMemory` takes them; `kwargs` override this model's own."""
        own = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "seed", "stop")}
        options = {**{name: value for name, value in own.items() if value is not None}, **(kwargs or {})}
        if "max_tokens" in options:
            options["max_new_tokens"] = options.pop("max_tokens")
        if "stop" in options:
            stop = options["stop"] or ()
            options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
        return options

    def _asking(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        options = self.generation_options({k: v for k, v in kwargs.items() if k not in _OF_MEMORY})
        documents = kwargs.get("documents")
        return {
            **options,
            "filter": memory_filter(kwargs.get("filters") or self.filters),
            "at": kwargs.get("at"),
            "history": kwargs.get("history", False),
            "documents": None if documents is None else node_ids(documents),
        }

    def _as_messages(self, prompt: str, formatted: bool) -> list[ChatMessage]:
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        return [ChatMessage(role=MessageRole.USER, content=prompt)]

    # -- to LlamaIndex ---------------------------------------------------------------------------------------------

    def _completion(self, piece: Piece, *, streamed: bool = True) -> CompletionResponse:
        text, delta, answer = piece
        return CompletionResponse(
            text=text, delta=delta if streamed else None, raw=self._raw(answer), additional_kwargs=_sources(answer)
        )

    def _chat(self, piece: Piece, *, streamed: bool = True) -> ChatResponse:
        text, delta, answer = piece
        # Sources go to the response: what a message carries is printed into later prompts by LlamaIndex.
        return ChatResponse(
            message=ChatMessage(role=MessageRole.ASSISTANT, content=text),
            delta=delta if streamed else None,
            raw=self._raw(answer),
            additional_kwargs=_sources(answer),
        )

    def _raw(self, answer: Answer | None) -> dict[str, Any] | None:
        if answer is None:
            return None
        read, written = answer.trace.input_tokens, answer.trace.output_tokens
        return {
            "model": self._memory.model_name,
            "finish_reason": answer.trace.finish,
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }


def _sources(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    sources = [
        {
            "id": s.id,
            "score": s.score,
            "round": s.round,
            "relevance": s.relevance,
            "quotes": [asdict(quote) for quote in s.quotes],
        }
        for s in answer.sources
    ]
    if answer.trace.mode == "chat":
        return {"sources": sources}
    return {"sources": sources, "abstained": answer.abstained, "grounded": answer.grounded}


def _pieces(stream: AnswerStream, response: Callable[[Piece], Response]) -> Generator[Response, None, None]:
    text = ""
    with closing(told(stream)) as events:
        for event in events:
            if isinstance(event, str):
                text += event
                yield response((text, event, None))
            else:
                yield response((text, "", event))


async def _apieces(stream: AsyncAnswerStream, response: Callable[[Piece], Response]) -> AsyncGenerator[Response, None]:
    text = ""
    async with aclosing(atold(stream)) as events:
        async for event in events:
            if isinstance(event, str):
                text += event
                yield response((text, event, None))
            else:
                yield response((text, "", event))
