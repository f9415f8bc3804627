"""The catalog's document rows: every query about documents, each bound to a namespace and a moment in history."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from msa_plugin.bank.arrivals import ArrivalRows
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.filters import Condition
from msa_plugin.bank.periods import PeriodRows
from msa_plugin.bank.scopes import EVER, At, Place, Scope, batches, check_namespace, is_unicode, row_checksum, seen
from msa_plugin.dates import said_at
from msa_plugin.errors import BankCorruptError, BankError
from msa_plugin.types import ALWAYS, UNBOUNDED, Document, Period, Validity, content_hash

_T = TypeVar("_T")

_SEEN = seen()
# Rows that the newest version or a named snapshot sees: what compaction must keep.
_NEEDED = (
    "(deleted IS NULL OR EXISTS (SELECT 1 FROM snapshots AS s "
    "WHERE s.version < documents.deleted AND s.last_ordinal >= documents.ordinal))"
)
# The fields that a row's checksum is over, in order.
_FIELDS = "ordinal, namespace, id, title, metadata, tokens, chunks, content_hash"
_STORED = f"{_FIELDS}, checksum, text"


class Known(NamedTuple):
    """A live document's row, without its text."""

    ordinal: int
    content_hash: str
    metadata: dict[str, Any]
    period: Period = ALWAYS


class Totals(NamedTuple):
    """Sums over a namespace; `deleted` counts rows that compaction may remove."""

    documents: int
    tokens: int
    chunks: int
    deleted: int


@dataclass(frozen=True)
class StoredDocument:
    """A document as the bank holds it. `tokens` and `chunks` are counts; `ordinal` is its lasting number."""

    ordinal: int
    namespace: str
    id: str
    title: str
    text: str
    metadata: dict[str, Any]
    tokens: int
    chunks: int
    content_hash: str
    period: Period = ALWAYS
    validity: Validity = UNBOUNDED

    @property
    def document(self) -> Document:
        """The same as the plain Document that was committed."""
        return Document(self.id, self.text, self.title, self.metadata, *self.period)


