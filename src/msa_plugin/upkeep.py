"""Looking after a memory's bank: compaction, snapshots, verification, and what other processes have committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msa_plugin.types import VerifyReport

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle


class Upkeep:
    """Mixin for `LatentMemory`."""

    namespace: str

    def compact(self) -> None:
        """Rewrite live documents and free the space of deleted ones. Snapshots keep what they need."""
        self._bank_().compact()

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

    if TYPE_CHECKING:  # what the memory has beside this

        def _bank_(self) -> BankHandle: ...
