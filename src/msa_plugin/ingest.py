"""Files into documents: text, Markdown, HTML, BEIR-style JSON lines and PDF, read one at a time.

What a file says is data: nothing in it is executed, fetched or followed. Bytes that cannot be decoded and control
characters are counted and logged per file, so that nothing changes silently.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, cast

from msa_plugin.errors import IngestError, MissingExtraError
from msa_plugin.plaintext import Decoder, EncodingErrors, html_to_text, markdown_title
from msa_plugin.types import Document

OnSkip: TypeAlias = Callable[[str, str], None]
StdinFormat = Literal["text", "jsonl"]

_LOG = logging.getLogger("msa_plugin.ingest")


class _RefusedError(IngestError):
    """A whole file cannot be read: an error when the user named it, a skip when it was found in a folder."""


@dataclass(frozen=True)
class _Run:
    """What the caller of `read_paths` asked for."""

    encoding_errors: EncodingErrors
    stdin_format: StdinFormat
    on_skip: OnSkip | None

    def skip(self, path: str, reason: str, *, log: bool = True) -> None:
        if log:
            _LOG.warning("skipped %s: %s", path, reason)
        if self.on_skip is not None:
            self.on_skip(path, reason)


@dataclass(frozen=True)
class _File:
    """A file to read: where it is, its id, the path to show, and its kind (the extension)."""

    path: Path
    id: str
    source: str
    kind: str

    @property
    def stem(self) -> str:
        name = Path(self.id).name
        return name[: len(name) - len(self.kind)] or name


def read_paths(
    paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
    *,
    stdin_format: StdinFormat = "text",
    encoding_errors: EncodingErrors = "replace",
    on_skip: OnSkip | None = None,
) -> Iterator[Document]:
    """Read files, folders (recursively, sorted, without hidden files) and "-" (standard input), one document at a time.

    A file's id is its path relative to the folder that was given, or its name; a JSON line's is its `_id` or `id`, else
    "name:line". Standard input without ids gets ids made from its text. Metadata holds "source" (a JSON line's own
    "source" wins), for a PDF also "pages". In a folder, files of other types, unreadable files and links (to folders,
    or out of the folder) are skipped: each is logged and told to `on_skip(path, reason)`, as are empty files.

    Raises IngestError at once for a path that does not exist or whose extension is not supported; while iterating, for
    a named file that cannot be read, a malformed JSON line (with file and line) and, under `encoding_errors="strict"`,
    text that cannot be decoded. Raises MissingExtraError for a PDF when pypdf is not installed.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    names = [os.fspath(path) for path in given]
    for name in names:
        _check(name)
    run = _Run(encoding_errors, stdin_format, on_skip)
    return (document for name in names for document in _read(name, run))


def _check(name: str) -> None:
    """Raise IngestError if a path that the user named cannot be read at all."""
    path, shown = Path(name), _shown(name)
    try:
        found, folder, regular = path.exists(), path.is_dir(), path.is_file()
    except OSError as error:
        raise IngestError(f"{shown[:200]} {_reason(error)}") from error
    if name == "-" or folder:
        return
    if not found:
        raise IngestError(f"{shown} does not exist; check the path (the working folder is {Path.cwd()})")
    if not regular:
        raise IngestError(f"{shown} is neither a file nor a folder; pipe it in and give '-' instead")
    if not _kind(name):
        raise IngestError(f"{shown}: this file type is not supported; convert it to one of {', '.join(_READERS)}")


def _read(name: str, run: _Run) -> Iterator[Document]:
    if name == "-":
        yield from _read_stdin(run)
    elif Path(name).is_dir():
        yield from _read_folder(name, run)
    else:
        path = Path(name)
        yield from _READERS[_kind(name)](_File(path, _shown(path.name), _shown(name), _kind(name)), run)


def _read_folder(name: str, run: _Run) -> Iterator[Document]:
    others: Counter[str] = Counter()
    found = 0
    for file in _walk(Path(name), run):
        if not file.kind:
            others[Path(file.id).suffix.lower() or "no extension"] += 1
            run.skip(file.source, "file type not supported", log=False)
            continue
        found += 1
        try:
            yield from _READERS[file.kind](file, run)
        except _RefusedError as error:
            run.skip(file.source, str(error).removeprefix(f"{file.source} "))
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        _LOG.warning("%s: skipped %d files of unsupported types (%s)", _shown(name), others.total(), kinds)
    if not found:
        run.skip(_shown(name), "no file in this folder can be read")


def _walk(root: Path, run: _Run) -> Iterator[_File]:
    """Regular files under `root`, parents first, by name; linked files only when they lie under `root` themselves."""
    real_root = root.resolve()
    for folder, folders, files in os.walk(root, onerror=lambda e: run.skip(_shown(str(e.filename)), _reason(e))):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                run.skip(_shown(str(Path(folder, name))), "a link to a folder; add the folder itself")
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(folder, name)
            shown = _shown(str(path))
            if refusal := _refusal(path, real_root):
                run.skip(shown, refusal)
            else:
                yield _File(path, _shown(path.relative_to(root).as_posix()), shown, _kind(name))


def _refusal(path: Path, real_root: Path) -> str:
    """Why a file that was found in a folder is not read, or ""."""
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(real_root):
            return "a link that leads out of the folder; add its target itself"
        return "" if path.is_file() else "not a regular file"
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        return "a broken link" if path.is_symlink() else _reason(error)


def _kind(name: str) -> str:
    """The supported extension that `name` ends with, or ""."""
    return next((kind for kind in _READERS if name.lower().endswith(kind)), "")


