"""Typed events of a stream where routing scores drive the rounds, and their async twin."""

import pytest

from facade import PER_LAYER, opened, topics
from msa_plugin.events import Answered, AnswerPiece, DocumentsChosen, DocumentsFetched, RetrievalEnded, RoundStarted
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

ROUND = [RoundStarted, DocumentsChosen]


def _kinds(events):
    return [type(e) for e in events if not isinstance(e, AnswerPiece)]


def test_rounds_by_scores(tmp_path, backbone):
    with opened(tmp_path, backbone) as memory:
        memory.add(topics())
        options = {"max_rounds": 2, "per_round": 2, "cut": 0.0, "max_new_tokens": 4}
        events = list(memory.stream("the violin", **options).events())
        answer = memory.ask("the violin", **options)
    assert _kinds(events) == [*ROUND, *ROUND, RetrievalEnded, DocumentsFetched, DocumentsFetched, Answered]
    assert events[-1].answer.text == "".join(e.text for e in events if isinstance(e, AnswerPiece)) == answer.text
    chosen = [e for e in events if isinstance(e, DocumentsChosen)]
    assert [(e.ids, e.scores) for e in chosen] == [(r.selected, r.scores) for r in answer.trace.rounds]
    fetched = [e for e in events if isinstance(e, DocumentsFetched)]
    assert [s for e in fetched for s in e.sources] == sorted(answer.sources, key=lambda s: s.round)
    assert answer.trace.interleave == "scores"


def test_routing_and_reading_in_one_forward(tmp_path, backbone):
    adapter = tiny_adapter(backbone, read_latent=True, **PER_LAYER)
    with opened(tmp_path, backbone, adapter) as memory:
        memory.add(topics())
        events = list(memory.stream("the violin", max_new_tokens=2).events())
    assert _kinds(events) == [*ROUND, RetrievalEnded, DocumentsFetched, Answered]


def test_chosen_documents_and_chat(full):
    events = list(full.stream("?", documents=["violin"], max_new_tokens=2).events())
    assert _kinds(events) == [RetrievalEnded, DocumentsFetched, Answered]
    chat = full.stream_chat([{"role": "user", "content": "hello"}], max_new_tokens=2)
    assert _kinds(list(chat.events())) == [Answered]


def test_closing_between_rounds_leaves_the_memory_as_it_was(full):
    before = full.ask("the violin", max_new_tokens=3).text
    for count in range(6):
        stream = full.stream("the violin", max_new_tokens=3)
        events = stream.events()
        for _ in range(count):
            next(events)
        stream.close()
        assert next(events, None) is None and stream.answer is None
    assert full.ask("the violin", max_new_tokens=3).text == before


async def test_events_of_an_async_stream(memory):
    await memory.aadd(topics())
    stream = memory.astream("the violin", max_new_tokens=3)
    events = [event async for event in stream.events()]
    assert isinstance(events[0], RoundStarted) and isinstance(events[-1], Answered)
    assert stream.answer == events[-1].answer
    stopped = memory.astream("the violin", max_new_tokens=3)
    async for _ in stopped.events():
        await stopped.aclose()
    assert stopped.answer is None


def test_pieces_after_some_events(full):
    """A reader may take what happens before the answer as events and the answer as plain pieces."""
    stream = full.stream("the violin", max_new_tokens=3)
    for event in stream.events():
        if isinstance(event, DocumentsFetched):
            break
    assert "".join(stream) == stream.answer.text


@pytest.mark.parametrize("reading", ["kv"])
def test_numbered_documents_are_not_read_as_plain_ones(tmp_path, reading):
    import reference_checkpoint as reference
    from msa_plugin.errors import ConfigError

    folder = reference.write(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match="numbered"):
        LatentMemory.open(tmp_path / "bank", model=str(folder), reading=reading, dtype="float32")
    assert not (tmp_path / "bank").exists()
