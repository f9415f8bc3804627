"""When documents are valid, and which replace others: rows of their own, so that a bank that knows no time has none.

A document is hidden before its start, from its end on, and from the start of a stored document that replaces it. Its
start is `valid_from`, else, where it replaces something, when it was stored (`began`): to questions about the present
such a document counts at once, whatever the clock says; only one as of a date compares.

What replaces nothing but what is gone is undone: forget a replacement and its predecessor is found again. Not so in the
middle of a chain: what a forgotten document had replaced passes to those that replace it (`bequeath`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msa_plugin.bank.scopes import At, Place, Scope, altered_rows, batches, row_checksum, seen
from msa_plugin.errors import BankCorruptError, InvalidDocumentError
from msa_plugin.types import ALWAYS, Document, Period, Validity

TABLES = ("periods", "replacements")
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS periods(
    ordinal INTEGER PRIMARY KEY REFERENCES documents(ordinal) ON DELETE CASCADE,
    namespace TEXT NOT NULL, valid_from TEXT, valid_until TEXT, began TEXT, checksum INTEGER NOT NULL
)""",
    "CREATE INDEX IF NOT EXISTS periods_from ON periods(namespace, valid_from)",
    "CREATE INDEX IF NOT EXISTS periods_until ON periods(namespace, valid_until)",
    """
CREATE TABLE IF NOT EXISTS replacements(
    ordinal INTEGER NOT NULL REFERENCES documents(ordinal) ON DELETE CASCADE,
    namespace TEXT NOT NULL, replaced TEXT NOT NULL, valid_from TEXT, began TEXT, inherited INTEGER NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY(ordinal, replaced)
)""",
    "CREATE INDEX IF NOT EXISTS replacements_of ON replacements(namespace, replaced)",
)
_PERIOD = "ordinal, namespace, valid_from, valid_until, began"
_REPLACEMENT = "ordinal, namespace, replaced, valid_from, began, inherited"
_LIVE = "ordinal IN (SELECT ordinal FROM documents WHERE deleted IS NULL)"


