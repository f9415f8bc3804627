"""Questions while a shard is gone: asked again, answered in part, or refused, as configured."""

import time

import pytest
from local import LocalActors

from facade import about, topics
from msa_plugin.cluster.manifest import home
from msa_plugin.errors import ShardLostError

TOPIC = next(t["id"] for t in topics() if home("default", t["id"], 2) == 1)
OTHER = next(t["id"] for t in topics() if home("default", t["id"], 2) == 0)


def running(memory):
    return memory.engine.bank.shards._running


def lose(memory, shard):
    LocalActors.latest.stop(running(memory)[shard])


@pytest.fixture
def memory(open_cluster):
    opened = open_cluster()
    opened.add(topics())
    return opened


def test_a_question_waits_for_a_lost_shard(memory):
    whole = memory.retrieve(about(TOPIC), 5)
    lose(memory, 1)
    again = memory.retrieve(about(TOPIC), 5)
    assert again == whole and again.missed_shards == () and LocalActors.latest.starts == [0, 1, 1]


def test_a_shard_lost_between_ranking_and_reading_is_asked_again(memory):
    LocalActors.latest.lose(1, "documents")
    assert memory.retrieve(about(TOPIC), 1)[0].text == about(TOPIC)


@pytest.mark.parametrize("restarts", [0, 3])
def test_a_shard_that_does_not_come_back_fails_the_question(open_cluster, restarts):
    memory = open_cluster({"shards": 2, "restarts": restarts})
    memory.add(topics())
    actors = LocalActors.latest
    actors.refuse_starts = 2
    lose(memory, 1)
    with pytest.raises(ShardLostError, match=f"shard 1 .* {restarts} attempts"):
        memory.retrieve(about(TOPIC))
    assert actors.starts == [0, 1] + [1] * restarts
    actors.refuse_starts = 0
    if restarts:
        assert memory.retrieve(about(TOPIC), 1)[0].id == TOPIC


def until(check):
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_partial_answers_say_what_they_missed(open_cluster, caplog):
    memory = open_cluster({"shards": 2, "on_lost": "partial"})
    memory.add(topics())
    assert memory.retrieve(about(TOPIC), 1).missed_shards == ()
    actors = LocalActors.latest
    actors.refuse_starts = 2
    lose(memory, 1)
    hits = memory.retrieve(about(TOPIC), 100)
    assert hits.missed_shards == (1,) and {home("default", h.id, 2) for h in hits} == {0}
    assert [row.missed_shards for row in memory.retrieve(["one", "two"])] == [(1,), (1,)]
    assert "[1] of 2" in caplog.text
    answer = memory.ask(about(OTHER), max_new_tokens=2)
    assert answer.trace.missed_shards == (1,) and answer.to_dict()["trace"]["missed_shards"] == (1,)
    assert answer.sources[0].id == OTHER
    stream = memory.stream(about(OTHER), max_new_tokens=2)
    list(stream)
    assert stream.answer.trace.missed_shards == (1,)
    until(lambda: not any(t.is_alive() for t in memory.engine.bank.shards._reviving.values()))
    assert actors.starts == [0, 1, 1, 1]  # no more than it was allowed, however many questions there were
    with pytest.raises(ShardLostError):
        memory.add("changes need every shard")
    actors.refuse_starts = 0
    memory.refresh()  # tries again
    assert memory.retrieve(about(TOPIC), 1)[0].id == TOPIC
    assert memory.ask(about(TOPIC), max_new_tokens=2).trace.missed_shards == ()


def test_a_lost_shard_comes_back_in_the_background(open_cluster):
    memory = open_cluster({"shards": 2, "on_lost": "partial"})
    memory.add(topics())
    lose(memory, 1)
    assert memory.retrieve(about(TOPIC), 1).missed_shards == (1,)
    until(lambda: running(memory)[1] is not None)
    hits = memory.retrieve(about(TOPIC), 1)
    assert hits.missed_shards == () and hits[0].id == TOPIC
    lose(memory, 1)  # and once more
    assert memory.retrieve(about(TOPIC), 1).missed_shards == (1,)
    until(lambda: running(memory)[1] is not None)


def test_a_restarted_shard_takes_the_selections_of_questions_under_way(memory):
    selection = memory.engine.bank.select("default", {"even": True})
    assert selection.documents == 4
    lose(memory, 0)
    assert selection.documents == 4 and len(selection.ordinals()) == 4
    assert selection.only([1, 2, 3]).ordinals().tolist() == [1, 3] and selection.admits([1, 2]) == {1}


def test_selections_are_of_one_moment_and_forgotten(memory):
    bank = memory.engine.bank
    selection = bank.select("default")
    assert selection.documents == len(topics())
    memory.add("one more")
    assert selection.documents == len(topics()) and bank.select("default").documents == len(topics()) + 1
    kept = running(memory)[0].shard._selections
    del selection
    memory.retrieve("a question")
    memory.retrieve("another one")
    assert len(kept) <= 1
