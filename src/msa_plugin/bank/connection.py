"""One connection to a catalog's file, which knows which file that is: a path is not an identity.

While a handle has a bank open, its folder can be renamed, removed, or replaced by a restored backup. SQLite goes on
with the file that it opened, but segments, seal and lock are found by path, and would be another bank's. So a
connection remembers device and inode of its file, which no other file can get while it is open, and a change compares
them first.
"""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path

from msa_plugin.bank.descriptors import Connected
from msa_plugin.bank.resting import Rest, connect_to_read
from msa_plugin.bank.schema import connect
from msa_plugin.errors import BankMovedError


class Connection:
    """A connection to the catalog file `path`: `db`. A lasting one has the lock of those who use it, its `turn`."""

    def __init__(self, path: Path, *, writable: bool, same_as: Connection | None = None) -> None:
        """Raises sqlite3.Error, OSError, and BankMovedError where it is not the file that `same_as` has open."""
        self.path = path
        self.turn: threading.RLock | None = None
        self._inode: tuple[int, int] | None = _inode(path) if same_as is None else same_as._inode
        self._connected = Connected(path)
        self._rest: Rest | None = None
        self._writable = writable
        try:
            self.check_place()
            if writable:
                self.db = connect(path, writable=True)
            else:
                self.db, self._rest = connect_to_read(path)
        except BaseException:
            self._connected.release()
            raise
        _open.add(self)
        try:
            self.check_place()  # else another file may have come in between
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; harmless when closed already."""
        _open.discard(self)
        self.db.close()
        self._connected.release()

    def leave(self) -> None:
        """In a forked child: close what is the parent's, unless a thread was at it, or it was amid a change.

        SQLite would take the parent's locks for the child's own, and lock nothing for what the child opens itself: its
        log would be removed while it writes. Closing ends that, and leaves the parent's locks alone, which are the
        parent process's. A change would be undone in memory that both share.
        """
        if self.turn is None or not self.turn.acquire(blocking=False):
            return
        try:
            if not (self._writable and self.db.in_transaction):
                self.db.close()
        finally:
            self.turn.release()

    def check_place(self) -> None:
        """Raises BankMovedError where the path does not lead to the file that is open here."""
        found = _inode(self.path)
        if found == self._inode:
            return
        folder = self.path.parent
        if found is None:
            raise BankMovedError(f"{folder} was moved or removed while it was open; nothing was changed: open it again")
        raise BankMovedError(
            f"{folder} was replaced by another bank (a restored backup, say) while it was open; nothing was changed: "
            "close this memory and open it again"
        )

    @property
    def at_rest(self) -> bool:
        """Whether what is read now is of the moment that was opened; where SQLite takes locks, it sees to that."""
        return self._rest is None or self._rest == Rest.of(self.path)

    def check_rest(self) -> None:
        """Raises BankLockedError unless `at_rest`: what was read may be of several moments."""
        if self._rest is not None:
            self._rest.check(self.path)


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode of the file that `path` leads to; None where there is none. Raises OSError."""
    try:
        found = os.stat(path)  # noqa: PTH116 - asked for at every call, and twice as fast as Path.stat
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


_open: weakref.WeakSet[Connection] = weakref.WeakSet()


def _leave_all() -> None:
    for connection in list(_open):
        connection.leave()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_all)
