"""Asking through the facade, in every reading mode and with every kind of router."""

import json
from itertools import pairwise

import pytest

from facade import KINDS, PER_LAYER, TOPICS, about, count_runs, opened, topics
from msa_plugin.types import Answer
from tiny import tiny_adapter

# Greedy decoding repeats itself on a random model; drawn with a seed, the text depends on every digit of the context.
DRAWN = {"temperature": 1.5, "seed": 3}
QUESTIONS = ["the violin", "harbour lights and saffron", about("glacier"), "?"]


# These cost most, and go where the others go.
RARE = ("per layer, text", "attention, text", "attention, latent")


@pytest.fixture(params=[pytest.param(KINDS[n], id=n, marks=[pytest.mark.slow] * (n in RARE)) for n in KINDS])
def kind(request, backbone):
    """An adapter and settings."""
    adapter, settings = request.param
    return tiny_adapter(backbone, **adapter), settings


@pytest.fixture
def memory(tmp_path, backbone, kind):
    """A memory of eight topics, of each kind."""
    with opened(tmp_path, backbone, kind[0], **kind[1]) as memory:
        memory.add(topics())
        yield memory


def essence(answer):
    """An answer without what may differ between two runs: seconds, and the last digits of scores."""
    sources = [(s.id, s.round, s.text, round(s.score, 2)) for s in answer.sources]
    rounds = [(r.query, r.selected) for r in answer.trace.rounds]
    trace = answer.trace
    return answer.text, sources, rounds, trace.prompt_tokens, trace.context_tokens, trace.new_tokens, trace.finish


def test_a_batch_is_as_one_at_a_time(memory):
    options = {"max_new_tokens": 12, "max_rounds": 3, **DRAWN}
    batch = memory.ask(QUESTIONS, **options)
    assert [essence(a) for a in batch] == [essence(memory.ask(q, **options)) for q in QUESTIONS]
    assert len({a.text for a in batch}) > 1  # rows do not simply repeat each other


def test_a_batch_retrieves_as_one_at_a_time(memory):
    for hits, question in zip(memory.retrieve(QUESTIONS, 3), QUESTIONS, strict=True):
        alone = memory.retrieve(question, 3)
        assert [h.id for h in hits] == [h.id for h in alone] and len(hits) == 3
        assert [h.score for h in hits] == pytest.approx([h.score for h in alone], abs=1e-4)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)


def test_hits_explain_themselves(memory):
    documents = {d["id"]: d for d in topics()}
    layers = memory.engine.adapter.config.routing.layers
    for hit in memory.retrieve(about("violin"), 8):
        assert (hit.text, hit.title) == (documents[hit.id]["text"], documents[hit.id]["title"])
        assert hit.metadata == documents[hit.id]["metadata"]
        assert set(hit.layer_scores) == set(layers)
        total = sum(hit.layer_scores.values())
        shared = memory.engine.adapter.config.routing.selection == "shared"
        assert hit.score == pytest.approx(total if shared else total / len(layers), abs=1e-3)


def test_pieces_add_up_to_the_answer(memory):
    count = 0
    for seed in range(2):
        options = {"max_new_tokens": 16, "temperature": 1.5, "seed": seed}
        stream = memory.stream("the violin", **options)
        assert stream.answer is None
        pieces = list(stream)
        assert isinstance(stream.answer, Answer)
        assert "".join(pieces) == stream.answer.text and all(pieces)
        assert essence(stream.answer) == essence(memory.ask("the violin", **options))
        assert list(stream) == []  # and stays exhausted
        count += len(pieces)
    assert count > 4


def test_sources_say_what_was_read(memory):
    answer = memory.ask("the violin", max_new_tokens=1, max_rounds=1, per_round=2)
    documents = {d["id"]: d for d in topics()}
    hits = {h.id: h for h in memory.retrieve("the violin", memory.engine.top_k)}
    # Where every layer selects for itself, what is read is what any of them chose, and `per_round` has no say.
    own = memory.engine.mode == "latent" and memory.engine.adapter.config.routing.selection == "per_layer"
    assert 1 <= len(answer.sources) <= (len(documents) if own else 2)
    for source in answer.sources:
        document = documents[source.id]
        assert (source.text, source.start, source.end) == (document["text"], 0, len(document["text"]))
        assert (source.title, source.metadata, source.round) == (document["title"], document["metadata"], 1)
        assert source.id in hits or own
        if source.id in hits:
            assert source.score == pytest.approx(hits[source.id].score, abs=1e-4)


def test_layers_that_select_for_themselves_route_inside_the_one_forward(tmp_path, backbone, monkeypatch):
    adapter = tiny_adapter(backbone, read_latent=True, **PER_LAYER)
    with opened(tmp_path, backbone, adapter, top_k=2) as memory:
        memory.add(topics())
        memory.ask("the violin", max_new_tokens=1)  # the template head is encoded once
        engine = memory.engine
        selection = engine.bank.select("default", None)
        run = engine.retriever.routed(["the violin"], 2, selection, answering=True)
        chosen = {layer: set(routed.ordinals[0].tolist()) for layer, routed in run.source.routed.items()}
        assert set(chosen) == set(adapter.config.routing.layers)
        assert all(len(ordinals) == 2 for ordinals in chosen.values())
        runs = count_runs(monkeypatch)
        answer = memory.ask("the violin", max_new_tokens=1)
        assert len(runs) == 1
        read = {d.id for d in engine.bank.documents(sorted(set().union(*chosen.values())))}
        assert {source.id for source in answer.sources} == read


