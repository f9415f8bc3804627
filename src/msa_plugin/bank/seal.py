"""The catalog's seal: checksums of its file, taken when a writer closes the bank and compared when it is opened.

SQLite checks its structure here and there, never what pages hold: a flipped bit in an index hides a document, and one
in `deleted` revives it. So a bank at rest is sealed: `catalog.seal` has two checksums of every 256 KiB of its catalog,
whose log is empty then: the CRC-32 and, of large ones, a faster one, since every opening reads them all. The first
write removes the seal, durably, before anything else changes; a bank whose writer died, or still lives, has none. For
the log of such a bank `catalog.head` has the newest version that was committed: SQLite drops what follows a damaged
part of its log without a word.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from msa_plugin.bank.descriptors import unconnected
from msa_plugin.bank.disk import fsync_folder, replace_text
from msa_plugin.bank.faults import fault_point
from msa_plugin.errors import BankCorruptError

SEAL_FILE, HEAD_FILE = "catalog.seal", "catalog.head"
_BLOCK, _PIECE, _ROW = 256 << 10, 64 << 10, 4 << 10
_LARGE = 32 << 20  # bytes; to load numpy for the faster checksum takes longer than the CRC-32 of less
_HELP = "run `msa bank verify`, then restore the bank from a backup or run `msa bank repair`"


def seal(catalog: Path) -> None:
    """Seal the database file `catalog`, whose log is empty, unless this process is connected. Raises OSError."""
    with unconnected(catalog) as alone:
        if alone:
            size = catalog.stat().st_size
            faster = {"folds": list(_sums(catalog, _fold))} if size >= _LARGE else {}
            text = json.dumps({"bytes": size, "crc32": list(_sums(catalog, zlib.crc32)), **faster})
            replace_text(catalog.with_name(SEAL_FILE), _with_sum(text), durable=True)
            fault_point("seal.written")


def unseal(catalog: Path) -> None:
    """Remove the seal, if any, durably; before the database or its log change."""
    try:
        catalog.with_name(SEAL_FILE).unlink()
    except FileNotFoundError:
        return
    fsync_folder(catalog.parent)
    fault_point("seal.removed")


def differs_from_seal(catalog: Path) -> str:
    """What to tell the user where a catalog differs from its seal; see `broken`."""
    problems = broken(catalog)
    return f"{problems[0]}; {_HELP}" if problems else ""


def broken(catalog: Path) -> list[str]:
    """What differs from the seal, in words that name the file.

    Empty as well while a writer is at work, and where this process has a connection, for which it was checked.
    """
    with unconnected(catalog) as alone:
        return _broken(catalog) if alone else []


def _broken(catalog: Path) -> list[str]:
    while True:
        before = _sealed(catalog)
        if before is None:
            return []
        try:
            problems = _differences(catalog, before)
        except FileNotFoundError:
            problems = [f"{catalog} is missing"]
        if not problems or _sealed(catalog) == before:  # else a writer began meanwhile
            return problems


def note_version(catalog: Path, version: int) -> None:
    """Remember that `version` was committed. Not synced: after a power cut an older number may stand there."""
    with contextlib.suppress(OSError):  # the commit itself is done
        replace_text(catalog.with_name(HEAD_FILE), _with_sum(str(version)), durable=False)


def check_version(catalog: Path, noted: int, version: int) -> None:
    """Raises BankCorruptError where `noted`, read before `version`, is the later one: the log has lost it."""
    if noted > version:
        raise BankCorruptError(
            f"{catalog}: its newest version is {version}, but {noted} was committed; "
            f"its log ({catalog.name}-wal) was damaged or removed; {_HELP}"
        )


def noted_version(catalog: Path) -> int:
    """The newest version that is known to have been committed; 0 where none was noted, or nobody can tell."""
    with contextlib.suppress(OSError, ValueError):
        return int(_checked(catalog.with_name(HEAD_FILE).read_text(encoding="utf-8")))
    return 0


def _with_sum(text: str) -> str:
    return f"{text} {zlib.crc32(text.encode()):08x}\n"


def _checked(text: str) -> str:
    """What `_with_sum` was given. Raises ValueError."""
    inner = text[:-10]
    if _with_sum(inner) != text:
        raise ValueError("its checksum does not fit")
    return inner


def _sealed(catalog: Path) -> str | None:
    try:
        return catalog.with_name(SEAL_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _differences(catalog: Path, text: str) -> list[str]:
    log = catalog.with_name(catalog.name + "-wal")
    if log.exists() and log.stat().st_size:
        return [f"{log} is not empty, though the catalog was closed and sealed: it does not belong there"]
    try:
        known = json.loads(_checked(text))
    except ValueError:
        return [f"{catalog.with_name(SEAL_FILE)} is damaged"]
    size = known["bytes"]
    sums, add = (known["folds"], _fold) if "folds" in known else (known["crc32"], zlib.crc32)
    if catalog.stat().st_size != size:
        return [f"{catalog} has {catalog.stat().st_size} bytes, its seal says {size}"]
    return [
        f"{catalog}: bytes {n * _BLOCK} to {min((n + 1) * _BLOCK, size) - 1} differ from its seal"
        for n, pair in enumerate(zip(_sums(catalog, add), sums, strict=True))
        if pair[0] != pair[1]
    ]


def _sums(path: Path, add: Callable[[memoryview, int], int]) -> Iterator[int]:
    """The checksum of each block of a file, read in small pieces, each of which is added to those before."""
    piece = memoryview(bytearray(_PIECE))
    total = done = 0
    with path.open("rb") as file:
        while count := file.readinto(piece):
            total = add(piece[:count], total)
            done += count
            if done % _BLOCK == 0:
                yield total
                total = 0
    if done % _BLOCK:
        yield total


def _fold(piece: memoryview, total: int) -> int:
    """The CRC-32 of the sums of rows, as integers: it differs where one row does, or where rows change places."""
    import numpy as np

    whole = bytes(piece) + bytes(-len(piece) % _ROW) if len(piece) % _ROW else piece
    return zlib.crc32(np.frombuffer(whole, dtype=np.int64).reshape(-1, _ROW // 8).sum(axis=1), total)
