"""Metadata filters, compiled to SQL over the catalog's `metadata` column with bound parameters only.

A filter is a mapping; all its entries must hold. `{"field": value}` is equality; `{"field": {"$gt": 1, "$lt": 5}}` uses
operators; `$and`, `$or` (lists of filters) and `$not` (a filter) combine. Field names are top-level keys, any string.
Values compare within their JSON kind: numbers with numbers, strings with strings (code point order), and `True` is not
1. A field that is absent fails every operator except the negations `$ne`, `$nin`, `$not` and `{"$exists": False}`;
`None` equals an explicit null only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from msa_plugin.bank.scopes import is_unicode
from msa_plugin.errors import InvalidQueryError

_MAX_DEPTH = 32
_MAX_TERMS = 400  # SQLite refuses expressions deeper than 1000, and a chain of ANDs is as deep as it is long
_MAX_VALUES = 10_000  # bound parameters; SQLite's limit is 32766
_COMPARISONS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_NUMBERS = "('integer', 'real')"

Test = Callable[[str, str], str]  # (SQL of the JSON type, SQL of the value) -> SQL condition


class Condition(NamedTuple):
    """A two-valued SQL condition on `metadata`, and its named parameters."""

    sql: str
    parameters: dict[str, Any]


def compile_filter(where: Mapping[str, Any]) -> Condition:
    """Compile a filter. Raises InvalidQueryError for unknown operators and for values that JSON cannot compare."""
    compiler = _Compiler()
    sql = compiler.mapping(where, 0)
    return Condition(sql, compiler.parameters)


class _Compiler:
    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self._terms = 0

    def mapping(self, where: Any, depth: int) -> str:
        if not isinstance(where, Mapping):
            raise InvalidQueryError(f"a filter is a mapping of field to value, not {type(where).__name__}")
        self._count()
        if depth > _MAX_DEPTH:
            raise InvalidQueryError(f"the filter is nested more than {_MAX_DEPTH} deep; flatten it")
        return _join("AND", [self._entry(key, value, depth) for key, value in where.items()])

    def _entry(self, key: Any, value: Any, depth: int) -> str:
        if not isinstance(key, str):
            raise InvalidQueryError(f"a filter's keys are field names (strings), not {type(key).__name__}")
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)):
                raise InvalidQueryError(f"{key} takes a list of filters, not {type(value).__name__}")
            return _join(key[1:].upper(), [self.mapping(part, depth + 1) for part in value])
        if key == "$not":
            return f"NOT ({self.mapping(value, depth + 1)})"
        if key.startswith("$"):
            raise InvalidQueryError(f"unknown operator {key!r}; at the top level there are $and, $or and $not")
        if not isinstance(value, Mapping):
            return self._operator(key, "$eq", value)
        if not value:
            raise InvalidQueryError(f"field {key!r}: an empty mapping says nothing; use {{'$exists': True}}")
        return _join("AND", [self._operator(key, operator, operand) for operator, operand in value.items()])

    def _operator(self, field: str, operator: Any, operand: Any) -> str:
        self._count()
        if operator in ("$ne", "$nin"):
            positive = self._operator(field, "$eq" if operator == "$ne" else "$in", operand)
            return f"NOT ({positive})"
        if operator == "$exists":
            if not isinstance(operand, bool):
                raise InvalidQueryError(f"field {field!r}: $exists takes True or False, not {operand!r}")
            present = self._over(field, lambda kind, value: "1")
            return present if operand else f"NOT ({present})"
        return self._over(field, self._test(field, operator, operand))

    def _test(self, field: str, operator: Any, operand: Any) -> Test:
        if operator == "$eq":
            return self._equal(field, operand)
        if operator == "$in":
            return self._any_of(field, operand)
        if operator in _COMPARISONS:
            return self._compare(field, operator, operand)
        if operator == "$contains":
            element = self._equal(field, operand)
            return lambda kind, value: (  # CASE: json_each must not see what is not JSON
                f"CASE WHEN {kind} = 'array' THEN EXISTS (SELECT 1 FROM json_each({value}) AS item "
                f"WHERE {element('item.type', 'item.value')}) ELSE 0 END"
            )
        known = "$eq, $ne, $in, $nin, $gt, $gte, $lt, $lte, $exists, $contains"
        raise InvalidQueryError(f"field {field!r}: unknown operator {operator!r}; there are {known}")

    def _equal(self, field: str, operand: Any) -> Test:
        if operand is None:
            return lambda kind, value: f"{kind} = 'null'"
        if isinstance(operand, bool):
            literal = "true" if operand else "false"
            return lambda kind, value: f"{kind} = '{literal}'"
        return self._ordered(field, "=", operand)

    def _compare(self, field: str, operator: str, operand: Any) -> Test:
        if operand is None or isinstance(operand, bool):
            raise InvalidQueryError(f"field {field!r}: {operator} compares numbers or strings, not {operand!r}")
        return self._ordered(field, _COMPARISONS[operator], operand)

    def _ordered(self, field: str, sign: str, operand: Any) -> Test:
        if isinstance(operand, str):
            text = self._bind(_text(field, operand))
            return lambda kind, value: f"({kind} = 'text' AND {value} {sign} {text})"
        number = self._number(field, operand)
        return lambda kind, value: f"({kind} IN {_NUMBERS} AND {value} {sign} {number})"

    def _any_of(self, field: str, operands: Any) -> Test:
        if not isinstance(operands, Collection) or isinstance(operands, (str, bytes, Mapping)):
            raise InvalidQueryError(f"field {field!r}: $in and $nin take a list of values, not {operands!r}")
        texts = [self._bind(_text(field, v)) for v in operands if isinstance(v, str)]
        exact = [self._equal(field, v) for v in {v for v in operands if v is None or isinstance(v, bool)}]
        numbers = [self._number(field, v) for v in operands if not (v is None or isinstance(v, (bool, str)))]
        return lambda kind, value: _join(
            "OR",
            [
                f"({kind} = 'text' AND {value} IN ({', '.join(texts)}))",
                f"({kind} IN {_NUMBERS} AND {value} IN ({', '.join(numbers)}))",
                *(test(kind, value) for test in exact),
            ],
        )

    def _number(self, field: str, operand: Any) -> str:
        if isinstance(operand, bool) or not isinstance(operand, (int, float)):
            raise InvalidQueryError(
                f"field {field!r}: cannot compare with {type(operand).__name__}; use strings, numbers, booleans or None"
            )
        if isinstance(operand, float):
            if math.isnan(operand):
                raise InvalidQueryError(f"field {field!r}: NaN compares with nothing")
            if math.isfinite(operand):
                # The same text through the same parser as the stored value, so that equal numbers stay equal.
                return f"json_extract({self._bind(json.dumps(float(operand)))}, '$')"
        elif not -(2**63) <= operand < 2**63:
            raise InvalidQueryError(f"field {field!r}: integers beyond 64 bits cannot be compared; use a float")
        return self._bind(operand)

    def _over(self, field: str, test: Test) -> str:
        """Apply `test` to the field's type and value; false, never NULL, when the field is absent."""
        # Comparing keys rather than JSON paths: a path cannot express every name (quotes, escapes).
        name = self._bind(_text(field, field))
        matches = test("field.type", "field.value")
        return f"EXISTS (SELECT 1 FROM json_each(metadata) AS field WHERE field.key = {name} AND {matches})"

    def _count(self) -> None:
        self._terms += 1
        if self._terms > _MAX_TERMS:
            raise InvalidQueryError(f"the filter has more than {_MAX_TERMS} terms; use $in, or a Python function")

    def _bind(self, value: Any) -> str:
        if len(self.parameters) >= _MAX_VALUES:
            raise InvalidQueryError(f"the filter has more than {_MAX_VALUES} values; use a Python function instead")
        name = f"f{len(self.parameters)}"
        self.parameters[name] = value
        return f":{name}"


def _join(word: str, parts: list[str]) -> str:
    """Join conditions like Python's `all` and `any`: no part is true for AND, false for OR."""
    if not parts:
        return "1" if word == "AND" else "0"
    return "(" + f" {word} ".join(parts) + ")"


def _text(field: str, value: str) -> str:
    if not is_unicode(value):
        raise InvalidQueryError(f"field {field!r}: the filter holds text that is not valid Unicode")
    return str(value)
