"""One writer at a time: a lock file that the operating system releases when its process dies."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from msa_plugin.errors import BankLockedError


class WriterLock:
    """The bank's write lock: exclusive among processes, handles and threads, re-entrant within one thread."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """`timeout` is in seconds; 0 tries once."""
        self._folder = folder
        self._timeout = timeout
        self._file = FileLock(str(folder / "writer.lock"))
        self._owner_note = folder / "writer.pid"
        self._thread = threading.RLock()
        self._depth = 0

    @contextmanager
    def hold(self, timeout: float | None = None) -> Iterator[bool]:
        """Hold the lock; yields True on the outermost entry. Raises BankLockedError after the timeout."""
        patience = min(self._timeout if timeout is None else timeout, threading.TIMEOUT_MAX)
        if not self._thread.acquire(timeout=patience):
            raise BankLockedError(f"{self._folder}: another thread is writing; waited {patience:g} s")
        try:
            with self._process_lock(patience):
                self._depth += 1
                try:
                    yield self._depth == 1
                finally:
                    self._depth -= 1
        finally:
            self._thread.release()

    @contextmanager
    def _process_lock(self, patience: float) -> Iterator[None]:
        if self._depth:
            yield
            return
        try:  # around acquiring too: an interruption may come between the lock and the next line
            self._acquire(patience)
            with contextlib.suppress(OSError):  # only serves the message below
                self._owner_note.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            self._file.release(force=True)

    def _acquire(self, patience: float) -> None:
        try:
            self._file.acquire(timeout=patience)
        except Timeout as error:
            raise BankLockedError(
                f"{self._folder}: {self._owner()} is writing to this bank; wait for it or stop it, "
                f"or raise lock_timeout (now {patience:g} s)"
            ) from error

    def _owner(self) -> str:
        try:
            return self._owner_note.read_text(encoding="utf-8") or "another process"
        except (OSError, UnicodeDecodeError):
            return "another process"
