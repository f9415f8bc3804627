"""When documents are valid: validity, expiry, replacement, and questions as of a date."""

import json
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import pytest

from facade import about, opened
from msa_plugin import dates
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.schema import CATALOG_FILE, connect
from msa_plugin.errors import EmptyMemoryError, InvalidDocumentError, InvalidQueryError, UnknownDocumentError

PAST, FUTURE = "2020-01-01", "2999-01-01"


def found(memory, **options):
    return {hit.id for hit in memory.retrieve("violin", 10, **options)}


def add(memory, name, text=None, **fields):
    return memory.add([{"id": name, "text": text or about("violin") + f" {name}", **fields}])


def test_only_what_is_valid_is_found(memory, clock):
    add(memory, "always")
    add(memory, "expired", valid_until=PAST)
    add(memory, "coming", valid_from=FUTURE)
    add(memory, "present", valid_from=PAST, valid_until=FUTURE)
    assert found(memory) == {"always", "present"} == found(memory, filter=lambda metadata: True)
    assert found(memory, at="2019-06-01") == {"always", "expired"}
    assert found(memory, at=date(2999, 1, 1)) == {"always", "coming"}  # until is not included
    assert found(memory, history=True) == {"always", "expired", "coming", "present"}
    assert [d.id for d in memory.documents()] == ["always", "present"]
    assert [d.id for d in memory.documents(at="2019-06-01")] == ["always", "expired"]
    assert memory.get("expired")[0].valid_until == "2020-01-01T00:00:00+00:00"
    assert memory.stats().documents == 4
    assert {source.id for source in memory.ask("violin", max_new_tokens=1).sources} <= {"always", "present"}
    with pytest.raises(UnknownDocumentError, match="as of that date"):
        memory.ask("violin", documents=["expired"], at="2021-01-01", max_new_tokens=1)
    chosen = memory.ask("violin", documents=["expired"], max_new_tokens=1)  # it may have expired since it was chosen
    assert chosen.sources[0].id == "expired" and chosen.sources[0].validity.valid_until == "2020-01-01T00:00:00+00:00"


def test_a_replacement_supersedes_and_history_says_so(memory, clock):
    add(memory, "old", valid_from="2024-01-01")
    add(memory, "new", valid_from="2025-01-01", replaces="old")
    assert found(memory) == {"new"} and found(memory, at="2024-06-01") == {"old"} and not found(memory, at="2023-01-01")
    hits = {hit.id: hit.validity for hit in memory.retrieve("violin", history=True)}
    assert hits["old"] == ("2024-01-01T00:00:00+00:00", "2025-01-01T00:00:00+00:00", "new")
    assert hits["new"] == ("2025-01-01T00:00:00+00:00", None, None)
    memory.delete("new")
    assert found(memory) == {"old"}
    add(memory, "new", replaces=["old", "never there"])
    memory.delete("old")
    assert found(memory) == {"new"}
    add(memory, "old")  # what is replaced stays so, in whatever order documents come
    assert found(memory) == {"new"} and memory.get("new")[0].replaces == ("old", "never there")


@pytest.mark.slow
@pytest.mark.parametrize("order", ["bcd", "dcb", "cbd"])
@pytest.mark.parametrize("gone", [["b", "c"], ["c", "b"], ["b"], ["c"]])
@pytest.mark.parametrize("together", [True, False])
def test_a_chain_stays_superseded_when_its_middle_is_forgotten(memory, clock, order, gone, together):
    for name in "a" + order:
        add(memory, name, replaces={"b": "a", "c": "b", "d": "c"}.get(name, ()))
    assert found(memory) == {"d"}
    for names in [gone] if together else gone:
        memory.delete(names)
    assert found(memory) == {"d"}
    add(memory, "d", about("violin") + " corrected", replaces="c")  # a new version inherits as well
    assert found(memory) == {"d"}
    memory.delete("d")
    assert found(memory) == {[name for name in "abc" if name not in gone][-1]}


