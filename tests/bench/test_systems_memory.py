"""MSA as a system, and the controls: they are the facade's own answers and rankings, and nothing else."""

from __future__ import annotations

import pytest
from system_toys import ids, toy_dataset, workspace

from facade import PER_LAYER
from msa_plugin.bench.base import Workspace
from msa_plugin.bench.systems import create
from msa_plugin.config import InterleaveConfig
from msa_plugin.data.datasets import sample_dataset
from msa_plugin.errors import ConfigError, InvalidQueryError
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

QUESTIONS = ["What is a glacier?", "Tell me about beekeeping and saffron"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory, backbone):
    return workspace(tmp_path_factory.mktemp("toy"), backbone)


def made(name, given, options=None):
    system = create(name, given, options)
    system.prepare()
    return system


def test_one_round_is_what_the_facade_retrieves(toy):
    hits = toy.memory.retrieve(QUESTIONS, k=5)
    found = made("msa", toy).find(QUESTIONS, 5)
    assert [ids(f) for f in found] == [[h.id for h in row] for row in hits]
    assert [[s.score for s in f.ranking] for f in found] == [[h.score for h in row] for row in hits]
    assert set(found[0].seconds) == {"encode", "route"}


@pytest.mark.parametrize(("name", "rounds"), [("msa", 1), ("msa-interleave", 2)])
def test_answers_are_the_facades(toy, name, rounds):
    replies = made(name, toy).answer(QUESTIONS)
    answers = toy.memory.ask(QUESTIONS, max_new_tokens=3, max_rounds=rounds)
    assert [r.text for r in replies] == [a.text for a in answers]
    assert [r.read for r in replies] == [tuple(s.id for s in a.sources) for a in answers]
    assert [r.rounds for r in replies] == [len(a.trace.rounds) for a in answers]
    assert replies[0].rounds == rounds


def test_rounds_come_first_and_the_first_rounds_ranking_fills_up(toy):
    found = made("msa-interleave", toy).find(QUESTIONS, 8)
    single = made("msa", toy).find(QUESTIONS, 8)
    answers = toy.memory.ask(QUESTIONS, max_new_tokens=1)
    for one, first, answer in zip(found, single, answers, strict=True):
        kept = [i for r in answer.trace.rounds for i in r.selected]
        assert len(answer.trace.rounds) == 2
        assert len(kept) > len(answer.trace.rounds[0].selected)  # the second round brought something
        assert ids(one) == kept + [i for i in ids(first) if i not in kept]
        assert len(one.rounds) == len(one.queries) == 2
        assert one.seconds["route"] == pytest.approx(sum(r["route"] for r in one.rounds))
        assert "fill" in one.seconds


def test_a_memory_set_to_one_round_still_interleaves_twice(tmp_path, backbone):
    given = workspace(tmp_path, backbone, interleave=InterleaveConfig(max_rounds=1, per_round=2))
    assert len(made("msa-interleave", given).find(QUESTIONS, 3)[0].queries) == 2


def test_layers_that_select_for_themselves(tmp_path, backbone):
    dataset = toy_dataset()
    adapter = tiny_adapter(backbone, **PER_LAYER)
    with LatentMemory.open(tmp_path / "bank", model=backbone, adapter=adapter, instruction="Be brief.") as memory:
        memory.add(list(dataset.documents))
        given = Workspace(dataset, memory, tmp_path / "cache", {"max_new_tokens": 2})
        for name in ("msa", "msa-interleave"):
            found = made(name, given).find(QUESTIONS, 5)
            assert [len(f.ranking) for f in found] == [5, 5]


def test_what_indexing_cost(toy):
    cost, stats = create("msa", toy).prepare(), toy.memory.stats()
    assert (cost.disk_bytes, cost.memory_bytes, cost.tokens) == (stats.bytes_total, stats.bytes_keys, toy.tokens)
    assert cost.seconds > 0
    for fill, seconds in ((None, 0.0), (lambda: 2.5, 2.5)):  # without: the memory came with its documents
        given = Workspace(toy.dataset, toy.opened, toy.cache, fill=fill)
        assert create("msa", given).prepare().seconds == seconds


def test_a_prefilter_and_weights_are_their_systems_alone(toy):
    engine = toy.memory.engine
    before = vars(engine).copy()
    narrow = made("msa+lexical+titles+mentions+coarse:16@candidates=2", toy)
    own = narrow.memory.engine
    assert None not in (own.retriever.prefilter, *own.retriever.signals)
    assert own.bank is engine.bank and own.reader is engine.reader
    [found] = narrow.find(QUESTIONS[:1], 3)
    assert len(found.ranking) >= 2 and narrow.answer(QUESTIONS[:1])[0].read
    exact = made("msa", toy)
    assert ids(exact.find(QUESTIONS[:1], 3)[0]) == [h.id for h in toy.memory.retrieve(QUESTIONS[0], 3)]
    assert exact.memory.engine.retriever.prefilter is None and vars(engine) == before


def test_a_question_that_cannot_be_asked(toy):
    for name in ("msa", "msa-interleave"):
        with pytest.raises(InvalidQueryError):
            made(name, toy).find([" "], 3)


def test_closed_book_reads_nothing(toy):
    replies = create("closed-book", toy).answer(QUESTIONS)
    assert [r.read for r in replies] == [(), ()]
    assert [r.text for r in replies] == [
        a.text for a in toy.memory.ask(QUESTIONS, documents=[[], []], max_new_tokens=3)
    ]


def test_full_context_reads_every_document_whole(tmp_path, backbone):
    given = workspace(tmp_path, backbone, context_tokens=20)
    system = made("full-context", given)
    [reply] = system.answer(QUESTIONS[:1])
    [closed] = create("closed-book", given).answer(QUESTIONS[:1])
    everything = sum(len(d.text) + len(d.title) + 1 for d in given.dataset.documents)
    assert sorted(reply.read) == sorted(given.memory.ids())
    assert reply.input_tokens - closed.input_tokens >= everything  # a token a byte
    system.close()
    assert given.memory.config.context_tokens == 20
    assert len(given.memory.retrieve(QUESTIONS[0], 2)) == 2  # the workspace's memory stays open


def test_full_context_says_what_does_not_fit(tmp_path, backbone):
    given = workspace(tmp_path, backbone, sample_dataset())
    with pytest.raises(ConfigError, match=r"has 2\d,\d\d\d tokens, tiny-llama reads 4,096"):
        create("full-context", given).prepare()
    with pytest.raises(ConfigError, match="tokens"):
        create("full-context", given).answer(QUESTIONS)


def test_full_context_refuses_a_question_for_which_there_is_no_room(toy):
    with pytest.raises(ConfigError, match="reads 4,096"):
        made("full-context", toy).answer(["why? " * 800])
