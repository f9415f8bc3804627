"""Answers from documents that the caller chose, in every reading mode."""

import numpy as np
import pytest

from facade import KINDS, TOPICS, about, opened, topics
from msa_plugin.errors import InvalidQueryError, UnknownDocumentError
from tiny import tiny_adapter

DRAWN = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}


@pytest.fixture(params=["text", "kv", "latent", "per layer, latent"])
def memory(tmp_path, backbone, request):
    adapter, settings = KINDS[request.param]
    with opened(tmp_path, backbone, tiny_adapter(backbone, **adapter), **settings) as memory:
        memory.add(topics())
        yield memory


def test_exactly_the_chosen_documents_are_read_in_that_order(memory):
    chosen = ["meteor", "violin", "compiler"]
    answer = memory.ask("the glacier", documents=chosen, max_new_tokens=4)
    assert [s.id for s in answer.sources] == chosen
    assert answer.trace.rounds == ()
    assert answer.trace.context_tokens > 0
    hits = {h.id: h.score for h in memory.retrieve("the glacier", len(TOPICS))}
    for source in answer.sources:
        assert source.score == pytest.approx(hits[source.id], abs=0.02)


def test_the_choice_and_its_order_matter_and_repetitions_do_not(memory):
    texts = {
        tuple(ids): memory.ask("why", documents=ids, **DRAWN).text
        for ids in (["meteor"], ["violin"], ["meteor", "violin"], [])
    }
    assert len(set(texts.values())) > 2
    assert memory.ask("why", documents=["meteor", "meteor"], **DRAWN).text == texts[("meteor",)]


def test_a_batch_takes_a_list_for_each_question(memory):
    rows = [["meteor"], [], ["violin", "harbour"]]
    questions = ["one", "two", "three"]
    batch = memory.ask(questions, documents=rows, **DRAWN)
    alone = [memory.ask(q, documents=ids, **DRAWN) for q, ids in zip(questions, rows, strict=True)]
    assert [a.text for a in batch] == [a.text for a in alone]
    assert [[s.id for s in a.sources] for a in batch] == rows


def test_what_routing_found_reads_the_same_when_given(memory):
    routed = memory.ask("violin", max_rounds=1, **DRAWN)
    given = memory.ask("violin", documents=[s.id for s in routed.sources], **DRAWN)
    assert [s.text for s in given.sources] == [s.text for s in routed.sources]
    if memory.engine.adapter.config.routing.selection == "shared":  # else every layer reads what it chose itself
        assert given.text == routed.text


def test_streaming_takes_documents_too(memory):
    stream = memory.stream("why", documents=["meteor"], **DRAWN)
    text = "".join(stream)
    assert text == stream.answer.text == memory.ask("why", documents=["meteor"], **DRAWN).text


def test_closed_book_needs_no_memory(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter) as memory:
        answer = memory.ask("why", documents=[], max_new_tokens=3)
        assert answer.sources == () and answer.trace.context_tokens == 0


def test_a_long_document_is_cut_around_what_the_question_is_about(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter, context_tokens=120) as memory:
        memory.add({"id": "long", "text": about("beekeeping") * 4 + about("saffron") * 2 + about("harbour") * 4})
        source = memory.ask(about("saffron"), documents=["long"], max_new_tokens=1).sources[0]
        assert "saffron" in source.text
        assert len(source.text) < len(memory.get("long")[0].text)


def test_ids_outside_the_filter_the_namespace_or_the_living_are_refused(tmp_path, backbone, adapter):
    with opened(tmp_path, backbone, adapter) as memory:
        memory.add(topics())
        assert memory.ask("why", documents=["lighthouse"], filter={"even": True}, max_new_tokens=1).sources
        with pytest.raises(UnknownDocumentError, match="beekeeping"):
            memory.ask("why", documents=["lighthouse", "beekeeping"], filter={"even": True})
        with pytest.raises(UnknownDocumentError, match="nobody"):
            memory.ask("why", documents=["violin", "nobody"])
        memory.delete("violin")
        with pytest.raises(UnknownDocumentError, match="violin"):
            memory.ask("why", documents=["violin"])
    with opened(tmp_path, backbone, adapter, namespace="other") as other:
        with pytest.raises(UnknownDocumentError):
            other.ask("why", documents=["meteor"])
        assert other.routing_keys(["meteor"]) == {}


def test_documents_of_the_wrong_shape_are_refused(memory):
    for question, documents in ((["one", "two"], [["meteor"]]), ("one", [3]), ("one", 5)):
        with pytest.raises(InvalidQueryError):
            memory.ask(question, documents=documents)


def test_routing_keys_are_unit_vectors_that_tell_documents_apart(memory):
    keys = memory.routing_keys(["meteor", "nobody", "violin"])
    assert list(keys) == ["meteor", "violin"]
    for vector in keys.values():
        assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-3)
    assert float(keys["meteor"] @ keys["violin"]) < 0.9999
