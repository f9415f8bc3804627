"""Rounds around another system: what they ask, when they end, and how they are merged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from system_toys import Given, ids, workspace

from msa_plugin.bench.systems import Options, create
from msa_plugin.bench.systems.common import texts
from msa_plugin.bench.systems.iterative import Decomposed, Iterative

FIRST = ["lighthouse", "beekeeping", "glacier", "violin", "harbour"]
SECOND = ["beekeeping", "saffron", "meteor", "compiler", "lighthouse"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, backbone):
    return workspace(tmp_path_factory.mktemp("toy"), backbone)


def bridging(question="?"):
    """Ranks `FIRST` for the bare question and `SECOND` for anything else."""
    return Given(lambda query: FIRST if query == question else SECOND)


def prepared(kind, toy, base, **options):
    system = kind("iterative:given", toy, (base,), Options(**options))
    system.prepare()
    return system


def test_the_second_query_holds_what_was_found(toy):
    base = bridging()
    [found] = prepared(Iterative, toy, base).find(["?"], 5)
    known = dict(zip((d.id for d in toy.dataset.documents), texts(toy.dataset.documents), strict=True))
    assert base.asked == ["?", f"?\n{known['lighthouse']}"]
    assert found.queries == tuple(base.asked)


def test_rounds_are_merged_as_msas_are(toy):
    base = bridging()
    system = prepared(Iterative, toy, base, per_round=2)
    [found] = system.find(["?"], 10)
    assert ids(found) == ["lighthouse", "beekeeping", "saffron", "meteor", "glacier", "violin", "harbour"]
    assert ids(system.find(["?"], 3)[0]) == ["lighthouse", "beekeeping", "saffron"]
    scores = [hit.score for hit in found.ranking]
    assert scores == sorted(scores, reverse=True)


def test_seconds_are_those_of_all_rounds(toy):
    [found] = prepared(Iterative, toy, bridging(), rounds=2).find(["?"], 5)
    assert found.rounds == ({"encode": 0.25, "search": 0.5},) * 2
    assert found.seconds == {"encode": 0.5, "search": 1.0}


def test_later_rounds_go_on_from_the_newest(toy):
    base = bridging()
    prepared(Iterative, toy, base, rounds=3, per_round=1).find(["?"], 5)
    assert [query.split("\n")[-1].split(":")[0] for query in base.asked] == ["?", "Lighthouse", "Beekeeping"]


def test_it_ends_when_nothing_new_was_found(toy):
    base = Given(lambda query: ["lighthouse"])
    [found] = prepared(Iterative, toy, base, rounds=5).find(["?"], 5)
    assert len(found.queries) == 2
    [found] = prepared(Iterative, toy, Given(lambda query: []), rounds=5).find(["?"], 5)
    assert found.queries == ("?",)
    assert found.ranking == ()


def test_questions_go_side_by_side(toy):
    base = Given(lambda query: [] if query == "nothing" else FIRST if query == "?" else SECOND)
    found = prepared(Iterative, toy, base).find(["nothing", "?"], 5)
    assert [len(f.queries) for f in found] == [1, 2]
    assert base.asked[:2] == ["nothing", "?"]
    assert ids(found[1])[:4] == ["lighthouse", "beekeeping", "glacier", "saffron"]


def test_a_query_fits_a_window_of_the_backbone(tmp_path, backbone):
    small = workspace(tmp_path, backbone, window=48)
    base = bridging()
    prepared(Iterative, small, base).find(["?"], 5)
    assert len(base.asked[1]) < 48
    assert base.asked[1].startswith("?\nlig\nLighthouse: light")
    system = create("iterative:msa", small)
    system.prepare()
    assert len(system.find(["Which harbour is near?"], 3)[0].queries) == 2


class Writer:
    """The memory with a model that writes `replies` one after another; remembers what it was shown."""

    def __init__(self, toy, monkeypatch, *replies):
        self.shown, replies = [], list(replies)

        def chat(messages, **options):
            self.shown.append((messages, options))
            return SimpleNamespace(text=replies.pop(0))

        monkeypatch.setattr(toy.memory, "chat", chat)


def test_the_model_writes_the_next_query(toy, monkeypatch):
    writer = Writer(toy, monkeypatch, "\n  saffron trade \nand more")
    base = bridging()
    [found] = prepared(Decomposed, toy, base).find(["?"], 10)
    assert found.queries == ("?", "saffron trade") == tuple(base.asked)
    assert ids(found)[:5] == ["lighthouse", "beekeeping", "glacier", "saffron", "meteor"]
    messages, options = writer.shown[0]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "Glacier: glacier" in messages[-1]["content"]
    assert messages[-1]["content"].endswith("Question: ?")
    assert options == {"max_new_tokens": 32}
    assert found.rounds[0] == {"encode": 0.25, "search": 0.5}
    assert set(found.rounds[1]) == {"generate", "encode", "search"}
    assert found.seconds["generate"] == found.rounds[1]["generate"]


@pytest.mark.parametrize("reply", ["none", "None.", '"none"', "No more queries", "", "  \n", "?!", "What is  IT"])
def test_it_ends_when_nothing_is_missing_or_a_query_comes_again(toy, monkeypatch, reply):
    Writer(toy, monkeypatch, reply)
    base = bridging("What is it?")
    [found] = prepared(Decomposed, toy, base, rounds=4).find(["What is it?"], 5)
    assert base.asked == ["What is it?"]
    assert ids(found) == FIRST
    assert set(found.rounds[0]) == {"encode", "search", "generate"}  # asking was not free


def test_rounds_are_bounded(toy, monkeypatch):
    writer = Writer(toy, monkeypatch, "one", "two", "three", "four")
    base = bridging()
    prepared(Decomposed, toy, base, rounds=3).find(["?"], 5)
    assert base.asked == ["?", "one", "two"]
    assert len(writer.shown) == 2


def test_what_is_shown_fits_the_backbone(toy, monkeypatch):
    writer = Writer(toy, monkeypatch, "none")
    documents = toy.memory.config.context_tokens
    prepared(Decomposed, toy, bridging(), per_round=5).find(["?"], 8)
    content = writer.shown[0][0][-1]["content"]
    assert content.count("Document: ") == 5
    assert len(content) < documents + 5 * len("Document: \n\n") + len("Question: ?") + 1


def test_a_real_conversation(toy):
    system = create("decompose:bm25", toy)
    system.prepare()
    toy.generation = {"max_new_tokens": 3, "max_rounds": 1}  # settings of answers that a conversation has not
    try:
        [found] = system.find(["What is a violin?"], 4)
    finally:
        toy.generation = {"max_new_tokens": 3}
    assert ids(found)[0] == "violin"
    assert "generate" in found.seconds
