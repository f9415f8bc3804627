"""Repair: keep what is sound, save the texts of what is not, and say what was lost.

Latents can be computed again from texts, so damaged latents cost time and nothing else: their documents are written to
JSON lines, which `add` takes back. Words and names are counted again here. A text that fails its checksum is lost. A
catalog that SQLite finds damaged is copied row by row as far as its rows can be read, and the old file is kept beside
the new one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from msa_plugin.bank import compaction
from msa_plugin.bank.arrivals import TABLE as ARRIVALS
from msa_plugin.bank.arrivals import ArrivalRows
from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.descriptors import unconnected
from msa_plugin.bank.disk import disk_errors, fsync_folder
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.periods import TABLES as PERIOD_TABLES
from msa_plugin.bank.periods import PeriodRows
from msa_plugin.bank.records import SegmentRecord
from msa_plugin.bank.schema import CATALOG_FILE, connect, new_catalog
from msa_plugin.bank.seal import unseal
from msa_plugin.bank.segment import Segment
from msa_plugin.bank.verify import Check, verify_bank
from msa_plugin.bank.words import WordTable
from msa_plugin.bank.writing import write_words
from msa_plugin.errors import BankCorruptError, BankLockedError
from msa_plugin.types import ALWAYS, RepairReport

SALVAGE = "salvage"
_ROWS_AT_ONCE = 256


class _RepairedRow(NamedTuple):
    ordinal: int
    namespace: str
    id: str
    document: dict[str, Any]


def repair_bank(path: str | Path, lock_timeout: float = 10.0) -> RepairReport:
    """Repair the bank in folder `path`; a sound one is left as it is.

    Raises BankNotFoundError, BankWriteError, BankLockedError (also where this process has the bank open), and
    BankCorruptError when the catalog cannot be read at all: it alone holds the texts, so only a backup helps then.
    """
    folder = Path(path).resolve()
    before = verify_bank(folder)
    if before.ok:
        return RepairReport()
    with unconnected(folder / CATALOG_FILE) as alone:
        if not alone:  # copying the catalog aside would take the locks of its open connections away
            raise BankLockedError(f"{folder} is open in this process; close it, then repair it")
    with disk_errors(folder), WriterLock(folder, lock_timeout).hold():
        unreadable, doubtful = _sound_catalog(folder)
        check = Check(folder, deep=True)
        check.run()
        check.spoiled.extend(doubtful)
        with closing(Catalog(folder, writable=True, older=True)) as catalog:
            salvaged, lost = _texts_of(folder, check)
            files = _write(folder / SALVAGE, salvaged)
            _drop(catalog, check)
            fault_point("repair.dropped")
            _count_again(catalog, folder / "segments", check)
            _close_gaps(catalog, folder / "segments", check)
            catalog.close_sealed()
    after = verify_bank(folder)
    if not after.ok:
        raise BankCorruptError(f"{folder}: still damaged after repair: {after.problems[0]}; restore it from a backup")
    return RepairReport(
        before.problems,
        tuple(row.id for row in salvaged),
        tuple(dict.fromkeys(lost)),
        unreadable + check.lost_versions,
        tuple(map(str, files)),
    )


def _texts_of(folder: Path, check: Check) -> tuple[list[_RepairedRow], list[str]]:
    """Live documents of damaged latents with their texts, and the ids of those whose text cannot be trusted."""
    doomed, altered, spoiled = set(check.damaged), set(check.altered), set(check.spoiled)
    salvaged, lost = [], []
    with closing(connect(folder / CATALOG_FILE, writable=False)) as db:
        sql = (
            "SELECT ordinal, namespace, id, segment, title, metadata, text FROM documents LEFT JOIN texts "
            "USING (ordinal) WHERE deleted IS NULL ORDER BY ordinal"
        )
        for ordinal, namespace, name, segment, title, metadata, text in db.execute(sql):
            if ordinal in altered:
                lost.append(name)
            elif segment in doomed or ordinal in spoiled:
                record = {"id": name, "title": title, "text": text, "metadata": json.loads(metadata)}
                record |= _period_of(PeriodRows(db), ordinal)
                salvaged.append(_RepairedRow(ordinal, namespace, name, record))
    return salvaged, lost


def _period_of(periods: PeriodRows, ordinal: int) -> dict[str, Any]:
    try:
        found = periods.of([ordinal]).get(ordinal, ALWAYS)
    except BankCorruptError:  # nobody can tell when it was valid: whoever adds it back says so
        return {}
    return {name: value for name, value in found._asdict().items() if value}


def _write(folder: Path, rows: Sequence[_RepairedRow]) -> list[Path]:
    """One file of JSON lines for each namespace, on the disk before anything is dropped; never over an older one."""
    files = []
    for namespace in sorted({row.namespace for row in rows}):
        folder.mkdir(exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", namespace)[:64].lstrip(".") or "namespace"
        taken = sum(1 for _ in folder.glob("*.jsonl"))
        path = folder / f"{taken:03d}-{stem}.jsonl"
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as stream:
            for row in rows:
                if row.namespace == namespace:
                    stream.write(json.dumps(row.document, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        fault_point("repair.texts-written")
        os.replace(part, path)  # noqa: PTH105 - like every commit of a file here
        files.append(path)
    if files:
        fsync_folder(folder)
        fsync_folder(folder.parent)
        fault_point("repair.texts-saved")
    return files


def _drop(catalog: Catalog, check: Check) -> None:
    """Forget the rows of damaged latents and the altered rows, and with them segments that no row points at."""
    with catalog.transaction():
        for number in check.damaged:
            catalog.documents.forget_segment(number)
        catalog.documents.forget([*check.altered, *check.spoiled])
        catalog.forget_snapshots(check.snapshots)
        catalog.documents.arrivals.forget(check.undated)
        catalog.drop_empty_segments()


def _count_again(catalog: Catalog, root: Path, check: Check) -> None:
    """Count the words of segments where they are damaged, one after another, from the texts that are left."""
    for record in catalog.segments():
        if record.number in check.miscounted:
            words = write_words(root, record, words_from_texts(catalog, record))
            with catalog.transaction():
                catalog.set_words(record.number, words, record.fold)
            fault_point("repair.words-counted")


def words_from_texts(catalog: Catalog, record: SegmentRecord) -> WordTable:
    """The words of a segment, from the catalog's texts; documents that have lost their rows have none."""
    ordinals = [-1] * record.documents
    for position, ordinal, *_ in catalog.documents.in_segment(record.number):
        ordinals[position] = ordinal
    return WordTable.of(catalog.documents.texts(ordinals))


