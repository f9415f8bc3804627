"""The rounds of Memory Interleave over a scripted routing: what is kept, what is asked next, and when it ends."""

import pytest

from msa_plugin.config import InterleaveConfig
from msa_plugin.retrieval.interleave import Query, Ranking, collect, interleave_steps
from msa_plugin.retrieval.ranking import Ranked


class Script:
    """Routes by a table of (question, found piece) -> {ordinal: score}; a document's text is "text <ordinal>"."""

    def __init__(self, table, pieces=lambda ordinal: [f"text {ordinal}"]):
        self.table, self.pieces = table, pieces
        self.asked = []

    def rank(self, queries, k):
        self.asked.append(list(queries))
        rows = [self.table.get((q.question, q.found), {}) for q in queries]
        ranked = [
            sorted((Ranked(o, s, {}, 0) for o, s in row.items()), key=lambda r: (-r.score, r.ordinal)) for row in rows
        ]
        return Ranking([row[:k] for row in ranked], {"encode": 0.25, "route": 0.5})

    def read(self, ranked):
        return [(f"id {r.ordinal}", self.pieces(r.ordinal)) for r in ranked]

    def run(self, questions=("q",), k=10, **config):
        return collect(interleave_steps(list(questions), self.rank, self.read, k, InterleaveConfig(**config)))


def found(gathered):
    return [(f.ranked.ordinal, f.round) for f in gathered.found]


def test_rounds_follow_what_was_found_until_nothing_is_new():
    script = Script(
        {
            ("q", ""): {1: 1.0, 2: 0.9},
            ("q", "text 1"): {1: 1.5, 3: 0.8},
            ("q", "text 2"): {2: 1.5},
            ("q", "text 3"): {1: 2.0, 2: 2.0, 3: 2.0},
        }
    )
    [gathered] = script.run(max_rounds=16)
    assert found(gathered) == [(1, 1), (2, 1), (3, 2)]
    assert script.asked == [[Query("q")], [Query("q", "text 1"), Query("q", "text 2")], [Query("q", "text 3")]]
    assert [r.selected for r in gathered.rounds] == [("id 1", "id 2"), ("id 3",), ()]
    assert [r.scores for r in gathered.rounds] == [(1.0, 0.9), (0.8,), ()]
    assert gathered.rounds[0].query == "q"


def test_every_piece_of_a_document_is_asked():
    script = Script({("q", ""): {1: 1.0}, ("q", "b"): {2: 1.0}}, pieces=lambda o: ["a", "b"] if o == 1 else [])
    [gathered] = script.run(max_rounds=5)
    assert script.asked == [[Query("q")], [Query("q", "a"), Query("q", "b")]]
    assert found(gathered) == [(1, 1), (2, 2)]  # and a document without text leads nowhere


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_rounds_are_bounded(rounds):
    chain = {("q", f"text {n}" if n else ""): {n + 1: 1.0} for n in range(20)}
    script = Script(chain)
    [gathered] = script.run(max_rounds=rounds)
    assert found(gathered) == [(n, n) for n in range(1, rounds + 1)]
    assert len(script.asked) == rounds == len(gathered.rounds)


def test_a_round_keeps_so_many():
    scores = {n: 1.0 - n / 100 for n in range(10)}
    script = Script({("q", ""): scores, ("q", "text 0"): scores})
    [gathered] = script.run(per_round=3, max_rounds=2)
    assert found(gathered) == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


def test_the_cut_is_a_share_of_the_best_of_the_first_round():
    table = {("q", ""): {1: 2.0, 2: 1.01, 3: 0.99}, ("q", "text 1"): {4: 1.01, 5: 0.99}, ("q", "text 4"): {6: 0.99}}
    [gathered] = Script(table).run(cut=0.5, per_round=9, max_rounds=9)
    assert found(gathered) == [(1, 1), (2, 1), (4, 2)]
    [everything] = Script(table).run(cut=0.0, per_round=9, max_rounds=9)
    assert {o for o, _ in found(everything)} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize(("cut", "kept"), [(0.0, [1, 2]), (0.6, [1, 2]), (1.0, [1]), (3.0, [1])])
def test_the_best_of_the_first_round_is_kept_whatever_its_score(cut, kept):
    [gathered] = Script({("q", ""): {1: -1.0, 2: -1.2, 3: -2.5}}).run(cut=cut, max_rounds=1)
    assert [o for o, _ in found(gathered)] == kept


def test_a_later_round_keeps_nothing_below_the_cut():
    script = Script({("q", ""): {1: -1.0}, ("q", "text 1"): {2: -1.9, 3: -2.1}})
    [gathered] = script.run(cut=0.0, max_rounds=4)
    assert found(gathered) == [(1, 1), (2, 2)]


def test_a_document_counts_at_its_best_score_over_the_queries():
    table = {("q", ""): {1: 1.0, 2: 1.0}, ("q", "text 1"): {3: 0.7, 4: 0.9}, ("q", "text 2"): {3: 0.95, 4: 0.1}}
    [gathered] = Script(table).run(max_rounds=2)
    assert gathered.rounds[1].scores == (0.95, 0.9)
    assert gathered.rounds[1].selected == ("id 3", "id 4")


def test_equal_scores_go_to_the_older_document():
    [gathered] = Script({("q", ""): {7: 1.0, 3: 1.0, 5: 1.0}}).run(per_round=2, max_rounds=1)
    assert [o for o, _ in found(gathered)] == [3, 5]


def test_finding_nothing_ends_at_once():
    script = Script({})
    [gathered] = script.run(max_rounds=9)
    assert gathered.found == [] and len(gathered.rounds) == 1 == len(script.asked)
    assert script.run(questions=()) == []


def test_k_reaches_the_routing():
    [gathered] = Script({("q", ""): dict.fromkeys(range(9), 1.0)}).run(k=2, per_round=9, max_rounds=1)
    assert len(gathered.found) == 2


def test_questions_of_a_batch_are_as_one_at_a_time():
    table = {
        ("short", ""): {1: 1.0},
        ("long", ""): {2: 1.0, 1: 0.9},
        ("long", "text 2"): {3: 0.9},
        ("long", "text 3"): {4: 0.9},
        ("middle", ""): {5: 1.0},
        ("middle", "text 5"): {1: 0.9},
    }
    questions = ("short", "nothing", "long", "middle", "long")
    script = Script(table)
    batch = script.run(questions, max_rounds=9)
    alone = [Script(table).run((q,), max_rounds=9)[0] for q in questions]
    for mine, single in zip(batch, alone, strict=True):
        assert mine.question == single.question and found(mine) == found(single)
        assert [(r.query, r.selected, r.scores) for r in mine.rounds] == [
            (r.query, r.selected, r.scores) for r in single.rounds
        ]
    # Side by side: as many calls as the longest question has rounds, and none for questions that have ended.
    assert len(script.asked) == max(len(g.rounds) for g in batch) == 4
    assert {q.question for q in script.asked[-1]} == {"long"}


def test_seconds_are_shared_out_among_the_questions():
    script = Script({("a", ""): {1: 1.0}})
    batch = script.run(("a", "b", "c", "d"), max_rounds=1)
    for gathered in batch:
        assert gathered.rounds[0].seconds["encode"] == pytest.approx(0.25 / 4)
        assert gathered.rounds[0].seconds["route"] == pytest.approx(0.5 / 4)
        assert gathered.rounds[0].seconds["other"] >= 0
