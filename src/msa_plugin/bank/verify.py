"""Verification: read everything the newest version names, and say what is damaged and which documents it touches."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.documents import DocumentRows
from msa_plugin.bank.records import SegmentRecord
from msa_plugin.bank.schema import CATALOG_FILE
from msa_plugin.bank.seal import broken, noted_version
from msa_plugin.bank.segment import Segment, StoredWords
from msa_plugin.errors import BankError
from msa_plugin.fingerprint import sha256_file
from msa_plugin.types import VerifyReport


def verify_bank(path: str | Path, *, deep: bool = True, namespace: str | None = None) -> VerifyReport:
    """Check the bank in folder `path`, whether or not it can still be opened; reports damage, never raises on it.

    Always: the catalog's structure, file sizes, headers, offsets and ordinals. `deep` also reads every byte: checksums
    of all files, SQLite's full integrity check, and each row's text and metadata against their own checksums.
    With a `namespace` the whole bank is checked all the same, and only documents of that namespace are named.
    """
    folder = Path(path).resolve()
    check = Check(folder, deep, namespace)
    try:
        check.run()
    except (BankError, sqlite3.Error, OSError, ValueError, TypeError) as error:
        check.problem(f"{folder / CATALOG_FILE}: {error}")
    return VerifyReport(check.files, check.bytes, tuple(check.problems), tuple(dict.fromkeys(check.documents)))


class Check:
    """One verification. Beside the report's parts it knows what `repair` acts on.

    `damaged` are numbers of segments whose latents cannot be trusted, `incomplete` of those that merely lack rows,
    `miscounted` of those whose words cannot be trusted, which can be counted again from texts;
    `altered` the ordinals of rows that do not match their checksums, `spoiled` of those whose latents, or whose
    periods, do not, though the rest is sound; `snapshots` are the names of altered ones, and `undated`
    the first ordinals of commits of which nobody can say when they were.
    """

    def __init__(self, folder: Path, deep: bool, namespace: str | None = None) -> None:
        """Of the bank in `folder`; `deep` reads every byte; `namespace` is the only one whose documents are named."""
        self.damaged: list[int] = []
        self.incomplete: list[int] = []
        self.miscounted: list[int] = []
        self.altered: list[int] = []
        self.spoiled: list[int] = []
        self.snapshots: list[str] = []
        self.undated: list[int] = []
        self.lost_versions = 0
        self.folder, self.deep, self.namespace = folder, deep, namespace
        self.root = folder / "segments"
        self.files = self.bytes = 0
        self.problems: list[str] = []
        self.documents: list[str] = []

    def problem(self, text: str) -> None:
        """Take note of one."""
        self.problems.append(text)

    def run(self) -> None:
        """Check everything. Raises what a damaged catalog raises."""
        path = self.folder / CATALOG_FILE
        for text in broken(path):
            self.problem(text)
        noted = noted_version(path)
        with closing(Catalog(self.folder, writable=False)) as catalog:
            catalog.hold_snapshot()
            self.lost_versions = max(0, noted - catalog.version())
            if self.lost_versions:
                self.problem(f"{path}: the last {self.lost_versions} commits are gone; its log was damaged or removed")
            self._catalog(catalog)
            for record in catalog.segments():
                self._words(record)
                self._segment(catalog.documents, replace(record, words=None))

    def _catalog(self, catalog: Catalog) -> None:
        self.files, self.bytes = 1, catalog.bytes()
        for text in catalog.integrity(deep=self.deep):
            self.problem(f"{catalog.path}: {text}")
        catalog.fingerprint()
        for name in catalog.altered_snapshots():
            self.problem(f"{catalog.path}: snapshot {name!r:.80} does not match its checksum")
            self.snapshots.append(name)
        if not self.deep:
            return
        for ordinal, namespace, name in catalog.documents.altered():
            called = repr(name) if self._names([(namespace, name)]) else "of another namespace"
            self.problem(f"{catalog.path}: document {called} (ordinal {ordinal}) does not match its checksum")
            self.altered.append(ordinal)
        for ordinal in catalog.documents.periods.altered():
            self.problem(f"{catalog.path}: when document (ordinal {ordinal}) is valid does not match its checksum")
            self.spoiled.append(ordinal)
        for ordinal in catalog.documents.arrivals.altered():
            self.problem(f"{catalog.path}: when documents from {ordinal} (ordinal) on were stored is not as written")
            self.undated.append(ordinal)

    def _names(self, found: Iterable[tuple[str, str]]) -> bool:
        """Take note of documents (namespace, id), of those that may be named; says whether there was one."""
        names = [name for namespace, name in found if self.namespace in (None, namespace)]
        self.documents.extend(names)
        return bool(names)

    def _segment(self, rows: DocumentRows, record: SegmentRecord) -> None:
        found = [
            text for path, known in record.files(self.root) if (text := self._file(path, known.bytes, known.sha256))
        ]
        held = rows.in_segment(record.number)
        acted_on = self.damaged
        if not found:
            found = self._contents(record, held)
            if not found and len(held) < record.documents:
                found = [f"{self.root / record.uuid}: the catalog has lost {record.documents - len(held)} of its rows"]
                acted_on = self.incomplete
        if found and not self._compacted_away(record):
            self.problems.extend(found)
            spoiled = self._altered_rows(record)
            if spoiled and acted_on is self.damaged:
                held = [row for row in held if row[0] in spoiled]
                self.spoiled.extend(ordinal for _, ordinal, *_ in held)
            else:
                acted_on.append(record.number)
            self._names((namespace, name) for *_, namespace, name in held)

    def _words(self, record: SegmentRecord) -> None:
        file = record.words_file(self.root)
        if file is None:
            return
        found = self._file(file[0], file[1].bytes, file[1].sha256)
        if found is None:
            try:
                StoredWords(record, self.root).checked()
            except (BankError, OSError) as error:
                found = str(error)
        if found is not None and not self._compacted_away(record):
            self.problem(found)
            self.miscounted.append(record.number)

    def _altered_rows(self, record: SegmentRecord) -> list[int]:
        """Positions of the documents with altered latents, where they can be told from the rest of the segment."""
        if not self.deep:
            return []
        try:
            segment = Segment(record, self.root)
            segment.check()
            return segment.altered()
        except (BankError, OSError):
            return []

    def _file(self, path: Path, size: int, sha256: str) -> str | None:
        self.files += 1
        try:
            found = path.stat().st_size
            self.bytes += found
            if found != size:
                return f"{path}: {found} bytes, the catalog says {size}"
            if self.deep and sha256_file(path) != sha256:
                return f"{path}: its checksum differs from the catalog's"
        except OSError as error:
            return f"{path}: {error.strerror or error}"
        return None

    def _contents(self, record: SegmentRecord, held: list[tuple[int, int, int, str, str]]) -> list[str]:
        try:
            segment = Segment(record, self.root)
            segment.check()
        except (BankError, OSError) as error:
            return [str(error)]
        name = self.root / record.uuid
        ordinals, chunks = segment.ordinals.tolist(), int(segment.key_offsets[-1])
        known = (record.first_ordinal, record.last_ordinal, record.documents, record.chunks)
        if (ordinals[0], ordinals[-1], len(ordinals), chunks) != known:
            return [f"{name}: its ordinals or number of chunks are not those of the catalog"]
        if record.namespace is not None and {space for *_, space, _ in held} - {record.namespace}:
            return [f"{name}: the catalog's rows have other namespaces than {record.namespace!r:.80}"]
        positions = [position for position, *_ in held]
        if positions and not 0 <= min(positions) <= max(positions) < record.documents:
            return [f"{name}: holds {record.documents} documents, the catalog has rows at other positions"]
        if [ordinals[position] for position in positions] != [ordinal for _, ordinal, *_ in held]:
            return [f"{name}: its ordinals are not those of the catalog's rows"]
        sizes = torch.diff(segment.key_offsets).tolist()
        if [sizes[position] for position in positions] != [chunks for _, _, chunks, *_ in held]:
            return [f"{name}: its chunk counts are not those of the catalog's rows"]
        return []

    def _compacted_away(self, record: SegmentRecord) -> bool:
        """Whether a compaction that ran meanwhile has retired the segment: then its absence is no damage."""
        with closing(Catalog(self.folder, writable=False)) as newest:
            return all(other.uuid != record.uuid for other in newest.segments())
