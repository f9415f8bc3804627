"""What happens while ChatMSA answers, as LangChain's custom events, in the order in which it happens.

LangChain hands a model's `_stream` no run manager, so who listens is put in a context variable by whatever called it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid4

from langchain_core.callbacks import (
    AsyncCallbackManagerForLLMRun,
    BaseCallbackHandler,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.manager import ahandle_event, handle_event
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, ensure_config

from msa_plugin.events import Abstained, DocumentsChosen, DocumentsFetched, RetrievalEnded, RetrievalEvent, RoundStarted

NAMES: dict[type[RetrievalEvent], str] = {
    RoundStarted: "msa_round_started",
    DocumentsChosen: "msa_documents_chosen",
    DocumentsFetched: "msa_documents_fetched",
    RetrievalEnded: "msa_retrieval_ended",
    Abstained: "msa_abstained",
}
_HOOK, _IGNORED = "on_custom_event", "ignore_custom_event"


@dataclass(frozen=True)
class Listeners:
    """Who hears of one run."""

    handlers: list[BaseCallbackHandler]
    run_id: UUID
    tags: list[str]
    metadata: dict[str, Any]

    def tell(self, event: RetrievalEvent) -> None:
        """Call `on_custom_event` with the event's name and its fields."""
        handle_event(self.handlers, _HOOK, _IGNORED, NAMES[type(event)], asdict(event), **self._about())

    async def atell(self, event: RetrievalEvent) -> None:
        """`tell`, for an event loop."""
        await ahandle_event(self.handlers, _HOOK, _IGNORED, NAMES[type(event)], asdict(event), **self._about())

    def _about(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "tags": self.tags, "metadata": self.metadata}


NOBODY = Listeners([], UUID(int=0), [], {})
_present: ContextVar[Listeners] = ContextVar("msa_listeners", default=NOBODY)


def listeners(run: CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None) -> Listeners:
    """Those of a run manager, or else those that `listening` announced."""
    return _present.get() if run is None else Listeners(run.handlers, run.run_id, run.tags, run.metadata)


@contextmanager
def listening(heard: Listeners) -> Iterator[None]:
    """While inside, what starts without a run manager is heard by these."""
    token = _present.set(heard)
    try:
        yield
    finally:
        _present.reset(token)


def of_config(model: BaseChatModel, config: RunnableConfig | None) -> tuple[RunnableConfig, Listeners]:
    """The configuration of a call with the id that its run will have, and who hears of that run."""
    named = ensure_config(config)
    run_id = named["run_id"] = named.get("run_id") or uuid4()
    manager = CallbackManager.configure(
        named.get("callbacks"),
        model.callbacks,
        model.verbose,
        named.get("tags"),
        model.tags,
        dict(named.get("metadata") or {}),
        model.metadata,
    )
    return named, Listeners(manager.handlers, run_id, manager.tags, manager.metadata)
