"""Catalogs in places where SQLite can make no file: read as they lie there, for as long as they lie still.

SQLite needs a file for shared memory beside a database with a write-ahead log. On a read-only medium it can be told
that the file never changes, and then it takes no lock. But a read-only mount says only what this process may do: a
writer elsewhere may be at work. So what vouches for such a catalog is compared before and after reading: its seal,
which a writer removes before it changes anything, its log, and the file itself.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from msa_plugin.bank.schema import bytes_of, connect, log_of
from msa_plugin.bank.seal import SEAL_FILE
from msa_plugin.errors import BankLockedError

_Stat = tuple[int, int, int] | None


class Rest(NamedTuple):
    """Inode, size and time of a catalog and of its seal, and the bytes of its log."""

    catalog: _Stat
    seal: _Stat
    log: int

    @classmethod
    def of(cls, path: Path) -> Rest:
        """What lies there now."""
        return cls(_stat(path), _stat(path.with_name(SEAL_FILE)), bytes_of(log_of(path)))

    def check(self, path: Path) -> None:
        """Raises BankLockedError where the catalog at `path` does not lie as it did."""
        if Rest.of(path) != self:
            raise BankLockedError(
                f"{path} was changed from elsewhere while it was read from a read-only place; repeat the call"
            )


def _stat(path: Path) -> _Stat:
    try:
        found = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, and asked for around every call
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def connect_to_read(path: Path) -> tuple[sqlite3.Connection, Rest | None]:
    """Open a catalog for reading; with a `Rest` where SQLite takes no locks, so that it has to be compared.

    Raises sqlite3.Error, and BankLockedError where a log lies there that cannot be read.
    """
    while True:
        rest = Rest.of(path)
        try:
            return connect(path, writable=False), None
        except sqlite3.OperationalError as error:
            if rest.log:
                raise BankLockedError(
                    f"{path} has a log that SQLite cannot read here ({error}): a writer is at work elsewhere, or died; "
                    "repeat the call, or open the bank once where it can be written"
                ) from error
        connection = connect(path, writable=False, immutable=True)
        if Rest.of(path) == rest:
            return connection, rest
        connection.close()
