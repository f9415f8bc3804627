"""What the catalog knows of segments; nothing here reads them, or needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KEYS_FILE, CONTENT_FILE = "keys.safetensors", "content.safetensors"


class FileRecord(NamedTuple):
    """Size in bytes and SHA-256 (hex) of a file, as the catalog remembers them.

    `structure` is the CRC-32 of what says where things are: the header, ordinals, offsets and sums. It is checked
    before anything is served, at a cost that does not depend on how many latents there are.
    """

    bytes: int
    sha256: str
    structure: int


@dataclass(frozen=True)
class SegmentRecord:
    """What the catalog knows of a segment. `namespace` is None where documents of several namespaces share it."""

    uuid: str
    namespace: str | None
    first_ordinal: int
    last_ordinal: int
    documents: int
    chunks: int
    keys: FileRecord
    content: FileRecord | None
    number: int = 0

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.keys.bytes + (self.content.bytes if self.content else 0)

    def files(self, root: Path) -> list[tuple[Path, FileRecord]]:
        """Each file's path under the `segments` folder `root`, and its record."""
        found = [(root / self.uuid / KEYS_FILE, self.keys)]
        return [*found, (root / self.uuid / CONTENT_FILE, self.content)] if self.content else found
