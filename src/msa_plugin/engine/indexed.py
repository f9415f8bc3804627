"""An index beside routing keys that takes in each document once, when a question may first see it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.cancellation import check_cancelled

_READ = 1024  # documents read at once
_FEW = 4096  # documents; an index of so many is kept whatever has been deleted
_ANY = "default"  # whose statistics name all namespaces

Numbers = NDArray[np.int64]


class Index(Protocol):
    """What documents may be added to."""

    def add(self, documents: Sequence[int], texts: Sequence[str]) -> None:
        """Take in documents, by number, that were not added before."""


T = TypeVar("T", bound=Index)


class Followed(Generic[T]):
    """An index over one string of every document, by ordinal. Ordinals are never used twice, so that nothing changes.

    What deleted documents leave in it is dropped with the whole index, once they are more than the living.
    """

    def __init__(self, bank: BankHandle, take: Callable[[StoredDocument], str], make: Callable[[], T]) -> None:
        """`take` says which string of a document counts, `make` gives an empty index."""
        self._bank, self._take, self._make = bank, take, make
        self._lock = threading.Lock()
        self._index, self._known, self._looked_at = make(), np.zeros(0, dtype=bool), _FEW

    def of(self, selection: Selected) -> tuple[T, Numbers]:
        """The index with the documents of a selection, and which these are: ordinals, ascending [n].

        Documents of a shard that was lost meanwhile are neither in it nor among these.
        """
        ordinals: Numbers = selection.ordinals().numpy()
        with self._lock:
            if len(self._missing(ordinals)):
                self._drop_the_dead()
            missing = self._missing(ordinals)
            for start in range(0, len(missing), _READ):
                check_cancelled()
                found = self._bank.documents(missing[start : start + _READ].tolist())
                numbers = [d.ordinal for d in found]
                self._index.add(numbers, [self._take(d) for d in found])
                self._known[numbers] = True
            return self._index, ordinals[self._known[ordinals]]

    def _missing(self, ordinals: Numbers) -> Numbers:
        if len(ordinals) and ordinals[-1] >= len(self._known):
            grown = np.zeros(max(int(ordinals[-1]) + 1, 2 * len(self._known)), dtype=bool)
            grown[: len(self._known)] = self._known
            self._known = grown
        return ordinals[~self._known[ordinals]]

    def _drop_the_dead(self) -> None:
        """Begin anew where most documents are dead; looked at whenever the index has doubled, for it takes a scan."""
        held = int(self._known.sum())
        if held <= self._looked_at:
            return
        alive = sum(self._bank.count(name) for name in self._bank.stats(_ANY).namespaces)
        if held > 2 * alive:
            self._index, self._known, held = self._make(), np.zeros(0, dtype=bool), alive
        self._looked_at = max(_FEW, 2 * held)
