"""Indexes over the documents of a selection, made when first asked for and kept for the selections asked last."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from msa_plugin.bank.documents import StoredDocument
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.cancellation import check_cancelled

_KEPT = 4
_READ = 1024  # documents read at once while an index is built
T = TypeVar("T")


class PerSelection(Generic[T]):
    """What `build` makes of one string of every document, in the order of their ordinals."""

    def __init__(
        self, bank: BankHandle, take: Callable[[StoredDocument], str], build: Callable[[list[str]], T]
    ) -> None:
        """`take` says which string of a document counts."""
        self._bank, self._take, self._build = bank, take, build
        self._made: OrderedDict[bytes, T] = OrderedDict()

    def of(self, selection: Selected) -> T:
        """The index of exactly the documents that a question may see: what others stored changes nothing."""
        ordinals = selection.ordinals()
        key = hashlib.sha256(ordinals.numpy().tobytes()).digest()
        if key not in self._made:
            taken: list[str] = []
            for start in range(0, len(ordinals), _READ):
                check_cancelled()
                taken += map(self._take, self._bank.documents(ordinals[start : start + _READ].tolist()))
            self._made[key] = self._build(taken)
        self._made.move_to_end(key)
        while len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return self._made[key]
