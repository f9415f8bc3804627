"""It is not there: nothing is read where nothing is relevant, and the reader's own word for it never reaches anyone."""

from types import SimpleNamespace

import pytest
import torch

from facade import count_runs, opened, saying, topics
from msa_plugin import prompts
from msa_plugin.answering.abstaining import _Held, prefilled
from msa_plugin.answering.answers import AnswerJob
from msa_plugin.answering.reading import Prefill
from msa_plugin.config import RelevanceConfig, RelevanceWeights
from msa_plugin.events import Abstained, Answered, AnswerPiece, DocumentsFetched, RetrievalEnded
from msa_plugin.retrieval.interleave import Gathered
from tiny import judging, tiny_adapter

THERE, AWAY = "a text on beekeeping", "What is the capital of Peru?"


@pytest.fixture
def memory(tmp_path, backbone):
    adapter = judging(tiny_adapter(backbone))
    with opened(tmp_path, backbone, adapter, lexical=1.0, instruction=None) as opened_memory:
        opened_memory.add(topics())
        yield opened_memory


def test_where_nothing_is_relevant_nothing_is_read(memory, monkeypatch):
    seen = count_runs(monkeypatch)
    answer = memory.ask(AWAY)
    assert answer.abstained and answer.text == prompts.UNKNOWN and answer.sources == ()
    assert answer.grounded is None
    trace = answer.trace
    assert (trace.finish, trace.new_tokens, trace.prompt_tokens, trace.context_tokens) == ("abstained", 0, 0, 0)
    assert trace.relevance < 0.3 and len(trace.rounds) == 1 and trace.rounds[0].selected
    assert len(seen) == 1 and seen[0] < 64  # the question alone went through the model
    assert answer.to_dict()["abstained"] is True


def test_it_is_answered_where_something_is(memory):
    answer = memory.ask(THERE, max_new_tokens=4)
    assert not answer.abstained and answer.sources and answer.trace.relevance > 0.3
    assert answer.sources[0].relevance == pytest.approx(answer.trace.relevance)
    assert all(s.relevance is None for s in answer.sources if s.round > 1)


def test_a_batch_answers_what_it_can(memory):
    questions = [AWAY, THERE, "the dictators of Chile", "is there a text on violin?"]
    answers = memory.ask(questions, max_new_tokens=4)
    assert [a.abstained for a in answers] == [True, False, True, False]
    alone = [memory.ask(q, max_new_tokens=4) for q in questions]
    said = [[(a.text, [s.id for s in a.sources]) for a in some] for some in (answers, alone)]
    assert said[0] == said[1]


def test_a_stream_says_so_with_an_event(memory):
    events = list(memory.stream(AWAY).events())
    [abstained] = [e for e in events if isinstance(e, Abstained)]
    assert abstained.reason == "relevance"
    assert [e.text for e in events if isinstance(e, AnswerPiece)] == [prompts.UNKNOWN]
    assert not [e for e in events if isinstance(e, DocumentsFetched)]
    ended = [n for n, e in enumerate(events) if isinstance(e, RetrievalEnded)]
    assert ended and ended[0] < events.index(abstained)
    assert isinstance(events[-1], Answered) and events[-1].answer.abstained


@pytest.mark.parametrize("said", ["Not in the documents.", "not in the documents", "“Not in the documents”. Well, no"])
def test_the_readers_word_for_it_is_never_seen(memory, backbone, monkeypatch, said):
    saying(monkeypatch, backbone, said)
    stream = memory.stream(THERE, max_new_tokens=80)
    events = list(stream.events())
    assert "".join(e.text for e in events if isinstance(e, AnswerPiece)) == prompts.UNKNOWN
    assert [e.reason for e in events if isinstance(e, Abstained)] == ["reader"]
    answer = events[-1].answer
    assert answer.abstained and answer.text == prompts.UNKNOWN and answer.sources == ()
    assert answer.trace.finish == "abstained" and answer.trace.new_tokens > 0


@pytest.mark.parametrize("said", ["Not in the north", "no", "Nothing", "Not in the documen", "beekeeping"])
def test_what_only_begins_like_it_is_an_answer(memory, backbone, monkeypatch, said):
    saying(monkeypatch, backbone, said)
    stream = memory.stream(THERE, max_new_tokens=80)
    assert "".join(stream) == said == stream.answer.text
    assert not stream.answer.abstained and stream.answer.sources


