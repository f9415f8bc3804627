"""The filter language: a table of cases, hostile names and values, and agreement with plain Python."""

import math
import operator as operators

import pytest
from bank_builder import NS, encoded, open_bank
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from msa_plugin.bank.filters import compile_filter
from msa_plugin.errors import InvalidQueryError

ROWS = {
    "one": {"n": 1, "s": "apple", "b": True, "tags": ["x", "y", 1], "none": None},
    "two": {"n": 2.5, "s": "Banana", "b": False, "tags": [], "a b": "spaced"},
    "three": {"n": "1", "s": "ünïcode 😀", "b": 1, "tags": "x", "q\"u'o\\te": "odd"},
    "four": {"n": True, "s": "", "none": 0, "tags": [None, True], "nested": {"n": 1}, "$n": "dollar"},
    "five": {},
}

CASES = [
    ({}, "one two three four five"),
    ({"n": 1}, "one"),
    ({"n": 1.0}, "one"),
    ({"n": True}, "four"),
    ({"n": "1"}, "three"),
    ({"b": True}, "one"),
    ({"b": 1}, "three"),
    ({"b": False}, "two"),
    ({"none": None}, "one"),
    ({"none": {"$exists": True}}, "one four"),
    ({"none": {"$exists": False}}, "two three five"),
    ({"s": ""}, "four"),
    ({"s": "ünïcode 😀"}, "three"),
    ({"n": {"$ne": 1}}, "two three four five"),
    ({"n": {"$in": [1, 2.5, "1"]}}, "one two three"),
    ({"n": {"$in": [True, None]}}, "four"),
    ({"n": {"$in": []}}, ""),
    ({"n": {"$in": (2.5,)}}, "two"),
    ({"n": {"$nin": [1, True]}}, "two three five"),
    ({"n": {"$nin": []}}, "one two three four five"),
    ({"n": {"$gt": 1}}, "two"),
    ({"n": {"$gte": 1}}, "one two"),
    ({"n": {"$lt": 2.5, "$gt": 0}}, "one"),
    ({"n": {"$lte": math.inf}}, "one two"),
    ({"n": {"$gt": "0"}}, "three"),
    ({"s": {"$lt": "a"}}, "two four"),
    ({"tags": {"$contains": "x"}}, "one"),
    ({"tags": {"$contains": 1}}, "one"),
    ({"tags": {"$contains": True}}, "four"),
    ({"tags": {"$contains": None}}, "four"),
    ({"n": {"$contains": 1}}, ""),
    ({"a b": "spaced"}, "two"),
    ({"q\"u'o\\te": "odd"}, "three"),
    ({"nested": {"$exists": True}}, "four"),
    ({"nested.n": 1}, ""),
    ({"n": 1, "s": "apple"}, "one"),
    ({"$or": [{"n": 1}, {"s": "Banana"}]}, "one two"),
    ({"$and": [{"n": {"$exists": True}}, {"$not": {"n": 1}}]}, "two three four"),
    ({"$not": {"$or": [{"n": 1}, {"n": 2.5}]}}, "three four five"),
    ({"$not": {"n": {"$gt": 1}}}, "one three four five"),
    ({"$or": []}, ""),
    ({"$and": []}, "one two three four five"),
    ({"$not": {}}, ""),
    ({"missing": {"$nin": ["x"]}}, "one two three four five"),
    (lambda m: isinstance(m.get("tags"), list), "one two four"),
    (lambda m: 0, ""),
]

