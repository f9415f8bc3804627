"""JSON lines that survive being killed: appended in batches, synced, and read back without the torn last line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from msa_plugin.errors import ConfigError


def read(path: Path, data: bytes | None = None) -> list[dict[str, Any]]:
    """The records of all whole lines of `path`, or of `data`, which is what it holds; an absent file is empty.

    A last line without its newline was being written when the process died: it is left out. Raises ConfigError naming
    file and line for anything else that is not a JSON object.
    """
    if data is None:
        data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")[:-1]
    return [_object(path, number, raw) for number, raw in enumerate(lines, start=1) if raw.strip()]


def _object(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name}, line {number}: not JSON ({error}); restore the file or remove it") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path.name}, line {number}: a JSON object was expected")
    return record


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write `records` in place of a torn last line in one go and wait until they are on the disk.

    A write that the disk refuses leaves the file as it was. Raises ConfigError for numbers that JSON cannot hold, and
    OSError.
    """
    text = text_of(path, records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "w+b") as file:
        end = _end_of_lines(file)
        file.truncate(end)
        file.seek(end)
        try:
            file.write(text.encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def text_of(path: Path, records: Iterable[Mapping[str, Any]]) -> str:
    """The lines of `records`, to be written to `path`. Raises ConfigError for numbers that JSON cannot hold."""
    try:
        return "".join(json.dumps(dict(r), ensure_ascii=False, allow_nan=False) + "\n" for r in records)
    except ValueError as error:
        raise ConfigError(f"{path.name}: a result is not a finite number ({error})") from error


def _end_of_lines(file: IO[bytes]) -> int:
    """Where the last whole line ends; the file is read only if its last byte says that something is torn."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read() in (b"", b"\n"):
        return size
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` as a whole: readers see the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