def _close_gaps(catalog: Catalog, root: Path, check: Check) -> None:
    """Rewrite the sound segments that have lost rows, so that rows and positions agree again."""
    gone = set(check.damaged)
    holed = {
        record.number: Segment(record, root)
        for record in catalog.segments()
        if record.number not in gone and len(catalog.documents.in_segment(record.number)) < record.documents
    }
    if holed:
        compaction.compact(catalog, root, holed, compaction.SEGMENT_BYTES)


def _sound_catalog(folder: Path) -> tuple[int, set[int]]:
    """Replace a catalog that SQLite finds damaged by a copy of its readable rows.

    Returns how many were not, and the ordinals of rows of which nobody can say whether they were deleted.
    """
    with closing(Catalog(folder, writable=False)) as catalog:
        try:
            problems = catalog.integrity(deep=True)
        except sqlite3.DatabaseError as error:
            problems = [str(error)]
    if not [p for p in problems if not p.startswith("dangling row")]:
        return 0, set()
    path = folder / CATALOG_FILE
    _keep(path)
    fault_point("repair.catalog-kept")
    new = new_catalog(folder)
    with closing(connect(path, writable=True)) as old, closing(sqlite3.connect(new, isolation_level=None)) as copy:
        unreadable, doubtful = _copy(old, copy), _doubtful(old)
        unseal(path)
        fault_point("repair.catalog-filled")
        copy.backup(old)  # one transaction of the old file: no moment has no catalog, or one beside another's log
        fault_point("repair.catalog-replaced")
    for leftover in folder.glob("catalog.new*"):
        leftover.unlink()
    return unreadable, doubtful