REFUSED = [
    ({"n": {"$regex": "x"}}, r"unknown operator '\$regex'"),
    ({"n": {"gt": 1}}, "unknown operator 'gt'"),
    ({"n": {1: 1}}, "unknown operator 1"),
    ({"n": {}}, "empty mapping"),
    ({"$nor": []}, r"unknown operator '\$nor'"),
    ({"$and": {"n": 1}}, "list of filters"),
    ({"$or": [1]}, "mapping of field"),
    ({"$not": [{}]}, "mapping of field"),
    ({"n": [1, 2]}, "cannot compare with list"),
    ({"n": {"$in": "abc"}}, "list of values"),
    ({"n": {"$in": {"a": 1}}}, "list of values"),
    ({"n": {"$in": [[1]]}}, "cannot compare with list"),
    ({"n": {"$gt": None}}, "compares numbers or strings"),
    ({"n": {"$gt": True}}, "compares numbers or strings"),
    ({"n": {"$exists": 1}}, "True or False"),
    ({"n": math.nan}, "NaN"),
    ({"n": 2**63}, "64 bits"),
    ({"n": b"x"}, "cannot compare with bytes"),
    ({"n": "\ud800"}, "not valid Unicode"),
    ({"\ud800": 1}, "not valid Unicode"),
    ({1: 1}, "field names"),
    ([("n", 1)], "mapping or a function"),
    ("n = 1", "mapping or a function"),
    ({"$or": [{"n": i} for i in range(1000)]}, "more than 400 terms"),
    ({"n": {"$in": list(range(20_000))}}, "more than 10000 values"),
    (lambda m: m["absent"], "raised KeyError"),
]


def nest(depth):
    where = {"n": 1}
    for _ in range(depth):
        where = {"$not": where}
    return where


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    with open_bank(tmp_path_factory.mktemp("filters") / "bank") as bank:
        bank.commit([encoded(name, chunks=1, content=False, **metadata) for name, metadata in ROWS.items()], NS)
        bank.commit([encoded(f"foreign {name}", content=False, **ROWS[name]) for name in ROWS], "other")
        yield bank


def matching(bank, where, namespace=NS):
    selection = bank.select(namespace, where)
    ordinals = [
        ordinal
        for block in selection.key_blocks("3")
        for n, ordinal in enumerate(block.ordinals.tolist())
        if block.allowed is None or block.allowed[n]
    ]
    assert len(ordinals) == selection.documents
    return [d.id for d in bank.documents(ordinals)]


@pytest.mark.parametrize(("where", "expected"), CASES)
def test_cases(library, where, expected):
    assert matching(library, where) == expected.split()


@pytest.mark.parametrize(("where", "message"), REFUSED)
def test_refusals_say_why(library, where, message):
    with pytest.raises(InvalidQueryError, match=message):
        library.select(NS, where)
    assert library.count(NS) == len(ROWS), "the bank is usable afterwards"


def test_deep_filters(library):
    assert matching(library, nest(20)) == ["one"]
    with pytest.raises(InvalidQueryError, match="nested"):
        library.select(NS, nest(500))


def test_the_largest_filters_that_are_accepted_run(library):
    assert matching(library, {"$or": [{"n": i} for i in range(190)]}) == ["one"]
    assert matching(library, {"n": {"$in": list(range(9_000))}}) == ["one"]
    assert matching(library, {"$and": [{"$or": [{"n": {"$in": [1, str(i)]}}]} for i in range(100)]}) == ["one"]