class PeriodRows:
    """Queries over one connection, whose transactions belong to the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Use `db`; the tables are made with the first document that needs them."""
        self._db = db

    @property
    def exist(self) -> bool:
        """Whether any document ever had a period."""
        return self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'periods'").fetchone() is not None

    # -- reading ----------------------------------------------------------------------------------------------------

    def hidden(self, at: At, scope: Scope, when: str, *, present: bool) -> Iterator[Place]:
        """Places of documents that are not valid at `when`; costs as much as there are of them."""
        start = "valid_from" if present else "ifnull(valid_from, began)"
        sql = f"""
            SELECT segment, position FROM documents WHERE {seen()} AND ordinal IN (
                SELECT ordinal FROM periods WHERE {scope.sql} AND {start} > :when
                UNION ALL SELECT ordinal FROM periods WHERE {scope.sql} AND valid_until <= :when)
            UNION ALL
            SELECT old.segment, old.position
            FROM (SELECT * FROM replacements WHERE {scope.sql} AND ifnull({start}, '') <= :when) AS link
            JOIN documents AS new ON new.ordinal = link.ordinal AND {seen("new")}
            JOIN documents AS old ON old.namespace = link.namespace AND old.id = link.replaced AND {seen("old")}"""
        bound = {"version": at.version, "last": at.last_ordinal, "when": when, **scope.bound}
        return (Place(*row) for row in self._db.execute(sql, bound))

    def next_change(self, scope: Scope, when: str) -> str | None:
        """The first moment after `when` at which another document may become valid, or stop to be."""
        parts = (("periods", "valid_from"), ("periods", "valid_until"), ("replacements", "valid_from"))
        each = (f"SELECT min({c}) AS c FROM {t} WHERE {scope.sql} AND {c} > :when" for t, c in parts)
        row = self._db.execute(f"SELECT min(c) FROM ({' UNION ALL '.join(each)})", {"when": when, **scope.bound})
        found: str | None = row.fetchone()[0]
        return found

    def of(self, ordinals: Sequence[int]) -> dict[int, Period]:
        """The periods of those documents that have one, as they were given. Raises BankCorruptError."""
        if not self.exist:
            return {}
        found: dict[int, Period] = {}
        for batch in batches(ordinals):
            links: dict[int, list[str]] = {}
            for ordinal, _, replaced, _, _, inherited, _ in self._sound("replacements", _REPLACEMENT, batch):
                links.setdefault(ordinal, []).extend([] if inherited else [replaced])
            for ordinal, _, start, end, _, _ in self._sound("periods", _PERIOD, batch):
                found[ordinal] = Period(start, end, tuple(links.get(ordinal, ())))
        return found

    def _sound(self, table: str, fields: str, batch: Sequence[int]) -> list[tuple[Any, ...]]:
        marks = ", ".join("?" * len(batch))
        sql = f"SELECT {fields}, checksum FROM {table} WHERE ordinal IN ({marks}) ORDER BY rowid"
        rows = self._db.execute(sql, batch).fetchall()
        for ordinal in altered_rows(rows):
            raise BankCorruptError(
                f"when document {ordinal!r:.80} (ordinal) is valid does not match its checksum in the catalog; "
                "run `msa bank verify`, then restore the bank from a backup or run `msa bank repair`"
            )
        return rows

    def validity(self, at: At, documents: Iterable[tuple[int, str, str]]) -> dict[int, Validity]:
        """When documents (ordinal, namespace, id) are found; those of which that is always are left out."""
        if not self.exist:
            return {}
        own = "SELECT ifnull(valid_from, began), valid_until FROM periods WHERE ordinal = ?"
        other = f"""
            SELECT new.id, ifnull(link.valid_from, link.began) AS start FROM replacements AS link
            JOIN documents AS new ON new.ordinal = link.ordinal AND {seen("new")}
            WHERE link.namespace = :namespace AND link.replaced = :id ORDER BY start, new.ordinal LIMIT 1"""
        found = {}
        for ordinal, namespace, name in documents:
            start, end = self._db.execute(own, (ordinal,)).fetchone() or (None, None)
            bound = {"version": at.version, "last": at.last_ordinal, "namespace": namespace, "id": name}
            by, since = self._db.execute(other, bound).fetchone() or (None, None)
            ended = by is not None and (end is None or since < end)
            if start or end or by:
                found[ordinal] = Validity(start, since if ended else end, by)
        return found

    def expired(self, at: At, scope: Scope, when: str) -> list[tuple[str, str]]:
        """Namespace and id of every document whose `valid_until` has passed at `when`."""
        if not self.exist:
            return []
        over = f"SELECT ordinal FROM periods WHERE {scope.sql} AND valid_until <= :when"
        sql = f"SELECT namespace, id FROM documents WHERE {seen()} AND ordinal IN ({over}) ORDER BY ordinal"
        bound = {"version": at.version, "last": at.last_ordinal, "when": when, **scope.bound}
        return self._db.execute(sql, bound).fetchall()

    def altered(self) -> Iterator[int]:
        """Ordinals of documents whose rows here do not match the checksums taken when they were written."""
        if self.exist:
            for table, fields in (("periods", _PERIOD), ("replacements", _REPLACEMENT)):
                yield from altered_rows(self._db.execute(f"SELECT {fields}, checksum FROM {table}"))

    # -- writing ----------------------------------------------------------------------------------------------------

    def insert(self, namespace: str, documents: Sequence[tuple[int, Document]], version: int, stored: str) -> None:
        """Add the periods of documents just committed by `version` at `stored`, by ordinal.

        A document's new version that replaces the same as the one before keeps when it began. Raises
        InvalidDocumentError where documents would replace each other in a circle.
        """
        timed = [(ordinal, d.id, period) for ordinal, d in documents if (period := d.period) is not ALWAYS]
        if not timed:
            return
        self.create(self._db)
        for ordinal, name, period in timed:
            self._insert(namespace, ordinal, name, period, version, stored)
        for _, name, period in timed:
            self._check_circle(namespace, name, period.replaces)

    @staticmethod
    def create(db: sqlite3.Connection) -> None:
        """Make the tables where there are none."""
        for statement in _SCHEMA:
            db.execute(statement)

    def _insert(self, namespace: str, ordinal: int, name: str, period: Period, version: int, stored: str) -> None:
        start, end, replaces = period
        began, inherited = self._before(namespace, name, replaces, version)
        if start is not None or not replaces:
            began = None
        elif began is None:
            began = max([stored, *self._began(namespace, replaces)])  # the clock may have gone back since
        row = (ordinal, namespace, start, end, began)
        sql = f"INSERT INTO periods({_PERIOD}, checksum) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute(sql, (*row, row_checksum(row)))
        links = [(replaced, start, began, 0) for replaced in replaces]
        for link in [*links, *(old for old in inherited if old[0] not in replaces)]:
            self._link(ordinal, namespace, *link)

    def _link(
        self, ordinal: int, namespace: str, replaced: str, start: str | None, began: str | None, inherited: int
    ) -> None:
        row = (ordinal, namespace, replaced, start, began, inherited)
        sql = f"INSERT OR IGNORE INTO replacements({_REPLACEMENT}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)"
        self._db.execute(sql, (*row, row_checksum(row)))

    def _before(
        self, namespace: str, name: str, replaces: Sequence[str], version: int
    ) -> tuple[str | None, list[tuple[str, str | None, str | None, int]]]:
        """When the document's version before this one began, and what it had inherited; nothing where it differs."""
        sql = "SELECT ordinal FROM documents WHERE namespace = ? AND id = ? AND deleted = ?"
        old = self._db.execute(sql, (namespace, name, version)).fetchone()
        if old is None:
            return None, []
        sql = "SELECT replaced, valid_from, began, inherited FROM replacements WHERE ordinal = ?"
        links = self._db.execute(sql, old).fetchall()
        if {link[0] for link in links if not link[3]} != set(replaces):
            return None, []
        began = self._db.execute("SELECT began FROM periods WHERE ordinal = ?", old).fetchone()
        return (began or (None,))[0], [link for link in links if link[3]]

    def _began(self, namespace: str, ids: Sequence[str]) -> Iterator[str]:
        """When the live documents of `ids` began, those that say so."""
        sql = (
            "SELECT began FROM periods WHERE began IS NOT NULL AND ordinal = "
            "(SELECT ordinal FROM documents WHERE namespace = ? AND id = ? AND ifnull(deleted, 0) = 0)"
        )
        return (began for name in ids for (began,) in self._db.execute(sql, (namespace, name)))

    def _check_circle(self, namespace: str, name: str, replaces: Sequence[str]) -> None:
        sql = f"""
            SELECT replaced FROM replacements WHERE namespace = :namespace AND {_LIVE} AND ordinal =
            (SELECT ordinal FROM documents WHERE namespace = :namespace AND id = :id AND ifnull(deleted, 0) = 0)"""
        reached, todo = set[str](), list(replaces)
        while todo:
            one = todo.pop()
            if one == name:
                raise InvalidDocumentError(
                    f"document {name!r} replaces {list(replaces)}, which in turn replaces it: none would be found; "
                    "give what is true again an id of its own"
                )
            if one not in reached:
                reached.add(one)
                todo += [row[0] for row in self._db.execute(sql, {"namespace": namespace, "id": one})]

    def bequeath(self, namespace: str, ids: Iterable[str]) -> None:
        """Before documents are forgotten: what they replaced passes to those documents that replace them."""
        if not self.exist:
            return
        own = f"SELECT {_REPLACEMENT} FROM replacements WHERE namespace = ? AND {_LIVE} AND ordinal = "
        own += "(SELECT ordinal FROM documents WHERE namespace = ? AND id = ? AND ifnull(deleted, 0) = 0)"
        heirs = f"SELECT ordinal FROM replacements WHERE namespace = ? AND replaced = ? AND {_LIVE}"
        for name in ids:
            links = self._db.execute(own, (namespace, namespace, name)).fetchall()
            for (heir,) in self._db.execute(heirs, (namespace, name)).fetchall() if links else ():
                for _, _, replaced, start, began, _ in links:
                    self._link(heir, namespace, replaced, start, began, 1)
