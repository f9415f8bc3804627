"""Durable writes, and the operating system's refusals turned into the bank's own errors."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msa_plugin.errors import (
    BankCorruptError,
    BankError,
    BankLockedError,
    BankReadOnlyError,
    BankWriteError,
    MSAError,
)

_DAMAGE = ("decode", "malformed", "no such", "not present in both")  # what SQLite says of a schema that was altered
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def disk_errors(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Translate `OSError` and `sqlite3.Error` raised inside into the bank's errors; our own errors pass through."""
    try:
        yield
    except MSAError:
        raise
    except OSError as error:
        raise _from_os(error, path, reading) from error
    except sqlite3.Error as error:
        raise _from_sqlite(error, path, reading) from error
    except UnicodeDecodeError as error:  # of a message that quotes the damage
        raise _unreadable(f"{path / 'catalog.sqlite'}: {error}") from error


def _from_os(error: OSError, path: Path, reading: bool) -> BankError:
    what = f"{error.filename or path}: {error.strerror or error}"
    if reading:
        return _unreadable(what) if error.errno == errno.EIO else BankError(f"the bank cannot be read: {what}")
    if error.errno in _READ_ONLY:
        return _read_only(path, error)
    return _refused(what)


def _from_sqlite(error: sqlite3.Error, path: Path, reading: bool) -> BankError:
    # Messages rather than error codes: Python 3.10 exposes no codes.
    message = str(error)
    what = f"{path / 'catalog.sqlite'}: {message}"
    if "locked" in message or "busy" in message:
        return BankLockedError(f"{what}; another process holds the catalog, repeat the call")
    if "readonly" in message:
        return _read_only(path, error)
    if "closed database" in message:
        return BankError(f"{path}: the bank was closed; open it again")
    if isinstance(error, sqlite3.OperationalError) and not reading and not any(sign in message for sign in _DAMAGE):
        return _refused(what)
    return _unreadable(what)


def _read_only(path: Path, error: Exception) -> BankReadOnlyError:
    return BankReadOnlyError(f"{path} cannot be written ({error}); make it writable, or open it with read_only=True")


def _refused(what: str) -> BankWriteError:
    return BankWriteError(
        f"{what}; free space or repair the disk, then repeat the call (everything acknowledged before is intact)"
    )


def _unreadable(what: str) -> BankCorruptError:
    return BankCorruptError(f"{what}; run `msa bank verify`, then restore the file from a backup")


def check_writable(folder: Path) -> None:
    """Raises BankReadOnlyError when this process may not write into `folder`."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BankReadOnlyError(f"{folder} cannot be written; make it writable, or open it with read_only=True")


def make_folder(folder: Path) -> None:
    """Make `folder` unless it is there, and what is missing above it, durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_folder(path.parent)


def replace_text(path: Path, text: str, *, durable: bool) -> None:
    """Put a text file in the place of the one at `path`, which is old or new but never half. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105 - tests replace it to cut the power here


def fsync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable (nothing to do on Windows, which cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
