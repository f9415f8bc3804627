"""Changes go to the right shard, survive the loss of one, and leave nothing half done."""

import json

import pytest
from local import LocalActors

from facade import about, count_runs, topics
from msa_plugin import errors
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.cluster.actors import Lost
from msa_plugin.cluster.manifest import home, shard_folder


def stored(memory, shard):
    """Ids and ordinals of a shard, as an ordinary bank in its folder says."""
    bank = memory.engine.bank
    with MemoryBank.open(shard_folder(bank.path, shard), bank.fingerprint, read_only=True) as plain:
        return {i: at.ordinal for i, at in plain.lookup(list(plain.iter_ids("default")), "default").items()}


def all_stored(memory):
    first, second = stored(memory, 0), stored(memory, 1)
    assert not first.keys() & second.keys() and not set(first.values()) & set(second.values())
    return first | second


def test_a_document_lives_in_the_shard_of_its_id(open_cluster):
    memory = open_cluster()
    report = memory.add(topics())
    assert len(report.added) == len(topics()) and report.tokens > 0
    for shard in (0, 1):
        assert {home("default", i, 2) for i in stored(memory, shard)} == {shard}
    assert [all_stored(memory)[t["id"]] for t in topics()] == list(range(1, len(topics()) + 1))
    assert memory.verify().ok


def test_homes_never_change():
    assert [home("default", name, 5) for name in ("", "a", "violin", "\ud800", "ä")] == [3, 2, 1, 2, 2]
    assert len({home(space, "a", 1000) for space in map(str, range(50))}) > 25


def test_updates_and_deletions_reach_their_shard(open_cluster, monkeypatch):
    memory = open_cluster()
    memory.add(topics())
    runs = count_runs(monkeypatch)
    same = {**topics()[0], "metadata": {"number": 77}}
    assert memory.add([same, *topics()[1:]]).updated == ("lighthouse",) and not runs  # new metadata encode nothing
    assert memory.get("lighthouse")[0].metadata == {"number": 77}
    memory.update({"id": "violin", "text": "something else altogether"})
    with pytest.raises(errors.UnknownDocumentError):
        memory.update({"id": "absent", "text": "a text"})
    assert all_stored(memory) == {**{t["id"]: n for n, t in enumerate(topics(), 1)}, "lighthouse": 9, "violin": 10}
    report = memory.delete(["saffron", "absent", "violin", "saffron"])
    assert report.deleted == ("saffron", "violin") and report.missing == ("absent",)
    assert "violin" not in {h.id for h in memory.retrieve(about("violin"), 100)}
    memory.compact()
    assert memory.stats().deleted == 0 and memory.verify().ok


def test_what_is_there_already_costs_nothing(open_cluster, monkeypatch):
    memory = open_cluster()
    memory.add(topics())
    runs, actors = count_runs(monkeypatch), LocalActors.latest
    del actors.calls[:]
    assert len(memory.add(topics()).unchanged) == len(topics())
    assert not runs and "store" not in {method for _, method in actors.calls}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_shard_lost_during_an_add_loses_nothing(open_cluster, when):
    memory = open_cluster()
    memory.add(topics(2))
    LocalActors.latest.lose(1, "store", when=when)
    report = memory.add(topics())
    assert len(report.added) == len(topics()) - 2 and len(report.unchanged) == 2
    assert [all_stored(memory)[t["id"]] for t in topics()] == list(range(1, len(topics()) + 1))
    assert memory.verify().ok and LocalActors.latest.starts == [0, 1, 1]


def test_a_shard_lost_between_two_commits_stores_nothing_twice(open_cluster, monkeypatch):
    memory = open_cluster(segment_bytes=1)  # a commit for each document
    commit, done = MemoryBank.commit, []

    def failing(self, documents, namespace, ordinals=None):
        if len(done) == 3:
            done.append("crash")
            raise Lost("out of memory")
        done.append(documents[0].document.id)
        return commit(self, documents, namespace, ordinals)

    monkeypatch.setattr(MemoryBank, "commit", failing)
    report = memory.add(topics())
    assert len(report.added) == len(topics()) and sorted(d for d in done if d != "crash") == sorted(report.added)
    assert memory.stats().deleted == 0 and len(all_stored(memory)) == len(topics())


def test_an_add_that_cannot_go_on_can_be_repeated(open_cluster):
    memory = open_cluster({"shards": 2, "restarts": 1})
    actors = LocalActors.latest
    actors.lose(1, "store", times=2)
    with pytest.raises(errors.ShardLostError, match="repeat the call"):
        memory.add(topics())
    whole = all_stored(memory)
    assert 0 < len(whole) < len(topics())
    report = memory.add(topics())
    assert set(report.unchanged) == whole.keys() and len(report.added) == len(topics()) - len(whole)
    numbers = all_stored(memory)
    assert all(numbers[name] > len(topics()) for name in report.added)  # numbers that were given out once stay gone


