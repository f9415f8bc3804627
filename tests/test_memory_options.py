"""What `ask` can be told: stop sequences, length, sampling, rounds, the budget of context."""

import numpy as np
import pytest

from facade import about, count_runs, opened, topics
from msa_plugin.prompts import READER
from msa_plugin.retrieval import retriever
from tiny import tiny_adapter, with_reader


@pytest.fixture
def talk(full):
    """What the model says at length, greedily."""
    return full.ask("the violin", max_new_tokens=24).text


def test_a_stop_sequence_ends_the_answer_and_is_not_in_it(full, talk):
    for start in (1, 3, 7):
        stop = talk[start : start + 2]
        stream = full.stream("the violin", max_new_tokens=24, stop=(stop, "never"))
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text == talk[: talk.find(stop)].strip()
        assert stream.answer.trace.finish == "stop"
        assert stream.answer.trace.new_tokens < 24


def test_rows_of_a_batch_stop_by_themselves(full, talk):
    options = {"max_new_tokens": 24, "stop": (talk[4:6],)}
    questions = ["the violin", "saffron", about("glacier")]
    texts = [answer.text for answer in full.ask(questions, **options)]
    assert texts == [full.ask(question, **options).text for question in questions]
    assert texts[0] == talk[: talk.find(talk[4:6])]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_no_more_tokens_than_allowed(full, monkeypatch, count):
    full.ask("x", max_new_tokens=1, max_rounds=1)
    runs = count_runs(monkeypatch)
    trace = full.ask("the violin", max_new_tokens=count, max_rounds=1).trace
    assert trace.new_tokens == count and trace.finish == "length"
    assert len(runs) == 1 + 1 + (count - 1)  # routing, prefill, and one forward for every token but the first
    assert runs[2:] == [1] * (count - 1)


def test_drawing_repeats_with_a_seed_only(full):
    drawn = {"max_new_tokens": 16, "temperature": 1.5}
    first = full.ask("the violin", seed=7, **drawn).text
    assert full.ask("the violin", seed=7, **drawn).text == first
    others = {full.ask("the violin", seed=seed, **drawn).text for seed in range(4)}
    assert len(others) > 1
    assert len({full.ask("the violin", **drawn).text for _ in range(4)}) > 1


def test_settings_of_the_memory_are_the_defaults(tmp_path, backbone, adapter):
    settings = {"generation": {"max_new_tokens": 3}, "interleave": {"max_rounds": 1, "per_round": 1}}
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics())
        plain = memory.ask("the violin")
        assert (plain.trace.new_tokens, len(plain.trace.rounds), len(plain.sources)) == (3, 1, 1)
        told = memory.ask("the violin", max_new_tokens=5, per_round=2, cut=0)
        assert (told.trace.new_tokens, len(told.trace.rounds), len(told.sources)) == (5, 1, 2)


def test_rounds_are_bounded_and_find_new_documents_only(full):
    answer = full.ask("the violin", max_rounds=4, per_round=2, cut=0.0, max_new_tokens=1)
    selected = [name for r in answer.trace.rounds for name in r.selected]
    assert 1 < len(answer.trace.rounds) <= 4
    assert all(len(r.selected) <= 2 for r in answer.trace.rounds)
    assert len(selected) == len(set(selected)) == len(answer.sources)
    assert {s.id: s.round for s in answer.sources} == {
        name: number for number, r in enumerate(answer.trace.rounds, start=1) for name in r.selected
    }


def test_rounds_go_on_until_as_many_are_found_as_are_read(full):
    options = {"max_rounds": 4, "per_round": 2, "cut": 0.0, "max_new_tokens": 1}
    every = full.ask("the violin", **options)
    answer = full.ask("the violin", reads=3, **options)
    assert len(every.sources) > 4 and len(every.trace.rounds) > len(answer.trace.rounds) == 2
    assert [source.id for source in answer.sources] == [source.id for source in every.sources[:3]]
    assert sum(len(r.selected) for r in answer.trace.rounds) == 4
    assert answer.trace.context_tokens < every.trace.context_tokens