def _shown(name: str) -> str:
    """`name` as valid Unicode: file names may hold any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def _reason(error: BaseException) -> str:
    return f"cannot be read ({getattr(error, 'strerror', None) or error}); check the path and its permissions"


@contextmanager
def _opened(file: _File) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped; reading errors become ours."""
    try:
        raw = file.path.open("rb")
    except OSError as error:
        raise _RefusedError(f"{file.source} {_reason(error)}") from error
    try:
        with raw:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if file.kind.endswith(".gz") else raw
    except (OSError, EOFError, zlib.error) as error:
        raise IngestError(
            f"{file.source} is damaged or could not be read to its end ({error}); replace the file"
        ) from error


def _whole_text(stream: IO[bytes], source: str, run: _Run) -> str:
    decoder = Decoder(source, run.encoding_errors)
    text = decoder.clean("".join(decoder.blocks(stream)))
    decoder.log()
    return text


def _document(file: _File, text: str, title: str, run: _Run, **metadata: Any) -> Iterator[Document]:
    if text.strip():
        yield Document(file.id, text, title or file.stem, {"source": file.source, **metadata})
    else:
        run.skip(file.source, "empty: no text in it")


def _read_text(file: _File, run: _Run) -> Iterator[Document]:
    with _opened(file) as stream:
        text = _whole_text(stream, file.source, run)
    yield from _document(file, text, markdown_title(text) if file.kind == ".md" else "", run)


def _read_html(file: _File, run: _Run) -> Iterator[Document]:
    with _opened(file) as stream:
        title, text = html_to_text(_whole_text(stream, file.source, run))
    decoder = Decoder(file.source, run.encoding_errors)  # entities, too, may stand for control characters
    title, text = decoder.clean(title), decoder.clean(text)
    decoder.log()
    yield from _document(file, text, title, run)


def _read_jsonl(file: _File, run: _Run) -> Iterator[Document]:
    with _opened(file) as stream:
        yield from _records(stream, file, run)


def _read_stdin(run: _Run) -> Iterator[Document]:
    file = _File(Path("-"), "", "-", "")
    if run.stdin_format == "jsonl":
        yield from _records(sys.stdin.buffer, file, run)
        return
    text = _whole_text(sys.stdin.buffer, "-", run)
    if text.strip():
        yield Document.of({"text": text, "metadata": {"source": "-"}})
    else:
        run.skip("-", "empty: no text in it")


def _records(stream: IO[bytes], file: _File, run: _Run) -> Iterator[Document]:
    decoder = Decoder(file.source, run.encoding_errors)
    empty = True
    try:
        for number, line in decoder.lines(stream):
            if not line.strip():
                continue
            empty = False
            try:
                document = _record(line, number, file, decoder)
            except ValueError as error:
                raise IngestError(f"{file.source}, line {number}: {error}; correct the line or take it out") from error
            if document.text.strip():
                yield document
            else:
                run.skip(f"{file.source}:{number}", "empty: no text in this record")
        if empty:
            run.skip(file.source, "empty: no text in it")
    finally:
        decoder.log()


def _record(line: str, number: int, file: _File, decoder: Decoder) -> Document:
    record = _json_object(line)
    ids = [record.pop(name) for name in ("_id", "id") if record.get(name) is not None][:1]
    text, title, own = record.pop("text", None), record.pop("title", None), record.pop("metadata", None)
    if not isinstance(text, str):
        raise ValueError("the record needs a 'text' that is a string")
    if not isinstance(title, (str, type(None))) or not isinstance(own, (dict, type(None))):
        raise ValueError("'title' must be a string and 'metadata' an object")
    metadata = {"source": file.source, **record, **(own or {})}
    lost = [name for name in record if metadata[name] != record[name]]
    if lost:
        _LOG.warning("%s, line %d: fields %s give way to those in 'metadata'", file.source, number, lost)
    text, title = decoder.clean(text), decoder.clean(title or "")
    if not ids and not file.id:
        return Document.of({"text": text, "title": title, "metadata": metadata}) if text.strip() else Document("", text)
    return Document(_record_id(ids[0]) if ids else f"{file.id}:{number}", text, title, metadata)


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, strict=False, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at character {error.colno})") from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _record_id(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise ValueError("the id must be a non-empty string or a whole number")
    return value


def _read_pdf(file: _File, run: _Run) -> Iterator[Document]:
    try:
        import pypdf
    except ImportError as error:
        raise MissingExtraError(f"{file.source}: reading PDF needs pypdf; pip install 'msa-plugin[pdf]'") from error
    with _opened(file) as stream:
        try:
            reader = pypdf.PdfReader(stream)
            locked = reader.is_encrypted and not reader.decrypt("")
            pages = [] if locked else [page.extract_text() for page in reader.pages]
        except Exception as error:  # a damaged file makes pypdf raise almost anything
            raise _RefusedError(f"{file.source} cannot be read as PDF ({error}); print it to a new PDF") from error
    if locked:
        raise _RefusedError(f"{file.source} is encrypted; save a copy without the password (qpdf --decrypt)")
    decoder = Decoder(file.source, run.encoding_errors)
    text = decoder.clean("\n\n".join(pages))
    decoder.log()
    if not text.strip():
        raise _RefusedError(f"{file.source} has no text layer (scanned pages?); run OCR on it first (ocrmypdf)")
    yield from _document(file, text, "", run, pages=len(pages))


_READERS: Mapping[str, Callable[[_File, _Run], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".pdf": _read_pdf,
}
