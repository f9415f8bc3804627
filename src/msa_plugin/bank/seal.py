"""The catalog's seal: checksums of its file, taken when a writer closes the bank and compared when it is opened.

SQLite checks its structure here and there, never what pages hold: a flipped bit in an index hides a document, and one
in `deleted` revives it. So a bank at rest is sealed: `catalog.seal` has two checksums of every 256 KiB of its catalog,
whose log is empty then: the CRC-32, and a faster one, since every opening reads them all. The first write removes the
seal, durably, before anything else changes; a bank whose writer died, or still lives, has none. For the log of such a
bank `catalog.head` has the newest version that was committed: SQLite drops what follows a damaged part of its log
without a word.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from msa_plugin.bank.descriptors import unconnected
from msa_plugin.bank.disk import fsync_folder
from msa_plugin.bank.faults import reached
from msa_plugin.errors import BankCorruptError

SEAL_FILE, HEAD_FILE = "catalog.seal", "catalog.head"
_BLOCK, _ROW = 256 << 10, 4 << 10
_HELP = "run `msa bank verify`, then restore the bank from a backup or run `msa bank repair`"


def seal(catalog: Path) -> None:
    """Seal the database file `catalog`, whose log is empty, unless this process is connected. Raises OSError."""
    with unconnected(catalog) as alone:
        if alone:
            sums = [(zlib.crc32(block), _fold(block)) for block in _blocks(catalog)]
            crc32, folds = [s[0] for s in sums], [s[1] for s in sums]
            text = json.dumps({"bytes": catalog.stat().st_size, "crc32": crc32, "folds": folds})
            _replace(catalog.with_name(SEAL_FILE), _with_sum(text), durable=True)
            reached("seal.written")


def unseal(catalog: Path) -> None:
    """Remove the seal, if any, durably; before the database or its log change."""
    try:
        catalog.with_name(SEAL_FILE).unlink()
    except FileNotFoundError:
        return
    fsync_folder(catalog.parent)
    reached("seal.removed")


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
        _replace(catalog.with_name(HEAD_FILE), _with_sum(str(version)), durable=False)


def check_version(catalog: Path, noted: int, version: int) -> None:
    """Raises BankCorruptError where `noted`, read before `version`, is the later one: the log has lost it."""
    if noted > version:
        raise BankCorruptError(
            f"{catalog}: its newest version is {version}, but {noted} was committed; "
            f"its log ({catalog.name}-wal) was damaged or removed; {_HELP}"
        )


def forget_version(catalog: Path) -> None:
    """Forget what was noted: repair goes on with the version that is there."""
    catalog.with_name(HEAD_FILE).unlink(missing_ok=True)


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
    sums, check = (known["folds"], _fold) if "folds" in known else (known["crc32"], zlib.crc32)
    if catalog.stat().st_size != size:
        return [f"{catalog} has {catalog.stat().st_size} bytes, its seal says {size}"]
    return [
        f"{catalog}: bytes {n * _BLOCK} to {min((n + 1) * _BLOCK, size) - 1} differ from its seal"
        for n, (block, known_sum) in enumerate(zip(_blocks(catalog), sums, strict=True))
        if check(block) != known_sum
    ]


def _blocks(path: Path) -> Iterator[memoryview]:
    """Each block of a file, in a buffer that the next one takes."""
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb") as file:
        while count := file.readinto(block):
            yield block[:count]


def _fold(block: memoryview) -> int:
    """A checksum that differs where one row does, or where rows change places: that of the rows' sums, as integers."""
    whole = np.frombuffer(bytes(block) + bytes(-len(block) % _ROW) if len(block) % _ROW else block, dtype=np.int64)
    return zlib.crc32(whole.reshape(-1, _ROW // 8).sum(axis=1))


def _replace(path: Path, text: str, *, durable: bool) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)  # noqa: PTH105 - like every commit of a file here
