"""The memory bank: durable, versioned documents and their latents, with one writer and any number of readers.

A handle sees the moment at which it was opened (or last refreshed): an open read transaction pins the catalog's rows,
memory maps pin the segments, and nothing that another process does can pull data from under it. Writing through a
handle refreshes that handle.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from msa_plugin.bank import compaction
from msa_plugin.bank.catalog import Catalog, Snapshot
from msa_plugin.bank.disk import check_writable, disk_errors
from msa_plugin.bank.documents import Known, Scope, StoredDocument
from msa_plugin.bank.faults import reached
from msa_plugin.bank.intake import check_documents, check_namespace, check_ordinals
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.moments import Moments
from msa_plugin.bank.schema import create_bank
from msa_plugin.bank.segment import Segment, orphans
from msa_plugin.bank.verify import verify_bank
from msa_plugin.bank.view import Selection, View
from msa_plugin.bank.writing import write_segment
from msa_plugin.errors import BankError, BankReadOnlyError, FingerprintMismatchError, InvalidQueryError
from msa_plugin.types import EncodedDocument, Filter, Fingerprint, KeyBlock, Stats, VerifyReport

_PAGE = 1000


class MemoryBank:
    """A handle on a bank. Safe to share among threads; close it, or use it as a context manager."""

    def __init__(
        self, path: Path, fingerprint: Fingerprint, *, read_only: bool, snapshot: str | None, lock_timeout: float
    ) -> None:
        """Attach to a bank that exists; use `MemoryBank.open`."""
        self.path = path
        self.fingerprint = fingerprint
        self.read_only = read_only
        self.snapshot_name = snapshot
        self._root = path / "segments"
        self._lock = WriterLock(path, lock_timeout)
        self._writer: Catalog | None = None
        catalog = Catalog(path, writable=False, checked=True)
        try:
            if not read_only:
                check_writable(path)
            # The format is none of the settings: the catalog has checked it.
            found = replace(catalog.fingerprint(), format_version=fingerprint.format_version)
            if found != fingerprint:
                raise FingerprintMismatchError(
                    f"{path} was built with other settings: {'; '.join(fingerprint.differences(found))}. "
                    "Open it with the same model and adapter, or build a new bank in another folder"
                )
            self._moments = Moments(catalog, self._root, snapshot)
        except BaseException:
            catalog.close()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        fingerprint: Fingerprint,
        *,
        create: bool = True,
        read_only: bool = False,
        snapshot: str | None = None,
        lock_timeout: float = 10.0,
    ) -> MemoryBank:
        """Open the bank in folder `path`, creating it if absent unless `create` is False or it is to be only read.

        `snapshot` opens a named moment, read-only. `lock_timeout` (seconds) is how long a write waits for another.
        Raises BankNotFoundError, BankFormatError, FingerprintMismatchError, BankCorruptError, BankReadOnlyError,
        BankLockedError and SnapshotError.
        """
        folder = Path(path)
        read_only = read_only or snapshot is not None
        if create and not read_only:
            with disk_errors(folder):
                create_bank(folder, fingerprint, lock_timeout)
        with disk_errors(folder, reading=True):
            bank = cls(folder, fingerprint, read_only=read_only, snapshot=snapshot, lock_timeout=lock_timeout)
        if not read_only and bank._orphans():
            with suppress(BankError), bank._locked(timeout=0):  # if somebody is writing, they may be theirs
                bank.refresh()
                bank._sweep()
        return bank

    # -- the handle's moment ----------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The version that this handle sees."""
        with self._reading() as view:
            return view.at.version

    @property
    def next_ordinal(self) -> int:
        """The number that the next document committed will get; within `writing` nobody else takes it."""
        with self._reading() as view:
            return view.at.last_ordinal + 1

    def refresh(self) -> None:
        """Move to the newest version (a handle on a named snapshot stays there). Raises BankCorruptError."""
        with self._moments.alone():
            self._moments.look()

    def close(self) -> None:
        """Let go of the catalog; tensors already handed out stay valid. May be called twice."""
        if self._moments.forked:
            return  # the connections are the parent's
        with self._moments.lock:
            self._moments.close()
            if self._writer:
                self._seal(self._writer)
                self._writer.close()
                self._writer = None

    def _seal(self, writer: Catalog) -> None:
        """Seal the catalog, unless somebody else is writing or reading; then the last writer to close does."""
        with suppress(BankError), disk_errors(self.path), self._lock.hold(0):
            writer.close_sealed()

    def __enter__(self) -> MemoryBank:
        """Return the handle itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the handle."""
        self.close()

    def one_moment(self) -> AbstractContextManager[None]:
        """Whatever this thread reads inside is of one moment; keep it short, for other threads wait."""
        return self._moments.alone()

    @contextmanager
    def _reading(self, ordinals: Sequence[int] = ()) -> Iterator[View]:
        """The view to read from: the present one, or an earlier one in use that still has the documents `ordinals`."""
        with self._moments.alone():
            yield self._moments.having(ordinals)

    # -- reading ----------------------------------------------------------------------------------------------------

    def select(self, namespace: str, where: Filter | None = None, *, below: bool = False) -> Selection:
        """Live documents of a namespace, with `below` of those nested in it too, that pass a filter (see `filters`).

        Raises InvalidQueryError for a malformed filter.
        """
        check_namespace(namespace)
        with self._reading() as view:
            return view.select(Scope(namespace, below), where)

    def namespaces(self, inside: str) -> Sequence[str]:
        """The namespace and those nested in it that have a live document, in order."""
        with self._reading() as view:
            return view.catalog.documents.namespaces(view.at, inside)

    def key_blocks(self, group: str, selection: Selection) -> Iterator[KeyBlock]:
        """The selection's segments for the scorer, in ordinal order; see `Selection.key_blocks`."""
        return selection.key_blocks(group)

    def segments(self) -> tuple[Segment, ...]:
        """The mapped segments, in ordinal order, whatever the namespace."""
        with self._reading() as view:
            return tuple(view.segments.values())

    def key_rows(self, ordinals: Sequence[int], group: str) -> list[Tensor]:
        """Routing keys [C_i, W] of each document (int8: as float32). Raises as `content`."""
        places = self._places(ordinals)
        if any(group not in segment.keys for segment, _ in places):
            raise InvalidQueryError(f"no key group {group!r} in this bank; there are {sorted(places[0][0].keys)}")
        positions: dict[Segment, list[int]] = {}
        for segment, position in places:
            positions.setdefault(segment, []).append(position)
        rows = {segment: iter(segment.key_numbers(found, group)) for segment, found in positions.items()}
        return [next(rows[segment]) for segment, _ in places]

    def content(self, ordinals: Sequence[int], layer: int) -> list[Tensor]:
        """Content [C_i', 2, KV, D] of each document: `Segment.content_numbers`. Raises BankError, InvalidQueryError."""
        places = self._places(ordinals)
        if any(layer not in segment.content for segment, _ in places):
            kept = sorted({kept for segment, _ in places for kept in segment.content})
            raise InvalidQueryError(f"no content of layer {layer} in this bank; there is: {kept or 'none'}")
        return [segment.content_numbers(position, layer) for segment, position in places]

    def latents(self, ordinal: int) -> EncodedDocument:
        """A document with everything kept of it, ready to be committed again (under new metadata, say)."""
        with self.one_moment():
            [stored], [(segment, position)] = self.documents([ordinal]), self._places([ordinal])
        return EncodedDocument(stored.document, stored.tokens, *segment.latents(position))

    def _places(self, ordinals: Sequence[int]) -> list[tuple[Segment, int]]:
        with self._reading(ordinals) as view:
            return view.located(view.catalog.documents.places(view.at, ordinals))

    def documents(self, ordinals: Sequence[int]) -> list[StoredDocument]:
        """Documents by ordinal. Raises BankError for one that is gone and that no selection in use allows."""
        with self._reading(ordinals) as view:
            return view.catalog.documents.stored(view.at, ordinals)

    def lookup(self, ids: Iterable[str], namespace: str) -> dict[str, Known]:
        """Ordinal, content hash and metadata of those ids that are live."""
        with self._reading() as view:
            return view.catalog.documents.lookup(view.at, namespace, ids)

    def get(self, ids: Iterable[str], namespace: str) -> dict[str, StoredDocument]:
        """Documents of those ids that are live."""
        with self._reading() as view:
            return view.catalog.documents.get(view.at, namespace, ids)

    def iter_ids(self, namespace: str, after: str | None = None) -> Iterator[str]:
        """Live ids (beyond `after`) in code point order, fetched in pages, all of the moment of the first."""
        with self._reading() as view:
            _held = view.moment()  # until the last page
        while True:
            with self._moments.alone():
                page = view.catalog.documents.page_of_ids(view.at, namespace, after, _PAGE)
            if not page:
                return
            yield from page
            after = page[-1]

    def count(self, namespace: str) -> int:
        """Live documents of a namespace."""
        with self._reading() as view:
            return view.totals(namespace).documents

    def snapshots(self) -> list[Snapshot]:
        """Named snapshots, oldest first."""
        with self._reading() as view:
            return view.catalog.snapshots()

    def stats(self, namespace: str) -> Stats:
        """Sizes of a namespace and of the bank."""
        with self._reading() as view:
            return view.stats(namespace)

    def verify(self, deep: bool = True, namespace: str | None = None) -> VerifyReport:
        """Check the bank on disk, in its newest version; see `verify_bank`, which needs no handle."""
        return verify_bank(self.path, deep=deep, namespace=namespace)

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer; re-entrant within a thread. Starts from the newest version.

        Raises BankLockedError when another writer does not finish in time, and BankReadOnlyError.
        """
        with self._locked() as outermost:
            if outermost:
                self.refresh()
                self._sweep()
                reached("writer.locked")
            yield

    def commit(
        self, documents: Sequence[EncodedDocument], namespace: str, ordinals: Sequence[int] | None = None
    ) -> list[int]:
        """Store documents durably, replacing live ones of the same ids; returns `ordinals`, by default the next.

        All become visible at once, and none if anything fails. Raises InvalidDocumentError, DuplicateDocumentError,
        BankLockedError, BankWriteError and BankReadOnlyError.
        """
        check_namespace(namespace)
        latents = check_documents(documents)
        if not latents:
            return []
        with self.writing():
            with self._changing() as catalog:
                ordinals = check_ordinals(ordinals, catalog.now().last_ordinal, len(latents))
                record = write_segment(self._root, ordinals, latents, namespace)
                with catalog.transaction() as version:
                    ids = [item.document.id for item in documents]
                    catalog.documents.tombstone(namespace, ids, version)
                    reached("commit.replaced")
                    rows = zip(ordinals, documents, latents, strict=True)
                    catalog.documents.insert(
                        namespace,
                        catalog.add_segment(record),
                        ((ordinal, item.document, item.tokens, kept.chunks) for ordinal, item, kept in rows),
                    )
            self._merge_tail()
        return ordinals

    def delete(self, ids: Iterable[str], namespace: str) -> tuple[list[str], list[str]]:
        """Delete documents by id; returns the ids deleted and the ids that were not there, both in the order given.

        The latents stay on disk until `compact`. Raises BankLockedError, BankWriteError and BankReadOnlyError.
        """
        wanted = list(dict.fromkeys(ids))
        with self.writing():
            live = self.lookup(wanted, namespace)
            deleted, missing = [i for i in wanted if i in live], [i for i in wanted if i not in live]
            if deleted:
                with self._changing() as catalog, catalog.transaction() as version:
                    catalog.documents.tombstone(namespace, deleted, version)
                    reached("delete.marked")
        return deleted, missing

    def snapshot(self, name: str) -> None:
        """Name the newest version, so that compaction keeps it. Raises SnapshotError for a bad or taken name."""
        with self._changing() as catalog, catalog.transaction():
            catalog.add_snapshot(name, catalog.now())

    def drop_snapshot(self, name: str) -> None:
        """Forget a named version; the next compaction frees what only it needed. Raises SnapshotError."""
        with self._changing() as catalog, catalog.transaction():
            catalog.drop_snapshot(name)

    def compact(self, segment_bytes: int = compaction.SEGMENT_BYTES) -> None:
        """Free the space of deleted documents and merge small segments into ones of about `segment_bytes`.

        Ordinals do not change, handles open elsewhere keep working, and named snapshots are preserved. Needs free disk
        space for what it rewrites. Raises BankLockedError, BankWriteError, BankReadOnlyError and BankCorruptError.
        """
        with self.writing():
            if self._rewrite(self._moments.now.segments, segment_bytes):
                with self._changing() as catalog:
                    with self._moments.lock:
                        self._moments.let_go()  # its own pages are the only ones it may move out of the log
                    catalog.shrink()

    def _rewrite(self, segments: Mapping[int, Segment], segment_bytes: int) -> bool:
        with self._changing() as catalog:
            changed = compaction.compact(catalog, self._root, segments, segment_bytes)
        with suppress(BankError):  # the change is done
            self._sweep()
        return changed

    def _merge_tail(self) -> None:
        if tail := compaction.small_tail(self._moments.now.segments):
            reached("commit.merging")
            with suppress(BankError):  # the commit that led here is done and acknowledged
                self._rewrite(tail, compaction.TAIL_BYTES)

    @contextmanager
    def _locked(self, timeout: float | None = None) -> Iterator[bool]:
        self._moments.check_process()
        if self.read_only:
            raise BankReadOnlyError(f"{self.path} was opened for reading; open it without read_only and snapshot")
        with ExitStack() as stack:
            with disk_errors(self.path):
                outermost = stack.enter_context(self._lock.hold(timeout))
            yield outermost  # outside disk_errors: the caller's own OSErrors are not ours to rename

    @contextmanager
    def _changing(self) -> Iterator[Catalog]:
        """A change: afterwards this handle sees it, or, if it failed, its leftovers are gone."""
        with self.writing(), disk_errors(self.path):
            catalog = self._to_write()
            done = False
            try:
                yield catalog
                done = True
            finally:
                with self._moments.lock:
                    self._moments.let_go()  # else this handle itself would hold the log back
                catalog.checkpoint()  # without the lock: other threads' questions may be what it waits for
                self.refresh()
                reached("writer.refreshed")
                if not done:
                    with suppress(BankError):  # else it would hide why the change failed
                        self._sweep()
                    self._writer = None  # SQLite may have made do with a log it can only read: connect anew next time
                    catalog.close()

    def _to_write(self) -> Catalog:
        if self._writer is None:
            self._writer = Catalog(self.path, writable=True)
        return self._writer

    def _orphans(self) -> list[Path]:
        with self._reading() as view:
            return orphans(self._root, {segment.record.uuid for segment in view.segments.values()})

    def _sweep(self) -> None:
        """Remove segment folders that the newest version does not name. The caller holds the lock and has refreshed.

        Where the catalog cannot be written they stay, for a failed commit that names them might come back after a
        crash. Raises BankWriteError then.
        """
        if left := self._orphans():
            with disk_errors(self.path):
                self._to_write().settle()
                reached("sweep.begun")
                for folder in left:
                    shutil.rmtree(folder, ignore_errors=True)
                    reached("sweep.removed")
