"""What a bank's latents depend on, by which a memory knows that a bank is its own."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msa_plugin.errors import FingerprintMismatchError

FORMAT_VERSION, OLDEST_FORMAT = 3, 1  # of banks: written, and still read
WORDS_FORMAT = 3  # the first with words at rest


@dataclass(frozen=True)
class Fingerprint:
    """What a bank's latents depend on. Two banks with equal fingerprints are interchangeable."""

    backbone: str
    tokenizer: str
    adapter: str
    routing: str
    content: str
    dtype: str
    template: str
    window: int
    format_version: int = FORMAT_VERSION

    def differences(self, other: Fingerprint) -> list[str]:
        """Names of the fields that differ, each with both values."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{k}: bank has {theirs[k]!r}, this memory has {mine[k]!r}" for k in mine if mine[k] != theirs[k]]

    def check(self, other: Fingerprint, folder: Path) -> None:
        """Raises FingerprintMismatchError where the bank in `folder` has the `other`, of whatever format."""
        if differing := self.differences(replace(other, format_version=self.format_version)):
            raise FingerprintMismatchError(
                f"{folder} was built with other settings: {'; '.join(differing)}. "
                "Open it with the same model and adapter, or build a new bank in another folder"
            )


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in 1 MiB pieces. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
