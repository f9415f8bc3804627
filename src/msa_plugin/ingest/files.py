"""Which files there are: named ones, and those below folders, listed before the first of them is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msa_plugin.errors import IngestError

OnSkip = Callable[[str, str], None]
STDIN = "-"
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


@dataclass(frozen=True)
class File:
    """A file to read.

    `id` is its path below the folder that was given, or its name. `origin` is its absolute path, which tells it from
    every other file (standard input has none); `source` is the path to show. Names that are no UTF-8 have their odd
    bytes escaped in all three.
    """

    path: Path
    id: str
    origin: str
    source: str
    size: int = 0

    @property
    def name(self) -> str:
        """Its name in lower case: what kind of file it is."""
        return self.path.name.lower()


@dataclass
class Listing:
    """The files to read, each once, and the origins of the folders and files that were given."""

    files: list[File] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    empty: set[str] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


def list_files(names: Iterable[str], on_skip: OnSkip) -> Listing:
    """Named files, and files below folders: parents first, by name, without hidden ones.

    Links are told to `on_skip(path, reason)` where they lead to folders or out of the folder, as is whatever cannot be
    listed. Raises IngestError for a path that does not exist, or is neither file nor folder.
    """
    listing, seen = Listing(), set[str]()
    for name in names:
        if name == STDIN:
            listing.files.append(File(Path(STDIN), "", "", STDIN))
            continue
        folder = _is_folder(name)
        found = list(_walk(Path(name), on_skip) if folder else [_named(name)])
        root = as_text(Path(name).resolve()) if folder else found[0].origin
        listing.roots.append(root)
        if not found:
            on_skip(shown(name), "no file in this folder can be read")
            listing.empty.add(root)
        listing.files += [file for file in found if file.origin not in seen]
        seen.update(file.origin for file in found)
    return listing


def _is_folder(name: str) -> bool:
    """Whether `name` is a folder. Raises IngestError for what cannot be read at all."""
    path, text = Path(name), shown(name)
    try:
        found, folder, regular = path.exists(), path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise IngestError(f"{text[:200]} {reason_of(error)}") from error
    if not found:
        raise IngestError(f"{text} does not exist; check the path (the working folder is {as_text(Path.cwd())})")
    if not folder and not regular:
        raise IngestError(f"{text} is neither a file nor a folder; pipe it in and give '-' instead")
    return folder


def _named(name: str) -> File:
    path = Path(name)
    return File(path, shown(path.name), as_text(path.parent.resolve() / path.name), shown(name), path.stat().st_size)


def _walk(root: Path, on_skip: OnSkip) -> Iterator[File]:
    """Regular files under `root`; linked files only when they lie under `root` themselves."""
    real_root = root.resolve()
    origin = as_text(real_root)
    for folder, folders, files in os.walk(root, onerror=lambda e: on_skip(shown(str(e.filename)), reason_of(e))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                on_skip(shown(str(Path(folder, name))), "a link to a folder; add the folder itself")
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(folder, name)
            text, refusal, size = shown(str(path)), *_examined(path, real_root)
            if refusal:
                on_skip(text, refusal)
            else:
                inside = as_text(path.relative_to(root))
                yield File(path, inside, f"{origin.rstrip('/')}/{inside}", text, size)


def _examined(path: Path, real_root: Path) -> tuple[str, int]:
    """Why a file that was found in a folder is not read, or "", and its size."""
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(real_root):
            return "a link that leads out of the folder; add its target itself", 0
        return ("", path.stat().st_size) if path.is_file() else ("not a regular file", 0)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        return ("a broken link" if path.is_symlink() else reason_of(error)), 0


def shown(name: str) -> str:
    """`name` as valid Unicode: a file's name may hold any bytes, which are escaped where they are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def as_text(path: Path) -> str:
    """A path with forward slashes, as valid Unicode."""
    return shown(path.as_posix())


def reason_of(error: BaseException) -> str:
    """Why the operating system refused, for after the file's name."""
    return f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path and its permissions"


def is_gone(origin: str) -> bool:
    """Whether there is no such file; False where that cannot be told."""
    raw = _ESCAPED.sub(lambda escape: bytes([int(escape[1], 16)]), os.fsencode(origin))
    for path in {os.fsencode(origin), raw}:
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return False
        return False
    return True
