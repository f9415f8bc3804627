"""Catalogs as SQLite files: their tables, how they are connected to, and how an empty one is made."""

from __future__ import annotations

import json
import os
import sqlite3
from dataclasses import asdict
from pathlib import Path

from msa_plugin.bank.disk import check_writable, fsync_folder, make_folder
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.seal import seal
from msa_plugin.errors import BankNotFoundError
from msa_plugin.types import FORMAT_VERSION, Fingerprint

CATALOG_FILE = "catalog.sqlite"
CLUSTER_FILE = "cluster.json"
BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE segments(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    namespace TEXT,
    first_ordinal INTEGER NOT NULL,
    last_ordinal INTEGER NOT NULL,
    documents INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    keys_bytes INTEGER NOT NULL,
    keys_sha256 TEXT NOT NULL,
    keys_structure INTEGER NOT NULL,
    content_bytes INTEGER,
    content_sha256 TEXT,
    content_structure INTEGER,
    words_bytes INTEGER,
    words_sha256 TEXT,
    words_structure INTEGER,
    words_tokenizer TEXT,
    keys_fold INTEGER
);
CREATE TABLE documents(
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL,
    id TEXT NOT NULL,
    deleted INTEGER,
    segment INTEGER NOT NULL REFERENCES segments(number),
    position INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    content_hash TEXT NOT NULL,
    checksum INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    title TEXT NOT NULL,
    UNIQUE(segment, position)
);
CREATE UNIQUE INDEX documents_by_id ON documents(namespace, id, ifnull(deleted, 0));
CREATE INDEX documents_by_namespace ON documents(namespace, deleted, ordinal, tokens, chunks);
CREATE INDEX documents_deleted ON documents(deleted) WHERE deleted IS NOT NULL;
CREATE TABLE texts(ordinal INTEGER PRIMARY KEY REFERENCES documents(ordinal) ON DELETE CASCADE, text TEXT NOT NULL);
CREATE TABLE snapshots(
    name TEXT PRIMARY KEY, version INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, created TEXT NOT NULL,
    checksum INTEGER
) WITHOUT ROWID;
"""


def connect(path: Path, *, writable: bool, immutable: bool = False) -> sqlite3.Connection:
    """Open a catalog that exists. Transactions are explicit; a commit is on the disk when it returns.

    `immutable` takes no locks and needs none of SQLite's own files: see `resting`, which knows when that may be.
    """
    mode = "immutable=1" if immutable else f"mode={'rw' if writable else 'ro'}"
    return _connect(f"{path.absolute().as_uri()}?{mode}")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")  # the file may be somebody else's
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the first to touch the file
    except BaseException:
        connection.close()
        raise
    return connection


def create_bank(folder: Path, fingerprint: Fingerprint, lock_timeout: float) -> None:
    """Make an empty bank in `folder` unless there is one. Raises BankNotFoundError, BankLockedError and OSError."""
    path = folder / CATALOG_FILE
    if path.exists():
        return
    if folder.exists() and not folder.is_dir():
        raise BankNotFoundError(f"{folder} is a file; a memory bank is a folder")
    if (folder / CLUSTER_FILE).exists():
        raise BankNotFoundError(f"{folder} is a cluster of banks, not one; open it with cluster=")
    make_folder(folder)
    fault_point("create.folder-made")
    check_writable(folder)
    with WriterLock(folder, lock_timeout).hold():
        if not path.exists():
            _create_catalog(path, fingerprint)


def _create_catalog(path: Path, fingerprint: Fingerprint) -> None:
    """Write an empty catalog under a temporary name and rename it, so that a half-made catalog is never seen."""
    temporary = new_catalog(path.parent, fingerprint)
    fault_point("create.catalog-filled")
    os.replace(temporary, path)  # noqa: PTH105 - tests replace it to cut the power here
    fault_point("create.catalog-named")
    fsync_folder(path.parent)
    seal(path)


def new_catalog(folder: Path, fingerprint: Fingerprint | None = None) -> Path:
    """An empty catalog under a temporary name in `folder`; without a `fingerprint` it is still to be filled."""
    temporary = folder / "catalog.new"
    for leftover in folder.glob("catalog.new*"):
        leftover.unlink()
    connection = _connect(f"{temporary.absolute().as_uri()}?mode=rwc")
    try:
        connection.executescript(_SCHEMA)
        made_with = "" if fingerprint is None else json.dumps(asdict(fingerprint))
        values = {"format_version": FORMAT_VERSION, "fingerprint": made_with, "version": 0}
        connection.executemany("INSERT INTO meta VALUES (?, ?)", values.items())
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    return temporary


def log_of(path: Path) -> Path:
    """SQLite's write-ahead log of the database at `path`."""
    return path.with_name(path.name + "-wal")


def bytes_of(path: Path) -> int:
    """Size of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0