class DocumentRows:
    """Queries over one connection. Ids and namespaces are bound parameters everywhere."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Use `db`, whose transactions belong to the caller."""
        self._db = db
        self.periods, self.arrivals = PeriodRows(db), ArrivalRows(db)

    # -- reading by ordinal: ordinals come from a selection, which may be older than this moment -------------------

    def places(self, at: At, ordinals: Sequence[int]) -> list[Place]:
        """Where each document's latents are. Raises BankError for an ordinal that the bank no longer holds."""
        rows = self._by_ordinal("ordinal, segment, position", at, ordinals)
        return _in_order({row[0]: Place(*row[1:]) for row in rows}, ordinals)

    def stored(self, at: At, ordinals: Sequence[int]) -> list[StoredDocument]:
        """The documents themselves. Raises BankError for an ordinal that the bank no longer holds."""
        found = self._stored(at, list(self._by_ordinal(_STORED, at, ordinals)))
        return _in_order({document.ordinal: document for document in found}, ordinals)

    def _stored(self, at: At, rows: Sequence[tuple[Any, ...]]) -> list[StoredDocument]:
        periods = self.periods.of([row[0] for row in rows])
        validity = self.periods.validity(at, (row[:3] for row in rows))
        return [_stored(row, periods.get(row[0], ALWAYS), validity.get(row[0], UNBOUNDED)) for row in rows]

    def dates(self, at: At, ordinals: Sequence[int]) -> list[str | None]:
        """From when each document is, ISO 8601 in UTC; None where that is not known. Raises as `stored`.

        That is its `valid_from`, else, of a turn of a conversation, when it was said, else when it was stored.
        """
        rows = {row[0]: _sound(row) for row in self._by_ordinal(f"{_FIELDS}, checksum", at, ordinals)}
        periods, arrivals = self.periods.of(ordinals), self.arrivals.of(ordinals)
        own = {o: periods.get(o, ALWAYS).valid_from or said_at(_metadata(row[4])) for o, row in rows.items()}
        return [own or arrivals.get(o) for o, own in zip(ordinals, _in_order(own, ordinals), strict=True)]

    def texts(self, ordinals: Sequence[int]) -> Iterator[tuple[str, str]]:
        """Title and text of each of `ordinals`, in order; empty ones where the row is lost. Raises BankCorruptError."""
        for batch in batches(ordinals):
            rows = self._by_ordinal(_STORED, EVER, batch)
            found = {row[0]: _stored(row, ALWAYS, UNBOUNDED) for row in rows}
            yield from ((found[o].title, found[o].text) if o in found else ("", "") for o in batch)

    def have(self, at: At, ordinals: Sequence[int]) -> bool:
        """Whether the bank still holds every one of `ordinals`."""
        return len({row[0] for row in self._by_ordinal("ordinal", at, ordinals)}) == len(set(ordinals))

    def _by_ordinal(self, columns: str, at: At, ordinals: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for batch in batches(ordinals):
            sql = (
                f"SELECT {columns} FROM documents JOIN texts USING (ordinal) "
                f"WHERE ordinal IN ({_marks(batch)}) AND ordinal <= ?"
            )
            yield from self._db.execute(sql, (*batch, at.last_ordinal)).fetchall()

    # -- reading by id ----------------------------------------------------------------------------------------------

    def lookup(self, at: At, namespace: str, ids: Iterable[str]) -> dict[str, Known]:
        """Live rows of those ids that exist."""
        rows = [_sound(row) for row in self._by_id(f"{_FIELDS}, checksum", "documents", at, namespace, ids)]
        periods = self.periods.of([row[0] for row in rows])
        return {row[2]: Known(row[0], row[7], _metadata(row[4]), periods.get(row[0], ALWAYS)) for row in rows}

    def get(self, at: At, namespace: str, ids: Iterable[str]) -> dict[str, StoredDocument]:
        """Live documents of those ids that exist."""
        rows = list(self._by_id(_STORED, "documents JOIN texts USING (ordinal)", at, namespace, ids))
        return {document.id: document for document in self._stored(at, rows)}

    def _by_id(
        self, columns: str, source: str, at: At, namespace: str, ids: Iterable[str]
    ) -> Iterator[tuple[Any, ...]]:
        for batch in batches(i for i in ids if is_unicode(i)):  # no other was ever stored
            names = {f"i{n}": name for n, name in enumerate(batch)}
            marks = ", ".join(f":{name}" for name in names)
            sql = f"SELECT {columns} FROM {source} WHERE namespace = :namespace AND id IN ({marks}) AND {_SEEN}"
            yield from self._db.execute(sql, _bind(at, namespace=namespace, **names)).fetchall()

    def page_of_ids(self, at: At, namespace: str, after: str | None, size: int) -> list[str]:
        """The next `size` live ids after `after` (None: from the start), in code point order."""
        more = "AND id > :after" if after is not None else ""
        sql = f"SELECT id FROM documents WHERE namespace = :namespace {more} AND {_SEEN} ORDER BY id LIMIT :size"
        return [row[0] for row in self._db.execute(sql, _bind(at, namespace=namespace, after=after, size=size))]

    # -- sums -------------------------------------------------------------------------------------------------------

    def totals(self, at: At, namespace: str) -> Totals:
        """Sums over a namespace, from an index alone."""
        live = "SELECT count(*), total(tokens), total(chunks) FROM documents WHERE namespace = :namespace AND " + _SEEN
        dead = "SELECT count(*) FROM documents WHERE namespace = :namespace AND deleted <= :version"
        bound = _bind(at, namespace=namespace)
        documents, tokens, chunks = self._db.execute(live, bound).fetchone()
        return Totals(documents, int(tokens), int(chunks), self._db.execute(dead, bound).fetchone()[0])

    def held(self, at: At) -> int:
        """How many rows of all namespaces a moment sees and the newest version does not."""
        sql = "SELECT count(*) FROM documents WHERE deleted > :version AND ordinal <= :last"
        return int(self._db.execute(sql, _bind(at)).fetchone()[0])

    def namespaces(self, at: At, inside: str | None = None) -> tuple[str, ...]:
        """Namespaces with a live document, in order: all of them, or `inside` and those nested in it.

        Steps through the index instead of scanning it, and only through that part of it.
        """
        if inside is None:
            return self._named(at, "namespace >= ''", {})
        scope = Scope(inside, below=True)
        own = self._named(at, "namespace = :namespace", scope.bound)
        return own + self._named(at, "namespace >= :nested AND namespace < :beyond", scope.bound)

    def _named(self, at: At, within: str, bound: Mapping[str, str]) -> tuple[str, ...]:
        first = f"SELECT min(namespace) FROM documents WHERE {within}"
        sql = f"""
            WITH RECURSIVE names(name) AS (
                {first}
                UNION ALL
                SELECT ({first} AND namespace > name) FROM names WHERE name IS NOT NULL
            )
            SELECT name FROM names
            WHERE EXISTS (SELECT 1 FROM documents WHERE namespace = name AND {_SEEN})"""
        return tuple(row[0] for row in self._db.execute(sql, _bind(at, **bound)))

    # -- selecting --------------------------------------------------------------------------------------------------

    def dead_places(self, at: At, namespace: str) -> Iterator[Place]:
        """Places of a namespace that `at` must not see: deleted by then, or added later.

        Costs as much as there are of them, and, at a moment long past, as what all namespaces added since.
        """
        sql = (
            "SELECT segment, position FROM documents WHERE namespace = :namespace AND deleted <= :version "
            # The plus keeps SQLite from walking the whole namespace, where usually no row is later.
            "UNION ALL SELECT segment, position FROM documents WHERE +namespace = :namespace AND ordinal > :last"
        )
        return (Place(*row) for row in self._db.execute(sql, _bind(at, namespace=namespace)))

    def places_in_shared_segments(self, at: At, namespace: str) -> Iterator[Place]:
        """Live places of a namespace in segments that hold other namespaces too."""
        shared = "segment IN (SELECT number FROM segments WHERE namespace IS NULL)"
        sql = f"SELECT segment, position FROM documents WHERE namespace = :namespace AND {_SEEN} AND {shared}"
        return (Place(*row) for row in self._db.execute(sql, _bind(at, namespace=namespace)))

    def matching_places(self, at: At, scope: Scope, condition: Condition | None) -> Iterator[Place]:
        """Live places in `scope` whose metadata meet a condition."""
        met, parameters = condition or ("1", {})
        sql = f"SELECT segment, position FROM documents WHERE {scope.sql} AND {_SEEN} AND {met}"
        return (Place(*row) for row in self._db.execute(sql, _bind(at, **scope.bound, **parameters)))

    def metadata(self, at: At, scope: Scope) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Place and metadata of every live document in `scope`."""
        sql = f"SELECT {_FIELDS}, checksum, segment, position FROM documents WHERE {scope.sql} AND {_SEEN}"
        for row in self._db.execute(sql, _bind(at, **scope.bound)):
            yield Place(*row[9:]), _metadata(_sound(row)[4])

    # -- writing ----------------------------------------------------------------------------------------------------

    def insert(self, namespace: str, segment: int, rows: Iterable[tuple[int, Document, int, int]]) -> None:
        """Add rows (ordinal, document, tokens, chunks) that fill `segment` from position 0."""
        insert = (
            "INSERT INTO documents(ordinal, namespace, id, segment, position, tokens, chunks, content_hash, checksum, "
            "metadata, title) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        for position, (ordinal, document, tokens, chunks) in enumerate(rows):
            metadata = json.dumps(dict(document.metadata))
            facts = (tokens, chunks, document.content_hash)
            checksum = row_checksum((ordinal, namespace, document.id, document.title, metadata, *facts))
            row = (ordinal, namespace, document.id, segment, position, *facts, checksum, metadata, document.title)
            self._db.execute(insert, row)
            fault_point("commit.row-added")
            self._db.execute("INSERT INTO texts VALUES (?, ?)", (ordinal, document.text))
            fault_point("commit.text-added")

    def tombstone(self, namespace: str, ids: Iterable[str], version: int) -> None:
        """Mark the live rows of `ids` as deleted by `version`."""
        sql = "UPDATE documents SET deleted = ? WHERE namespace = ? AND id = ? AND ifnull(deleted, 0) = 0"
        self._db.executemany(sql, ((version, namespace, i) for i in ids))

    # -- compacting -------------------------------------------------------------------------------------------------

    def needed(self, segment: int) -> list[tuple[int, int, str]]:
        """Position, ordinal and namespace of the rows of `segment` that some moment still needs, in order."""
        sql = f"SELECT position, ordinal, namespace FROM documents WHERE segment = ? AND {_NEEDED} ORDER BY position"
        return self._db.execute(sql, (segment,)).fetchall()

    def any_unneeded(self, segment: int) -> bool:
        """Whether `purge` would remove anything."""
        sql = f"SELECT EXISTS (SELECT 1 FROM documents WHERE segment = ? AND NOT {_NEEDED})"
        return bool(self._db.execute(sql, (segment,)).fetchone()[0])

    def purge(self, segment: int) -> None:
        """Remove the rows of `segment` that no moment needs."""
        self._db.execute(f"DELETE FROM documents WHERE segment = ? AND NOT {_NEEDED}", (segment,))

    def move(self, ordinals: Iterable[int], segment: int) -> None:
        """Point rows at a new segment, which they fill from position 0."""
        sql = "UPDATE documents SET segment = ?, position = ? WHERE ordinal = ?"
        self._db.executemany(sql, ((segment, position, ordinal) for position, ordinal in enumerate(ordinals)))

    def forget_segment(self, segment: int) -> None:
        """Remove every row of `segment`, needed or not: its latents are damaged."""
        self._db.execute("DELETE FROM documents WHERE segment = ?", (segment,))

    def forget(self, ordinals: Iterable[int]) -> None:
        """Remove these rows, needed or not: they are damaged."""
        self._db.executemany("DELETE FROM documents WHERE ordinal = ?", ((ordinal,) for ordinal in ordinals))

    # -- verifying --------------------------------------------------------------------------------------------------

    def in_segment(self, segment: int) -> list[tuple[int, int, int, str, str]]:
        """Position, ordinal, chunks, namespace and id of every row of `segment`, in order of position."""
        sql = "SELECT position, ordinal, chunks, namespace, id FROM documents WHERE segment = ? ORDER BY position"
        return self._db.execute(sql, (segment,)).fetchall()

    def altered(self) -> Iterator[tuple[int, str, str]]:
        """Ordinal, namespace and id of the rows that do not match the checksums taken when they were written."""
        for row in self._db.execute(f"SELECT {_STORED} FROM documents LEFT JOIN texts USING (ordinal)"):
            if not _is_sound(row) or not _is_its_text(row):
                yield row[0], row[1], row[2]


def _is_sound(row: tuple[Any, ...]) -> bool:
    return bool(row_checksum(row[:8]) == row[8])


def _is_its_text(row: tuple[Any, ...]) -> bool:
    return isinstance(row[9], str) and content_hash(row[3], row[9]) == row[7]


def _sound(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row of `_FIELDS` with its checksum. Raises BankCorruptError where they do not fit."""
    if not _is_sound(row):
        raise _altered(row)
    return row


def _altered(row: tuple[Any, ...]) -> BankCorruptError:
    return BankCorruptError(
        f"document {row[2]!r:.80} (ordinal {row[0]!r}) does not match its checksum in the catalog; "
        "run `msa bank verify`, then restore the bank from a backup or run `msa bank repair`"
    )


def _stored(row: tuple[Any, ...], period: Period, validity: Validity) -> StoredDocument:
    ordinal, namespace, name, title, metadata, tokens, chunks, digest, _, text = _sound(row)
    if not all(isinstance(part, str) for part in (namespace, name, title, text, digest)):
        raise BankCorruptError(f"document {name!r:.80} (ordinal {ordinal!r}) is damaged; run `msa bank verify`")
    if not _is_its_text(row):
        raise _altered(row)
    facts = (tokens, chunks, digest)
    return StoredDocument(ordinal, namespace, name, title, text, _metadata(metadata), *facts, period, validity)


def _metadata(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise BankCorruptError(f"metadata in the catalog is damaged ({error}); run `msa bank verify`") from error
    if not isinstance(found, dict):
        raise BankCorruptError("metadata in the catalog is damaged (not an object); run `msa bank verify`")
    return found


def _bind(at: At, **more: object) -> dict[str, object]:
    """Named parameters of a query. Raises InvalidQueryError for a namespace that cannot be one."""
    if "namespace" in more:
        check_namespace(more["namespace"])
    return {"version": at.version, "last": at.last_ordinal, **more}


def _in_order(found: Mapping[int, _T], ordinals: Sequence[int]) -> list[_T]:
    missing = [o for o in ordinals if o not in found]
    if missing:
        raise BankError(f"document ordinals {missing[:5]} are not in the bank any more; repeat the query")
    return [found[o] for o in ordinals]


def _marks(batch: Sequence[object]) -> str:
    return ", ".join("?" * len(batch))
