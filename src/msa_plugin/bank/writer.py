"""How a handle changes its bank: as the only writer, from the newest version on, leaving nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.segment import orphans
from msa_plugin.bank.view_pool import ViewPool
from msa_plugin.errors import BankError, BankReadOnlyError


class Writer:
    """The writing side of one handle, which reads through `moments`."""

    def __init__(self, path: Path, moments: ViewPool, *, read_only: bool, lock_timeout: float) -> None:
        """Of the bank in folder `path`; nothing is touched before the first change."""
        self._path, self._views, self._read_only = path, moments, read_only
        self._root = path / "segments"
        self._lock = WriterLock(path, lock_timeout, moments.check_place)
        self._catalog: Catalog | None = None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See `MemoryBank.writing`."""
        with self._locked() as outermost:
            if outermost:
                self._views.refresh()
                self.sweep()
                fault_point("writer.locked")
            yield

    @contextmanager
    def _locked(self, timeout: float | None = None) -> Iterator[bool]:
        self._views.check_process()
        if self._read_only:
            raise BankReadOnlyError(f"{self._path} was opened for reading; open it without read_only and snapshot")
        with ExitStack() as stack:
            with disk_errors(self._path):
                outermost = stack.enter_context(self._lock.hold(timeout))
            yield outermost  # outside disk_errors: the caller's own OSErrors are not ours to rename

    @contextmanager
    def changing(self) -> Iterator[Catalog]:
        """A change: afterwards this handle sees it, or, if it failed, its leftovers are gone."""
        with self.writing(), disk_errors(self._path):
            catalog = self._connected()
            catalog.connection.check_place()  # long after the lock was taken, perhaps
            done = False
            try:
                yield catalog
                done = True
            finally:
                with self._views.lock:
                    self._views.release()  # else this handle itself would hold the log back
                catalog.log.shorten()  # without the lock: other threads' questions may be what it waits for
                self._views.refresh()
                fault_point("writer.refreshed")
                if not done:
                    with suppress(BankError):  # else it would hide why the change failed
                        self.sweep()
                    self._catalog = None  # SQLite may have made do with a log it can only read: connect anew next time
                    catalog.close()

    def _connected(self) -> Catalog:
        if self._catalog is None:
            self._catalog = Catalog(self._path, writable=True, same_as=self._views.shown.catalog)
            self._catalog.connection.turn = self._lock.turn
        return self._catalog

    def sweep_if_alone(self) -> None:
        """`sweep`, unless somebody is writing, whose they may be then."""
        if not self._read_only and self._orphans():
            with suppress(BankError), self._locked(timeout=0):
                self._views.refresh()
                self.sweep()

    def _orphans(self) -> list[Path]:
        with self._views.exclusive():
            named = {segment.record.uuid for segment in self._views.now.segments.values()}
        return orphans(self._root, named)

    def sweep(self) -> None:
        """Remove segment folders that the newest version does not name. The caller holds the lock and has refreshed.

        Where the catalog cannot be written they stay, for a failed commit that names them might come back after a
        crash. Raises BankWriteError then, and BankMovedError where they are another bank's.
        """
        if left := self._orphans():
            with disk_errors(self._path):
                self._connected().settle()
                fault_point("sweep.begun")
                for folder in left:
                    self._views.check_place()
                    shutil.rmtree(folder, ignore_errors=True)
                    fault_point("sweep.removed")

    def close(self) -> None:
        """Close the catalog, sealed, unless somebody else is writing or reading; then the last writer to close does."""
        if self._catalog is not None:
            with suppress(BankError), disk_errors(self._path), self._lock.hold(0):
                self._catalog.close_sealed()
            self._catalog.close()
            self._catalog = None
