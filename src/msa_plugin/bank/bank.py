"""The memory bank: durable, versioned documents and their latents, with one writer and any number of readers.

A handle sees at each call what others have committed (unless it does not follow, or is of a named snapshot), and what
a call has selected stays readable: a read transaction pins the catalog's rows, memory maps pin the segments, and
nothing that another process does can pull data from under it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from torch import Tensor

from msa_plugin import dates
from msa_plugin.bank import compaction
from msa_plugin.bank.arrivals import clock
from msa_plugin.bank.catalog import Catalog, Snapshot
from msa_plugin.bank.disk import check_writable, disk_errors
from msa_plugin.bank.documents import Known, StoredDocument
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.schema import create_bank
from msa_plugin.bank.scopes import Scope, check_namespace, grouped
from msa_plugin.bank.segment import Segment
from msa_plugin.bank.tables import Tables
from msa_plugin.bank.validation import check_documents, check_ordinals
from msa_plugin.bank.verify import verify_bank
from msa_plugin.bank.view import Selection, View
from msa_plugin.bank.view_pool import ViewPool
from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.bank.writer import Writer
from msa_plugin.bank.writing import write_segment
from msa_plugin.errors import BankError, InvalidQueryError
from msa_plugin.types import PRESENT, Asof, EncodedDocument, Filter, Fingerprint, Stats, VerifyReport

_PAGE = 1000


class MemoryBank:
    """A handle on a bank. Safe to share among threads; close it, or use it as a context manager."""

    def __init__(
        self,
        path: Path,
        fingerprint: Fingerprint,
        *,
        read_only: bool,
        snapshot: str | None,
        lock_timeout: float,
        follow: bool,
    ) -> None:
        """Attach to a bank that exists; use `MemoryBank.open`."""
        self.path = path
        self.fingerprint = fingerprint
        self.read_only = read_only
        self.snapshot_name = snapshot
        self._root = path / "segments"
        self._tables = Tables(path)
        catalog = Catalog(path, writable=False, checked=True)
        try:
            if not read_only:
                check_writable(path)
            fingerprint.check(catalog.fingerprint(), path)
            self._views = ViewPool(catalog, self._root, snapshot, follow=follow)
        except BaseException:
            catalog.close()
            raise
        self._writer = Writer(path, self._views, read_only=read_only, lock_timeout=lock_timeout)

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
        follow: bool = True,
    ) -> MemoryBank:
        """Open the bank in folder `path`, creating it if absent unless `create` is False or it is to be only read.

        `snapshot` opens a named moment, read-only. `lock_timeout` (seconds) is how long a write waits for another.
        Without `follow` the handle keeps its moment until `refresh`, and the catalog's log may grow until it is closed.
        Raises BankNotFoundError, BankFormatError, FingerprintMismatchError, BankCorruptError, BankReadOnlyError,
        BankLockedError and SnapshotError.
        """
        folder = Path(path).resolve()  # once: whatever becomes of the working directory, it stays this bank
        read_only = read_only or snapshot is not None
        if create and not read_only:
            with disk_errors(folder):
                create_bank(folder, fingerprint, lock_timeout)
        with disk_errors(folder, reading=True):
            bank = cls(
                folder,
                fingerprint,
                read_only=read_only,
                snapshot=snapshot,
                lock_timeout=lock_timeout,
                follow=follow,
            )
        bank._writer.sweep_if_alone()
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
        """Move to the newest version (a handle on a named snapshot stays there).

        Raises BankCorruptError and BankMovedError.
        """
        self._views.refresh()

    def close(self) -> None:
        """Let go of the catalog; tensors already handed out stay valid. May be called twice."""
        if self._views.forked:
            return  # the connections are the parent's
        with self._views.lock:
            self._views.close()
            self._writer.close()

    def __enter__(self) -> MemoryBank:
        """Return the handle itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the handle."""
        self.close()

    def one_moment(self) -> AbstractContextManager[None]:
        """Whatever this thread reads inside is of one moment; keep it short, for other threads wait."""
        return self._views.exclusive(newest=True)

    @contextmanager
    def _reading(self, ordinals: Sequence[int] | None = None) -> Iterator[View]:
        """The view to read from: the newest, or, for what a selection named, one that still has these `ordinals`."""
        with self._views.exclusive(newest=ordinals is None):
            view = self._views.having(ordinals or ())
            with self._views.reading(view):
                yield view

    # -- reading ----------------------------------------------------------------------------------------------------

    def select(
        self, namespace: str, where: Filter | None = None, *, below: bool = False, asof: Asof = PRESENT
    ) -> Selection:
        """Live documents of a namespace, with `below` of those nested in it too, that pass a filter (see `filters`).

        Only those that are valid now, or as of a date, or with `history` all of them. Raises InvalidQueryError for a
        malformed filter.
        """
        check_namespace(namespace)
        with self._reading() as view:
            return view.select(Scope(namespace, below), where, asof)

    def expired(self, namespace: str, below: bool = False) -> list[tuple[str, str]]:
        """Namespace and id of the live documents whose `valid_until` has passed, oldest first."""
        with self._reading() as view:
            return view.catalog.documents.periods.expired(view.at, Scope(namespace, below), dates.clock())

    def namespaces(self, inside: str) -> Sequence[str]:
        """The namespace and those nested in it that have a live document, in order."""
        with self._reading() as view:
            return view.catalog.documents.namespaces(view.at, inside)

    def words(self, selection: Selection) -> list[WordPart]:
        """Words and names of the selection's segments, in ordinal order; see `Tables`. Raises BankCorruptError."""
        return self._tables.parts(selection.parts, self._texts)

    def _texts(self, ordinals: Sequence[int]) -> list[tuple[str, str]]:
        with self._reading(ordinals) as view:
            return list(view.catalog.documents.texts(ordinals))

    def segments(self) -> tuple[Segment, ...]:
        """The mapped segments, in ordinal order, whatever the namespace."""
        with self._reading() as view:
            return tuple(view.segments.values())

    def key_rows(self, ordinals: Sequence[int], group: str) -> list[Tensor]:
        """Routing keys [C_i, W] of each document (int8: as float32). Raises as `content`."""
        places = self._places(ordinals)
        if any(group not in segment.keys for segment, _ in places):
            raise InvalidQueryError(f"no key group {group!r} in this bank; there are {sorted(places[0][0].keys)}")
        rows = {segment: iter(segment.key_numbers(found, group)) for segment, found in grouped(places).items()}
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

    def dates(self, ordinals: Sequence[int]) -> list[str | None]:
        """How old documents are: the moment from which each is; see `DocumentRows.dates`. Raises as `documents`."""
        with self._reading(ordinals) as view:
            return view.catalog.documents.dates(view.at, ordinals)

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
            with self._views.exclusive(), self._views.reading(view):
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
            return view.catalog.stats(view.at, view.totals(namespace))

    def verify(self, deep: bool = True, namespace: str | None = None) -> VerifyReport:
        """Check the bank on disk, in its newest version; see `verify_bank`, which needs no handle.

        Raises BankMovedError where that is another bank.
        """
        self._views.check_place()
        return verify_bank(self.path, deep=deep, namespace=namespace)

    # -- writing ----------------------------------------------------------------------------------------------------

    def writing(self) -> AbstractContextManager[None]:
        """Be the only writer; re-entrant within a thread. Starts from the newest version.

        Raises BankLockedError when another writer does not finish in time, and BankReadOnlyError.
        """
        return self._writer.writing()

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
            with self._writer.changing() as catalog:
                ordinals = check_ordinals(ordinals, catalog.now().last_ordinal, len(latents))
                words = WordTable.of((item.document.title, item.document.text) for item in documents)
                record = write_segment(self._root, ordinals, latents, namespace, words)
                with catalog.transaction() as version:
                    ids = [item.document.id for item in documents]
                    catalog.documents.tombstone(namespace, ids, version)
                    fault_point("commit.replaced")
                    rows = zip(ordinals, documents, latents, strict=True)
                    catalog.documents.insert(
                        namespace,
                        catalog.add_segment(record),
                        ((ordinal, item.document, item.tokens, kept.chunks) for ordinal, item, kept in rows),
                    )
                    timed = [(ordinal, item.document) for ordinal, item in zip(ordinals, documents, strict=True)]
                    catalog.documents.periods.insert(namespace, timed, version, clock())
                    fault_point("commit.periods-added")
                    catalog.documents.arrivals.insert(ordinals[0])
                    fault_point("commit.arrival-noted")
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
                with self._writer.changing() as catalog, catalog.transaction() as version:
                    catalog.documents.periods.bequeath(namespace, deleted)
                    catalog.documents.tombstone(namespace, deleted, version)
                    fault_point("delete.marked")
        return deleted, missing

    def snapshot(self, name: str) -> None:
        """Name the newest version, so that compaction keeps it. Raises SnapshotError for a bad or taken name."""
        with self._writer.changing() as catalog, catalog.transaction():
            catalog.add_snapshot(name, catalog.now())

    def drop_snapshot(self, name: str) -> None:
        """Forget a named version; the next compaction frees what only it needed. Raises SnapshotError."""
        with self._writer.changing() as catalog, catalog.transaction():
            catalog.drop_snapshot(name)

    def compact(self, segment_bytes: int = compaction.SEGMENT_BYTES) -> None:
        """Free the space of deleted documents and merge small segments into ones of about `segment_bytes`.

        Ordinals do not change, handles open elsewhere keep working, and named snapshots are preserved. Needs free disk
        space for what it rewrites. Raises BankLockedError, BankWriteError, BankReadOnlyError and BankCorruptError.
        """
        with self.writing():
            if self._rewrite(self._views.shown.segments, segment_bytes):
                with self._writer.changing() as catalog:
                    with self._views.lock:
                        self._views.release()  # its own pages are the only ones it may move out of the log
                    catalog.shrink()

    def _rewrite(self, segments: Mapping[int, Segment], segment_bytes: int) -> bool:
        with self._writer.changing() as catalog:
            changed = compaction.compact(catalog, self._root, segments, segment_bytes)
        with suppress(BankError):  # the change is done
            self._writer.sweep()
        return changed

    def _merge_tail(self) -> None:
        if tail := compaction.small_tail(self._views.shown.segments):
            fault_point("commit.merging")
            with suppress(BankError):  # the commit that led here is done and acknowledged
                self._rewrite(tail, compaction.TAIL_BYTES)