def test_pieces_go_on_as_soon_as_they_are_certain():
    held = _Held(True)
    sent = [held.push(piece) for piece in ("No", "t in", " the ", "sea", " and", " more")]
    assert sent == ["", "", "", "Not in the sea", " and", " more"]
    assert held.rest() == ""
    assert _Held(False).push("Not") == "Not"


def test_documents_that_were_chosen_are_read_whatever_their_relevance(memory, backbone, monkeypatch):
    answer = memory.ask(AWAY, documents=["violin"], max_new_tokens=4)
    assert not answer.abstained and [s.id for s in answer.sources] == ["violin"]
    saying(monkeypatch, backbone, "Not in the documents.")
    assert memory.ask(AWAY, documents=["violin"], max_new_tokens=80).abstained


def test_an_instruction_and_chat_are_the_callers_own(tmp_path, backbone, monkeypatch):
    adapter = judging(tiny_adapter(backbone))
    with opened(tmp_path, backbone, adapter, lexical=1.0, instruction="Write a poem.") as memory:
        memory.add(topics())
        assert not memory.ask(AWAY, max_new_tokens=2).abstained
        saying(monkeypatch, backbone, "Not in the documents.")
        answer = memory.ask(THERE, max_new_tokens=80)
        assert not answer.abstained and answer.text == "Not in the documents."
    with opened(tmp_path, backbone, adapter, lexical=1.0, instruction="Write a poem.", abstain_below=0.3) as memory:
        assert memory.ask(AWAY).abstained
    saying(monkeypatch, backbone, "Not in the documents.")
    with opened(tmp_path, backbone, adapter, lexical=1.0, instruction=None) as memory:
        said = memory.chat([{"role": "user", "content": "Is it there?"}], max_new_tokens=80)
        assert said.text == "Not in the documents." and not said.abstained and said.grounded is None


def test_it_can_be_turned_off(tmp_path, backbone):
    adapter = judging(tiny_adapter(backbone))
    with opened(tmp_path, backbone, adapter, lexical=1.0, instruction=None, abstain_below=0) as memory:
        memory.add(topics())
        answer = memory.ask(AWAY, max_new_tokens=2)
        assert not answer.abstained and answer.trace.relevance < 0.3


def test_answers_say_where_their_words_stand(memory, backbone, monkeypatch):
    saying(monkeypatch, backbone, "Beekeeping beekeeping")
    answer = memory.ask(THERE, max_new_tokens=80)
    assert answer.grounded is True
    [source] = [s for s in answer.sources if s.id == "beekeeping"]
    [quote] = source.quotes
    text = source.text
    assert text[quote.start : quote.end] == quote.text == "Beekeeping: beekeeping"
    assert quote.text in quote.sentence
    saying(monkeypatch, backbone, "of Cremona")
    assert memory.ask(THERE, max_new_tokens=80).grounded is False
    saying(monkeypatch, backbone, "Yes.")
    assert memory.ask(THERE, max_new_tokens=80).grounded is None


def test_a_reader_may_not_give_up_on_what_is_surely_relevant():
    """The first token of its refusal weighs less the more relevant what was found is, and more where it is not."""
    weights = RelevanceWeights(bias=0.0, key=1.0, key_lead=1.0)
    trust = RelevanceConfig(words=weights, keys=weights, unrelated=0.1, absent_weight=1.5, absent_bias=1.0)
    backbone = SimpleNamespace(tokenize=lambda text: [3, 4])
    logits = torch.zeros(4, 6)
    plain = Prefill(None, logits, torch.zeros(4), (), (), {})
    asked = [AnswerJob(Gathered("?", relevance=known), [], {}) for known in (1.0, 0.5, 0.0, None)]
    reader = SimpleNamespace(trained=True, backbone=backbone, prefill=lambda questions, excerpts: plain)
    found = prefilled(reader, asked, trust).logits
    assert found[0, 3] == -torch.inf and found[1, 3] == -1.0 and found[2, 3] > 7 and found[3, 3] == 0
    found[:, 3] = 0
    assert torch.equal(found, logits)
    for other in (SimpleNamespace(trained=False, prefill=reader.prefill), reader):
        kept = prefilled(other, asked, trust if other is not reader else None)
        assert kept is plain
