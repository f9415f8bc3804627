"""Files and folders into a memory: every file under its own id, and out again when it is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from msa_plugin.ingest.decoding import EncodingErrors
from msa_plugin.ingest.ids import FileIds
from msa_plugin.ingest.kinds import StdinFormat
from msa_plugin.ingest.reading import Paths, Reading
from msa_plugin.types import ALWAYS, AddReport, OnProgress, Period, Progress

if TYPE_CHECKING:
    from msa_plugin.memory import LatentMemory


class FilesProgress(NamedTuple):
    """Files, bytes of them, documents and tokens done so far; all files and bytes there are.

    Bytes are those of the documents that have been stored or found unchanged; standard input has none.
    """

    files: int
    all_files: int
    bytes: int
    all_bytes: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class FilesReport:
    """What `add_files` did.

    `skipped` pairs a file ("file:line" of JSON lines) with the reason why it was left out, `renamed` a file with the id
    it got because a shorter one is another document's, `encodings` counts files whose encoding was guessed. `forgotten`
    are ids of documents that `prune` deleted; it left those of the folders `not_pruned` alone, which are empty.
    """

    added: AddReport
    skipped: tuple[tuple[str, str], ...]
    renamed: tuple[tuple[str, str], ...]
    encodings: Mapping[str, int]
    forgotten: tuple[str, ...] = ()
    not_pruned: tuple[str, ...] = ()


def add_files(
    memory: LatentMemory,
    paths: Paths,
    *,
    prune: bool = False,
    stdin_format: StdinFormat = "text",
    encoding: str | None = None,
    encoding_errors: EncodingErrors = "replace",
    period: Period = ALWAYS,
    on_progress: Callable[[FilesProgress], None] | None = None,
) -> FilesReport:
    """Store what `read_paths` reads, a file always under the same id; what was stored before is not encoded again.

    A file that the memory holds keeps its id, however it is given now; a new one gets its path below the folder that
    was given, or its name, with more of the path in front where another document has that id. A file that is gone, and
    whose content comes under the same id again, counts as moved. Ids of JSON records are taken as they are.

    With `prune`, documents are forgotten that came from below `paths` and whose file, or line in a file of JSON lines,
    is there no more; not those of a folder in which nothing is found at all.

    Documents are valid as `period` says, but for records of JSON lines that have dates of their own.

    What cannot be read is skipped and reported. Raises IngestError for a path that does not exist and for an unknown
    encoding, before anything is stored, and what `LatentMemory.add` and `delete` raise.
    """
    skipped: list[tuple[str, str]] = []
    ids = FileIds(memory.engine.bank, memory.namespace)
    reading = Reading(
        paths,
        stdin_format=stdin_format,
        encoding=encoding,
        encoding_errors=encoding_errors,
        on_skip=lambda path, reason: skipped.append((path, reason)),
        ids=ids,
        followed=on_progress is not None,
    )
    told = None if on_progress is None else _told(reading, on_progress)
    documents = (d if d.period != ALWAYS else replace(d, **period._asdict()) for d in reading)
    added = memory.add(documents, on_progress=told, on_invalid="skip")
    gone = ids.gone(reading.listing) if prune else []
    forgotten = memory.delete(gone).deleted if gone else ()
    empty = tuple(sorted(reading.listing.empty)) if prune else ()
    return FilesReport(
        added, (*skipped, *added.skipped), tuple(ids.longer), dict(reading.encodings), tuple(forgotten), empty
    )


def _told(reading: Reading, on_progress: Callable[[FilesProgress], None]) -> OnProgress:
    files = len(reading.listing.files)

    def tell(progress: Progress) -> None:
        at = reading.at(progress.documents)
        on_progress(FilesProgress(at.files, files, at.bytes, reading.bytes, progress.documents, progress.tokens))

    return tell
