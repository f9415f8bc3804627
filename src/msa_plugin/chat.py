"""The plain chat model that a memory's backbone is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from msa_plugin import arguments
from msa_plugin.answering.answers import Events, completed
from msa_plugin.streams import AnswerStream
from msa_plugin.types import Answer

if TYPE_CHECKING:
    from msa_plugin.config import MemoryConfig
    from msa_plugin.engine.engine import Engine


class Chat:
    """Mixin for `LatentMemory`."""

    def count_tokens(self, text: str) -> int:
        """Tokens that the backbone reads `text` as."""
        return len(self._engine.backbone.tokenize(text))

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Answer:
        """Continue a conversation without memory, as the plain chat model that the backbone is.

        `messages` are mappings {"role": "system" | "user" | "assistant", "content": text}; `options` are the
        generation settings. Raises InvalidQueryError for messages that are malformed or do not fit the backbone.
        """
        return next(event for _, event in self._chat(messages, options) if isinstance(event, Answer))

    def stream_chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> AnswerStream:
        """`chat`, piece by piece."""
        return AnswerStream(self._chat(messages, options))

    def _chat(self, messages: Sequence[Mapping[str, str]], options: dict[str, Any]) -> Events:
        began = perf_counter()
        self._check_open()
        said, generation = arguments.check_messages(messages), arguments.generation_settings(self.config, options)
        return completed(self._engine.chat(said, generation), perf_counter() - began)

    if TYPE_CHECKING:  # what the memory has beside this
        _engine: Engine

        @property
        def config(self) -> MemoryConfig:
            """Its settings."""

        def _check_open(self) -> None: ...
