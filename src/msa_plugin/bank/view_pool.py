"""The moments of history that a handle reads from: the one that it shows, and earlier ones that are still in use.

A question takes its selection at one moment and reads documents a while later. If the handle has moved on by then, and
a compaction has dropped rows that the selection allows, those rows are read from the moment that the selection holds:
it keeps its connection, and with it its read transaction, until the last selection of it is gone. Ordinals are never
reused, so a document found at any moment is the one meant.

A read transaction holds back the write-ahead log, of every process. So a handle has one only while somebody reads, and
beginning the next one tells whether the bank has changed meanwhile. A handle that does not follow holds its own for
good.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.view import View, open_view
from msa_plugin.errors import BankCorruptError, BankError


class ViewPool:
    """Views of one bank, for one thread at a time."""

    def __init__(self, catalog: Catalog, root: Path, snapshot: str | None, *, follow: bool) -> None:
        """Read through `catalog`, which this then owns, at the newest moment, or at a `snapshot`; see `open_view`.

        With `follow` each question that asks for it sees what others have committed since.
        """
        self._folder, self._root, self._snapshot = root.parent, root, snapshot
        self._stays = not follow and snapshot is None  # a named moment needs no transaction: it is kept for all
        self.lock = threading.RLock()  # guards the views and the connections they read through
        self._depth = 0
        self._process = os.getpid()
        self._closed = False
        catalog.connection.turn = self.lock
        self._past: list[View] = []
        self._spare: Catalog | None = None
        self._show(open_view(catalog, root, {}, snapshot))
        self._rest()

    @contextmanager
    def exclusive(self, *, newest: bool = False) -> Iterator[None]:
        """Whatever this thread reads inside is of one moment; the `newest`, if the handle follows.

        Raises BankError where the handle cannot be used, and BankMovedError where the newest is another bank's.
        """
        self.check_process()
        try:
            with self.lock, disk_errors(self._folder, reading=True), self._entered():
                if newest and self._depth == 1 and not self._stays:
                    self.check_place()
                    self._catch_up()
                yield
        finally:
            self._rest()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        if self._closed:
            raise BankError(f"{self._folder}: the bank was closed; open it again")
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def reading(self, view: View) -> Iterator[None]:
        """Read from a view. Raises BankLockedError where somebody changed meanwhile what cannot be locked."""
        try:
            yield
        except (sqlite3.Error, BankCorruptError):
            view.catalog.connection.check_rest()  # then that is why
            raise
        view.catalog.connection.check_rest()

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that opened the bank.

        Locks and connections do not survive that: what the child did with them could damage the parent's bank.
        """
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises BankError in a forked process."""
        if self.forked:
            raise BankError(
                f"{self._folder} was opened before this process was forked; open it again in this process, which then "
                "computes with one thread, or start processes by the `spawn` method, whose threads are their own"
            )

    def check_place(self) -> None:
        """Raises BankMovedError where the folder is no longer the bank that was opened."""
        self._now.catalog.connection.check_place()

    @property
    def shown(self) -> View:
        """The view as it was last looked at; to read from it, take `now`."""
        return self._now

    @property
    def now(self) -> View:
        """The view that is shown, within its transaction. Raises as `show_newest` where there is a newer one."""
        if not self._now.catalog.holds_snapshot:
            self._catch_up()
        return self._now

    def having(self, ordinals: Sequence[int]) -> View:
        """The newest view that has all of these documents; where none has them, the present one."""
        now = self.now
        if not self._past:
            return now
        readable = (view for view in (now, *reversed(self._past)) if view.catalog.connection.at_rest)
        return next((view for view in readable if view.catalog.documents.have(view.at, ordinals)), now)

    def refresh(self) -> None:
        """`show_newest`, exclusively."""
        with self.exclusive():
            self.show_newest()

    def show_newest(self) -> None:
        """Show the newest moment. Raises BankCorruptError, BankMovedError and SnapshotError."""
        self.check_place()
        catalog = self._free()
        try:
            view = open_view(catalog, self._root, self._now.segments, self._snapshot)
        except BaseException:
            catalog.release_snapshot()  # else old segments would be read by new rows
            raise
        if catalog is self._spare:
            self._past.append(self._now)
            self._spare = None
        self._show(view)

    def release(self) -> None:
        """End the read transactions that nobody needs: they hold back the write-ahead log."""
        for view in [view for view in self._past if not view.in_use]:
            self._past.remove(view)
            view.catalog.close()
        if not self._now.in_use:
            self._now.catalog.release_snapshot()

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        for catalog in (self._spare, self._now.catalog, *(view.catalog for view in self._past)):
            if catalog is not None:
                catalog.close()

    def _show(self, view: View) -> None:
        rest = weakref.WeakMethod(self._rest)
        view.on_unused = lambda: (method := rest()) and method()
        self._now = view

    def _catch_up(self) -> None:
        """Begin a transaction for the view that is shown, or show the newest moment where it is a later one."""
        catalog = self._free()
        if catalog.hold_snapshot() != self._now.newest or not self._now.catalog.connection.at_rest:
            self.show_newest()
        elif catalog is self._spare:
            catalog.release_snapshot()

    def _free(self) -> Catalog:
        """A connection that nobody reads through: the present one where it can be had, else a spare one."""
        self.release()
        now = self._now.catalog
        if not self._now.in_use and now.connection.at_rest:
            return now
        if self._spare is not None and not self._spare.connection.at_rest:
            self._spare.close()
            self._spare = None
        if self._spare is None:
            self._spare = Catalog(self._folder, writable=False, same_as=now)
            self._spare.connection.turn = self.lock
        return self._spare

    def _rest(self) -> None:
        """End the transactions that nobody needs, unless somebody is at work, who does it afterwards.

        Called at any moment and by any thread, whichever drops the last selection of a moment.
        """
        while self._restless and self.lock.acquire(blocking=False):
            try:
                if not self._rested():
                    return
            finally:
                self.lock.release()

    def _rested(self) -> bool:
        if self._depth or self._closed:
            return False
        try:
            self.release()
        except sqlite3.Error:
            return False  # whoever reads next hears of it
        return True

    @property
    def _restless(self) -> bool:
        if self._closed or self.forked or self._stays:
            return False
        return any(not view.in_use for view in [*self._past]) or (
            not self._now.in_use and self._now.catalog.holds_snapshot
        )
