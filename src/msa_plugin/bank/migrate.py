"""Migration: bring a bank of an older format into the present one, in one transaction, or say what that would take.

Format 2 keeps a checksum of each document's latents and of each snapshot, and seals the catalog. Segments are written
anew beside the old ones, which are removed after the commit: an interruption leaves the old bank or the new one.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.faults import reached
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.records import SegmentRecord
from msa_plugin.bank.segment import Segment, orphans
from msa_plugin.bank.verify import verify_bank
from msa_plugin.bank.writing import write_segment
from msa_plugin.errors import BankCorruptError
from msa_plugin.types import FORMAT_VERSION


class MigrationReport(NamedTuple):
    """Format versions before and after, and what is (or, in a dry run, would be) written."""

    found: int
    now: int
    segments: int
    bytes: int


def migrate_bank(path: str | Path, *, dry_run: bool = False, lock_timeout: float = 10.0) -> MigrationReport:
    """Bring the bank in folder `path` into the present format; one that is in it already is left as it is.

    Needs as much free disk space as the segments take. Raises BankNotFoundError, BankFormatError, BankLockedError,
    BankWriteError, and BankCorruptError for a damaged bank, which has to be repaired first.
    """
    folder = Path(path).resolve()
    with disk_errors(folder, reading=True):
        catalog = Catalog(folder, writable=False, checked=True)
        try:
            found, todo = int(str(catalog.format_version)), _without_sums(catalog, folder / "segments")
        finally:
            catalog.close()
    report = MigrationReport(found, FORMAT_VERSION, len(todo), sum(record.bytes for record in todo))
    if dry_run or found == FORMAT_VERSION:
        return report
    with disk_errors(folder), WriterLock(folder, lock_timeout).hold():
        _migrate(folder)
    return report


def _without_sums(catalog: Catalog, root: Path) -> list[SegmentRecord]:
    return [record for record in catalog.segments() if not Segment(record, root).has_sums]


def _migrate(folder: Path) -> None:
    before = verify_bank(folder)  # else damage would get checksums of its own
    if not before.ok:
        raise BankCorruptError(f"{before.problems[0]}; run `msa bank repair`, then migrate")
    root = folder / "segments"
    catalog = Catalog(folder, writable=True, older=True)
    try:
        written = [(record, *_rewrite(catalog, root, record)) for record in _without_sums(catalog, root)]
        reached("migrate.segments-written")
        with catalog.transaction():
            for _, new, ordinals in written:
                catalog.documents.move(ordinals, catalog.add_segment(new))
            catalog.drop_empty_segments()
            catalog.upgrade()
        reached("migrate.committed")
        for old in orphans(root, {record.uuid for record in catalog.segments()}):
            with suppress(OSError):
                shutil.rmtree(old)
        catalog.close_sealed()
    finally:
        catalog.close()


def _rewrite(catalog: Catalog, root: Path, record: SegmentRecord) -> tuple[SegmentRecord, list[int]]:
    """Write a segment anew, deleted documents and all: snapshots may need them."""
    segment = Segment(record, root)
    segment.check()
    held = catalog.documents.in_segment(record.number)
    ordinals = [ordinal for _, ordinal, *_ in held]
    latents = [segment.latents(position) for position, *_ in held]
    return write_segment(root, ordinals, latents, record.namespace), ordinals
