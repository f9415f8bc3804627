"""What calls that change or check a memory report: plain data, exported by `types`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

OnInvalid = Literal["raise", "skip"]  # what `add` does with a document that cannot be stored


@dataclass(frozen=True)
class AddReport:
    """What `add` did, by id. `skipped` pairs an id or position with the reason."""

    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    tokens: int = 0
    seconds: float = 0.0

    @property
    def ids(self) -> tuple[str, ...]:
        """Every id that is in the memory after the call, in no particular order."""
        return self.added + self.updated + self.unchanged


@dataclass(frozen=True)
class DeleteReport:
    """Ids that were deleted, and ids that the memory did not hold."""

    deleted: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class TierStats:
    """Bytes in each tier of an open memory, and budgets (None: no limit, or no copies where `device` is a CPU).

    `device_keys` are resident routing keys, with offsets and scales; `host_keys` and `host_content` share the host's
    budget. `keys_streamed` is what searches have read so far of keys that are not resident on the device, out of host
    memory or the maps; `content_gathered` what has been handed to layers of documents' K, V.
    """

    device: str
    device_budget: int | None
    device_keys: int
    host_budget: int
    host_keys: int
    host_content: int
    keys_streamed: int
    content_gathered: int


@dataclass(frozen=True)
class Stats:
    """Size of a memory (one namespace) and of its bank (`bytes_*`, `segments`: all namespaces).

    `tiers` says where an open memory's latents lie; None of a bank that no backbone is at work on.
    """

    documents: int
    tokens: int
    chunks: int
    segments: int
    bytes_keys: int
    bytes_content: int
    bytes_catalog: int
    deleted: int
    namespaces: tuple[str, ...]
    snapshots: tuple[str, ...]
    tiers: TierStats | None = None
    bytes_words: int = 0

    @property
    def bytes_total(self) -> int:
        """Bytes on disk."""
        return self.bytes_keys + self.bytes_content + self.bytes_words + self.bytes_catalog


@dataclass(frozen=True)
class VerifyReport:
    """Outcome of `verify`: files read, and what is wrong with which file and documents (empty: all is well)."""

    files: int
    bytes: int
    problems: tuple[str, ...]
    documents: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class RepairReport:
    """What `repair` found and did; afterwards the bank verifies.

    `salvaged` are documents whose latents were lost but whose text is in `files`, ready to be added (and encoded)
    again; `lost` are ids whose text is gone too, or cannot be trusted, and `unreadable` counts rows without even an id.
    """

    problems: tuple[str, ...] = ()
    salvaged: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unreadable: int = 0
    files: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True when every document is still there, in the bank or in `files`."""
        return not self.lost and not self.unreadable


class Progress(NamedTuple):
    """Passed to `on_progress`: documents and tokens done so far, and the total number of documents if known."""

    documents: int
    tokens: int
    total: int | None
