"""`MetadataFilters` as filters of the memory, which apply before the best k are taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from msa_plugin.errors import InvalidQueryError
from msa_plugin.integrating import listed
from msa_plugin.types import Filter

Metadata = Mapping[str, Any]
Test = Callable[[Metadata], bool]

# Where an index keeps the id of the document that a node was made from.
SOURCE = "_llama_index_source"

_COMPARISONS = {
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.CONTAINS: "$contains",
}
_SOURCES = ("doc_id", "document_id", "ref_doc_id")
_THEIRS = ("_node_content", "_node_type")
# What SQL cannot say; a filter that has one of these anywhere becomes a Python function and costs a scan.
_SCANNED = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE, FilterOperator.IS_EMPTY)


def memory_filter(filters: MetadataFilters | None, doc_ids: Sequence[str] | None = None) -> Filter | None:
    """The memory's filter for `filters`, and for nodes of the documents `doc_ids` only; None when nothing is asked.

    Filters nest. An absent field passes `!=` and `nin` only, as in LlamaIndex's own stores. Metadata that is true or
    false compares as 1 or 0, because a `MetadataFilter` cannot hold a boolean. "doc_id", "document_id" and
    "ref_doc_id" are the document that a node was made from, whatever its metadata say, also as in those stores.
    Raises InvalidQueryError for values that an operator does not take, and for fields that only those stores have.
    """
    doc_ids = None if doc_ids is None else listed("doc_ids", doc_ids)
    parts: list[Metadata] = [] if doc_ids is None else [{SOURCE: {"$in": doc_ids}}]
    if filters is None or not filters.filters:
        return parts[0] if parts else None
    if not _scanned(filters):
        return {"$and": [*parts, _mapping(filters)]} if parts else _mapping(filters)
    test = _function(filters)
    if doc_ids is None:
        return test
    wanted = set(doc_ids)
    return lambda metadata: metadata.get(SOURCE) in wanted and test(metadata)


def _scanned(filters: MetadataFilters) -> bool:
    return any(_scanned(f) if isinstance(f, MetadataFilters) else f.operator in _SCANNED for f in filters.filters)


# -- as a mapping -------------------------------------------------------------------------------------------------


def _mapping(filters: MetadataFilters) -> dict[str, Any]:
    parts = [_mapping(f) if isinstance(f, MetadataFilters) else _term(f) for f in filters.filters]
    condition = filters.condition or FilterCondition.AND
    if condition is FilterCondition.NOT:
        return {"$not": {"$or": parts}}
    if condition is FilterCondition.OR and parts:
        return {"$or": parts}
    return {"$and": parts}


def _term(one: MetadataFilter) -> dict[str, Any]:
    operator, key = one.operator, _field(one)
    if operator in _COMPARISONS:
        return {key: {_COMPARISONS[operator]: _scalar(one)}}
    if operator in (FilterOperator.EQ, FilterOperator.IN):
        return {key: {"$in": _alike(one)}}
    if operator in (FilterOperator.NE, FilterOperator.NIN):
        return {key: {"$nin": _alike(one)}}
    if operator is FilterOperator.ANY:
        return {"$or": [{key: {"$contains": value}} for value in _list(one)]}
    if operator is FilterOperator.ALL:
        return {"$and": [{key: {"$contains": value}} for value in _list(one)]}
    raise InvalidQueryError(f"field {key!r}: the operator {operator} is not supported")


def _field(one: MetadataFilter) -> str:
    """The memory's name of a field: what LlamaIndex's stores write under names of their own has another one here."""
    if one.key in _THEIRS:
        raise InvalidQueryError(f"field {one.key!r} is one of LlamaIndex's own stores; filter over metadata instead")
    return SOURCE if one.key in _SOURCES else one.key


def _alike(one: MetadataFilter) -> list[Any]:
    """The values that are meant, with True beside 1 and False beside 0."""
    values = _list(one) if one.operator in (FilterOperator.IN, FilterOperator.NIN) else [_scalar(one)]
    return [*values, *(bool(v) for v in values if not isinstance(v, str) and v in (0, 1))]


def _scalar(one: MetadataFilter) -> Any:
    if one.value is None or isinstance(one.value, list):
        raise InvalidQueryError(
            f"field {one.key!r}: {one.operator.value} takes one value, not {one.value!r}; "
            "use FilterOperator.IN for several, FilterOperator.IS_EMPTY for none"
        )
    return one.value


def _list(one: MetadataFilter) -> list[Any]:
    if not isinstance(one.value, list):
        raise InvalidQueryError(f"field {one.key!r}: {one.operator.value} takes a list of values, not {one.value!r}")
    return list(one.value)


# -- as a function, with the same meaning --------------------------------------------------------------------------


def _function(filters: MetadataFilters) -> Test:
    tests = [_function(f) if isinstance(f, MetadataFilters) else _test(f) for f in filters.filters]
    condition = filters.condition or FilterCondition.AND
    if condition is FilterCondition.NOT:
        return lambda metadata: not any(test(metadata) for test in tests)
    if condition is FilterCondition.OR and tests:
        return lambda metadata: any(test(metadata) for test in tests)
    return lambda metadata: all(test(metadata) for test in tests)


def _test(one: MetadataFilter) -> Test:
    operator, key = one.operator, _field(one)
    if operator is FilterOperator.IS_EMPTY:
        return lambda metadata: metadata.get(key) in (None, "", [])
    if operator in (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE):
        return _text_test(one)
    if operator in (FilterOperator.EQ, FilterOperator.IN):
        values = _alike(one)
        return lambda metadata: _among(metadata.get(key), values)
    if operator in (FilterOperator.NE, FilterOperator.NIN):
        values = _alike(one)
        return lambda metadata: not _among(metadata.get(key), values)
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        values, combine = _list(one), any if operator is FilterOperator.ANY else all
        return lambda metadata: combine(_holds(metadata.get(key), value) for value in values)
    if operator is FilterOperator.CONTAINS:
        value = _scalar(one)
        return lambda metadata: _holds(metadata.get(key), value)
    if operator in _COMPARISONS:
        return _order_test(one)
    raise InvalidQueryError(f"field {key!r}: the operator {operator} is not supported")


def _text_test(one: MetadataFilter) -> Test:
    sought, key = one.value, _field(one)
    if not isinstance(sought, str):
        raise InvalidQueryError(f"field {one.key!r}: {one.operator.value} looks for text, not {sought!r}")
    if one.operator is FilterOperator.TEXT_MATCH:
        return lambda metadata: sought in _text(metadata.get(key))
    lowered = sought.lower()
    return lambda metadata: lowered in _text(metadata.get(key)).lower()


def _order_test(one: MetadataFilter) -> Test:
    bound, sign, key = _scalar(one), _COMPARISONS[one.operator], _field(one)

    def test(metadata: Metadata) -> bool:
        value = metadata.get(key)
        if not _same_kind(value, bound):
            return False
        above, level = cast(bool, value > bound), value == bound
        return {"$gt": above, "$gte": above or level, "$lt": not above and not level, "$lte": not above}[sign]

    return test


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _same_kind(value: object, other: object) -> bool:
    """Whether both are numbers or both are text; a boolean is only like another boolean."""
    if isinstance(value, bool) or isinstance(other, bool):
        return isinstance(value, bool) and isinstance(other, bool)
    if isinstance(value, str) or isinstance(other, str):
        return isinstance(value, str) and isinstance(other, str)
    return isinstance(value, (int, float)) and isinstance(other, (int, float))


def _among(value: object, values: Sequence[object]) -> bool:
    return any(_same_kind(value, other) and value == other for other in values)


def _holds(value: object, element: object) -> bool:
    return isinstance(value, list) and any(_same_kind(item, element) and item == element for item in value)
