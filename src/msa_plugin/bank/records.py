"""What the catalog knows of segments; nothing here reads them, or needs torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from msa_plugin.errors import BankCorruptError

KEYS_FILE, CONTENT_FILE = "keys.safetensors", "content.safetensors"
_FOLDER = re.compile(r"[0-9a-f]{32}")
TOKENIZER = re.compile(r"en-[0-9a-f]{16}")


class FileRecord(NamedTuple):
    """Size in bytes and SHA-256 (hex) of a file, as the catalog remembers them.

    `structure` is the CRC-32 of what says where things are: the header, ordinals, offsets and sums. It is checked
    before anything is served, at a cost that does not depend on how many latents there are.
    """

    bytes: int
    sha256: str
    structure: int


class WordsRecord(NamedTuple):
    """As `FileRecord`, of the file of words; `tokenizer` says whose words they are (`terms.tokenizer`)."""

    bytes: int
    sha256: str
    structure: int
    tokenizer: str


def words_name(tokenizer: str) -> str:
    """The name of a file of words."""
    return f"words-{tokenizer}.safetensors"


@dataclass(frozen=True)
class SegmentRecord:
    """What the catalog knows of a segment. `namespace` is None where documents of several namespaces share it.

    `fold` is a quick checksum of all routing keys (`rows.fold`); segments of format 1 and 2 have none.
    """

    uuid: str
    namespace: str | None
    first_ordinal: int
    last_ordinal: int
    documents: int
    chunks: int
    keys: FileRecord
    content: FileRecord | None
    words: WordsRecord | None = None
    fold: int | None = None
    number: int = 0

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.bytes for file in (self.keys, self.content, self.words) if file)

    def files(self, root: Path) -> list[tuple[Path, FileRecord]]:
        """Path under the `segments` folder `root` and record of each file that holds latents."""
        found = [(root / self.uuid / KEYS_FILE, self.keys)]
        return [*found, (root / self.uuid / CONTENT_FILE, self.content)] if self.content else found

    def words_file(self, root: Path) -> tuple[Path, FileRecord] | None:
        """The same of the file that holds words and names."""
        return self.words and (root / self.uuid / words_name(self.words.tokenizer), FileRecord(*self.words[:3]))


def segment_record(row: tuple[Any, ...]) -> SegmentRecord:
    """Of the catalog's row: number, fields, files.

    Raises BankCorruptError for what no bank writes: the name becomes a path, the numbers become sizes.
    """
    number, uuid, namespace, first, last, documents, chunks, *files = row
    content = FileRecord(*files[3:6]) if files[3] is not None else None
    words, fold = WordsRecord(*files[6:10]) if files[6] is not None else None, files[10]
    sizes = [number, first, last, documents, chunks, files[0], files[2], *(files[3:6:2] if content else ())]
    sizes += [*(words[0:3:2] if words else ()), *([] if fold is None else [fold])]
    named = words is None or (isinstance(words.tokenizer, str) and TOKENIZER.fullmatch(words.tokenizer))
    sound = named and isinstance(uuid, str) and _FOLDER.fullmatch(uuid) and isinstance(namespace, str | None)
    sound = sound and all(isinstance(size, int) and size >= 0 for size in sizes)
    # Each document takes an ordinal of 8 bytes, each chunk a key: the file bounds what is made room for.
    if not sound or 8 * documents > files[0] or chunks > files[0]:
        raise BankCorruptError(f"the catalog's row of segment {uuid!r:.80} is damaged; run `msa bank verify`")
    keys = FileRecord(*files[:3])
    return SegmentRecord(uuid, namespace, first, last, documents, chunks, keys, content, words, fold, number)
