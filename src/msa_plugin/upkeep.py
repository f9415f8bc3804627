"""Looking after a memory: what it is made of, compaction, snapshots, verification, what other processes committed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msa_plugin import arguments
from msa_plugin.async_twins import awaited
from msa_plugin.bank.scopes import grouped
from msa_plugin.types import DeleteReport, Stats, VerifyReport

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle
    from msa_plugin.engine.engine import Engine


class Upkeep:
    """Mixin for `LatentMemory`."""

    namespace: str
    below: bool

    @property
    def path(self) -> Path:
        """The folder of the bank, absolute."""
        return self._bank_().path

    @property
    def version(self) -> int:
        """A number that changes whenever something is stored or deleted, in any namespace, by any process."""
        return self._bank_().version

    @property
    def model_name(self) -> str:
        """Name of the backbone."""
        return self._engine.backbone.name

    @property
    def context_window(self) -> int:
        """Tokens that the backbone reads at most."""
        return self._engine.backbone.spec.max_positions

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text` as the backbone reads it, as data: no text in it acts as a control token."""
        return self._engine.backbone.tokenize(text)

    def metadata(self, ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
        """Metadata of the documents that there are, by id; their texts are not read."""
        known = self._bank_().lookup(list(ids), self.namespace)
        return {name: stored.metadata for name, stored in known.items()}

    def writing(self) -> AbstractContextManager[object]:
        """Be the bank's only writer for a while, of all threads and processes; each call inside may write.

        Raises BankLockedError when another one does not finish in time, BankReadOnlyError.
        """
        return self._bank_().writing()

    def check_relevance(self, least: object) -> None:
        """Raises what `retrieve(min_relevance=least)` would raise: InvalidQueryError and ConfigError."""
        arguments.relevant(least, self._engine.adapter.config)

    def stats(self) -> Stats:
        """Documents, tokens and chunks of this namespace, and what the whole bank weighs; names no other namespace."""
        stats = self._bank_().stats(self.namespace)
        own = tuple(n for n in stats.namespaces if n == self.namespace)
        return replace(stats, namespaces=own, tiers=self._engine.tiers.stats())

    def compact(self) -> None:
        """Rewrite live documents and free the space of deleted ones. Snapshots keep what they need."""
        self._bank_().compact()

    def forget_expired(self) -> DeleteReport:
        """Delete the documents whose `valid_until` has passed; of a handle with `below`, in nested namespaces too.

        They are found no more in any case; this frees their space, with the next `compact`, and their ids.
        """
        bank = self._bank_()
        with bank.writing():  # nobody gives one of them another date in between
            expired = grouped(bank.expired(self.namespace, self.below))
            gone = [name for namespace, names in expired.items() for name in bank.delete(names, namespace)[0]]
        return DeleteReport(tuple(gone), ())

    def snapshot(self, name: str) -> None:
        """Name the present state of the whole bank, to be opened later with `open(..., snapshot=name)`."""
        self._bank_().snapshot(name)

    def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot; `compact` then frees what only it needed."""
        self._bank_().drop_snapshot(name)

    def verify(self) -> VerifyReport:
        """Read every file of the bank and compare it with its checksum; reports what is damaged instead of raising.

        Documents are named where they are of this namespace.
        """
        return self._bank_().verify(namespace=self.namespace)

    def refresh(self) -> None:
        """See what other processes have committed: for handles opened with `follow=False`, the others do at each call.

        Raises BankMovedError where the folder is no longer the bank that was opened.
        """
        self._bank_().refresh()

    acompact, asnapshot, averify = awaited(compact), awaited(snapshot), awaited(verify)

    if TYPE_CHECKING:  # what the memory has beside this
        _engine: Engine

        def _bank_(self) -> BankHandle: ...