HOSTILE = [
    "x' OR '1'='1", 'x" OR 1=1 --', "'; DROP TABLE documents; --", "n') IS NOT NULL OR ('1'='1",
    ".n", "[0]", '"n"', ":f0", "?", "namespace", "field.key", "%", "", "\\", "\0n", "n\0",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_and_values_are_only_data(library, text):
    assert matching(library, {text: 1}) == []
    assert matching(library, {"s": text}) == (["four"] if text == "" else [])
    assert matching(library, {"s": {"$in": [text, "apple"]}}) == ["one"] + ["four"] * (text == "")
    assert matching(library, {"tags": {"$contains": text}}) == []
    assert matching(library, {text: {"$exists": False}}) == list(ROWS)
    assert matching(library, {"n": 1}, namespace=text or "none") == []
    compiled = compile_filter({text or "empty": text or "empty"})
    assert text == "" or text in ("?", ":f0", "%", "\\", "field.key") or text not in compiled.sql


@pytest.mark.parametrize("text", [t for t in HOSTILE if "\0" not in t])
def test_hostile_names_and_values_can_be_stored_and_found(bank, text):
    bank.commit([encoded("hit", chunks=1, **{text: text}), encoded("miss", chunks=1)], text or "empty")
    assert matching(bank, {text: text}, text or "empty") == ["hit"]
    assert matching(bank, {text: {"$ne": text}}, text or "empty") == ["miss"]


# -- agreement with plain Python ----

NAMES = st.sampled_from(["a", "b", "c d", 'e"', "é\\u0041"])
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "a", "b", "1"]),
    TEXTS,
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(TEXTS, SCALARS, max_size=2))
ORDERED = SCALARS.filter(lambda v: v is not None and not isinstance(v, bool))
OPERATORS = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne", "$contains"]), SCALARS),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=4)),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ORDERED),
    st.tuples(st.just("$exists"), st.booleans()),
)
LEAVES = st.one_of(
    st.dictionaries(NAMES, SCALARS, max_size=2),
    st.dictionaries(NAMES, st.lists(OPERATORS, min_size=1, max_size=2).map(dict), max_size=2),
)
FILTERS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=6,
)
ABSENT = object()


def kind(value):
    for name, types in (("bool", bool), ("number", (int, float)), ("text", str), ("list", list)):
        if isinstance(value, types):
            return name
    return "null" if value is None else "other"


def equal(value, operand):
    return kind(value) == kind(operand) and value == operand


def holds(operator, value, operand):
    if operator == "$exists":
        return (value is not ABSENT) == operand
    if operator in ("$ne", "$nin"):
        return not holds({"$ne": "$eq", "$nin": "$in"}[operator], value, operand)
    if value is ABSENT:
        return False
    if operator == "$eq":
        return equal(value, operand)
    if operator == "$in":
        return any(equal(value, o) for o in operand)
    if operator == "$contains":
        return isinstance(value, list) and any(equal(v, operand) for v in value)
    if kind(value) != kind(operand):
        return False
    ordered = {"$gt": operators.gt, "$gte": operators.ge, "$lt": operators.lt, "$lte": operators.le}
    return ordered[operator](value, operand)


def accepts(where, metadata):
    def entry(key, value):
        if key == "$and":
            return all(accepts(part, metadata) for part in value)
        if key == "$or":
            return any(accepts(part, metadata) for part in value)
        if key == "$not":
            return not accepts(value, metadata)
        tests = value if isinstance(value, dict) else {"$eq": value}
        return all(holds(op, metadata.get(key, ABSENT), operand) for op, operand in tests.items())

    return all(entry(key, value) for key, value in where.items())


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=st.lists(st.dictionaries(NAMES, VALUES, max_size=4), min_size=1, max_size=6), where=FILTERS)
@example(rows=[{"a": 0.1 + 0.2}, {"a": 0.3}], where={"a": 0.1 + 0.2})
@example(rows=[{"a": 2**53 + 1}], where={"a": {"$gt": float(2**53)}})
@example(rows=[{"a": 5e-324}, {"a": 0}], where={"a": {"$gt": 0}})
def test_sql_agrees_with_python(property_bank, rows, where):
    bank = property_bank
    bank.delete(list(bank.iter_ids(NS)), NS)
    bank.commit([encoded(str(n), chunks=1, content=False, **row) for n, row in enumerate(rows)], NS)
    expected = [str(n) for n, row in enumerate(rows) if accepts(where, row)]
    assert matching(bank, where) == expected
    assert matching(bank, lambda metadata: accepts(where, metadata)) == expected


@pytest.fixture(scope="module")
def property_bank(tmp_path_factory):
    with open_bank(tmp_path_factory.mktemp("property") / "bank") as bank:
        yield bank
