"""A LangGraph store over a `LatentMemory`: items on disk, found by what they say, without an embedding model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from langchain_core.runnables import run_in_executor
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    get_text_at_path,
    validate_op_namespace,
)

from langchain_msa._convert import opened
from msa_plugin.errors import BankReadOnlyError, InvalidDocumentError, InvalidQueryError
from msa_plugin.integrating import Listed, now
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document, Filter, Hit

Labels: TypeAlias = tuple[str, ...]
_ROOT = "store"  # items lie below it, so that they do not mix with documents of the memory itself
_VALUE = "value."  # in front of an item's own fields in metadata
_UNREAD = "-"  # text of an item that is not to be found by what it says
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": lambda a, b: bool(a == b),
    "$ne": lambda a, b: bool(a != b),
    "$gt": lambda a, b: bool(a > b),
    "$gte": lambda a, b: bool(a >= b),
    "$lt": lambda a, b: bool(a < b),
    "$lte": lambda a, b: bool(a <= b),
}
_BEGINNING = "1970-01-01T00:00:00+00:00"


class MSAStore(BaseStore):
    """`BaseStore` for LangGraph: `MSAStore(path="bank/")`, or `MSAStore(memory)` over a memory that is open.

    An item is a document of the bank, durable when `put` returns, and each of LangGraph's namespaces one of the bank's
    (`store/users/ann` within the memory's own; other namespaces cost a search nothing). `search(query=...)` ranks by
    routing, words and names; `score` is the routing score. What an item says is its whole value, or `fields` (paths as
    in LangGraph's `index`), or the paths that `put(index=[...])` names; with `index=False`, or where there is no text,
    it is found by filters only and follows the ranked ones. Values are JSON. In filters text compares with text and
    numbers with numbers.

    `ttl` (minutes) counts from the last write or read; what has expired is not returned, and `sweep_ttl` deletes it.
    """

    supports_ttl = True
    __slots__ = ("_fields", "_root", "memory", "ttl_config")

    def __init__(
        self,
        memory: LatentMemory | None = None,
        *,
        path: str | Path | None = None,
        fields: Sequence[str] | None = None,
        ttl: TTLConfig | None = None,
        **settings: Any,
    ) -> None:
        """Over an open `memory`, or one opened from `path` with `settings` of `LatentMemory.open`.

        `ttl` are LangGraph's defaults for expiry. Raises ConfigError and what `LatentMemory.open` raises.
        """
        self.memory = opened(memory, path, settings)
        self.ttl_config = ttl
        self._fields = None if fields is None else list(fields)
        self._root = self.memory.within(_ROOT)

    def close(self) -> None:
        """Close the memory, also for whatever else uses it. Idempotent."""
        self.memory.close()

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations: first all that read, then those that write, one commit a namespace.

        Of several puts of one item the last counts. Nothing is written where one of them cannot be stored. Raises
        InvalidDocumentError for values that are not JSON, InvalidQueryError for filters, limits and questions that
        mean nothing, and LangGraph's InvalidNamespaceError.
        """
        given = list(ops)
        for op in given:
            validate_op_namespace(op)
        writes = self._planned([op for op in given if isinstance(op, PutOp)])
        results = [self._read(op) for op in given]
        for labels, changes in writes.items():
            place = self._root.within(*labels)
            if gone := [key for key, document in changes.items() if document is None]:
                place.delete(gone)
            if kept := [document for document in changes.values() if document is not None]:
                place.add(kept, on_progress=_silent)
        return results

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` on a worker thread; what has begun is completed when the caller is cancelled."""
        return await run_in_executor(None, self.batch, list(ops))

    def sweep_ttl(self) -> int:
        """Delete what has expired; returns how many items that were."""
        return len(self._root.within(below=True).forget_expired().deleted)

    def _read(self, op: Op) -> Result:
        if isinstance(op, GetOp):
            return self._get(op)
        if isinstance(op, SearchOp):
            return self._search(op)
        if isinstance(op, ListNamespacesOp):
            return self._list(op)
        if isinstance(op, PutOp):
            return None
        raise InvalidQueryError(f"MSAStore knows no operation {type(op).__name__}")

    # -- writing ----------------------------------------------------------------------------------------------------

    def _planned(self, puts: Sequence[PutOp]) -> dict[Labels, dict[str, Document | None]]:
        """What each namespace's items become; None is deleted. Raises InvalidDocumentError before anything changes."""
        plan: dict[Labels, dict[str, Document | None]] = {}
        for op in puts:
            plan.setdefault(tuple(op.namespace), {})[op.key] = None if op.value is None else self._document(op)
        return plan

    def _document(self, op: PutOp) -> Document:
        value = op.value
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise InvalidDocumentError(f"item {op.key!r}: a value is a mapping with string keys, not {value!r:.80}")
        now = _now()
        known = self._root.within(*op.namespace).get(op.key)
        created = known[0].metadata.get("created", _BEGINNING) if known else now.isoformat()
        text = self._text(value, op.index)
        metadata = {
            "indexed": bool(text),
            "created": created,
            "updated": max(now.isoformat(), created),  # a clock may go back
            "ttl": op.ttl,
            **{_VALUE + name: part for name, part in value.items()},
        }
        until = None if op.ttl is None else now + timedelta(minutes=op.ttl)
        return Document.of(Document(op.key, text or _UNREAD, metadata=metadata, valid_until=until))

    def _text(self, value: Mapping[str, Any], index: Any) -> str:
        """What an item is found by; empty where that is nothing."""
        if index is False:
            return ""
        fields = self._fields if index is None else index
        if fields is None or fields == ["$"]:
            lines = list(_leaves(value))
            return lines[0][1] if len(lines) == 1 else "\n".join(f"{path}: {text}" for path, text in lines)
        return "\n".join(text for path in fields for text in get_text_at_path(dict(value), path)).strip()

    # -- reading ----------------------------------------------------------------------------------------------------

    def _get(self, op: GetOp) -> Item | None:
        place = self._root.within(*op.namespace)
        found = [d for d in place.get(op.key) if not _expired(d)]
        if not found:
            return None
        self._touch(place, [op.key], found[0].metadata, op.refresh_ttl)
        return Item(namespace=tuple(op.namespace), **_parts(found[0]))

    def _search(self, op: SearchOp) -> list[SearchItem]:
        if op.limit < 0 or op.offset < 0:
            raise InvalidQueryError(f"limit and offset must not be negative, not {op.limit} and {op.offset}")
        place = self._root.within(*op.namespace_prefix, below=True)
        asked = (op.query or "").strip()
        hits, more = self._ranked(place, asked, op) if asked and op.limit else ([], True)
        found: list[tuple[Any, float | None]] = [(hit, float(hit.score)) for hit in hits[op.offset :]]
        if more and len(found) < op.limit:  # all that could be ranked were; the rest in the order of writing
            where = _where(op.filter, indexed=False if asked else None)
            left, skip = op.limit - len(found), max(0, op.offset - len(hits))
            found += [(document, None) for document in _listed(place, where, left, skip)]
        items = []
        for one, score in found:
            labels = self._root.labels(one.namespace)
            self._touch(self._root.within(*labels), [one.id], one.metadata, op.refresh_ttl)
            items.append(SearchItem(labels, score=score, **_parts(one)))
        return items

    def _ranked(self, place: LatentMemory, query: str, op: SearchOp) -> tuple[list[Hit], bool]:
        """The best hits, as many as a page and what is in front of it take, and whether there may be items beside them.

        Most stores hold nothing that is not indexed, and then the memory's own selection does.
        """
        if not op.filter:
            hits = place.retrieve(query, op.limit + op.offset)
            if all(hit.metadata.get("indexed") for hit in hits):
                return hits, False
        return place.retrieve(query, op.limit + op.offset, filter=_where(op.filter, indexed=True)), True

    def _list(self, op: ListNamespacesOp) -> list[Labels]:
        conditions = op.match_conditions or ()
        start: Labels = max((_literal(c.path) for c in conditions if c.match_type == "prefix"), key=len, default=())
        found = [start + below for below in self._root.within(*start).namespaces()]
        matching = [labels for labels in found if labels and all(_fits(c, labels) for c in conditions)]
        names = sorted({labels[: op.max_depth] for labels in matching})
        return names[op.offset : op.offset + op.limit]

    def _touch(self, place: LatentMemory, keys: list[str], metadata: Mapping[str, Any], refresh: bool) -> None:
        """Count the time to live of an item that was read from now on."""
        if refresh and metadata.get("ttl") is not None:
            with suppress(BankReadOnlyError):  # then it lives as long as it was given
                place.revise(keys, _renewed)


def _listed(place: LatentMemory, where: Filter, limit: int, offset: int) -> list[Listed]:
    """Items in the order of writing; those that live longer since they were read keep their place, for pages' sake."""
    if not place.documents(filter={"ttl": {"$gte": 0}}, limit=1):
        return place.documents(filter=where, limit=limit, offset=offset)
    found = place.documents(filter=where, limit=sys.maxsize)
    return sorted(found, key=lambda item: str(item.metadata.get("updated", _BEGINNING)))[offset : offset + limit]


def _parts(found: Document | Hit) -> dict[str, Any]:
    metadata = found.metadata
    if "created" not in metadata:  # somebody added a document there by other means
        metadata = {"created": _BEGINNING, "updated": _BEGINNING, _VALUE + "text": found.text}
    return {
        "key": found.id,
        "value": {name[len(_VALUE) :]: part for name, part in metadata.items() if name.startswith(_VALUE)},
        "created_at": datetime.fromisoformat(metadata["created"]),
        "updated_at": datetime.fromisoformat(metadata["updated"]),
    }


def _expired(document: Document) -> bool:
    until = document.period.valid_until
    return until is not None and until <= _now().isoformat()


def _renewed(document: Document) -> Document:
    ttl, until = document.metadata["ttl"], document.period.valid_until
    if ttl is None or until is None:
        return document
    later = max(until, (_now() + timedelta(minutes=ttl)).isoformat())  # a clock may go back
    return replace(document, valid_until=later)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of everything in a value that says something."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part, path)
    elif value is not None and str(value).strip():
        yield path, str(value)


def _where(given: Mapping[str, Any] | None, indexed: bool | None) -> Filter:
    """A filter over an item's value as the memory takes it, and that it is `indexed` or not."""
    if given is not None and not isinstance(given, Mapping):
        raise InvalidQueryError(f"a filter is a mapping of field to value, not {type(given).__name__}")
    fields = {name: _operators(name, wanted) for name, wanted in (given or {}).items()}
    if any(isinstance(operand, Mapping | list | tuple) for ops in fields.values() for _, operand in ops):
        return lambda metadata: (
            indexed in (None, metadata["indexed"])
            and all(
                _compare(metadata.get(_VALUE + name), operator, operand)
                for name, ops in fields.items()
                for operator, operand in ops
            )
        )
    parts: list[dict[str, Any]] = [] if indexed is None else [{"indexed": indexed}]
    for name, ops in fields.items():
        for operator, operand in ops:
            absent = {"$or": [{_VALUE + name: {"$exists": False}}, {_VALUE + name: None}]}
            if operand is None and operator in ("$eq", "$ne"):
                parts.append(absent if operator == "$eq" else {"$not": absent})
            else:
                parts.append({_VALUE + name: {operator: operand}})
    return {"$and": parts}


def _operators(name: str, wanted: Any) -> list[tuple[str, Any]]:
    if not isinstance(wanted, Mapping) or not any(str(key).startswith("$") for key in wanted):
        return [("$eq", wanted)]
    if unknown := sorted(set(wanted) - set(_COMPARISONS)):
        raise InvalidQueryError(f"field {name!r}: unknown operators {unknown}; there are {', '.join(_COMPARISONS)}")
    return list(wanted.items())


def _compare(value: Any, operator: str, operand: Any) -> bool:
    if isinstance(operand, Mapping) and operator == "$eq":  # the named parts of it
        return isinstance(value, Mapping) and all(
            _compare(value.get(name), op, part)
            for name, wanted in operand.items()
            for op, part in _operators(name, wanted)
        )
    if isinstance(operand, tuple):
        operand = list(operand)
    try:
        return _COMPARISONS[operator](value, operand)
    except TypeError:  # text and numbers have no order
        return False


def _literal(path: Sequence[str]) -> Labels:
    """The labels of a path in front of its first wildcard."""
    end = path.index("*") if "*" in path else len(path)
    return tuple(path[:end])


def _fits(condition: MatchCondition, labels: Labels) -> bool:
    path = condition.path
    if condition.match_type not in ("prefix", "suffix"):
        raise InvalidQueryError(f"namespaces match by prefix or suffix, not {condition.match_type!r}")
    if len(path) > len(labels):
        return False
    part = labels[: len(path)] if condition.match_type == "prefix" else labels[len(labels) - len(path) :]
    return all(wanted in ("*", label) for wanted, label in zip(path, part, strict=True))


def _now() -> datetime:
    return now()


def _silent(progress: object) -> None:
    """An item that is put draws no bar."""
