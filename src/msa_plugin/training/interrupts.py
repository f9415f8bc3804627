"""Ctrl-C and SIGTERM as a wish to stop after the step at hand."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Wish:
    """Whether somebody wants the work to stop."""

    stop = False


@contextmanager
def graceful() -> Iterator[Wish]:
    """The first SIGINT or SIGTERM sets `stop`, a second one does what it does without us.

    Only the main thread receives signals; elsewhere nothing changes.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def wished(number: int, frame: FrameType | None) -> None:
        wish.stop = True
        restore()

    for number in numbers:
        signal.signal(number, wished)
    try:
        yield wish
    finally:
        restore()
