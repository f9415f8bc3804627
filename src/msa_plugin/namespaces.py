"""Namespaces within namespaces: one bank, one engine, and a handle for each user, project or thread.

A nested namespace is a path: labels joined by "/", so that `msa --namespace users/ann` names it too. Any text is a
label; "/" and "%" in it are written %2F and %25. Listing and searching below a path cost what is there, whatever
other namespaces hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from msa_plugin.arguments import id_list
from msa_plugin.async_twins import awaited
from msa_plugin.dates import When, asof
from msa_plugin.errors import InvalidQueryError
from msa_plugin.types import UNBOUNDED, Document, Filter, Validity

if TYPE_CHECKING:
    from msa_plugin.bank.handle import BankHandle

Handle = TypeVar("Handle", bound="Namespaces")
_SEPARATOR = "/"


@dataclass(frozen=True)
class Listed(Document):
    """A stored document, the namespace that it is in, and when it is found (see `Hit.validity`)."""

    namespace: str = ""
    validity: Validity = UNBOUNDED


class Namespaces:
    """Mixin for `LatentMemory`."""

    namespace: str
    below: bool = False
    """Whether finding (`retrieve`, `ask`, `stream`, `documents`) sees nested namespaces too; see `within`."""
    _parent: Namespaces | None = None

    def within(self: Handle, *labels: str, below: bool = False) -> Handle:
        """A handle on the namespace nested in this one under `labels`, of the same bank and model; it costs nothing.

        With `below` it finds documents of all namespaces nested in that one too, and ranks them together; adding,
        deleting and reading by id are of that namespace alone. Closing it leaves this memory open, and closing this
        one closes it. Raises InvalidQueryError for a label that is not a non-empty string.
        """
        child = copy(self)
        child._parent, child.below = self, below
        child.namespace = _SEPARATOR.join([self.namespace, *map(_escaped, labels)])
        return child

    def namespaces(self) -> list[tuple[str, ...]]:
        """Labels of the namespaces nested in this one that hold a document, in order; () is this one itself."""
        return [self.labels(name) for name in self._bank_().namespaces(self.namespace)]

    def labels(self, namespace: str) -> tuple[str, ...]:
        """Labels under which a hit's or document's `namespace` is nested in this one."""
        path = namespace[len(self.namespace) :].split(_SEPARATOR)[1:]
        return tuple(label.replace("%2F", _SEPARATOR).replace("%25", "%") for label in path)

    def get(self, ids: str | Sequence[str]) -> list[Document]:
        """Stored documents by id, in the order asked for; unknown ids are left out."""
        wanted = id_list(ids)
        found = self._bank_().get(wanted, self.namespace)
        return [found[i].document for i in wanted if i in found]

    aget = awaited(get)

    def ids(self) -> Iterator[str]:
        """Ids of all documents in this namespace."""
        return self._bank_().iter_ids(self.namespace)

    def documents(
        self,
        *,
        filter: Filter | None = None,
        limit: int = 100,
        offset: int = 0,
        at: When | None = None,
        history: bool = False,
    ) -> list[Listed]:
        """Stored documents that `filter` admits, oldest first: `limit` of them, after the first `offset`.

        Those that are valid now, or as of `at`, or with `history` all of them, as for `retrieve`. Raises
        InvalidQueryError for a bad filter or date, and for a limit or offset that is negative.
        """
        if not all(isinstance(number, int) and number >= 0 for number in (limit, offset)):
            raise InvalidQueryError(f"limit and offset are whole numbers from 0, not {limit!r} and {offset!r}")
        selection = self._bank_().select(self.namespace, filter, below=self.below, asof=asof(at, history))
        stored = self._bank_().documents(selection.ordinals()[offset : offset + limit].tolist())
        return [
            Listed(d.id, d.text, d.title, d.metadata, *d.period, namespace=d.namespace, validity=d.validity)
            for d in stored
        ]

    if TYPE_CHECKING:  # what the memory has beside this

        def _bank_(self) -> BankHandle: ...
        def _check_open(self) -> None: ...


def _escaped(label: str) -> str:
    if not isinstance(label, str) or not label:
        raise InvalidQueryError(f"a namespace's label is a non-empty string, not {label!r}")
    return label.replace("%", "%25").replace(_SEPARATOR, "%2F")
