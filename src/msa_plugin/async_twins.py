"""Async twins of the facade: the same calls on a worker thread, so that the event loop is never blocked.

Cancelling one stops its work at the next step (a batch encoded, a token decoded) and returns when it has stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from msa_plugin.arguments import By
from msa_plugin.cancellation import on_thread
from msa_plugin.conversations import Message
from msa_plugin.dates import Recency, When
from msa_plugin.streams import AsyncAnswerStream
from msa_plugin.types import (
    AddReport,
    Answer,
    DeleteReport,
    Document,
    DocumentLike,
    DocumentsLike,
    Explanation,
    Filter,
    Hit,
    VerifyReport,
)


class AsyncTwins:
    """Mixin for `LatentMemory`; each method takes and returns what its synchronous namesake does."""

    async def aadd(self, documents: DocumentsLike, **options: Any) -> AddReport:
        """`add`, awaited."""
        return cast(AddReport, await self._thread("add", documents, **options))

    async def aadd_turns(self, messages: Message | Iterable[Message], **options: Any) -> AddReport:
        """`add_turns`, awaited."""
        return cast(AddReport, await self._thread("add_turns", messages, **options))

    async def aupdate(self, document: DocumentLike) -> AddReport:
        """`update`, awaited."""
        return cast(AddReport, await self._thread("update", document))

    async def adelete(self, ids: str | Sequence[str]) -> DeleteReport:
        """`delete`, awaited."""
        return cast(DeleteReport, await self._thread("delete", ids))

    async def aget(self, ids: str | Sequence[str]) -> list[Document]:
        """`get`, awaited."""
        return cast("list[Document]", await self._thread("get", ids))

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
        return cast("list[Hit] | list[list[Hit]]", await self._thread("retrieve", question, k, **options))

    async def aexplain(self, question: str, document: str | Hit, **options: Any) -> Explanation:
        """`explain`, awaited."""
        return cast(Explanation, await self._thread("explain", question, document, **options))

    async def aask(self, question: str | Sequence[str], **options: Any) -> Answer | list[Answer]:
        """`ask`, awaited."""
        return cast("Answer | list[Answer]", await self._thread("ask", question, **options))

    def astream(self, question: str, **options: Any) -> AsyncAnswerStream:
        """`stream`, to iterate with `async for`; `await .aclose()` ends the decoding."""
        return AsyncAnswerStream(lambda: self._sync("stream")(question, **options), question)

    async def achat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Answer:
        """`chat`, awaited."""
        return cast(Answer, await self._thread("chat", messages, **options))

    def astream_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> AsyncAnswerStream:
        """`stream_chat`, to iterate with `async for`."""
        return AsyncAnswerStream(lambda: self._sync("stream_chat")(messages, **options))

    async def acompact(self) -> None:
        """`compact`, awaited."""
        await self._thread("compact")

    async def asnapshot(self, name: str) -> None:
        """`snapshot`, awaited."""
        await self._thread("snapshot", name)

    async def averify(self) -> VerifyReport:
        """`verify`, awaited."""
        return cast(VerifyReport, await self._thread("verify"))

    async def _thread(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await on_thread(partial(self._sync(method), *args, **kwargs))

    def _sync(self, method: str) -> Any:
        return getattr(self, method)
