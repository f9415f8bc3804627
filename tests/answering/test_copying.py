"""Answers in the words of what was read: the automaton, and the second decoding."""

import time

import pytest
import torch

from facade import count_runs, opened, topics
from msa_plugin.answering import answers as answers_module
from msa_plugin.answering.copying import Copied, Spellings, constrained, may_copy
from msa_plugin.types import Source
from tiny import tiny_adapter, with_reader

ENDS = [2]


@pytest.fixture(scope="module")
def spellings(backbone):
    return Spellings(backbone)


def write(copy, backbone, text):
    """Write a text as far as it is allowed; whether it may end there, or None."""
    for token in backbone.tokenize(text):
        if token not in copy.allowed(ENDS):
            return None
        copy.take(token)
    return ENDS[0] in copy.allowed(ENDS)


@pytest.mark.parametrize(
    ("text", "may_end"),
    [
        ("Valtellina", True),
        ("Valtel", False),  # in the middle of a word
        ("altellina", None),  # from the middle of one
        ("in Valtellina, a valley", True),
        ("Valtoina", None),
        ("the Alps valley", True),  # another word may begin behind a whole one
        ("the Alpsvalley", None),
        ("born in  Valtellina", None),
        ("Valtellina, a valley.", True),
    ],
)
def test_words_are_those_of_the_passages(backbone, spellings, text, may_end):
    passages = ["She was born in\nValtellina, a  valley.", "It lies in the Alps"]
    assert write(Copied(spellings, passages), backbone, text) is may_end


def test_nothing_to_copy_ends_at_once(spellings):
    assert Copied(spellings, []).allowed(ENDS) == ENDS
    assert Copied(spellings, ["?!"]).allowed(ENDS) == ENDS


def test_rows_without_a_copy_keep_their_logits(backbone, spellings):
    logits = torch.randn(2, 320)
    found = constrained(logits, [None, Copied(spellings, ["Alps"])], ENDS)
    assert torch.equal(found[0], logits[0])
    assert found[1].isfinite().nonzero()[:, 0].tolist() == backbone.tokenize("A")
    assert constrained(logits, [], ENDS) is logits


@pytest.mark.parametrize(
    ("answer", "copies"),
    [("Valtoina", True), ("Valtellina", False), ("yes", False), ("42", False), ("Not in the documents.", False)],
)
def test_what_is_decoded_again(answer, copies):
    read = [Source("a", 1.0, 1, "She was born in Valtellina.", "", {}, 0, 27, "")]
    assert may_copy(answer, "Where was she born?", read) is copies


@pytest.fixture(params=["text", "kv"])
def memory(request, tmp_path, backbone):
    """A memory with a reader that was never trained: what it says by itself stands nowhere."""
    adapter = with_reader(tiny_adapter(backbone), backbone)
    settings = {"reading": request.param, "instruction": None, "batch_questions": 4}
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics())
        yield memory


QUESTIONS = ["the violin", "harbour lights", "what is a glacier?"]
SHORT = {"max_new_tokens": 24, "repetition": 0, "stop": [" "]}  # one word, as the untrained model would not end


def test_answers_are_in_words_that_were_read_without_reading_again(memory, monkeypatch):
    runs = count_runs(monkeypatch)
    answers = [memory.ask(question, **SHORT) for question in QUESTIONS]
    decoded = len(runs)
    assert any(a.grounded for a in answers)
    vocabulary = memory.engine.reader.spellings
    assert "tokens" in vars(vocabulary)
    del vocabulary.tokens
    monkeypatch.setattr(answers_module, "may_copy", lambda *_: False)
    free = [memory.ask(question, **SHORT) for question in QUESTIONS]
    assert not any(a.grounded for a in free)
    assert "tokens" not in vars(vocabulary)  # it takes a while, and most answers never need it
    assert all(a.text == f.text for a, f in zip(answers, free, strict=True) if not a.grounded)
    long = [n for n in runs[:decoded] if n > 1], [n for n in runs[decoded:] if n > 1]
    assert sorted(long[0]) == sorted(n for n in long[1]) or len(long[0]) == len(long[1]) + 1  # the head, once
    assert decoded > len(runs) - decoded


def test_the_time_of_writing_is_told_as_such(memory, monkeypatch):
    decode = answers_module.decode

    def slow(*args):
        time.sleep(0.2)
        return decode(*args)

    monkeypatch.setattr(answers_module, "decode", slow)
    assert memory.ask(QUESTIONS[0], **SHORT).trace.seconds["decode"] > 0.2


def test_batches_and_streams_say_the_same(memory):
    alone = [memory.ask(question, **SHORT) for question in QUESTIONS]
    together = memory.ask(QUESTIONS, **SHORT)
    assert [(a.text, a.grounded) for a in together] == [(a.text, a.grounded) for a in alone]
    for question, answer in zip(QUESTIONS, alone, strict=True):
        stream = memory.stream(question, **SHORT)
        assert "".join(stream) == answer.text == stream.answer.text


def test_the_stock_model_says_what_it_likes(tmp_path, memory, monkeypatch):
    settings = {"instruction": None, "reading": "text", "reader": "stock"}
    with opened(tmp_path / "stock", memory.engine.backbone, memory.engine.adapter, **settings) as stock:
        stock.add(topics())
        monkeypatch.setattr(answers_module, "may_copy", None)  # it is not asked
        assert stock.ask(QUESTIONS[0], **SHORT).text
    assert memory.chat([{"role": "user", "content": "hello"}], **SHORT).text
