"""The catalog: one SQLite database that says which documents and segments exist. Its transaction is the commit.

History is kept by version numbers. Each change increments the version; a deleted row stays, marked with the version
that deleted it, until compaction finds that neither the newest version nor a named snapshot needs it. Ordinals are
handed out in order and never reused, so a moment of history is the pair `At(version, last_ordinal)`: it sees the rows
up to that ordinal that were not deleted by that version. That makes a column (and an index) of creation versions
needless. Texts live in a table of their own, so that scans over metadata do not drag them through memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from msa_plugin.bank.arrivals import clock
from msa_plugin.bank.connection import Connection
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.documents import DocumentRows, Totals
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.log import Log
from msa_plugin.bank.records import SegmentRecord, WordsRecord, segment_record
from msa_plugin.bank.schema import CATALOG_FILE
from msa_plugin.bank.scopes import At, altered_rows, row_checksum
from msa_plugin.bank.seal import check_version, differs_from_seal, note_version, noted_version, seal, unseal
from msa_plugin.errors import BankCorruptError, BankFormatError, BankMovedError, BankNotFoundError, SnapshotError
from msa_plugin.types import FORMAT_VERSION, OLDEST_FORMAT, WORDS_FORMAT, Fingerprint, Stats

_SNAPSHOT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SEGMENT_COLUMNS = (
    "uuid, namespace, first_ordinal, last_ordinal, documents, chunks, "
    "keys_bytes, keys_sha256, keys_structure, content_bytes, content_sha256, content_structure"
)
_WORDS = "words_bytes, words_sha256, words_structure, words_tokenizer"
_TYPES = ("INTEGER", "TEXT", "INTEGER", "TEXT", "INTEGER")
_SINCE_3 = [" ".join(pair) for pair in zip(f"{_WORDS}, keys_fold".split(", "), _TYPES, strict=True)]


class Snapshot(NamedTuple):
    """A named moment that compaction preserves; `created` is UTC, ISO 8601."""

    name: str
    at: At
    created: str


class Catalog:
    """One connection to a catalog. Methods raise sqlite3.Error as it comes; the bank translates it."""

    def __init__(
        self,
        folder: Path,
        *,
        writable: bool,
        checked: bool = False,
        older: bool = False,
        same_as: Catalog | None = None,
    ) -> None:
        """Open the catalog of the bank in `folder` and check its format; `older` ones are writable only where asked.

        `checked` reads the whole file first and compares it with its seal. Raises BankNotFoundError, BankFormatError,
        BankMovedError where it is not the file that `same_as` has open, or BankCorruptError where it is not a catalog
        at all, is not what was sealed, or has lost commits.
        """
        self.path = folder / CATALOG_FILE
        known: Connection | None = None
        if same_as is not None:
            known = same_as.connection
            known.check_place()
        if folder.exists() and not folder.is_dir():
            raise BankNotFoundError(f"{folder} is a file; a memory bank is a folder")
        if not self.path.is_file():
            raise BankNotFoundError(f"{folder} holds no memory bank; check the path, or add documents to create one")
        if checked and (problem := differs_from_seal(self.path)):
            Catalog(folder, writable=False).close()  # raises where the format is another one, which may seal otherwise
            raise BankCorruptError(problem)
        noted = noted_version(self.path) if checked else 0  # before the catalog is read: a writer may be at work
        try:
            self.connection: Connection = Connection(self.path, writable=writable, same_as=known)
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError):
                raise _not_a_catalog(self.path, error) from error
            raise
        self._db = self.connection.db
        self.documents = DocumentRows(self._db)
        self.log = Log(self._db, self.path)
        try:
            self._check_format(read_older=older or not writable)
            if checked:
                check_version(self.path, noted, self.version())
        except BaseException:
            self.close()
            raise

    def _check_format(self, *, read_older: bool) -> None:
        try:
            found = self.format_version = self._meta("format_version")
            foreign = self._db.execute("SELECT name FROM sqlite_master WHERE type IN ('view', 'trigger')").fetchone()
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            raise _not_a_catalog(self.path, error) from error
        except sqlite3.DatabaseError as error:
            raise _not_a_catalog(self.path, error) from error
        if foreign:
            raise BankCorruptError(f"{self.path} holds SQL to be run ({foreign[0]!r:.80}), as no bank does; do not use")
        if found == FORMAT_VERSION:
            return
        if not isinstance(found, int) or not OLDEST_FORMAT <= found < FORMAT_VERSION:
            raise BankFormatError(
                f"{self.path.parent}: the bank has format version {found}, this package reads {FORMAT_VERSION}; "
                "use the package version that wrote it, or a newer one"
            )
        if not read_older:
            raise BankFormatError(
                f"{self.path.parent}: the bank has format version {found}, this package writes {FORMAT_VERSION}; "
                f"run `msa bank migrate --bank {self.path.parent}` once, or open it with read_only=True"
            )

    def close(self) -> None:
        """Close the connection; harmless when closed already."""
        self.connection.close()

    def hold_snapshot(self) -> int:
        """Start a read transaction, ending the one before: all is read from its moment, whose version this returns."""
        self.release_snapshot()
        self._db.execute("BEGIN")
        return self.version()  # SQLite takes the snapshot at the first read

    @property
    def holds_snapshot(self) -> bool:
        """Whether a read transaction is open."""
        return self._db.in_transaction

    def release_snapshot(self) -> None:
        """End the read transaction, if any."""
        if self.holds_snapshot:
            self._db.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """A change, all or nothing; yields the version that it makes. Durable when the block has been left.

        Raises BankMovedError, changing nothing, where the bank is not in its place.
        """
        self.connection.check_place()
        unseal(self.path)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            fault_point("transaction.begun")
            version = self.version() + 1
            yield version
            fault_point("transaction.filled")
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'version'", (version,))
            fault_point("transaction.ready")
            self.connection.check_place()  # what the rows name was written by path
            self._db.execute("COMMIT")
            fault_point("transaction.committed")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):  # perhaps of the commit itself
                with contextlib.suppress(sqlite3.Error, OSError, BankMovedError):
                    self.settle()
            raise
        with contextlib.suppress(BankMovedError):  # the change is done
            self.connection.check_place()
            note_version(self.path, version)

    def settle(self) -> None:
        """Write over what a commit that failed may have left in the log; nothing else changes.

        SQLite writes a commit to the log and then syncs it. Where only the sync fails, the commit is reported as
        failed but lies there whole, and whoever reads the log after a crash would take it for done.
        """
        self.connection.check_place()
        unseal(self.path)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            # A count, for SQLite writes nothing where a value stays as it is.
            self._db.execute("INSERT INTO meta VALUES ('settled', 1) ON CONFLICT(key) DO UPDATE SET value = value + 1")
            self._db.execute("COMMIT")
            fault_point("transaction.settled")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _meta(self, key: str) -> object:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise BankCorruptError(f"{self.path}: the catalog has lost its {key}; restore it from a backup")
        return row[0]

    def version(self) -> int:
        """The newest version."""
        return self._whole(self._meta("version"))

    def _whole(self, value: object) -> int:
        if not isinstance(value, int):
            raise BankCorruptError(f"{self.path}: {value!r:.80} is no version or ordinal; restore it from a backup")
        return value

    def fingerprint(self) -> Fingerprint:
        """What the bank's latents depend on."""
        try:
            return Fingerprint(**json.loads(str(self._meta("fingerprint"))))
        except (TypeError, ValueError, RecursionError) as error:
            raise BankCorruptError(
                f"{self.path}: unreadable fingerprint ({error}); restore it from a backup"
            ) from error

    def now(self) -> At:
        """The newest moment."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'documents'").fetchone()
        return At(self.version(), self._whole(row[0]) if row else 0)

    def segments(self) -> list[SegmentRecord]:
        """Every segment, in the order of the ordinals they hold (which never overlap)."""
        later = f"{_WORDS}, keys_fold" if self.keeps_words else "NULL, NULL, NULL, NULL, NULL"
        sql = f"SELECT number, {_SEGMENT_COLUMNS}, {later} FROM segments ORDER BY first_ordinal"
        return [segment_record(row) for row in self._db.execute(sql)]

    def stats(self, at: At, totals: Totals) -> Stats:
        """Sizes of the namespace whose `totals` at this moment are given, and of the bank."""
        records = self.segments()
        return Stats(
            documents=totals.documents,
            tokens=totals.tokens,
            chunks=totals.chunks,
            segments=len(records),
            bytes_keys=sum(record.keys.bytes for record in records),
            bytes_content=sum(record.content.bytes for record in records if record.content),
            bytes_words=sum(record.words.bytes for record in records if record.words),
            bytes_catalog=self.bytes(),
            deleted=totals.deleted,
            namespaces=self.documents.namespaces(at),
            snapshots=tuple(snapshot.name for snapshot in self.snapshots()),
        )

    def add_segment(self, record: SegmentRecord) -> int:
        """Name a written segment; returns its number, which is never reused."""
        content = record.content or (None, None, None)
        row = (
            *(record.uuid, record.namespace, record.first_ordinal, record.last_ordinal),
            *(record.documents, record.chunks, *record.keys, *content),
        )
        marks = ", ".join("?" * len(row))
        number = self._db.execute(f"INSERT INTO segments({_SEGMENT_COLUMNS}) VALUES ({marks})", row).lastrowid
        assert number is not None
        if record.words is not None:
            self.set_words(number, record.words, record.fold)
        fault_point("commit.segment-listed")
        return number

    @property
    def keeps_words(self) -> bool:
        """Whether it names segments' words; those before format 3 have none."""
        return isinstance(self.format_version, int) and self.format_version >= WORDS_FORMAT

    def set_words(self, number: int, words: WordsRecord, fold: int | None) -> None:
        """Name the words of a segment, and the fold of its keys; within a transaction."""
        sql = f"UPDATE segments SET ({_WORDS}, keys_fold) = (?, ?, ?, ?, ?) WHERE number = ?"
        self._db.execute(sql, (*words, fold, number))

    def drop_empty_segments(self) -> None:
        """Forget the segments that no row points at."""
        self._db.execute(
            "DELETE FROM segments WHERE NOT EXISTS (SELECT 1 FROM documents WHERE segment = segments.number)"
        )

    def snapshots(self) -> list[Snapshot]:
        """Named snapshots, oldest first. Raises BankCorruptError for one that is not what was written."""
        if altered := self.altered_snapshots():
            raise BankCorruptError(
                f"{self.path}: snapshot {altered[0]!r:.80} does not match its checksum; "
                "restore the catalog from a backup or run `msa bank repair`"
            )
        rows = self._db.execute("SELECT name, version, last_ordinal, created FROM snapshots ORDER BY version")
        return [Snapshot(name, At(self._whole(at), self._whole(last)), created) for name, at, last, created in rows]

    def altered_snapshots(self) -> list[str]:
        """Names of the snapshots that do not match their checksums; format 1 had none."""
        if self.format_version == 1:
            return []
        rows = self._db.execute("SELECT name, version, last_ordinal, created, checksum FROM snapshots")
        return list(altered_rows(rows))

    def forget_snapshots(self, names: Iterable[str]) -> None:
        """Forget damaged snapshots; within a transaction."""
        self._db.executemany("DELETE FROM snapshots WHERE name = ?", ((name,) for name in names))

    def snapshot(self, name: str) -> Snapshot:
        """A named snapshot. Raises SnapshotError when there is none of that name."""
        found = self.snapshots()
        for snapshot in found:
            if snapshot.name == name:
                return snapshot
        have = ", ".join(s.name for s in found) or "none"
        raise SnapshotError(f"{self.path.parent}: no snapshot named {name!r}; there are: {have}")

    def add_snapshot(self, name: str, at: At) -> None:
        """Name a moment. Raises SnapshotError when the name is taken or malformed."""
        if not _SNAPSHOT_NAME.fullmatch(name):
            raise SnapshotError(
                f"snapshot name {name!r}: use 1 to 64 letters, digits, '.', '_', '-', a letter or digit first"
            )
        if any(s.name == name for s in self.snapshots()):
            raise SnapshotError(f"{self.path.parent}: a snapshot named {name!r} exists; drop it first")
        row = (name, *at, clock("seconds"))
        self._db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", (*row, row_checksum(row)))
        fault_point("snapshot.listed")

    def drop_snapshot(self, name: str) -> None:
        """Forget a name. Raises SnapshotError when there is none of that name."""
        self.snapshot(name)
        self._db.execute("DELETE FROM snapshots WHERE name = ?", (name,))
        fault_point("snapshot.dropped")

    def shrink(self) -> None:
        """Return free pages to the file system and, where no reader is in the way, empty the write-ahead log."""
        self._db.execute("VACUUM")
        fault_point("compact.vacuumed")
        self.log.empty()
        fault_point("compact.log-emptied")

    def close_sealed(self) -> None:
        """Close, and seal the catalog unless a reader stands in the way. The caller holds the writer's lock."""
        self.connection.check_place()
        emptied = self.log.empty(0) and not self.log.bytes
        self.close()
        if emptied:
            seal(self.path)

    def upgrade(self) -> None:
        """Make it a catalog of the present format, with checksums of snapshots and words; within a transaction."""
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(snapshots)")]
        if "checksum" not in columns:
            self._db.execute("ALTER TABLE snapshots ADD COLUMN checksum INTEGER")
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(segments)")]
        for column in _SINCE_3:
            if column.split()[0] not in columns:
                self._db.execute(f"ALTER TABLE segments ADD COLUMN {column}")
        for row in self._db.execute("SELECT name, version, last_ordinal, created FROM snapshots").fetchall():
            self._db.execute("UPDATE snapshots SET checksum = ? WHERE name = ?", (row_checksum(row), row[0]))
        made_with = json.dumps({**asdict(self.fingerprint()), "format_version": FORMAT_VERSION})
        for key, value in {"format_version": FORMAT_VERSION, "fingerprint": made_with}.items():
            self._db.execute("UPDATE meta SET value = ? WHERE key = ?", (value, key))

    def bytes(self) -> int:
        """Bytes of the database and its write-ahead log."""
        return self.path.stat().st_size + self.log.bytes

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def integrity(self, *, deep: bool) -> list[str]:
        """What SQLite itself finds wrong with the file."""
        size, pages = self.path.stat().st_size, self._pragma("page_count") * self._pragma("page_size")
        if not self.log.bytes and size != pages:
            return [f"{size} bytes, its own header says {pages}"]
        check = "integrity_check" if deep else "quick_check"
        problems = [str(row[0]) for row in self._db.execute(f"PRAGMA {check}") if row[0] != "ok"]
        return problems + [f"dangling row {row}" for row in self._db.execute("PRAGMA foreign_key_check")]


def _not_a_catalog(path: Path, error: Exception) -> BankCorruptError:
    return BankCorruptError(f"{path} is not a memory bank's catalog ({error}); restore it from a backup")


def read_fingerprint(path: str | Path) -> Fingerprint:
    """What the bank at `path` was built with. Raises like `MemoryBank.open`."""
    folder = Path(path)
    with disk_errors(folder, reading=True), closing(Catalog(folder, writable=False, checked=True)) as catalog:
        return catalog.fingerprint()
