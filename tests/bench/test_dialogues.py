"""Conversations as data sets: turns as the memory stores them, sessions, and what is said of them kind by kind."""

from __future__ import annotations

import gzip
import json

import pytest

from msa_plugin.bench.dialogues import by_kind, dialogues
from msa_plugin.bench.runner import CompareConfig, compare
from msa_plugin.bench.store import Results
from msa_plugin.errors import IngestError
from tiny import tiny_adapter

LINES = [
    ("a", 1, "D1:1", "Ann", "Where is your violin?"),
    ("a", 1, "D1:2", "Bob", "At the harbour, beside the lighthouse."),
    ("a", 2, "D2:1", "Ann", "I keep bees now."),
    ("b", 1, "D1:1", "Cid", "My glacier melts."),
    ("b", 1, "D1:2", "Dee", "Mine does not."),
]
ASKED = [
    ("a", "q1", "Where is the violin?", ["a/D1:2"], "single_hop"),
    ("a", "q2", "Who keeps bees?", ["a/D2:1"], "adversarial"),
    ("b", "q3", "Whose glacier melts?", ["b/D1:1", "b/D1:2"], "single_hop"),
]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "talks"
    place.mkdir()
    turns = [
        {
            "id": f"{name}/{turn}",
            "text": f"{who}: {said}",
            "namespace": name,
            "metadata": {"date": f"2023-05-0{session}T10:00", "session": session, "speaker": who},
        }
        for name, session, turn, who, said in LINES
    ]
    questions = [
        {"id": i, "question": text, "positive_ids": right, "type": kind, "namespace": name}
        for name, i, text, right, kind in ASKED
    ]
    for name, records in (("corpus", turns), ("queries", questions)):
        with gzip.open(place / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(map(json.dumps, records)))
    return place


def test_turns_are_what_a_memory_stores_of_them(folder, memory):
    a, b = dialogues(folder, "turns")
    assert [a.name, b.name] == ["a-turns", "b-turns"] and [d.id for d in b.documents] == ["b/D1:1", "b/D1:2"]
    said = [{"id": d.id, "speaker": w, "content": t} for d, (_, _, _, w, t) in zip(b.documents, LINES[3:], strict=True)]
    memory.add_turns(said, session="b", at="2023-05-01T10:00")
    assert [d.text for d in memory.documents()] == [d.text for d in b.documents]
    assert a.documents[2].text == "[2 May 2023] Ann: I keep bees now."  # nothing stands before it in its session
    assert a.questions[0].positives == {"a/D1:2": 1} and a.questions[0].kind == "single_hop"


def test_sessions_are_whole_and_right_where_one_of_their_turns_is(folder):
    a, b = dialogues(folder, "sessions")
    assert [d.id for d in a.documents] == ["a/session-1", "a/session-2"]
    assert a.documents[0].text == f"[1 May 2023]\nAnn: {LINES[0][4]}\nBob: {LINES[1][4]}"
    assert b.questions[0].positives == {"b/session-1": 1}


def test_a_run_is_told_kind_by_kind(folder, tmp_path, backbone):
    config = CompareConfig(
        part="retrieval", out=tmp_path / "out", data=folder, systems=("msa", "bm25"), dialogues="turns", k=10
    )
    rows = compare(config, backbone=backbone, adapter=tiny_adapter(backbone))
    assert {row.dataset for row in rows} == {"a-turns", "b-turns"}
    with Results(config.out, seed=0) as results:
        told = {(kind, system): (count, means) for kind, system, count, means in by_kind(results, "turns")}
        assert not by_kind(results, "sessions")
    assert {system for _, system in told} == {"msa", "bm25"}
    assert told["single_hop", "bm25"][0] == 2 and told["adversarial", "msa"][0] == 1
    assert told["all with an answer", "bm25"] == told["single_hop", "bm25"]
    assert told["single_hop", "msa"][1][1] == 1.0  # at most three turns: all of them are among ten
    assert told["single_hop", "bm25"][1][1] == 0.75  # one turn has no word of its question


def test_what_is_no_dialogue_is_refused(folder):
    corpus = folder / "corpus.jsonl.gz"
    lines = gzip.decompress(corpus.read_bytes()).decode()
    corpus.write_bytes(gzip.compress(lines.replace('"namespace"', '"space"').encode()))
    with pytest.raises(IngestError, match=r"line 1.*namespace"):
        dialogues(folder, "turns")
    corpus.write_bytes(gzip.compress(lines.replace('"speaker"', '"who"').encode()))
    with pytest.raises(IngestError, match="speaker"):
        dialogues(folder, "turns")
