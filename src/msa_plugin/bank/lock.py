"""One writer at a time: a lock file that the operating system releases when its process dies."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from msa_plugin.cancellation import check_cancelled
from msa_plugin.errors import BankLockedError

_SPELL = 0.25


def _within(seconds: float, attempt: Callable[[float], bool]) -> bool:
    """Attempt until it succeeds or time is up, in short spells: a waiter that was cancelled must not wait on."""
    until = time.monotonic() + seconds
    while not attempt(max(0.0, min(_SPELL, until - time.monotonic()))):
        check_cancelled()
        if time.monotonic() >= until:
            return False
    return True


class WriterLock:
    """The bank's write lock: exclusive among processes, handles and threads, re-entrant within one thread."""

    def __init__(self, folder: Path, timeout: float, check: Callable[[], None] = lambda: None) -> None:
        """`timeout` is in seconds; 0 tries once. `check` raises where the lock would be another bank's by now."""
        self._folder = folder
        self._timeout, self._check = timeout, check
        self._file = FileLock(str(folder / "writer.lock"))
        self._owner_note = folder / "writer.pid"
        self.turn = threading.RLock()  # among threads
        self._depth = 0

    @contextmanager
    def hold(self, timeout: float | None = None) -> Iterator[bool]:
        """Hold the lock; yields True on the outermost entry. Raises BankLockedError after the timeout."""
        patience = self._timeout if timeout is None else timeout
        if not _within(patience, lambda spell: self.turn.acquire(timeout=spell)):
            raise BankLockedError(f"{self._folder}: another thread is writing; waited {patience:g} s")
        try:
            with self._process_lock(patience):
                self._depth += 1
                try:
                    yield self._depth == 1
                finally:
                    self._depth -= 1
        finally:
            self.turn.release()

    @contextmanager
    def _process_lock(self, patience: float) -> Iterator[None]:
        if self._depth:
            yield
            return
        try:  # around acquiring too: an interruption may come between the lock and the next line
            self._check()  # before a file is made
            if not _within(patience, self._acquired):
                raise BankLockedError(
                    f"{self._folder}: {self._owner()} is writing to this bank; wait for it or stop it, "
                    f"or raise lock_timeout (now {patience:g} s)"
                )
            self._check()
            with contextlib.suppress(OSError):  # only serves the message below
                self._owner_note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            self._file.release(force=True)

    def _acquired(self, spell: float) -> bool:
        try:
            self._file.acquire(timeout=spell)
        except Timeout:
            return False
        return True

    def _owner(self) -> str:
        try:
            return self._owner_note.read_text(encoding="utf-8") or "another process"
        except (OSError, UnicodeDecodeError):
            return "another process"