def test_a_readers_answers_are_from_two_documents_where_nothing_else_is_asked(tmp_path, backbone):
    options = {"per_round": 4, "cut": 0.0, "max_new_tokens": 1}
    adapter = with_reader(tiny_adapter(backbone), backbone)
    with opened(tmp_path, backbone, adapter, instruction=None) as memory:
        memory.add(topics())
        read = [memory.ask("the violin", **options, **more) for more in ({}, {"reads": 3}, {"documents": memory.ids()})]
        assert [len(answer.sources) for answer in read] == [2, 3, len(topics())]
    with opened(tmp_path, backbone, adapter, reader="stock") as memory:
        assert len(memory.ask("the violin", **options).sources) > 3


@pytest.mark.parametrize("mode", ["text", "kv", "latent"])
@pytest.mark.parametrize("budget", [1, 30, 200, 1000])
def test_the_budget_of_context_is_kept(tmp_path, backbone, mode, budget):
    adapter = tiny_adapter(backbone, read_latent=True)
    with opened(tmp_path, backbone, adapter, reading=mode, context_tokens=budget, window=128) as memory:
        memory.add([{"id": t["id"], "text": t["text"] * 20} for t in topics(4)] + ["short one", "short two"])
        answer = memory.ask("the violin", max_new_tokens=2, per_round=6, cut=0.0)
        whole = {d.id: d.text for d in memory.get(list(memory.ids()))}
    assert answer.sources
    assert sum(len(s.text) for s in answer.sources) <= budget  # a byte a token
    assert all(s.text in whole[s.id] for s in answer.sources)
    frames = len("Document: \n\n") * len(answer.sources) if mode == "text" else 0
    assert answer.trace.context_tokens <= budget + frames


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["text", "kv"])
def test_an_excerpt_holds_the_best_chunk(tmp_path, backbone, adapter, monkeypatch, mode):
    parts = [f"<{n:04}>" for n in range(100)]
    with opened(tmp_path, backbone, adapter, reading=mode, window=65, context_tokens=60) as memory:
        layout, pooling = memory.engine.encoder.layout, adapter.config.routing.pooling
        memory.add({"id": "long", "text": "".join(parts)})
        [chunks] = [keys.shape[0] for keys in memory.engine.bank.key_rows([1], "shared")]
        for best in range(chunks):
            scores = np.eye(chunks, dtype=np.float32)[best]
            monkeypatch.setattr(retriever, "chunks_of", lambda *_, scores=scores: [lambda ordinals: [scores]])
            [source] = memory.ask("?", max_new_tokens=1, max_rounds=1).sources
            first = layout.token_of_chunk(best, pooling)
            assert source.start < first + pooling and first < source.end  # a cut may go through it
            assert len(source.text) == 60
            assert "".join(parts)[source.start : source.end] == source.text
    assert chunks == 600 // 64 * 9 + 4


@pytest.mark.parametrize("budget", [1, 2, 50, 51, 52])
def test_an_excerpt_has_whole_characters(tmp_path, backbone, adapter, budget):
    text = "€é😀ß" * 50
    with opened(tmp_path, backbone, adapter, context_tokens=budget) as memory:
        memory.add(text)
        [source] = memory.ask("é", max_new_tokens=1).sources
    assert source.text in text and len(source.text.encode()) <= budget
    assert source.text or budget < 5


def test_the_best_source_is_read_last(full, monkeypatch):
    seen = []
    prefill = full.engine.reader.prefill
    monkeypatch.setattr(full.engine.reader, "prefill", lambda q, e: seen.extend(e) or prefill(q, e))
    answer = full.ask(about("violin"), max_new_tokens=1, max_rounds=1, cut=0.0)
    assert len(answer.sources) == 3
    assert [e.passage.text for e in seen[0]] == [s.text for s in answer.sources][::-1]


def test_an_instruction_replaces_the_default(tmp_path, backbone, adapter):
    with opened(tmp_path / "a", backbone, adapter, instruction="Say MOO.") as told:
        assert "Say MOO." in told.engine.reader.frame.head and READER not in told.engine.reader.frame.head
    with opened(tmp_path / "b", backbone, adapter, instruction=None) as plain:
        assert READER in plain.engine.reader.frame.head