def test_the_trace_counts(memory):
    answer = memory.ask("the violin", max_new_tokens=5, max_rounds=2)
    trace = answer.trace
    assert trace.mode == memory.engine.mode
    assert ("read_latent" in trace.abilities) == memory.engine.adapter.config.abilities.read_latent
    assert set(trace.seconds) >= {"encode", "route", "gather", "prefill", "decode"}
    assert all(seconds >= 0 for seconds in trace.seconds.values())
    assert trace.seconds["prefill"] > 0 and trace.seconds["decode"] > 0 and trace.seconds["route"] > 0
    assert 0 < trace.new_tokens <= 5
    assert trace.finish == "length" or trace.new_tokens < 5
    assert 1 <= len(trace.rounds) <= 2
    assert {i for r in trace.rounds for i in r.selected} == {s.id for s in answer.sources}
    assert trace.rounds[0].query == "the violin"
    read = sum(len(s.text) for s in answer.sources)  # a byte a token
    assert trace.context_tokens >= read
    assert (trace.prompt_tokens > read) == (memory.engine.mode == "text")
    json.dumps(answer.to_dict())


def test_closing_a_stream_midway_leaves_the_memory_usable(memory, monkeypatch):
    before = essence(memory.ask("the violin", max_new_tokens=8, **DRAWN))
    stream = memory.stream("the violin", max_new_tokens=50)
    next(stream)
    stream.close()
    runs = count_runs(monkeypatch)
    assert list(stream) == [] and stream.answer is None and runs == []
    stream.close()
    never_started = memory.stream("the violin")
    never_started.close()
    assert list(never_started) == [] and runs == []
    memory.add("one more")
    memory.delete(memory.add("one more").unchanged)
    assert essence(memory.ask("the violin", max_new_tokens=8, **DRAWN)) == before


@pytest.mark.slow
def test_streams_may_be_read_in_turns(memory):
    alone = [memory.ask(q, max_new_tokens=8, **DRAWN).text for q in QUESTIONS[:2]]
    one, two = (memory.stream(q, max_new_tokens=8, **DRAWN) for q in QUESTIONS[:2])
    texts = ["", ""]
    for _ in range(20):
        texts = [text + next(stream, "") for text, stream in zip(texts, (one, two), strict=True)]
    assert texts == alone


def test_answers_survive_closing_and_opening(tmp_path, backbone, kind):
    adapter, settings = kind
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics())
        hits, answer = memory.retrieve("the violin", 8), memory.ask("the violin", max_new_tokens=8, **DRAWN)
        memory.compact()
        memory.snapshot("before")
    for how in ({}, {"read_only": True}, {"snapshot": "before"}):
        with opened(tmp_path, backbone, adapter, **settings, **how) as memory:
            assert memory.retrieve("the violin", 8) == hits
            assert essence(memory.ask("the violin", max_new_tokens=8, **DRAWN)) == essence(answer)


def test_a_snapshot_stays_as_it_was(tmp_path, backbone, kind):
    adapter, settings = kind
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics(5))
        memory.snapshot("five")
        hits, answer = memory.retrieve("the violin", 8), memory.ask("the violin", max_new_tokens=8, **DRAWN)
        memory.delete("violin")
        memory.add([*topics()[5:], {"id": "glacier", "text": "changed"}])
        memory.compact()
        assert {h.id for h in memory.retrieve("the violin", 9)} == set(TOPICS) - {"violin"}
        with opened(tmp_path, backbone, adapter, snapshot="five", **settings) as past:
            assert past.retrieve("the violin", 8) == hits
            assert essence(past.ask("the violin", max_new_tokens=8, **DRAWN)) == essence(answer)
        memory.drop_snapshot("five")


def test_the_order_of_adding_does_not_matter(tmp_path, backbone, kind):
    adapter, settings = kind
    with (
        opened(tmp_path / "a", backbone, adapter, **settings) as one,
        opened(tmp_path / "b", backbone, adapter, **settings) as two,
    ):
        one.add(topics())
        for document in reversed(topics()):
            two.add(document)
        for mine, theirs in zip(one.retrieve(QUESTIONS, 8), two.retrieve(QUESTIONS, 8), strict=True):
            scores = {h.id: h.score for h in theirs}
            assert {h.id: h.score for h in mine} == pytest.approx(scores, abs=2e-3)
            apart = [h.id for h, after in pairwise(mine) if h.score - after.score > 4e-3]
            assert apart == [h.id for h in theirs if h.id in apart]


def test_filters_and_namespaces_restrict_what_is_read(tmp_path, memory, backbone, kind):
    even = {t for n, t in enumerate(TOPICS) if n % 2 == 0}
    for where in ({"even": True}, lambda metadata: metadata["even"]):
        assert {h.id for h in memory.retrieve("the violin", 8, filter=where)} == even
        answer = memory.ask("the violin", filter=where, max_new_tokens=2, max_rounds=3)
        assert answer.sources and {s.id for s in answer.sources} <= even
    with opened(tmp_path, backbone, kind[0], namespace="other", **kind[1]) as other:
        other.add({"id": "mine", "text": about("violin")})
        assert [h.id for h in other.retrieve("the violin", 8)] == ["mine"]
        assert [s.id for s in other.ask("the violin", max_new_tokens=2).sources] == ["mine"]
    memory.refresh()
    assert "mine" not in [h.id for h in memory.retrieve("the violin", 9)]
