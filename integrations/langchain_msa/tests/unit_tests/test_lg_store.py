"""MSAStore as LangGraph's store: the same tests over LangGraph's own in-memory store and over ours."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from langgraph.store.base import (
    BaseStore,
    GetOp,
    InvalidNamespaceError,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchOp,
)
from langgraph.store.memory import InMemoryStore

from facade import TOPICS, about, opened
from langchain_msa import MSAStore
from msa_plugin import dates
from msa_plugin.errors import ConfigError, InvalidDocumentError, InvalidQueryError, MSAError

ANN, BOB = ("users", "ann"), ("users", "bob")


def by_letters(texts):
    """Embeddings that know which topic a text is of."""
    return [np.array([text.lower().count(topic) for topic in TOPICS], dtype=float).tolist() for text in texts]


@pytest.fixture
def ours(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        yield MSAStore(memory)


@pytest.fixture(params=["langgraph", "msa"])
def store(request) -> BaseStore:
    if request.param == "langgraph":
        return InMemoryStore(index={"dims": len(TOPICS), "embed": by_letters})
    return request.getfixturevalue("ours")


def keys(items):
    return [item.key for item in items]


def test_what_is_put_is_got_until_it_is_deleted(store):
    store.put(ANN, "food", {"likes": ["pizza", {"but": None}], "n": 1.5, "so": True})
    item = store.get(ANN, "food")
    assert (item.key, item.namespace) == ("food", ANN)
    assert item.value == {"likes": ["pizza", {"but": None}], "n": 1.5, "so": True}
    assert timedelta(0) <= datetime.now(timezone.utc) - item.created_at < timedelta(minutes=1)
    store.put(ANN, "food", {"likes": "tea"})
    assert store.get(ANN, "food").value == {"likes": "tea"}
    assert store.get(ANN, "food").updated_at >= item.updated_at
    assert store.get(BOB, "food") is None and store.get(ANN, "drink") is None
    store.delete(ANN, "food")
    store.delete(ANN, "never there")
    assert store.get(ANN, "food") is None


def test_search_ranks_what_is_below_a_prefix(store):
    for n, topic in enumerate(TOPICS):
        store.put(ANN if n % 2 else BOB, topic, {"text": about(topic)})
    store.put(("users",), "glaciers", {"text": about("glacier") + " ice"})
    store.put(("users-2",), "glacier", {"text": about("glacier")})
    best = store.search(("users",), query="glacier", limit=2)
    assert set(keys(best)) == {"glacier", "glaciers"} and best[0].score >= best[1].score > 0
    assert {item.namespace for item in best} == {BOB, ("users",)}
    assert keys(store.search(ANN, query="violin", limit=1)) == ["violin"]
    assert set(keys(store.search(ANN, query="glacier", limit=10))) == set(TOPICS[1::2])
    assert len(store.search((), query="glacier", limit=20)) == 10
    pages = [store.search(ANN, query="violin", limit=2, offset=n) for n in (0, 2, 4)]
    assert keys(pages[0] + pages[1]) == keys(store.search(ANN, query="violin", limit=4)) and pages[2] == []


def test_search_without_a_query_lists(store):
    for n in range(6):
        store.put(ANN if n < 4 else BOB, f"k{n}", {"n": n})
    assert keys(store.search(ANN)) == ["k0", "k1", "k2", "k3"]
    assert all(item.score is None for item in store.search(ANN))
    assert keys(store.search(("users",), limit=2, offset=3)) == ["k3", "k4"]
    assert store.search(ANN, limit=0) == [] == store.search(("nobody",)) == store.search(("user",))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"n": 2}, "b"),
        ({"n": 2.0}, "b"),
        ({"n": {"$gt": 1}}, "b"),
        ({"n": {"$gte": 1, "$lt": 2}}, "a"),
        ({"n": {"$lte": 1}}, "a"),
        ({"n": {"$ne": 1}}, "bc"),
        ({"n": {"$eq": 1}}, "a"),
        ({"kind": "x", "n": {"$gt": 1}}, "b"),
        ({"kind": "nothing"}, ""),
        ({"tags": ["p", "q"]}, "a"),
        ({"tags": ["p"]}, ""),
        ({"deep": {"level": 1}}, "a"),
        ({"deep": {"level": {"$eq": 2}}}, "b"),
        ({"deep": {"level": 2}, "n": 1}, ""),
        ({"none": None}, "abc"),
        ({}, "abc"),
    ],
)
def test_filters(store, given, expected):
    store.put(ANN, "a", {"text": about("glacier"), "n": 1, "kind": "x", "tags": ["p", "q"], "deep": {"level": 1}})
    store.put(ANN, "b", {"text": about("violin"), "n": 2, "kind": "x", "deep": {"level": 2, "more": 1}})
    store.put(ANN, "c", {"text": about("meteor"), "n": None})
    if any(isinstance(v, dict) and set(v) & {"$gt", "$gte", "$lt", "$lte"} for v in given.values()):
        store.delete(ANN, "c")  # LangGraph's own store cannot compare null
    assert "".join(sorted(keys(store.search(ANN, filter=given)))) == expected
    assert "".join(sorted(keys(store.search(ANN, query="glacier", filter=given)))) == expected


def test_what_is_not_indexed_is_not_ranked(store):
    store.put(ANN, "ranked", {"text": about("violin")})
    store.put(ANN, "hidden", {"text": about("glacier")}, index=False)
    found = store.search(ANN, query="glacier")
    assert keys(found) == ["ranked", "hidden"] and found[0].score is not None and found[1].score is None
    assert keys(store.search(ANN, query="glacier", limit=1)) == ["ranked"]
    assert store.get(ANN, "hidden").value == {"text": about("glacier")}


def test_only_the_named_fields_are_found_by(store):
    store.put(ANN, "a", {"say": [{"it": about("violin")}], "not": about("glacier")}, index=["say[*].it"])
    store.put(ANN, "b", {"say": [{"it": about("glacier")}], "not": about("violin")}, index=["say[*].it"])
    assert keys(store.search(ANN, query="glacier", limit=1)) == ["b"]
    store.put(ANN, "c", {"other": about("glacier")}, index=["say"])
    assert [item.score is None for item in store.search(ANN, query="glacier")] == [False, False, True]


def test_namespaces_are_listed(store):
    for path in (("a", "b", "c"), ("a", "b", "d", "e"), ("a", "b", "d", "i"), ("a", "b", "f"), ("a", "c", "f"), ("b",)):
        store.put(path, "k", {"x": 1})
    assert store.list_namespaces(prefix=("a", "b"), max_depth=3) == [("a", "b", "c"), ("a", "b", "d"), ("a", "b", "f")]
    assert store.list_namespaces(suffix=("f",)) == [("a", "b", "f"), ("a", "c", "f")]
    assert store.list_namespaces(prefix=("a", "*", "f")) == [("a", "b", "f"), ("a", "c", "f")]
    assert store.list_namespaces(prefix=("*", "b"), suffix=("*", "e")) == [("a", "b", "d", "e")]
    assert store.list_namespaces(limit=2, offset=1) == [("a", "b", "d", "e"), ("a", "b", "d", "i")]
    assert store.list_namespaces(prefix=("aa",)) == []


def test_a_batch_reads_before_it_writes_and_the_last_write_counts(store):
    store.put(ANN, "old", {"n": 0})
    results = store.batch(
        [
            PutOp(ANN, "new", {"n": 1}),
            PutOp(ANN, "new", {"n": 2}),
            PutOp(ANN, "old", None),
            GetOp(ANN, "old"),
            GetOp(ANN, "new"),
            SearchOp(("users",)),
            ListNamespacesOp((MatchCondition("prefix", ("users",)),)),
            PutOp(BOB, "new", {"n": 3}),
        ]
    )
    assert [getattr(r, "value", r) for r in results[:5]] == [None, None, None, {"n": 0}, None]
    assert keys(results[5]) == ["old"] and results[6] == [ANN] and results[7] is None
    assert store.get(ANN, "new").value == {"n": 2} and store.get(BOB, "new").value == {"n": 3}
    assert store.get(ANN, "old") is None


async def test_everything_is_there_async(store):
    await store.aput(ANN, "a", {"text": about("glacier")})
    await asyncio.gather(*(store.aput(ANN, f"k{n}", {"n": n}, index=False) for n in range(5)))
    assert (await store.aget(ANN, "a")).value == {"text": about("glacier")}
    assert keys(await store.asearch(ANN, query="glacier", limit=1)) == ["a"]
    assert await store.alist_namespaces() == [ANN]
    await store.adelete(ANN, "a")
    assert await store.aget(ANN, "a") is None and len(await store.asearch(ANN)) == 5


@pytest.mark.parametrize("namespace", [(), ("a.b",), ("",), ("a", ""), ("langgraph",), (3,), ("a\x00",)])
def test_namespaces_that_langgraph_refuses(store, namespace):
    with pytest.raises(InvalidNamespaceError):
        store.put(namespace, "k", {"x": 1})


@pytest.mark.parametrize("label", ["a/b", "%2F", "*", " ", "ä🌍", "'; DROP TABLE documents; --", "a\nb"])
def test_odd_namespaces_and_keys(store, label):
    store.put((label, label), label, {label: label})
    store.put((label,), label, {"n": 1})
    assert store.get((label, label), label).value == {label: label}
    assert len(store.search((label,))) == 2 and keys(store.search((label,), filter={label: label})) == [label]
    if label != "*":
        assert store.list_namespaces(prefix=(label,)) == [(label,), (label, label)]


# -- ours alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [{"x": object()}, {"x": {1, 2}}, {"x": float("nan")}, {3: 4}, [1], {"x": "\ud800"}])
def test_values_that_are_not_json_are_refused_before_anything_is_written(ours, value):
    with pytest.raises(InvalidDocumentError):
        ours.batch([PutOp(ANN, "good", {"x": 1}), PutOp(BOB, "bad", value)])
    assert ours.get(ANN, "good") is None


def test_questions_that_mean_nothing(ours):
    ours.put(ANN, "a", {"x": 1})
    for wrong in ({"limit": -1}, {"offset": -1}, {"filter": {"x": {"$in": [1]}}}, {"filter": [1]}):
        with pytest.raises(InvalidQueryError):
            ours.search(ANN, **wrong)
    with pytest.raises(MSAError):
        ours.put(ANN, "", {"x": 1})
    with pytest.raises(ConfigError):
        MSAStore()
    assert keys(ours.search(ANN, query="  ")) == ["a"]


def test_text_and_numbers_have_no_order(ours):
    ours.put(ANN, "text", {"x": "b", "y": {"z": 1}})
    ours.put(ANN, "number", {"x": 2, "y": {"z": 1}})
    assert keys(ours.search(ANN, filter={"x": {"$gt": "a"}})) == ["text"]
    assert keys(ours.search(ANN, filter={"x": {"$gt": 1}, "y": {"z": 1}})) == ["number"]


def test_times_to_live(ours, monkeypatch):
    now = datetime.now(timezone.utc)
    monkeypatch.setattr(dates, "clock", lambda: now.isoformat())
    ours.put(ANN, "short", {"text": about("glacier")}, ttl=10)
    ours.put(ANN, "read", {"text": about("violin")}, ttl=10)
    ours.put(ANN, "lasting", {"text": about("meteor")})
    now += timedelta(minutes=9)
    assert ours.get(ANN, "read") and ours.get(ANN, "short", refresh_ttl=False)
    now += timedelta(minutes=9)
    assert ours.get(ANN, "short") is None
    assert set(keys(ours.search(ANN, query="glacier", refresh_ttl=False))) == {"read", "lasting"}
    assert set(keys(ours.search(ANN))) == {"read", "lasting"}
    assert set(keys(ours.search(ANN, filter={"text": {"$ne": {"deep": 1}}}, refresh_ttl=False))) == {"read", "lasting"}
    assert ours.sweep_ttl() == 1 and ours.sweep_ttl() == 0
    now -= timedelta(days=400)  # the clock goes back: nothing is lost, and nothing was updated before it was made
    assert len(ours.search(ANN)) == 2
    ours.put(ANN, "lasting", {"text": "new"})
    assert ours.get(ANN, "lasting").updated_at >= ours.get(ANN, "lasting").created_at


def test_reading_what_has_a_time_to_live_moves_nothing(ours):
    for n in range(6):
        ours.put(ANN, f"k{n}", {"n": n}, ttl=10 if n % 2 else None)
    for _ in range(2):
        pages = [keys(ours.search(ANN, limit=2, offset=offset)) for offset in (0, 2, 4)]
        assert sum(pages, []) == [f"k{n}" for n in range(6)]  # noqa: RUF017 - three short lists
    ours.put(ANN, "k1", {"n": 9}, ttl=10)
    assert keys(ours.search(ANN)) == ["k0", "k2", "k3", "k4", "k5", "k1"]


def test_defaults_of_ttl(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        store = MSAStore(memory, ttl={"default_ttl": 0.0, "refresh_on_read": False})
        store.put(ANN, "gone", {"x": 1})
        store.put(ANN, "kept", {"x": 1}, ttl=None)
        assert keys(store.search(ANN)) == ["kept"]


def test_fields_of_a_whole_store(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        store = MSAStore(memory, fields=["say"])
        store.put(ANN, "a", {"say": about("violin"), "not": about("glacier")})
        store.put(ANN, "b", {"say": about("glacier"), "not": about("violin")})
        assert keys(store.search(ANN, query="glacier", limit=1)) == ["b"]


def test_newer_items_rank_higher_where_the_memory_says_so(tmp_path, backbone, monkeypatch):
    found = {}
    for recency in (None, 30):
        with opened(tmp_path / str(recency), backbone, recency=recency) as memory:
            store = MSAStore(memory)
            for month in range(1, 4):
                monkeypatch.setattr(dates, "clock", lambda month=month: f"2026-0{month}-01T00:00:00+00:00")
                store.put(("a",), str(month), {"text": about("violin")})
            found[recency] = [item.key for item in store.search(("a",), query="violin")]
    assert found == {None: ["1", "2", "3"], 30: ["3", "2", "1"]}


def test_two_stores_and_a_memory_on_one_bank(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory, opened(tmp_path, backbone) as other:
        one, two = MSAStore(memory), MSAStore(other)
        memory.add([{"id": "doc", "text": about("glacier")}])
        one.put(ANN, "a", {"text": about("glacier")})
        two.put(BOB, "b", {"text": about("violin")})
        one.put(ANN, "c", {"text": about("meteor")})
        memory.refresh()
        other.refresh()
        assert set(keys(one.search(()))) == set(keys(two.search(()))) == {"a", "b", "c"}
        assert memory.within("store").namespaces() == [ANN, BOB] and [h.id for h in memory.retrieve("glacier")] == [
            "doc"
        ]


def test_it_is_all_there_after_a_restart_and_can_be_read_only(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        MSAStore(memory).put(ANN, "a", {"text": about("glacier")}, ttl=60)
    with opened(tmp_path, backbone, read_only=True) as memory:
        store = MSAStore(memory)
        assert keys(store.search(ANN, query="glacier")) == ["a"] and store.get(ANN, "a")
        with pytest.raises(MSAError):
            store.put(ANN, "b", {"x": 1})
        store.close()
        with pytest.raises(ConfigError):
            store.get(ANN, "a")


def test_threads_lose_nothing(ours):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: ours.put(("t", str(n % 4)), f"k{n}", {"text": f"number {n}"}), range(24)))
        assert all(pool.map(lambda n: ours.get(("t", str(n % 4)), f"k{n}"), range(24)))
    assert len(ours.search(("t",), limit=100)) == 24