def test_an_interrupted_driver_leaves_whole_documents(open_cluster):
    memory = open_cluster()

    def interrupt(actor, method):
        if (actor.number, method) == (0, "store"):  # the other shard has its documents already
            raise KeyboardInterrupt

    LocalActors.latest.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        memory.add(topics())
    memory.close()
    again = open_cluster()
    whole = all_stored(again)
    assert set(again.ids()) == whole.keys() and 0 < len(whole) < len(topics())
    assert len(again.add(topics()).added) == len(topics()) - len(whole)
    assert sorted(again.ids()) == sorted(t["id"] for t in topics()) and again.verify().ok
    all_stored(again)


def test_a_late_write_of_somebody_else_is_refused(open_cluster):
    """A shard's process that outlived its driver may not write behind the back of the next one."""
    memory = open_cluster()
    memory.add(topics(4))
    bank = memory.engine.bank
    [(shard, [name])] = bank.homes("default", ["late"]).items()
    stale = bank.next_ordinal
    memory.add([{"id": f"more-{n}", "text": f"text {n}"} for n in range(20)])
    document = memory.get(memory.add({"id": name, "text": "late"}).ids)[0]
    with pytest.raises(Exception, match="do not follow"):
        bank.shards.each("store", {shard: ("default", [(stale, type(document)(name, "older"))], bank._shipped)})
    assert memory.get(name)[0].text == "late"


def test_a_deletion_that_was_lost_is_done_and_reported(open_cluster):
    memory = open_cluster()
    memory.add(topics())
    calls = []

    def after(actor, method):
        if method == "pass_on" and memory.engine.bank._lock._depth and not calls and "violin" not in stored(memory, 1):
            calls.append(method)
            LocalActors.latest.stop(actor)

    assert home("default", "violin", 2) == 1
    LocalActors.latest.after = after
    assert memory.delete("violin").deleted == ("violin",) and calls
    assert "violin" not in list(memory.ids())


def test_generators_go_out_in_rounds(open_cluster, monkeypatch):
    monkeypatch.setattr("msa_plugin.cluster.ingestion._DOCUMENTS", 2)
    memory, seen = open_cluster(), []
    report = memory.add((t for t in topics()), on_progress=lambda p: seen.append((p.documents, p.tokens)))
    assert len(report.added) == len(topics()) and seen[-1] == (len(topics()), report.tokens)
    assert [m for _, m in LocalActors.latest.calls].count("store") >= 2
    manifest = json.loads((memory.engine.bank.path / "cluster.json").read_text())
    assert manifest["next_ordinal"] == len(topics()) + 1 and manifest["ready"] is True


def test_snapshots_are_of_all_shards(open_cluster):
    memory = open_cluster()
    memory.add(topics(4))
    memory.snapshot("four")
    with pytest.raises(errors.SnapshotError, match="exists"):
        memory.snapshot("four")
    memory.add(topics())
    memory.delete("violin")
    memory.compact()
    with open_cluster(snapshot="four") as past:
        assert sorted(past.ids()) == sorted(t["id"] for t in topics(4))
        assert past.retrieve(about("violin"), 1)[0].id == "violin"
        with pytest.raises(errors.BankReadOnlyError):
            past.add("a text")
    assert memory.stats().snapshots == ("four",)
    memory.drop_snapshot("four")
    with pytest.raises(errors.SnapshotError, match="none"):
        memory.drop_snapshot("four")


def test_a_snapshot_cut_short_is_none(open_cluster):
    memory = open_cluster({"shards": 2, "restarts": 0})
    memory.add(topics())
    actors = LocalActors.latest
    shards = memory.engine.bank.shards
    shards.each("pass_on", {0: ("snapshot", "half")})  # as a driver that died in between leaves it
    assert memory.stats().snapshots == ()
    memory.snapshot("half")
    assert memory.stats().snapshots == ("half",) and actors.starts == [0, 1]


def test_two_handles_see_each_other(open_cluster):
    one, other = open_cluster(), open_cluster(lock_timeout=0.1)
    one.add(topics(4))
    assert other.retrieve(about("violin"), 1)[0].id == "violin", "shards follow their banks"
    one.delete("violin")
    assert other.retrieve(about("violin"), 1)[0].id != "violin"
    other.add(topics())
    assert len(list(one.ids())) == len(topics()) and len(all_stored(one)) == len(topics())
    with one.engine.bank.writing(), pytest.raises(errors.BankLockedError):
        other.add("a text")


def test_dates_go_to_the_shards_and_replacements_are_refused(open_cluster):
    memory = open_cluster()
    gone = [{**topic, "valid_until": "2020-01-01"} for topic in topics()[::2]]
    memory.add([*gone, *topics()[1::2]])
    present = {topic["id"] for topic in topics()[1::2]}
    assert {hit.id for hit in memory.retrieve("violin", 100)} == present
    assert {hit.id for hit in memory.retrieve("violin", 100, history=True)} == {topic["id"] for topic in topics()}
    assert len(memory.retrieve("violin", 100, at="2019-01-01")) == len(topics())
    [found] = memory.get(gone[0]["id"])
    assert found.valid_until == "2020-01-01T00:00:00+00:00"
    with pytest.raises(errors.InvalidDocumentError, match="clusters"):
        memory.add([{"id": "new", "text": about("violin"), "replaces": "violin"}])
    assert set(memory.forget_expired().deleted) == {topic["id"] for topic in gone}
    assert set(memory.ids()) == present and memory.verify().ok
