"""What the engine and the facade ask of a bank: an ordinary one in this process, or one that is split over several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from msa_plugin.bank.documents import Known, StoredDocument
from msa_plugin.bank.words import WordPart
from msa_plugin.types import PRESENT, Asof, Filter, Fingerprint, KeyBlock, Stats, VerifyReport


class Selected(Protocol):
    """Documents that a query may return; see `view.Selection`."""

    @property
    def documents(self) -> int:
        """How many they are."""

    @property
    def asof(self) -> Asof:
        """Of which time they are."""

    @property
    def missed(self) -> tuple[int, ...]:
        """Shards that were lost when they were asked, so that their documents were left out; none in one process."""

    def key_blocks(self, group: str) -> Iterator[KeyBlock]:
        """Their routing keys, where those lie in this process."""

    def ordinals(self) -> Tensor:
        """Their ordinals, ascending int64 [n]."""

    def admits(self, ordinals: Iterable[int]) -> set[int]:
        """Those of `ordinals` that are among them."""

    def only(self, ordinals: Iterable[int]) -> Selected:
        """Those of them that have one of `ordinals`."""


class BankHandle(Protocol):
    """A bank, opened; see `bank.MemoryBank` for what each method does."""

    @property
    def path(self) -> Path:
        """The bank's folder."""

    @property
    def fingerprint(self) -> Fingerprint:
        """What its latents depend on."""

    @property
    def version(self) -> int:
        """Grows with every change."""

    @property
    def next_ordinal(self) -> int:
        """The number that the next document committed will get."""

    def refresh(self) -> None:
        """See what others have committed."""

    def close(self) -> None:
        """Let go of everything."""

    def one_moment(self) -> AbstractContextManager[None]:
        """Whatever this thread reads inside is of one moment."""

    def writing(self) -> AbstractContextManager[None]:
        """Be the only writer."""

    def select(
        self, namespace: str, where: Filter | None = None, *, below: bool = False, asof: Asof = PRESENT
    ) -> Selected:
        """Live documents of a namespace, and of those `below` it, that pass a filter and are valid as of a time."""

    def expired(self, namespace: str, below: bool = False) -> list[tuple[str, str]]:
        """Namespace and id of the live documents whose `valid_until` has passed."""

    def namespaces(self, inside: str) -> Sequence[str]:
        """The namespace and those nested in it that have a live document, in order."""

    def words(self, selection: Any) -> Sequence[WordPart]:
        """Words and names of a selection's documents, where those lie in this process."""

    def key_rows(self, ordinals: Sequence[int], group: str) -> list[Tensor]:
        """Routing keys [C_i, W] of each document."""

    def content(self, ordinals: Sequence[int], layer: int) -> list[Tensor]:
        """Content [C_i', 2, KV, D] of each document."""

    def documents(self, ordinals: Sequence[int]) -> list[StoredDocument]:
        """Documents by ordinal."""

    def dates(self, ordinals: Sequence[int]) -> list[str | None]:
        """From when documents are, where that is known."""

    def lookup(self, ids: Iterable[str], namespace: str) -> dict[str, Known]:
        """Ordinal, content hash and metadata of those ids that are live."""

    def get(self, ids: Iterable[str], namespace: str) -> Mapping[str, StoredDocument]:
        """Documents of those ids that are live."""

    def iter_ids(self, namespace: str) -> Iterator[str]:
        """Live ids in code point order."""

    def count(self, namespace: str) -> int:
        """Live documents of a namespace."""

    def stats(self, namespace: str) -> Stats:
        """Sizes of a namespace and of the bank."""

    def verify(self, deep: bool = True, namespace: str | None = None) -> VerifyReport:
        """Check what is on disk."""

    def delete(self, ids: Iterable[str], namespace: str) -> tuple[list[str], list[str]]:
        """Delete by id; the ids deleted and those that were not there."""

    def snapshot(self, name: str) -> None:
        """Name the newest version."""

    def drop_snapshot(self, name: str) -> None:
        """Forget a named version."""

    def compact(self) -> None:
        """Free the space of deleted documents."""
