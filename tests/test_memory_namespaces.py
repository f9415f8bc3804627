"""Namespaces in namespaces: handles, listing, finding below a path, and what that costs beside many others."""

import asyncio

import pytest

from facade import about
from msa_plugin.bank.scopes import Scope
from msa_plugin.errors import ConfigError, InvalidQueryError
from msa_plugin.memory import LatentMemory

ODD = ("a/b", "%2F", "50%", " ", "\u00e4\U0001f30d", "a\nb", "..", "'; DROP TABLE documents; --", "*", "\x1f")


def test_a_nested_handle_sees_its_own_namespace_alone(memory):
    ann, bob = memory.within("users", "ann"), memory.within("users").within("bob")
    ann.add([{"id": "note", "text": about("glacier")}])
    bob.add([{"id": "note", "text": about("violin")}])
    memory.add([{"id": "note", "text": about("meteor")}])
    for change in (memory.refresh, memory.compact):  # at last all lie in one segment
        change()
        assert ann.get("note")[0].text == about("glacier")
        assert [hit.text for hit in bob.retrieve("violin", 5)] == [about("violin")]
        assert list(memory.ids()) == ["note"] and memory.stats().documents == 1
    assert memory.stats().segments == 1
    assert memory.namespaces() == [(), ("users", "ann"), ("users", "bob")]
    assert memory.within("users").namespaces() == [("ann",), ("bob",)]
    ann.delete("note")
    assert memory.namespaces() == [(), ("users", "bob")]


def test_below_finds_in_all_nested_namespaces_and_says_where(memory):
    for user, topic in (("ann", "glacier"), ("bob", "violin"), ("bobby", "saffron")):
        memory.within("users", user).add([{"id": topic, "text": about(topic), "metadata": {"by": user}}])
    memory.within("users").add([{"id": "rules", "text": about("compiler")}])
    memory.within("users-2").add([{"id": "other", "text": about("violin") + " violin"}])
    memory.within("user").add([{"id": "none", "text": about("violin")}])
    users = memory.within("users", below=True)
    hits = users.retrieve("violin", 10)
    assert {(hit.id, users.labels(hit.namespace)) for hit in hits} == {
        ("glacier", ("ann",)),
        ("violin", ("bob",)),
        ("saffron", ("bobby",)),
        ("rules", ()),
    }
    alone = memory.within("users", "bob").retrieve("violin", 1)[0]
    assert hits[0].id == "violin" and hits[0].layer_scores == pytest.approx(alone.layer_scores)
    assert [hit.id for hit in users.retrieve("violin", 10, filter={"by": "ann"})] == ["glacier"]
    assert [hit.id for hit in users.retrieve("violin", 10, filter=lambda m: m.get("by") == "bobby")] == ["saffron"]
    assert len(memory.within(below=True).retrieve("violin", 10)) == 6
    users.add([{"id": "new", "text": "Adding is of the namespace itself."}])
    assert memory.within("users").get("new") and list(users.ids()) == ["new", "rules"]
    assert {source.id for source in users.ask("violin", max_new_tokens=1).sources} <= {hit.id for hit in hits} | {"new"}


@pytest.mark.parametrize("label", ODD)
def test_any_text_is_a_label(memory, label):
    memory.within(label, "x").add([{"id": "1", "text": about("glacier")}])
    memory.within(label).add([{"id": "2", "text": about("violin")}])
    assert set(memory.namespaces()) == {(label,), (label, "x")}
    found = memory.within(label, below=True).retrieve("violin", 5)
    assert {memory.labels(hit.namespace) for hit in found} == {(label,), (label, "x")}


@pytest.mark.parametrize("label", ["", None, 3, b"x", "\ud800"])
def test_what_is_no_label_is_refused(memory, label):
    with pytest.raises(InvalidQueryError):
        memory.within("users", label).add([{"id": "1", "text": "one"}])


def test_documents_are_listed_page_by_page(memory):
    memory.add([{"id": f"d{n}", "text": about("glacier") + str(n), "metadata": {"n": n}} for n in range(7)])
    memory.within("sub").add([{"id": "below", "text": "one more", "metadata": {"n": 7}}])
    assert [d.id for d in memory.documents(limit=3)] == ["d0", "d1", "d2"]
    assert [d.id for d in memory.documents(limit=3, offset=5)] == ["d5", "d6"]
    assert [d.id for d in memory.documents(filter={"n": {"$gte": 4}}, limit=2, offset=1)] == ["d5", "d6"]
    last = memory.within(below=True).documents(offset=7)[0]
    assert (last.id, memory.labels(last.namespace), last.metadata) == ("below", ("sub",), {"n": 7})
    memory.update({"id": "d0", "text": "written anew"})
    assert [d.id for d in memory.documents()] == ["d1", "d2", "d3", "d4", "d5", "d6", "d0"]
    assert memory.documents(limit=0) == []
    for wrong in ({"limit": -1}, {"offset": -1}, {"limit": "3"}, {"filter": 3}):
        with pytest.raises(InvalidQueryError):
            memory.documents(**wrong)


def test_closing_goes_from_the_memory_to_its_handles_and_not_back(memory):
    child = memory.within("a")
    grandchild = child.within("b")
    grandchild.add([{"id": "1", "text": "one"}])
    child.close()
    with pytest.raises(ConfigError):
        child.stats()
    with pytest.raises(ConfigError):
        grandchild.stats()
    assert memory.within("a", "b").get("1")
    other = memory.within("a", "b")
    memory.close()
    with pytest.raises(ConfigError):
        other.get("1")


def test_it_is_all_there_after_a_restart(tmp_path, backbone, adapter):
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter, namespace="tenant") as memory:
        asyncio.run(memory.within("a/b").aadd([{"id": "1", "text": "one"}]))
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter, namespace="tenant") as memory:
        assert memory.namespaces() == [("a/b",)]
        assert asyncio.run(memory.within("a/b").aget("1"))[0].text == "one"
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter, namespace="tenan") as memory:
        assert memory.namespaces() == [] and memory.within(below=True).retrieve("one") == []


@pytest.mark.parametrize("below", [False, True])
def test_no_query_walks_other_namespaces(memory, below):
    """SQLite's plan: every step searches an index by namespace, so that others cost nothing."""
    memory.add(["one"])
    db, scope = memory.engine.bank._views.now.catalog._db, Scope("default", below)
    sql = f"SELECT segment FROM documents WHERE {scope.sql} AND ordinal <= 9 AND (deleted IS NULL OR deleted > 9)"
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", scope.bound)]
    assert not [step for step in plan if step.startswith("SCAN")]
    assert any("namespace=?" in step for step in plan)
    assert not below or any("namespace>? AND namespace<?" in step for step in plan)
