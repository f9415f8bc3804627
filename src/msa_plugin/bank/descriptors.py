"""How many connections to each catalog this process has, so that the file is read past SQLite only while it has none.

Closing any descriptor of a file drops all POSIX locks that the process holds on it (the operating system's rule), and
with them those of every open connection: another process would then take the database for its own.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_connected: Counter[object] = Counter()
_lock = threading.RLock()


def _key(path: Path) -> object:
    """The file itself, by whatever path: locks are its own, not its name's."""
    try:
        found = path.stat()
    except OSError:
        return str(path.resolve())
    return found.st_dev, found.st_ino


def _anew() -> None:
    """In a forked child: another thread of the parent may have held the lock, and the connections are the parent's."""
    global _lock
    _lock = threading.RLock()
    _connected.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_anew)


class Connected:
    """Counts as one connection to the file `path` until it is released."""

    def __init__(self, path: Path) -> None:
        """Make it before connecting."""
        self._name: object = _key(path)
        with _lock:
            _connected[self._name] += 1

    def release(self) -> None:
        """Call it when the connection is closed; harmless when called again."""
        with _lock:
            if self._name is not None:
                _connected[self._name] -= 1
                self._name = None


@contextmanager
def unconnected(path: Path) -> Iterator[bool]:
    """Whether this process has no connection to the file `path`; none can be made inside."""
    with _lock:
        yield not _connected[_key(path)]
