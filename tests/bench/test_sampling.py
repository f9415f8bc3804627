"""Which questions are asked when there is no time for all."""

from __future__ import annotations

from collections import Counter

import pytest

from msa_plugin.bench.sampling import affordable, in_order, thinned
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.types import Document

QUESTIONS = [Question(str(i), "?", hops=1 + (i % 10 >= 6) + (i % 10 == 9)) for i in range(100)]  # 60, 30, 10


def test_every_beginning_has_the_proportions_of_the_whole():
    order = in_order(QUESTIONS, seed=5)
    assert sorted(order, key=lambda q: int(q.id)) == QUESTIONS
    for n in (10, 25, 50, 80):
        counts = Counter(q.hops for q in order[:n])
        for hops, share in ((1, 0.6), (2, 0.3), (3, 0.1)):
            assert abs(counts[hops] - share * n) <= 1.5


def test_the_seed_decides():
    assert in_order(QUESTIONS, 1) == in_order(QUESTIONS, 1) != in_order(QUESTIONS, 2)
    assert in_order([], 1) == []


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (0, {"a": 4, "b": 4}),
        (60, {"a": 20, "b": 20}),
        (61.5, {"a": 20, "b": 20}),
        (90, {"a": 30, "b": 30}),
        (120, {"a": 60, "b": 30}),
        (10**6, {"a": 100, "b": 30}),
    ],
)
def test_as_many_of_each_as_the_budget_allows(budget, wanted):
    assert affordable({"a": (1.0, 100), "b": (2.0, 30)}, budget, least=4) == wanted


def test_a_small_set_is_asked_whole():
    assert affordable({"a": (1.0, 2), "b": (1.0, 9)}, 11, least=4) == {"a": 2, "b": 9}
    assert affordable({}, 10, least=4) == {}


def test_a_thinned_corpus_keeps_what_answers():
    documents = tuple(Document(str(n), f"passage {n}") for n in range(50))
    questions = tuple(Question(f"q{n}", "?", positives={str(7 * n): 1, "49": 1}) for n in range(4))
    asked = questions[1:3]
    small = thinned(Dataset("toy", documents, questions, ("a note",)), asked, 10, seed=3)
    ids = [d.id for d in small.documents]
    assert len(ids) == 10 and {"7", "14", "49"} <= set(ids)
    assert ids == sorted(ids, key=int)  # in the order of the corpus
    assert (small.name, small.questions, small.notes[0]) == ("toy-of-10", asked, "a note")
    assert "2 of 4 questions over 10 of 50 passages: the 3 that answer" in small.notes[1]
    again, other = (thinned(Dataset("toy", documents, questions), asked, 10, seed) for seed in (3, 4))
    assert again.documents == small.documents != other.documents
    gold = thinned(Dataset("toy", documents, questions), asked, 0, seed=3)
    assert (gold.name, [d.id for d in gold.documents]) == ("toy-gold", ["7", "14", "49"])
    assert len(thinned(Dataset("toy", documents, questions), asked, 1000, seed=3).documents) == 50


def test_hard_others_are_what_bm25_ranks_best():
    documents = (
        *(Document(f"far{n}", f"unrelated passage {n}") for n in range(20)),
        Document("gold", "the kestrel mill was built in 1821"),
        Document("near", "a kestrel and a mill and a kestrel"),
        Document("close", "kestrel", title="Mill"),
    )
    asked = [Question("q", "Who built the kestrel mill?", positives={"gold": 1})]
    small = thinned(Dataset("toy", documents, (*asked,)), asked, 3, 0, "hard")
    assert [d.id for d in small.documents] == ["gold", "near", "close"]
    assert small.name == "toy-of-3-hard" and "that BM25 ranks best" in small.notes[-1]
    assert thinned(Dataset("toy", documents, (*asked,)), asked, 0, 0, "hard").name == "toy-gold"
