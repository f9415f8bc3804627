"""The catalog's write-ahead log: moved into the database from time to time, so that it stays short beside readers."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path

from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.schema import BUSY_SECONDS, bytes_of, log_of

# The log is moved into the database when it is this long; when it is much longer, it is emptied.
_CHECKPOINT_BYTES, _TRUNCATE_BYTES = 4 << 20, 16 << 20
_READER_SECONDS, _RETRY_SECONDS = 1.0, 0.002


class Log:
    """The log of one writing connection. A reader in the way only delays what is done here."""

    def __init__(self, db: sqlite3.Connection, catalog: Path) -> None:
        """Of the connection `db` to the database file `catalog`."""
        self._db, self._path = db, log_of(catalog)
        self._wait_at = _TRUNCATE_BYTES

    @property
    def bytes(self) -> int:
        """Its length; 0 where there is none."""
        return bytes_of(self._path)

    def shorten(self) -> None:
        """Move a long log into the database, as far as open readers allow.

        A reader that follows the writer always stands at the log's end, so that the log would never begin anew. Once
        it is very long, readers are given a moment to step aside; if one does not, it is not waited for again until
        the log has doubled, though each call tries whether it has left.
        """
        size = self.bytes
        if size > _TRUNCATE_BYTES:
            waits = size > self._wait_at
            if self.empty(_READER_SECONDS if waits else 0):
                self._wait_at = _TRUNCATE_BYTES
            elif waits:
                self._wait_at = 2 * size
            fault_point("log.moved")
        elif size > _CHECKPOINT_BYTES:
            with contextlib.suppress(sqlite3.Error):  # nothing depends on it but the log's length
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                fault_point("log.moved")

    def empty(self, patience: float = _READER_SECONDS) -> bool:
        """Empty it; False where a reader stays in the way for `patience` seconds.

        Tried anew all the time: SQLite's own waiting is for one place in the log to be free, and a reader that follows
        takes the same place again at the log's end, where it is not in the way.
        """
        until = time.monotonic() + patience
        with contextlib.suppress(sqlite3.Error):
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                while self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() >= until:
                        return False
                    time.sleep(_RETRY_SECONDS)
                return True
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        return False
