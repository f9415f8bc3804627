"""Chains into steps, batches that resume, numbers drawn afresh."""

import json
import random
from itertools import islice

import pytest

from msa_plugin.data.datasets import Dataset, Question, load_dataset
from msa_plugin.errors import IngestError, TrainingError
from msa_plugin.training.data import batches, corpus_of, drawn_numbers, named_sets, steps_of
from msa_plugin.types import Document

TWO = Question("q", "Who?", ("Ann", "Anna"), {"b": 1, "a": 1}, hops=2)


def toy(*questions):
    return Dataset("toy", tuple(Document(i, f"text {i}") for i in "abc"), questions)


def test_a_chain_is_a_step_a_hop_and_the_answer():
    steps = list(steps_of("toy", TWO))
    assert [(s.found, s.wanted, s.answer) for s in steps] == [
        ((), ("b", "a"), ""),
        (("b",), ("a",), ""),
        (("b", "a"), (), "Ann"),
    ]
    assert len([*steps_of("toy", Question("q", "Who?", (), {"a": 1}))]) == 1


def test_a_corpus():
    corpus = corpus_of(toy(TWO))
    assert len(corpus.steps) == 3
    assert [s.found for s in corpus.steps if s.wanted] in ([(), ("b",)], [("b",), ()])
    assert corpus.documents["c"].text == "text c"


def test_folders(tmp_path):
    with pytest.raises(IngestError):
        named_sets(tmp_path / "absent", None)
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "text": "some"}\n')
    known, lost = ({"id": q, "question": "Who?", "answers": ["x"], "positive_ids": [q]} for q in "ab")
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(q) + "\n" for q in (known, lost)))
    assert [*named_sets(tmp_path, None)] == [*named_sets(tmp_path, [tmp_path.name])] == [tmp_path.name]
    with pytest.raises(IngestError, match=f"it holds {tmp_path.name}"):
        named_sets(tmp_path, ["other"])
    corpus = corpus_of(load_dataset(tmp_path))
    assert [s.wanted for s in corpus.steps if s.wanted] == [("a",)]
    assert any("b" in note for note in corpus.notes)


def items(count):
    corpus = corpus_of(toy(*(Question(f"q{i}", f"Who {i}?", (), {"a": 1}) for i in range(count))))
    return [(corpus, step) for step in corpus.steps if step.wanted]


def texts(found):
    return [[step.question for _, step in batch] for batch in found]


def test_batches_resume_anywhere_and_every_epoch_has_all():
    ten = items(10)
    whole = texts(islice(batches(ten, 3, seed=5), 9))
    assert texts(islice(batches(ten, 3, seed=5, first=4), 5)) == whole[4:]
    assert all(len({q for batch in whole[e : e + 3] for q in batch}) == 9 for e in (0, 3, 6))
    assert whole[:3] != whole[3:6]
    assert texts(islice(batches(ten, 3, seed=6), 3)) != whole[:3]
    with pytest.raises(TrainingError, match="make batches smaller"):
        next(batches(ten, 11, seed=0))


def test_numbers():
    one, other = (drawn_numbers(10, 2, random.Random(seed)) for seed in (1, 2))
    assert len(set(one)) == 10
    assert one != other
    assert max(one) < 100
    with pytest.raises(TrainingError, match="different numbers"):
        drawn_numbers(11, 1, random.Random(0))
