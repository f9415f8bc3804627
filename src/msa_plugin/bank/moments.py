"""The moments of history that a handle reads from: the one that it shows, and earlier ones that are still in use.

A question takes its selection at one moment and reads documents a while later. If the handle has moved on by then, and
a compaction has dropped rows that the selection allows, those rows are read from the moment that the selection holds:
it keeps its connection, and with it its read transaction, until the last selection of it is gone. Ordinals are never
reused, so a document found at any moment is the one meant.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msa_plugin.bank.catalog import Catalog
from msa_plugin.bank.disk import disk_errors
from msa_plugin.bank.view import View, look
from msa_plugin.errors import BankError


class Moments:
    """Views of one bank, for one thread at a time."""

    def __init__(self, catalog: Catalog, root: Path, snapshot: str | None) -> None:
        """Look through `catalog`, which this then owns, at the newest moment, or at a `snapshot`; see `look`."""
        self._folder, self._root, self._snapshot = root.parent, root, snapshot
        self.lock = threading.RLock()  # guards the views and the connections they read through
        self._process = os.getpid()
        self._closed = False
        self._past: list[View] = []
        self._spare: Catalog | None = None
        self._now = look(catalog, root, {}, snapshot)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Whatever this thread reads inside is of one moment. Raises BankError where the handle cannot be used."""
        self.check_process()
        with self.lock, disk_errors(self._folder, reading=True):
            if self._closed:
                raise BankError(f"{self._folder}: the bank was closed; open it again")
            yield

    @property
    def forked(self) -> bool:
        """Whether this process is a fork of the one that opened the bank.

        Locks and connections do not survive that: what the child did with them could damage the parent's bank.
        """
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises BankError in a forked process."""
        if self.forked:
            raise BankError(f"{self._folder} was opened before this process was forked; open it again in this process")

    @property
    def now(self) -> View:
        """The view that is shown. Raises as `look`, where an interrupted change left it without its transaction."""
        if not self._now.catalog.holds_snapshot:
            self.look()
        return self._now

    def having(self, ordinals: Sequence[int]) -> View:
        """The newest view that has all of these documents; where none has them, the present one."""
        now = self.now
        if not self._past:
            return now
        return next((view for view in (now, *reversed(self._past)) if view.has(ordinals)), now)

    def look(self) -> None:
        """Show the newest moment. Raises BankCorruptError and SnapshotError."""
        self.let_go()
        catalog = self._spare or self._now.catalog
        try:
            view = look(catalog, self._root, self._now.segments, self._snapshot)
        except BaseException:
            catalog.release_snapshot()  # else old segments would be read by new rows
            raise
        if catalog is self._spare:
            self._past.append(self._now)
            self._spare = None
        self._now = view

    def let_go(self) -> None:
        """End the read transactions that nobody needs: they hold back the write-ahead log."""
        for view in [view for view in self._past if not view.in_use]:
            self._past.remove(view)
            view.catalog.close()
        if not self._now.in_use:
            self._now.catalog.release_snapshot()
        elif self._spare is None:
            self._spare = Catalog(self._now.catalog.path.parent, writable=False)

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        for catalog in (self._spare, self._now.catalog, *(view.catalog for view in self._past)):
            if catalog is not None:
                catalog.close()
