"""Looking after a memory's bank: compaction, snapshots, verification, and what other processes have committed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msa_plugin.async_twins import awaited
from msa_plugin.types import DeleteReport, Stats, VerifyReport

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle
    from msa_plugin.engine.engine import Engine


class Upkeep:
    """Mixin for `LatentMemory`."""

    namespace: str
    below: bool

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
        bank, expired = self._bank_(), dict[str, list[str]]()
        with bank.writing():  # nobody gives one of them another date in between
            for namespace, name in bank.expired(self.namespace, self.below):
                expired.setdefault(namespace, []).append(name)
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
