"""Calling work off: whoever awaits a worker thread and is cancelled stops the work at its next step and waits for it.

So nothing goes on unseen afterwards: no lock stays held, no forward runs, and what was committed is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from threading import Event
from typing import TypeVar

_T = TypeVar("_T")
_called_off: ContextVar[Event | None] = ContextVar("called_off", default=None)


def check_cancelled() -> None:
    """To be called between the steps of long work. Raises CancelledError when nobody awaits it any more."""
    event = _called_off.get()
    if event is not None and event.is_set():
        raise asyncio.CancelledError


async def on_thread(call: Callable[[], _T]) -> _T:
    """`asyncio.to_thread` for work that checks whether it was cancelled; ends when the work has ended."""
    event = Event()

    def run() -> _T:
        _called_off.set(event)  # in the thread's own copy of the context
        return call()

    work = asyncio.ensure_future(asyncio.to_thread(run))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        event.set()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not report it: nobody is there to take it
        raise
