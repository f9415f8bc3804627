"""How many connections to each catalog this process has, so that the file is read past SQLite only while it has none.

Closing any descriptor of a file drops all POSIX locks that the process holds on it (the operating system's rule), and
with them those of every open connection: another process would then take the database for its own.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_connected: Counter[str] = Counter()
_lock = threading.RLock()


class Connected:
    """Counts as one connection to the file `path` until it is released."""

    def __init__(self, path: Path) -> None:
        """Make it before connecting."""
        self._name: str | None = str(path.resolve())
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
        yield not _connected[str(path.resolve())]
