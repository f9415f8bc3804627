"""A LangChain chat model over a `LatentMemory`: it answers its prompt, or from memory, as its construction says."""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from langchain_core.caches import BaseCache
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableConfig
from pydantic import Field

from langchain_msa._calls import Call, answered_together, read, together, usage, warn_unread, warn_untold
from langchain_msa._convert import conversation, ids_of, opened, question_of
from langchain_msa._events import Listeners, listeners, listening, of_config
from msa_plugin.config import MemoryConfig
from msa_plugin.errors import ConfigError, ToolsUnsupportedError
from msa_plugin.events import Answered, AnswerPiece
from msa_plugin.integrating import AnswerStream, AsyncAnswerStream
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer

Mode = Literal["memory", "chat"]
_OPENING = {"model", "adapter", "namespace", "read_only", "snapshot", "config", *MemoryConfig.model_fields}
_ROUNDS = ("max_rounds", "per_round", "cut", "reads")
_SAMPLING = ("temperature", "max_tokens", "top_p", "seed")
_TIME = ("at", "history")  # see `LatentMemory.retrieve`
_PER_CALL = {*_ROUNDS, *_SAMPLING, "mode", "documents", "filter", *_TIME, "timeout", "model", "stream"}


class ChatMSA(BaseChatModel):
    """The memory's backbone as a chat model. How it is built says what it answers from.

        prompt | ChatMSA(store.memory)             # the prompt, with the retrieved text that a chain has put there
        ChatMSA(store.memory, mode="memory")       # the memory: it finds what to read for a bare question by itself

    - `mode="chat"`, which is meant where none is given: all messages are the prompt, and memory is not touched. Where
      no mode was given and a prompt is but a short question, a warning names the other one.
    - `mode="memory"`: the last human message is a question; it is routed, and answered from what was found. Other
      messages are not read, and a warning says so: routing wants the bare question, and the prompt around it is the
      memory's (`LatentMemory.open(instruction=...)`). A chain with history rewrites the question first. A question that
      already holds the text of a document that was found is warned of, before the documents are read.
    - `invoke(question, documents=[...])`: reads these documents (LangChain Documents of this memory, or ids), best
      first, instead of what routing would find. Their text is not put into a prompt. [] is closed book.

    Several questions are answered in the order in which they were asked. `batch` and `abatch` of questions to memory
    have them answered together. There are no tool calls and no structured output: `bind_tools` says what to do instead.

    Built on `memory=`, or on `path=` with settings of `LatentMemory.open` (model, adapter, namespace, ...). `invoke`,
    `stream` and their kin also take, for one call: mode, filter, at, history, temperature, max_tokens, top_p, seed,
    stop, timeout, max_rounds, per_round, cut, reads. `response_metadata` holds "sources" (a list of {"id", "score",
    "hop", "relevance", "quotes"}), "abstained" (the memory does not say it; the content says so), "grounded" (its words
    stand in the sources; None where that means nothing), "rounds" (what each round of routing selected), "mode",
    "finish_reason" and "model_name"; `usage_metadata` counts tokens read as text or as latents. Rounds, chosen and
    fetched documents and the end of retrieval reach callbacks as they happen, as `on_custom_event` (and so
    `astream_events`): msa_round_started, msa_documents_chosen, msa_documents_fetched, msa_retrieval_ended,
    msa_abstained, with the fields of `msa_plugin.events`. Answers are not kept in LangChain's cache unless `cache=`
    says so, since they change with the memory.

    Raises ConfigError for unknown options, InvalidQueryError, EmptyMemoryError, UnknownDocumentError, TimeoutError.
    """

    memory: LatentMemory = Field(exclude=True, repr=False)
    mode: Mode | None = None
    """None is "chat", unless a call gives `documents`."""
    filter: Mapping[str, Any] | Callable[[Mapping[str, Any]], bool] | None = None
    """Which documents may be read in mode "memory", which it needs, as `LatentMemory.retrieve` takes it."""
    temperature: float | None = None
    """None: the memory's own setting, as for the three below."""
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    max_rounds: int | None = None
    """Rounds of routing at most; None: the memory's own setting."""
    timeout: float | None = None
    """Seconds until TimeoutError; looked at between pieces of text."""
    max_retries: int | None = None
    """Accepted because chat models have it; there is no network that could fail."""
    streaming: bool = False
    cache: BaseCache | bool | None = Field(default=False, exclude=True)

    def __init__(self, memory: LatentMemory | None = None, *, path: str | Path | None = None, **kwargs: Any) -> None:
        """Take an open memory, or open the one in folder `path`; see the class. Raises what `LatentMemory.open` does.

        Fields that neither ChatMSA nor `LatentMemory.open` has (api_key, base_url) are ignored with a warning.
        """
        opening = {name: kwargs.pop(name) for name in sorted(_OPENING & kwargs.keys())}
        unknown = sorted(kwargs.keys() - type(self).model_fields.keys())
        if unknown:
            warnings.warn(f"ChatMSA ignores {', '.join(unknown)}", stacklevel=2)
        needy = [name for name in ("filter", "max_rounds") if kwargs.get(name) is not None]
        if needy and kwargs.get("mode") != "memory":
            raise ConfigError(f"{', '.join(needy)} is for answers from memory: ChatMSA(memory, mode='memory', ...)")
        held = opened(memory, path, opening)
        try:
            fields: dict[str, Any] = {**kwargs, "memory": held}
            super().__init__(**{name: value for name, value in fields.items() if name not in unknown})
        except BaseException:
            if memory is None:
                held.close()
            raise

    @property
    def model_name(self) -> str:
        """Name of the backbone."""
        return self.memory.model_name

    @property
    def _llm_type(self) -> str:
        return "msa"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """What an answer depends on besides the messages. With a cache, tenants must not share an entry."""
        names = ("mode", "filter", *_SAMPLING, "stop", "max_rounds")
        where = {"bank": str(self.memory.path), "namespace": self.memory.namespace}
        return {"model_name": self.model_name, **where, **{name: getattr(self, name) for name in names}}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "msa"
        params["ls_model_name"] = str(kwargs.get("model") or self.model_name)
        return params

    def bind_tools(self, tools: Sequence[Any], *, tool_choice: str | None = None, **kwargs: Any) -> NoReturn:
        """Not available, nor is `with_structured_output`: ToolsUnsupportedError says what to do instead."""
        raise ToolsUnsupportedError(
            f"{self.model_name} calls no tools and makes no structured output: give the agent another model, with this "
            "memory behind it (MSAMemoryMiddleware) or as one of its tools (create_retriever_tool over "
            "store.as_retriever()); or ask ChatMSA(memory, mode='memory'), which finds what it needs by itself"
        )

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids of `text` as the backbone reads it."""
        return self.memory.tokenize(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        *_, answer = self._events(call, listeners(run_manager))
        return self._result(cast(Answer, answer), call)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(messages, stop, kwargs)
        async with aclosing(self._aevents(call, listeners(run_manager))) as events:
            answer = [event async for event in events][-1]
        return self._result(cast(Answer, answer), call)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """The answer as it is decoded; what happens on the way reaches `on_custom_event` of the callbacks."""
        config, heard = of_config(self, config)
        inner = cast("Generator[AIMessageChunk, None, None]", super().stream(input, config, **kwargs))
        with closing(inner) as chunks:
            with listening(heard):  # `_stream` starts with the first chunk
                first = next(chunks, None)
            if first is not None:
                yield first
                yield from chunks

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream`, for an event loop."""
        config, heard = of_config(self, config)
        inner = cast("AsyncGenerator[AIMessageChunk, None]", super().astream(input, config, **kwargs))
        async with aclosing(inner) as chunks:
            with listening(heard):
                first = await anext(chunks, None)
            if first is not None:
                yield first
                async for chunk in chunks:
                    yield chunk

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with listening(listeners(run_manager)):  # it streams when somebody up the chain wants tokens
            return super()._generate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with listening(listeners(run_manager)):
            return await super()._agenerate_with_cache(messages, stop=stop, run_manager=run_manager, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        with closing(self._events(call, listeners(run_manager))) as events:
            for event in events:
                chunk = self._chunk(event, call)
                if run_manager:
                    run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._call(messages, stop, kwargs)
        async with aclosing(
            self._aevents(call, listeners(run_manager))
        ) as events:  # at once, not when the loop gets to it
            async for event in events:
                chunk = self._chunk(event, call)
                if run_manager:
                    await run_manager.on_llm_new_token(str(chunk.text), chunk=chunk)
                yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`invoke` of several; questions to memory are answered together, unless `max_concurrency` is 1."""
        with answered_together(self._questions(inputs, config)):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch`, awaited."""
        with answered_together(self._questions(inputs, config)):
            return await super().abatch(inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _questions(self, inputs: Sequence[LanguageModelInput], config: Any) -> list[str]:
        """What a batch asks of memory, as far as it may be answered together."""
        configs: list[RunnableConfig | None] = config if isinstance(config, list) else [config]
        if any(one is not None and one.get("max_concurrency") == 1 for one in configs):
            return []
        asked = []
        for given in inputs:
            with suppress(ValueError):  # the call for this one will say what is wrong with it
                asked.append(question_of(self._convert_input(given).to_messages())[0])
        return [question for question in asked if question.strip()]

    def _opened(self, call: Call) -> AnswerStream:
        """What happens for a call: what a batch was told of it, or a stream of its own."""
        others = together()
        shared = None if others is None else others.take(self.memory, call)
        if shared is not None:
            return shared
        start = self.memory.stream_chat if call.mode == "chat" else self.memory.stream
        return start(call.asked, **call.options)

    def _events(self, call: Call, heard: Listeners) -> Generator[str | Answer, None, None]:
        """Pieces of text, then the whole answer; what else happens goes to the run's callbacks."""
        stream = self._opened(call)
        try:
            for event in stream.events():
                if not isinstance(event, Answered):
                    call.check_time()
                if isinstance(event, AnswerPiece):
                    yield event.text
                elif isinstance(event, Answered):
                    yield event.answer
                else:
                    call.check_pasted(event)
                    heard.tell(event)
        finally:
            stream.close()

    async def _aevents(self, call: Call, heard: Listeners) -> AsyncGenerator[str | Answer, None]:
        stream = AsyncAnswerStream(partial(self._opened, call))
        try:
            async for event in stream.events():
                if not isinstance(event, Answered):
                    call.check_time()
                if isinstance(event, AnswerPiece):
                    yield event.text
                elif isinstance(event, Answered):
                    yield event.answer
                else:
                    call.check_pasted(event)
                    await heard.atell(event)
        finally:
            await stream.aclose()

    def _call(self, messages: Sequence[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> Call:
        """Settle one call. Raises ConfigError for options that are unknown or contradict the mode."""
        unknown = sorted(given.keys() - _PER_CALL)
        if unknown:
            raise ConfigError(f"ChatMSA has no option {', '.join(unknown)}; there are {', '.join(sorted(_PER_CALL))}")
        if given.get("model") not in (None, self.model_name):
            raise ConfigError(f"this ChatMSA runs {self.model_name}; build another one for {given['model']!r}")
        told = given.get("mode") or self.mode
        mode = told or ("memory" if given.get("documents") is not None else "chat")
        if mode not in ("memory", "chat"):
            raise ConfigError(f"mode is 'memory' or 'chat', not {mode!r}")
        timeout, began = given.get("timeout", self.timeout), time.monotonic()
        options = self._options(stop, given)
        if mode == "chat":
            misplaced = [name for name in ("documents", "filter", *_TIME, *_ROUNDS) if given.get(name) is not None]
            if misplaced:
                raise ConfigError(f"mode='chat' does not touch memory: {', '.join(misplaced)} need mode='memory'")
            asked = conversation(messages)
            if told is None:
                warn_untold(asked)
            return Call("chat", asked, options, timeout, began)
        question, others = question_of(messages)
        if others:
            warn_unread(others)
        options["filter"] = self.filter if given.get("filter") is None else given["filter"]
        options |= {name: given[name] for name in _TIME if given.get(name) is not None}
        rounds = {"max_rounds": self.max_rounds, **{n: given[n] for n in _ROUNDS if n in given}}
        options |= {name: value for name, value in rounds.items() if value is not None}
        if given.get("documents") is None:
            return Call("memory", question, options, timeout, began)
        return Call("documents", question, {**options, "documents": ids_of(given["documents"])}, timeout, began)

    def _options(self, stop: list[str] | None, given: dict[str, Any]) -> dict[str, Any]:
        """The memory's generation settings for one call."""
        options = {name: given.get(name, getattr(self, name)) for name in _SAMPLING}
        options["max_new_tokens"] = options.pop("max_tokens")
        wanted: list[str] | str | None = self.stop if stop is None else stop
        options["stop"] = (wanted,) if isinstance(wanted, str) else wanted
        return {name: value for name, value in options.items() if value is not None}

    def _chunk(self, event: str | Answer, call: Call) -> ChatGenerationChunk:
        if isinstance(event, str):
            return ChatGenerationChunk(message=AIMessageChunk(content=event))
        last = AIMessageChunk(
            content="",
            response_metadata=self._metadata(event, call),
            usage_metadata=usage(event),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=last)

    def _result(self, answer: Answer, call: Call) -> ChatResult:
        message = AIMessage(
            content=answer.text, response_metadata=self._metadata(answer, call), usage_metadata=usage(answer)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _metadata(self, answer: Answer, call: Call) -> dict[str, Any]:
        return {
            "model_name": self.model_name,
            "finish_reason": answer.trace.finish,
            "mode": call.mode,
            **read(answer),
            "rounds": [
                {"selected": list(r.selected), "scores": list(map(float, r.scores))} for r in answer.trace.rounds
            ],
        }
