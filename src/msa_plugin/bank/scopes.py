"""Which rows of the catalog a query sees: of a moment in history, and of a namespace or those below it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from msa_plugin.errors import InvalidQueryError

_T = TypeVar("_T")
_Key = TypeVar("_Key")
NEST = "/"  # between a namespace and one nested in it
_BATCH = 500  # bound parameters per statement; old SQLite versions allow 999


def seen(table: str = "documents") -> str:
    """The condition for rows that a moment sees: alive at a version are those that were not deleted by then."""
    return f"{table}.ordinal <= :last AND ({table}.deleted IS NULL OR {table}.deleted > :version)"


def is_unicode(text: str) -> bool:
    """Whether SQLite can hold the string: one with lone surrogates it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_namespace(namespace: object) -> None:
    """Raises InvalidQueryError unless `namespace` is a non-empty string of valid Unicode."""
    if not isinstance(namespace, str) or not namespace:
        raise InvalidQueryError(f"a namespace is a non-empty string, not {namespace!r}")
    if not is_unicode(namespace):
        raise InvalidQueryError(f"namespace {namespace!r} is not valid Unicode")


class At(NamedTuple):
    """A moment in the bank's history: it sees rows up to `last_ordinal` that were not deleted by `version`."""

    version: int
    last_ordinal: int


EVER = At(0, (1 << 63) - 1)  # every row, deleted ones too


class Scope(NamedTuple):
    """Which namespaces a query sees: one, or with `below` also those that are nested in it (`namespaces.nested`)."""

    namespace: str
    below: bool = False

    @property
    def sql(self) -> str:
        """The condition, over a row's `namespace`; each side of the OR walks its own part of an index."""
        own = "namespace = :namespace"
        return f"({own} OR (namespace >= :nested AND namespace < :beyond))" if self.below else own

    @property
    def bound(self) -> dict[str, str]:
        """The condition's parameters. Raises InvalidQueryError for a namespace that cannot be one."""
        check_namespace(self.namespace)
        # In code point order, whatever begins with "a/" lies between "a/" and "a0".
        edges = {"nested": self.namespace + NEST, "beyond": self.namespace + chr(ord(NEST) + 1)}
        return {"namespace": self.namespace, **(edges if self.below else {})}


class Place(NamedTuple):
    """Where a document's latents are: segment number and position within it."""

    segment: int
    position: int


def row_checksum(fields: tuple[object, ...]) -> int:
    """CRC-32 over a row's lasting fields (all but place and deletion, which segments and versions vouch for)."""
    return zlib.crc32(json.dumps(fields, default=repr).encode())  # bytes, say: damage


def altered_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """The first field of those rows that do not match the checksum that each ends with."""
    return (row[0] for row in rows if row_checksum(row[:-1]) != row[-1])


def batches(items: Iterable[_T], size: int = _BATCH) -> Iterator[list[_T]]:
    """The items, `size` together, by default as many as a statement takes parameters."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def grouped(pairs: Iterable[tuple[_Key, _T]]) -> dict[_Key, list[_T]]:
    """What comes with each key, in order."""
    groups: dict[_Key, list[_T]] = {}
    for key, item in pairs:
        groups.setdefault(key, []).append(item)
    return groups
