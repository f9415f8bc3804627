"""Files by kind: plain text, Markdown, reStructuredText, HTML, JSON lines and PDF into pieces of text."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import IO, Any, Literal, cast

from msa_plugin.errors import IngestError
from msa_plugin.ingest.decoding import Decoder, EncodingErrors
from msa_plugin.ingest.files import File, reason_of
from msa_plugin.ingest.json_lines import Piece, records
from msa_plugin.ingest.markup import declared_encoding, html_to_text, markdown_title, rst_title
from msa_plugin.ingest.pdf import pdf_pages

StdinFormat = Literal["text", "jsonl"]
OnBad = Callable[[int, str], None]


@dataclass(frozen=True)
class How:
    """How to read: the encoding to force (None: found out), what to do with bad bytes, and what "-" is.

    `on_bad(line, reason)` is told of lines that are left out, `on_guess(encoding)` of encodings that were guessed.
    """

    encoding: str | None
    encoding_errors: EncodingErrors
    stdin_format: StdinFormat
    on_bad: OnBad
    on_guess: Callable[[str], None]

    def decoder(self, file: File, declares: Callable[[bytes], str] | None = None) -> Decoder:
        """A decoder for `file`."""
        return Decoder(file.source, self.encoding_errors, self.encoding, declares)


def pieces(file: File, how: How) -> Iterator[Piece]:
    """What is in a file. Raises IngestError or MissingExtraError where no more of it can be read."""
    kind = file.name
    if is_lines(file) if file.origin else how.stdin_format == "jsonl":
        return _json_lines(file, how)
    if kind.endswith((".html", ".htm", ".xhtml")):
        return _html(file, how)
    return _pdf(file, how) if kind.endswith(".pdf") else _text(file, how)


def is_lines(file: File) -> bool:
    """Whether a file may hold many documents."""
    return file.name.removesuffix(".gz").endswith((".jsonl", ".ndjson"))


@contextmanager
def _opened(file: File) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The file's bytes, unzipped, and as they are; reading errors become ours."""
    if not file.origin:
        yield sys.stdin.buffer, sys.stdin.buffer
        return
    try:
        raw = file.path.open("rb")
    except OSError as error:
        raise IngestError(f"{file.source} {reason_of(error)}") from error
    try:
        with raw:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if file.name.endswith(".gz") else raw, raw
    except (OSError, EOFError, zlib.error) as error:
        raise IngestError(
            f"{file.source} is damaged or could not be read to its end ({error}); replace the file"
        ) from error


def _whole(stream: IO[bytes], decoder: Decoder, how: How) -> str:
    text = decoder.clean("".join(decoder.blocks(stream)))
    _told(decoder, how)
    return text


def _told(decoder: Decoder, how: How) -> None:
    decoder.log()
    if decoder.guessed:
        how.on_guess(decoder.encoding)


def _piece(file: File, text: str, title: str, how: How, **metadata: Any) -> Iterator[Piece]:
    if text.strip():
        yield Piece(text, title or PurePath(file.id).stem, metadata, consumed=file.size)
    else:
        how.on_bad(0, "empty: no text in it")


def _text(file: File, how: How) -> Iterator[Piece]:
    xml = declared_encoding if file.name.endswith((".xml", ".svg")) else None
    with _opened(file) as (stream, _):
        text = _whole(stream, how.decoder(file, xml), how)
    titles = {".md": markdown_title, ".markdown": markdown_title, ".rst": rst_title}
    title = titles.get(PurePath(file.name).suffix)
    yield from _piece(file, text, title(text) if title else "", how)


def _html(file: File, how: How) -> Iterator[Piece]:
    with _opened(file) as (stream, _):
        title, text = html_to_text(_whole(stream, how.decoder(file, declared_encoding), how))
    cleaner = how.decoder(file)  # entities, too, may stand for control characters
    title, text = cleaner.clean(title), cleaner.clean(text)
    cleaner.log()
    yield from _piece(file, text, title, how)


def _pdf(file: File, how: How) -> Iterator[Piece]:
    with _opened(file) as (stream, _):
        pages = pdf_pages(stream, file.source)
    cleaner = how.decoder(file)
    text = cleaner.clean("\n\n".join(pages))
    cleaner.log()
    if not text.strip():
        raise IngestError(f"{file.source} has no text layer (scanned pages?); run OCR on it first (ocrmypdf)")
    yield from _piece(file, text, "", how, pages=len(pages))


def _json_lines(file: File, how: How) -> Iterator[Piece]:
    decoder = how.decoder(file)
    with _opened(file) as (stream, raw):
        try:
            for piece in records(stream, file.source, decoder, how.on_bad):
                consumed = raw.tell() if file.name.endswith(".gz") else piece.consumed
                yield replace(piece, consumed=min(consumed, file.size))
        finally:
            _told(decoder, how)
