"""Whose turn it is to use a backbone: who asked first is answered first, and the others wait.

Answers that shared it, forward by forward, would all be late; in turn the first is done as early as if it were alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from msa_plugin.cancellation import check_cancelled
from msa_plugin.errors import BusyError

# Seconds for which a turn stays with an answer whose reader has a piece of it: who takes longer lets others go on.
KEPT = 0.05
_LOOK = 0.05  # seconds between two looks at whether a wait was called off


class Turns:
    """A queue in order of arrival. Safe to share between threads, and one thread may stand in it more than once."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._changed = threading.Condition()
        self._numbers = count()
        self._waiting: set[int] = set()
        self._taken: int | None = None
        self._kept: tuple[int, float] | None = None  # whose turn it stays, and until when

    @contextmanager
    def turn(self, timeout: float | None) -> Iterator[ModelTurn]:
        """A place in the queue, given up at the end; `timeout` bounds each wait, in seconds (None: nothing does)."""
        with self._changed:
            number = next(self._numbers)
        try:
            yield ModelTurn(self, number, timeout)
        finally:
            self._give_up(number)

    def _take(self, number: int, timeout: float | None) -> float:
        began = time.monotonic()
        with self._changed:
            self._waiting.add(number)
            try:
                while not self._is_next(number):
                    check_cancelled()
                    waited = time.monotonic() - began
                    if timeout is not None and waited >= timeout:
                        raise BusyError(
                            f"other questions kept the model busy for {timeout:g} s; ask again, ask several as one "
                            "batch, or allow a longer wait: LatentMemory.open(..., queue_timeout=...)"
                        )
                    self._changed.wait(_LOOK if timeout is None else min(_LOOK, timeout - waited))
                self._taken, self._kept = number, None
            finally:
                self._waiting.discard(number)
                self._changed.notify_all()
        return time.monotonic() - began

    def _is_next(self, number: int) -> bool:
        if self._taken is not None:
            return False
        if self._kept is not None and time.monotonic() < self._kept[1]:
            return self._kept[0] == number
        return number == min(self._waiting)

    def _lend(self, number: int) -> None:
        with self._changed:
            self._taken, self._kept = None, (number, time.monotonic() + KEPT)
            self._changed.notify_all()

    def _give_up(self, number: int) -> None:
        with self._changed:
            if self._taken == number:
                self._taken = None
            if self._kept is not None and self._kept[0] == number:
                self._kept = None
            self._changed.notify_all()


@dataclass(frozen=True)
class ModelTurn:
    """One place in the queue."""

    _turns: Turns
    _number: int
    _timeout: float | None

    def take(self) -> float:
        """Wait until it is this one's turn; returns the seconds. Raises BusyError, and CancelledError if called off."""
        return self._turns._take(self._number, self._timeout)

    def lend(self) -> None:
        """Let others use the backbone, unless this one comes back at once; its place it keeps."""
        self._turns._lend(self._number)
