"""Which id a file's document gets: its path below the folder that was given, longer where another file has that id.

A document remembers its file (`metadata["msa_file"]`), so that a file keeps its id however and from wherever it is
given again, in one call or in two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from msa_plugin.bank.scopes import batches
from msa_plugin.errors import IngestError
from msa_plugin.ingest.files import File, Listing, as_text, is_gone
from msa_plugin.types import content_hash

if TYPE_CHECKING:
    from msa_plugin.bank.documents import Known
    from msa_plugin.bank.handle import BankHandle

FILE = "msa_file"  # in a document's metadata: the absolute path of the file that it came from
_LINE = re.compile(r":[0-9]+\Z")


class FileIds:
    """Ids for the documents of one call. Ids that records bring along are taken as they are, each once."""

    def __init__(self, stored: BankHandle | None = None, namespace: str = "default") -> None:
        """`stored` is the bank that the documents go to; without one, ids are told apart within the call alone."""
        self._stored, self._namespace = stored, namespace
        self._given: dict[str, tuple[str, int]] = {}  # id: file and line, of this call
        self._bases: dict[str, str] = {}  # file: its id, of this call
        self._sources: dict[str, str] = {}  # file: how it was given when it was stored
        self._last: tuple[str, Known | None] = ("", None)
        self._earlier: dict[str, str] | None = None  # the same, of the bank
        self.longer: list[tuple[str, str]] = []  # files whose ids are longer than asked for: file and id
        self.complete: set[str] = set()  # files that were read to their ends, and everything in them

    def claim(self, wanted: str, file: File, line: int) -> None:
        """Take an id that a record brings along. Raises IngestError where this call has it already."""
        if wanted in self._given:
            source, number = self._given[wanted]
            place = f"{source}, line {number}" if number else source
            raise IngestError(f"its id {wanted!r} is that of {place}, too; give one of them another id")
        self._given[wanted] = (file.source, line)

    def choose(self, file: File, line: int, title: str, text: str) -> str:
        """The id of a file's document, or of a record (in `line`) that brings none along."""
        suffix = f":{line}" if line else ""
        base = self._base(file, suffix, content_hash(title, text))
        self._bases[file.origin] = base
        self._given[base + suffix] = (file.source, line)
        return base + suffix

    def source(self, file: File, name: str) -> str:
        """The path to show for a file, of whose documents `name` is one: as before, where it was stored before."""
        if file.origin not in self._sources:
            row = self._row(name)
            before = row.metadata.get("source") if row is not None and row.metadata.get(FILE) == file.origin else None
            self._sources[file.origin] = before if isinstance(before, str) else file.source
        return self._sources[file.origin]

    def _base(self, file: File, suffix: str, digest: str) -> str:
        known = self._bases.get(file.origin)
        names = list(_names(file))
        if known is None:
            row = None if names[0] + suffix in self._given else self._row(names[0] + suffix)
            if row is None or _origin(row.metadata) != file.origin:  # not there as expected
                known = self._of_earlier().get(file.origin)
        if known is not None:  # longer again only where the same id came from somewhere else meanwhile
            names = [known, *(name for name in names if len(name) > len(known))]
        for name in names:
            if self._is_free(name + suffix, file, digest):
                if name != names[0]:
                    self.longer.append((file.source, name))
                return name
        raise IngestError("every id made of its path belongs to another document; rename the file")

    def _is_free(self, name: str, file: File, digest: str) -> bool:
        """Whether nothing else has the id: nobody, this file, or one with the same content that is gone (moved)."""
        if name in self._given:
            return False
        row = self._row(name)
        if row is None:
            return True
        origin = _origin(row.metadata)
        return origin == file.origin or (row.content_hash == digest and (not origin or is_gone(origin)))

    def _row(self, name: str) -> Known | None:
        if self._stored is None:
            return None
        if self._last[0] != name:
            self._last = name, self._stored.lookup([name], self._namespace).get(name)
        return self._last[1]

    def _of_earlier(self) -> dict[str, str]:
        """The id of every file in the bank; read once, when the first file comes that is not there as expected."""
        if self._earlier is None:
            self._earlier = {}
            for name, metadata in self._rows():
                origin = metadata.get(FILE)
                base = _LINE.sub("", name) if isinstance(origin, str) and not _ends_with(origin, name) else name
                if isinstance(origin, str) and _ends_with(origin, base):
                    self._earlier[origin] = base
        return self._earlier

    def _rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if self._stored is None:
            return
        for page in batches(self._stored.iter_ids(self._namespace)):
            found = self._stored.lookup(page, self._namespace)
            yield from ((name, found[name].metadata) for name in page if name in found)

    def gone(self, listing: Listing) -> list[str]:
        """Ids of the documents below what was given whose file, or line, is there no more."""
        present = {file.origin for file in listing.files}
        roots = [root for root in listing.roots if root not in listing.empty]
        lost = []
        for name, metadata in self._rows():
            if name in self._given:
                continue
            origin = metadata.get(FILE)
            if not isinstance(origin, str):  # of a bank made before files were remembered
                origin = next((f"{root}/{name}" for root in roots if _origin(metadata) == f"{root}/{name}"), "")
            below = any(origin == root or origin.startswith(root.rstrip("/") + "/") for root in roots)
            if below and (origin in self.complete or (origin not in present and is_gone(origin))):
                lost.append(name)
        return lost


def _names(file: File) -> Iterator[str]:
    """The id that a file would like, and longer ones: more and more of its path."""
    parts = PurePosixPath(file.origin).parts
    wanted = len(PurePosixPath(file.id).parts)
    for count in range(wanted, len(parts)):
        yield "/".join(parts[-count:])
    yield file.origin


def _ends_with(origin: str, name: str) -> bool:
    return origin == name or origin.endswith("/" + name)


def _origin(metadata: Mapping[str, Any]) -> str:
    """The file that a document came from; for one stored before that was kept, what its source means from here."""
    if isinstance(known := metadata.get(FILE), str):
        return known
    source = metadata.get("source")
    if not isinstance(source, str) or not source or "\0" in source or len(source) > 4096:
        return ""
    try:
        path = Path(source)
        return as_text(path.parent.resolve() / path.name)
    except (OSError, ValueError, RuntimeError):
        return ""
