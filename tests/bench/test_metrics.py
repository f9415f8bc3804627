"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from msa_plugin.data.datasets import Question
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.measuring.metrics import (
    bootstrap,
    contains_answer,
    exact_match,
    f1,
    p_value,
    question_scores,
    retrieval_scores,
    within,
)


def test_rankings():
    positives = {"q1": {"a": 1, "b": 1}, "q2": {"c": 1}, "q3": {"d": 1}}
    rankings = {"q1": ["a", "x", "b"], "q2": ["x", "y", "z", "v", "w", "c"], "other": ["a"]}
    scores = retrieval_scores(positives, rankings)
    ideal = 1 + 1 / math.log2(3)
    assert scores["nDCG@10"] == pytest.approx({"q1": (1 + 1 / 2) / ideal, "q2": 1 / math.log2(7), "q3": 0})
    assert scores["R@5"] == {"q1": 1, "q2": 0, "q3": 0}
    assert scores["R@10"] == {"q1": 1, "q2": 1, "q3": 0}
    assert scores["RR@10"] == pytest.approx({"q1": 1, "q2": 1 / 6, "q3": 0})
    assert scores["AP"] == pytest.approx({"q1": (1 + 2 / 3) / 2, "q2": 1 / 6, "q3": 0})


def test_grades_count():
    scores = retrieval_scores({"q": {"a": 1, "b": 3}}, {"q": ["a", "b"]}, ["nDCG@10"])
    assert scores["nDCG@10"]["q"] == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))


def test_long_rankings_keep_their_order():
    ids = [f"{n:04}" for n in range(1000)]
    assert retrieval_scores({"q": {"0700": 1}}, {"q": ids}, ["RR"])["RR"]["q"] == pytest.approx(1 / 701)


def test_nothing_found_is_zero():
    assert retrieval_scores({"q": {"a": 1}}, {}, ["AP"]) == {"AP": {"q": 0.0}}


def test_unknown_metrics_are_refused():
    with pytest.raises(ConfigError, match="unknown metric"):
        retrieval_scores({"q": {"a": 1}}, {}, ["nonsense@3"])


def test_cutoffs_beyond_k_are_left_out():
    assert within(("nDCG@10", "R@100", "AP"), 20) == ("nDCG@10", "AP")


def test_answers_as_squad_measures_them():
    assert exact_match("The  Eiffel-Tower!", ["an eiffeltower"]) == 1
    assert exact_match("Eiffel Tower in Paris", ["Eiffel Tower"]) == 0
    assert f1("Eiffel Tower in Paris", ["nothing", "the Eiffel Tower"]) == pytest.approx(2 * (2 / 4 * 1) / (2 / 4 + 1))
    assert f1("b b c", ["b b b d"]) == pytest.approx(2 * 2 / 7)
    assert f1("the", ["a"]) == 1  # both are empty after normalising
    assert f1("", ["x"]) == 0
    assert f1("x", []) == 0
    assert contains_answer("It was Ada Lovelace, they say.", ["Ada Lovelace"]) == 1
    assert contains_answer("the cathedral", ["cat"]) == 0
    assert contains_answer("anything", ["the", ""]) == 0


def test_sources():
    question = Question("q", "who?", ("Ada",), {"a": 1, "b": 1, "c": 1})
    scores = question_scores("Ada", ["a", "x", "a", "b"], question)
    assert scores == pytest.approx(
        {"EM": 1, "F1": 1, "contains": 1, "sources_precision": 2 / 3, "sources_recall": 2 / 3}
    )
    nothing = question_scores("", [], question)
    assert nothing["sources_precision"] == nothing["sources_recall"] == 0


def test_the_interval_is_seeded_and_covers_the_mean():
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(list(values), seed=1) != bootstrap(values, seed=2)
    expected = 1.96 * values.std() / math.sqrt(400)
    assert values.mean() - low == pytest.approx(expected, rel=0.2)
    assert high - values.mean() == pytest.approx(expected, rel=0.2)
    assert bootstrap([0.25]) == (0.25, 0.25)
    with pytest.raises(ConfigError):
        bootstrap([])


def test_differences_between_systems():
    ours, theirs = [1.0, 2.0, 3.0, 5.0], [0.0, 1.0, 1.0, 2.0]
    # Differences 1, 1, 2, 3: mean 1.75, standard error 0.4787, t = 3.6556 with 3 degrees of freedom.
    assert p_value(ours, theirs) == pytest.approx(0.03535, abs=1e-4)
    assert p_value(theirs, ours) == pytest.approx(p_value(ours, theirs))
    assert p_value(ours, ours) == 1
    assert p_value([1.0, 2.0], [0.0, 1.0]) == 0.5  # two questions with the same difference are no evidence
    assert p_value([1.0] * 11, [0.0] * 11) == pytest.approx(2**-10)
    assert p_value([1.0], [0.0]) == 1
    with pytest.raises(ConfigError, match="question by question"):
        p_value([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("absent", "call"),
    [
        ("ir_measures", lambda: retrieval_scores({"q": {"a": 1}}, {})),
        ("scipy.stats", lambda: p_value([1.0, 2.0], [0.0, 3.0])),
    ],
)
def test_an_absent_package_is_named(monkeypatch, absent, call):
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingExtraError, match=r"msa-plugin\[bench\]"):
        call()