def _doubtful(db: sqlite3.Connection) -> set[int]:
    """Ordinals of rows that the table and its index do not agree on: whether, or when, they were deleted."""
    try:
        table = set(db.execute("SELECT ordinal, ifnull(deleted, 0) FROM documents NOT INDEXED"))
        index = set(db.execute("SELECT ordinal, ifnull(deleted, 0) FROM documents INDEXED BY documents_by_namespace"))
    except sqlite3.DatabaseError:
        return set()
    return {ordinal for ordinal, _ in table ^ index if isinstance(ordinal, int)}


def _keep(path: Path) -> None:
    """Copy the damaged catalog and its log aside, durably."""
    for suffix in ("-wal", ""):
        source = path.with_name(path.name + suffix)
        spare = path.with_name(f"{CATALOG_FILE}.damaged{suffix}")
        spare.unlink(missing_ok=True)
        if source.exists():
            shutil.copyfile(source, spare)
            with spare.open("rb+") as file:
                os.fsync(file.fileno())
    fsync_folder(path.parent)


def _copy(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    """Copy every row that can be read. Raises BankCorruptError when the small tables cannot be."""
    new.execute("BEGIN")
    new.execute("DELETE FROM meta")
    try:
        for table in ("meta", "segments", "snapshots"):
            names = ", ".join(row[1] for row in old.execute(f"PRAGMA table_info({table})"))
            _insert(new, f"{table}({names})", old.execute(f"SELECT {names} FROM {table}").fetchall())
        last = old.execute("SELECT max(last_ordinal) FROM segments").fetchone()[0] or 0
        timed, noted = PeriodRows(old).exist, ArrivalRows(old).exist
    except sqlite3.DatabaseError as error:
        raise BankCorruptError(f"the catalog's lists of segments cannot be read ({error}); restore a backup") from error
    found: dict[str, set[int]] = {"documents": set(), "texts": set()}
    for table, ordinals in found.items():
        for rows in _readable(old, table, 1, last):
            _insert(new, table, rows)
            ordinals.update(int(row[0]) for row in rows)
    if timed:
        PeriodRows.create(new)
    if noted:
        ArrivalRows.create(new)
    for table in (*(PERIOD_TABLES if timed else ()), *([ARRIVALS] if noted else ())):
        for rows in _readable(old, table, 1, last):
            _insert(new, table, rows)
    for table in ("texts", *(PERIOD_TABLES if timed else ())):
        new.execute(f"DELETE FROM {table} WHERE ordinal NOT IN (SELECT ordinal FROM documents)")
    new.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'documents'", (last,))
    new.execute("COMMIT")
    return len(found["texts"] - found["documents"])


def _insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _readable(db: sqlite3.Connection, table: str, first: int, last: int) -> Iterator[list[tuple[Any, ...]]]:
    """Rows by ordinal from `first` to `last`, halving a range that cannot be read until only bad rows are left out."""
    for start in range(first, last + 1, _ROWS_AT_ONCE):
        yield from _range(db, table, start, min(start + _ROWS_AT_ONCE - 1, last))


def _range(db: sqlite3.Connection, table: str, first: int, last: int) -> Iterator[list[tuple[Any, ...]]]:
    sql = f"SELECT * FROM {table} NOT INDEXED WHERE ordinal BETWEEN ? AND ?"
    try:
        rows = db.execute(sql, (first, last)).fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        if first < last:
            middle = (first + last) // 2
            yield from _range(db, table, first, middle)
            yield from _range(db, table, middle + 1, last)
    else:
        yield rows
