"""Migration: bring a bank of an older format into the present one, in one transaction, or say what that would take.

Format 2 keeps a checksum of each document's latents and of each snapshot, and seals the catalog; segments without are
written anew beside the old ones, which are removed after the commit. Format 3 keeps words and names: they are counted
from texts and written beside latents that stay as they are, and so are those of another tokeniser. An interruption
leaves the old bank or the new one.
"""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.records import SegmentRecord, words_name
from msa_plugin.bank.repair import words_from_texts
from msa_plugin.bank.segment import Segment, orphans
from msa_plugin.bank.terms import tokenizer
from msa_plugin.bank.verify import verify_bank
from msa_plugin.bank.writing import write_segment, write_words
from msa_plugin.errors import BankCorruptError
from msa_plugin.types import FORMAT_VERSION


class MigrationReport(NamedTuple):
    """Format versions before and after, and what is (or, in a dry run, would be) written.

    `segments` are written anew, with `bytes` of latents; of `counted` others only words and names are.
    """

    found: int
    now: int
    segments: int
    bytes: int
    counted: int


def migrate_bank(path: str | Path, *, dry_run: bool = False, lock_timeout: float = 10.0) -> MigrationReport:
    """Bring the bank in folder `path` into the present format; one that is in it already is left as it is.

    One whose words are another tokeniser's has them counted anew. Needs as much free disk space as what is written.
    Raises BankNotFoundError, BankFormatError, BankLockedError, BankWriteError, and BankCorruptError for a damaged
    bank, which has to be repaired first.
    """
    folder = Path(path).resolve()
    with disk_errors(folder, reading=True), closing(Catalog(folder, writable=False, checked=True)) as catalog:
        found, (anew, counted) = int(str(catalog.format_version)), _todo(catalog, folder / "segments")
    size = sum(record.bytes for record in anew)
    report = MigrationReport(found, FORMAT_VERSION, len(anew), size, len(counted))
    if dry_run or (found == FORMAT_VERSION and not counted):
        return report
    with disk_errors(folder), WriterLock(folder, lock_timeout).hold():
        _migrate(folder)
    return report


def _todo(catalog: Catalog, root: Path) -> tuple[list[SegmentRecord], list[SegmentRecord]]:
    """Segments to be written anew, and others whose words are to be counted."""
    records = catalog.segments()
    anew = [record for record in records if not Segment(record, root).has_sums]
    others = [record for record in records if record.number not in {r.number for r in anew}]
    return anew, [record for record in others if not record.words or record.words.tokenizer != tokenizer()]


def _migrate(folder: Path) -> None:
    before = verify_bank(folder)  # else damage would get checksums of its own
    if not before.ok:
        raise BankCorruptError(f"{before.problems[0]}; run `msa bank repair`, then migrate")
    root = folder / "segments"
    with closing(Catalog(folder, writable=True, older=True)) as catalog:
        anew, others = _todo(catalog, root)
        written = [_rewrite(catalog, root, record) for record in anew]
        counted = [
            (r.number, write_words(root, r, words_from_texts(catalog, r)), Segment(r, root).fold()) for r in others
        ]
        fault_point("migrate.segments-written")
        with catalog.transaction():
            catalog.upgrade()
            for new, ordinals in written:
                catalog.documents.move(ordinals, catalog.add_segment(new))
            for number, words, fold in counted:
                catalog.set_words(number, words, fold)
            catalog.drop_empty_segments()
        fault_point("migrate.committed")
        for left in {*root.glob("*/words-*.safetensors")} - {*root.glob(f"*/{words_name(tokenizer())}")}:
            left.unlink(missing_ok=True)
        for old in orphans(root, {record.uuid for record in catalog.segments()}):
            with suppress(OSError):
                shutil.rmtree(old)
        catalog.close_sealed()


def _rewrite(catalog: Catalog, root: Path, record: SegmentRecord) -> tuple[SegmentRecord, list[int]]:
    """Write a segment anew, deleted documents and all: snapshots may need them."""
    segment = Segment(record, root)
    segment.check()
    held = catalog.documents.in_segment(record.number)
    ordinals = [ordinal for _, ordinal, *_ in held]
    latents = [segment.latents(position) for position, *_ in held]
    return write_segment(root, ordinals, latents, record.namespace, words_from_texts(catalog, record)), ordinals
