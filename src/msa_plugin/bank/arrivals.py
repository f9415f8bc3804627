"""When documents were stored: one row a commit, with the ordinal of its first document.

Ordinals are handed out in order and never reused, so the last row at or before a document's ordinal is that of its
commit, whatever compaction has moved since. Banks of before have no such table: of what they hold already nobody knows.
"""

from __future__ import annotations

import os
import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone

from msa_plugin import dates
from msa_plugin.bank.scopes import altered_rows, row_checksum
from msa_plugin.errors import BankCorruptError

TABLE = "arrivals"
_FIELDS = "ordinal, stored"


class ArrivalRows:
    """Queries over one connection, whose transactions belong to the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Use `db`; the table is made with the first commit that finds none."""
        self._db = db

    @property
    def exist(self) -> bool:
        """Whether any commit was noted."""
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone() is not None

    def of(self, ordinals: Sequence[int]) -> dict[int, str]:
        """When documents were stored (ISO 8601 in UTC), those of which that is known. Raises BankCorruptError."""
        if not ordinals or not self.exist:
            return {}
        sql = (
            f"SELECT {_FIELDS}, checksum FROM {TABLE} WHERE ordinal <= :last AND ordinal >= "
            f"ifnull((SELECT max(ordinal) FROM {TABLE} WHERE ordinal <= :first), 0) ORDER BY ordinal"
        )
        rows = self._db.execute(sql, {"first": min(ordinals), "last": max(ordinals)}).fetchall()
        for first in altered_rows(rows):
            raise BankCorruptError(
                f"when documents from {first!r:.80} (ordinal) on were stored does not match its checksum in the "
                "catalog; run `msa bank verify`, then `msa bank repair`"
            )
        firsts = [row[0] for row in rows]
        places = {ordinal: bisect_right(firsts, ordinal) - 1 for ordinal in ordinals}
        return {ordinal: rows[place][1] for ordinal, place in places.items() if place >= 0}

    def altered(self) -> Iterator[int]:
        """First ordinals of the commits whose rows do not match the checksums taken when they were written."""
        if self.exist:
            yield from altered_rows(self._db.execute(f"SELECT {_FIELDS}, checksum FROM {TABLE}"))

    @staticmethod
    def create(db: sqlite3.Connection) -> None:
        """Make the table where there is none."""
        db.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE}("
            "ordinal INTEGER PRIMARY KEY, stored TEXT NOT NULL, checksum INTEGER NOT NULL)"
        )

    def insert(self, first: int) -> None:
        """Note a commit whose first document has ordinal `first`."""
        self.create(self._db)
        row = (first, clock())
        self._db.execute(f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?)", (*row, row_checksum(row)))

    def forget(self, firsts: Iterable[int]) -> None:
        """Remove rows that are damaged; their documents then count with the commit before."""
        for first in firsts:
            self._db.execute(f"DELETE FROM {TABLE} WHERE ordinal = ?", (first,))


def clock(timespec: str = "auto") -> str:
    """The present, ISO 8601 in UTC; SOURCE_DATE_EPOCH (seconds) stands in for it where equal bytes are wanted."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(fixed), timezone.utc) if fixed.isdigit() else datetime.fromisoformat(dates.clock())
    return now.isoformat(timespec=timespec)
