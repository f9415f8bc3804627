"""Files and folders into documents, read one at a time, with what was left out and how far the reading is.

What a file says is data: nothing in it is executed, fetched or followed. Bytes that cannot be decoded and control
characters are counted and logged per file, so that nothing changes silently.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args

from msa_plugin.errors import IngestError, InvalidDocumentError, MissingExtraError
from msa_plugin.ingest.decoding import EncodingErrors, NotTextError, check_encoding
from msa_plugin.ingest.files import File, OnSkip, list_files
from msa_plugin.ingest.ids import FILE, FileIds
from msa_plugin.ingest.json_lines import Piece
from msa_plugin.ingest.kinds import How, StdinFormat, is_lines, pieces
from msa_plugin.types import Document

Paths = Iterable[str | os.PathLike[str]] | str | os.PathLike[str]

_LOG = logging.getLogger("msa_plugin.ingest")


class Position(NamedTuple):
    """How far the reading is: files and bytes of them."""

    files: int
    bytes: int


class Reading:
    """The documents of files and folders: an iterable to go through once."""

    def __init__(
        self,
        paths: Paths,
        *,
        stdin_format: StdinFormat = "text",
        encoding: str | None = None,
        encoding_errors: EncodingErrors = "replace",
        strict: bool = False,
        on_skip: OnSkip | None = None,
        ids: FileIds | None = None,
        followed: bool = False,
    ) -> None:
        """See `read_paths`; `ids` chooses ids that fit what a bank holds already, `followed` lets `at` be asked."""
        if stdin_format not in get_args(StdinFormat):
            raise IngestError(f"standard input is 'text' or 'jsonl', not {stdin_format!r}")
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self.ids = FileIds() if ids is None else ids
        self.encodings: Counter[str] = Counter()  # files by encoding, where that was guessed
        self._strict, self._on_skip, self._followed = strict, on_skip, followed
        encoding = check_encoding(encoding) if encoding is not None else None
        self._how = How(encoding, encoding_errors, stdin_format, self._bad_line, self._guessed)
        self._no_text: Counter[str] = Counter()
        self.listing = list_files([os.fspath(path) for path in given], self._skipped)
        self.bytes = self.listing.bytes
        self._marks: deque[tuple[int, Position]] = deque()
        self._at = Position(0, 0)
        self._file: File | None = None
        self._sound = True  # whether everything in the present file could be read
        self._documents = 0

    def __iter__(self) -> Iterator[Document]:
        """Every document, in order."""
        before = 0
        for number, file in enumerate(self.listing.files):
            self._file, self._sound = file, True
            try:
                for piece in pieces(file, self._how):
                    document = self._named(file, piece)
                    if document is None:
                        continue
                    self._documents += 1
                    self._mark(number + (not is_lines(file)), before + piece.consumed)
                    yield document
            except (IngestError, MissingExtraError) as error:
                if self._strict:
                    raise
                self._refuse(file, error)
            before += file.size
            if self._sound and file.origin:
                self.ids.complete.add(file.origin)
        self._mark(len(self.listing.files), self.bytes)
        if self._no_text and self._on_skip is None:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._no_text.items()))
            _LOG.warning("skipped %d files that are not text (%s)", self._no_text.total(), kinds)

    def _mark(self, files: int, consumed: int) -> None:
        if self._followed:
            self._marks.append((self._documents, Position(files, consumed)))

    def at(self, documents: int) -> Position:
        """How far the reading was when the first `documents` of it had been read."""
        while self._marks and self._marks[0][0] <= documents:
            self._at = self._marks.popleft()[1]
        return self._at

    def _named(self, file: File, piece: Piece) -> Document | None:
        """The document of a piece; None for one that is left out."""
        metadata = {"source": file.source, **piece.metadata}
        try:
            if piece.given:
                self.ids.claim(piece.given, file, piece.line)
                name = piece.given
            elif file.origin:
                name = self.ids.choose(file, piece.line, piece.title, piece.text)
            else:
                return Document.of({"text": piece.text, "title": piece.title, "metadata": metadata, **piece.period})
            if file.origin:
                metadata[FILE] = file.origin
                if "source" not in piece.metadata:
                    metadata["source"] = self.ids.source(file, name)
            document = Document(name, piece.text, piece.title, metadata, **piece.period)
            return Document.of(document) if piece.line else document
        except (IngestError, InvalidDocumentError) as error:
            self._bad_line(piece.line, str(error))
            return None

    def _bad_line(self, line: int, reason: str) -> None:
        assert self._file is not None
        empty = reason.startswith("empty")
        if self._strict and not empty:
            raise IngestError(
                f"{self._file.source}, line {line}: {reason}" if line else f"{self._file.source}: {reason}"
            )
        self._sound = self._sound and empty
        self._skipped(f"{self._file.source}:{line}" if line else self._file.source, reason)

    def _refuse(self, file: File, error: IngestError | MissingExtraError) -> None:
        self._sound = False
        if isinstance(error, NotTextError):
            _, dot, kind = file.name.rpartition(".")
            self._no_text[dot + kind if dot else "without extension"] += 1
        reason = str(error).removeprefix(file.source).lstrip(" :,")
        self._skipped(file.source, reason, log=not isinstance(error, NotTextError))

    def _skipped(self, path: str, reason: str, *, log: bool = True) -> None:
        if self._on_skip is not None:
            self._on_skip(path, reason)
        elif log:
            _LOG.warning("skipped %s: %s", path, reason)

    def _guessed(self, encoding: str) -> None:
        self.encodings[encoding] += 1


def read_paths(
    paths: Paths,
    *,
    stdin_format: StdinFormat = "text",
    encoding: str | None = None,
    encoding_errors: EncodingErrors = "replace",
    strict: bool = False,
    on_skip: OnSkip | None = None,
) -> Iterator[Document]:
    """Read files, folders (recursively, sorted, without hidden files) and "-" (standard input), one document at a time.

    HTML, PDF and JSON lines (`.jsonl`, also gzipped) are read as what they are, every other text as it stands. A file's
    id is its path below the folder that was given, or its name, with more of the path where another file of this call
    has that id; a JSON line's is its `_id` or `id`, else "name:line". Standard input without ids gets ids made from its
    text. Metadata holds "source" (a JSON line's own "source" wins), "msa_file" (the file's absolute path) and, for a
    PDF, "pages". `encoding` is forced on all text; without it a byte order mark counts, then what a page declares,
    then what the bytes look like.

    What cannot be read is skipped and told to `on_skip(path, reason)`, or logged where there is none: files that are
    not text, damaged or without permission, links (to folders, or out of the folder), empty files, malformed JSON lines
    and records whose id this call has had already. `strict=True` raises IngestError there instead, for all but links
    and what is empty; MissingExtraError for a PDF that pypdf or cryptography would be needed for. So does
    `encoding_errors="strict"` skip, or with `strict` refuse, files that are not valid in their encoding.

    Raises IngestError at once for a path that does not exist and for an unknown encoding.
    """
    reading = Reading(
        paths,
        stdin_format=stdin_format,
        encoding=encoding,
        encoding_errors=encoding_errors,
        strict=strict,
        on_skip=on_skip,
    )
    return iter(reading)