def test_a_forgotten_middle_leaves_the_past_as_it_was(memory, clock):
    add(memory, "a")
    add(memory, "b", valid_from="2023-01-01", replaces="a")
    add(memory, "c", valid_from="2025-01-01", replaces="b")
    memory.delete("b")
    assert found(memory, at="2022-01-01") == {"a"} and not found(memory, at="2024-01-01") and found(memory) == {"c"}


def test_circles_are_refused_and_nothing_is_stored(memory):
    add(memory, "a", replaces="c")
    add(memory, "b", replaces="a")
    with pytest.raises(InvalidDocumentError, match="replaces it"):
        add(memory, "c", replaces="b")
    assert list(memory.ids()) == ["a", "b"]
    with pytest.raises(InvalidDocumentError, match="cannot replace itself"):
        add(memory, "a", replaces="a")


def test_a_clock_that_goes_back_hides_nothing_new(memory, clock):
    clock("2026-06-01")
    add(memory, "first")
    add(memory, "second", replaces="first")
    clock("2026-05-01")
    assert found(memory) == {"second"}
    add(memory, "third", replaces="second")
    assert found(memory) == {"third"}
    assert found(memory, at="2026-05-15") == {"first"} and found(memory, at="2026-06-01") == {"third"}
    add(memory, "short", valid_until="2026-05-10")
    assert "short" in found(memory)
    clock("2026-05-11")
    assert "short" not in found(memory)
    clock("2026-05-09")
    assert "short" in found(memory)


def test_time_passes_without_a_commit(memory, clock):
    add(memory, "one", valid_from="2026-06-01T13:00+00:00", valid_until="2026-06-01T14:00Z")
    add(memory, "two", valid_from="2026-06-01T13:30+00:00", replaces="three")
    add(memory, "three")
    seen = []
    for minutes in (0, 60, 90, 120):
        clock((datetime(2026, 6, 1, 12, tzinfo=timezone.utc) + timedelta(minutes=minutes)).isoformat())
        seen.append("".join(sorted(name[1] for name in found(memory))))
    assert seen == ["h", "hn", "nw", "w"]  # tHree, oNe, tWo


def test_the_same_again_is_free_and_dates_alone_cost_no_encoding(memory, monkeypatch):
    add(memory, "a", replaces="z", valid_until=FUTURE)
    assert add(memory, "a", replaces=["z"], valid_until=date(2999, 1, 1)).unchanged == ("a",)
    report = add(memory, "a", valid_until="2998-01-01")
    assert report.updated == ("a",) and report.tokens == 0
    assert memory.get("a")[0].valid_until == "2998-01-01T00:00:00+00:00" and memory.get("a")[0].replaces == ()
    add(memory, "a")
    assert memory.get("a")[0].valid_until is None


def test_namespaces_replace_within_themselves_alone(memory, clock):
    ann, bob = memory.within("ann"), memory.within("bob")
    for place in (ann, bob):
        add(place, "old")
    add(ann, "new", replaces="old")
    everyone = memory.within(below=True)
    assert sorted((hit.namespace[-3:], hit.id) for hit in everyone.retrieve("violin")) == [
        ("ann", "new"),
        ("bob", "old"),
    ]
    assert found(bob) == {"old"}
    add(bob, "gone", valid_until=PAST)
    assert len(everyone.retrieve("violin", 10)) == 2 and len(everyone.retrieve("violin", 10, history=True)) == 4


def test_a_snapshot_knows_what_was_valid_then(tmp_path, backbone, clock):
    with opened(tmp_path, backbone) as memory:
        add(memory, "old")
        add(memory, "middle", replaces="old")
        memory.snapshot("before")
        add(memory, "new", replaces="middle")
        memory.delete("middle")
        memory.compact()
        assert found(memory) == {"new"} and memory.verify().ok
    with opened(tmp_path, backbone, snapshot="before") as then:
        assert found(then) == {"middle"} and found(then, history=True) == {"old", "middle"}
    with opened(tmp_path, backbone, read_only=True) as again:
        assert found(again) == {"new"}


def test_words_are_counted_over_what_is_valid(tmp_path, backbone, clock):
    with opened(tmp_path, backbone, lexical=0.5) as memory:
        for name in "abc":
            add(memory, name)
        alone = {hit.id: hit.score for hit in memory.retrieve("violin a")}
        for number in range(20):
            add(memory, f"gone{number}", "a violin a violin a", valid_until=PAST)
        assert {hit.id: hit.score for hit in memory.retrieve("violin a")} == pytest.approx(alone)


