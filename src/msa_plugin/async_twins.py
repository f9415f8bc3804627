"""Async twins of the facade: the same calls on a worker thread, so that the event loop is never blocked.

Cancelling one stops its work at the next step (a batch encoded, a token decoded) and returns when it has stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from msa_plugin.arguments import By
from msa_plugin.cancellation import on_thread
from msa_plugin.dates import Recency, When
from msa_plugin.streams import AsyncAnswerStream
from msa_plugin.types import Answer, Filter, Hit

_Self = TypeVar("_Self")
_Result = TypeVar("_Result")
_Parameters = ParamSpec("_Parameters")


def awaited(
    method: Callable[Concatenate[_Self, _Parameters], _Result],
) -> Callable[Concatenate[_Self, _Parameters], Coroutine[Any, Any, _Result]]:
    """A method's twin, which takes and returns what it does."""
    name = method.__name__

    @wraps(method)
    async def twin(self: _Self, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        return cast(_Result, await on_thread(partial(getattr(self, name), *args, **kwargs)))

    twin.__name__, twin.__doc__ = f"a{name}", f"`{name}`, awaited."
    return twin


class AsyncTwins:
    """Mixin for `LatentMemory`: the twins of calls that take one question or several, and of streams."""

    async def aretrieve(
        self,
        question: str | Sequence[str],
        k: int | None = None,
        *,
        filter: Filter | None = None,
        at: When | None = None,
        history: bool = False,
        recency: Recency | None = None,
        by: By = "document",
        min_relevance: float | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """`retrieve`, awaited."""
        time = {"at": at, "history": history, "recency": recency}
        options = {"filter": filter, **time, "by": by, "min_relevance": min_relevance}
        call = partial(self._sync("retrieve"), question, k, **options)
        return cast("list[Hit] | list[list[Hit]]", await on_thread(call))

    async def aask(self, question: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """`ask`, awaited."""
        return cast("Answer | list[Answer]", await on_thread(partial(self._sync("ask"), question, **options)))

    def astream(self, question: str, **options: Any) -> AsyncAnswerStream:
        """`stream`, to iterate with `async for`; `await .aclose()` ends the decoding."""
        return AsyncAnswerStream(lambda: self._sync("stream")(question, **options), question)

    async def achat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Answer:
        """`chat`, awaited."""
        return cast(Answer, await on_thread(partial(self._sync("chat"), messages, **options)))

    def astream_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> AsyncAnswerStream:
        """`stream_chat`, to iterate with `async for`."""
        return AsyncAnswerStream(lambda: self._sync("stream_chat")(messages, **options))

    def _sync(self, method: str) -> Any:
        return getattr(self, method)