def test_what_has_expired_can_be_forgotten(memory, clock):
    add(memory, "kept")
    add(memory, "gone", valid_until=PAST)
    add(memory.within("ann"), "gone", valid_until=PAST)
    assert memory.forget_expired().deleted == ("gone",)
    assert found(memory.within(below=True), history=True) == {"kept", "gone"}
    assert memory.within(below=True).forget_expired().deleted == ("gone",)
    assert found(memory.within(below=True), history=True) == {"kept"}
    assert memory.forget_expired().deleted == ()


@pytest.mark.parametrize("wrong", ["tomorrow", "", "2026-13-01", 7, "2026-01-01T00:00+99:00", "0001-01-01T00:00+10:00"])
def test_what_is_no_date_is_refused(memory, wrong):
    for name in ("valid_from", "valid_until"):
        with pytest.raises(InvalidDocumentError, match=f"{name}= takes .*zone: UTC"):
            add(memory, "x", **{name: wrong})
    with pytest.raises(InvalidQueryError, match=r"at= takes .*zone: UTC"):
        memory.retrieve("violin", at=wrong)


def test_what_makes_no_sense_is_refused(memory):
    with pytest.raises(InvalidDocumentError, match="later than valid_from"):
        add(memory, "x", valid_from="2026-01-01T12:00+02:00", valid_until="2026-01-01T10:00")
    for wrong in (7, [7], [""], {"a": 1}):
        with pytest.raises(InvalidDocumentError, match="an id or a list of ids"):
            add(memory, "x", replaces=wrong)
    with pytest.raises(InvalidQueryError, match="one of them"):
        memory.retrieve("violin", at=PAST, history=True)
    with pytest.raises(InvalidQueryError, match="True or False"):
        memory.ask("violin", history="yes")
    add(memory, "x", valid_until=PAST)
    with pytest.raises(EmptyMemoryError, match="valid at that time"):
        memory.ask("violin")


def test_zones_are_kept_and_none_is_utc(memory):
    for given in ("2026-01-01T10:00", "2026-01-01T12:00+02:00", "2026-01-01T10:00:00Z", datetime(2026, 1, 1, 10)):
        add(memory, "x", valid_from=given)
        assert memory.get("x")[0].valid_from == "2026-01-01T10:00:00+00:00"
    assert dates.instant("2026-01-01T10:00:00.5", "x", ValueError) > "2026-01-01T10:00:00+00:00"


def test_a_bank_that_knows_no_time_has_no_tables_for_it(tmp_path, memory, clock):
    add(memory, "old")
    assert found(memory) == {"old"}
    db = connect(memory.engine.bank.path / CATALOG_FILE, writable=False)
    tables = "SELECT count(*) FROM sqlite_master WHERE name IN ('periods', 'replacements')"
    assert db.execute(tables).fetchone() == (0,)
    add(memory, "new", replaces="old")
    assert found(memory) == {"new"} and db.execute(tables).fetchone() == (2,)
    db.close()


@pytest.mark.parametrize("table", ["periods", "replacements"])
def test_altered_dates_are_noticed_and_the_text_is_saved(tmp_path, backbone, table):
    with opened(tmp_path, backbone) as memory:
        add(memory, "old")
        add(memory, "new", replaces="old", valid_from=PAST)
    db = connect(tmp_path / "bank" / CATALOG_FILE, writable=True)
    db.execute(f"UPDATE {table} SET valid_from = '2998'")
    db.close()
    (tmp_path / "bank" / "catalog.seal").unlink()
    with opened(tmp_path, backbone, read_only=True) as memory:
        assert any("is valid does not match" in problem for problem in memory.verify().problems)
    report = repair_bank(tmp_path / "bank")
    [line] = [json.loads(line) for file in report.files for line in Path(file).read_text().splitlines()]
    assert line["id"] == "new" and report.salvaged == ("new",)
    with opened(tmp_path, backbone) as memory:
        assert found(memory) == {"old"}
