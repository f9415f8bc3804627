"""Titles as names: which documents a text names."""

import numpy as np
import pytest

from msa_plugin.bank.terms import LONGEST
from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.retrieval.names import TextNames, TitleIndex

TITLES = ["Port Blair (city)", "Port Blair", "York", "New York", "New York City", "", "Who Is It", "the mill", "(1984)"]


@pytest.fixture(scope="module")
def index():
    return TitleIndex(TITLES)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("He was born in Port Blair, he said.", [0, 1]),
        ("from New York City to York", [4, 2]),  # the longest name wins, and no part of it is named
        ("from New  York-City", [4]),
        ("in new york", []),
        ("Yorkshire and NewYork", []),
        ("We passed the mill twice: the mill.", [7]),
        ("The Mill", []),
        ("in 1984", [8]),  # nothing but what stands in parentheses: the whole title
        ("", []),
    ],
)
def test_what_a_document_names(index, text, places):
    assert index.in_document(text) == places


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("where is port blair", [0, 1]),
        ("where is THE MILL", [7]),
        ("who is it", []),  # function words are no name unless they are spelled like one
        ("Who Is It by?", [6]),
        ("is new york city in new york?", [4, 3]),
    ],
)
def test_what_a_question_names(index, text, places):
    assert index.in_question(text) == places


def test_a_document_does_not_name_itself(index):
    assert index.in_document("Port Blair lies south of New York.", own=0) == [3]  # nor one that is called the same


def test_long_titles_and_empty_indexes():
    long = " ".join(f"Word{i}" for i in range(11))
    assert TitleIndex([long]).in_document(long) == []
    assert TitleIndex([long[: -len(" Word10")]]).in_document(f"So {long}.") == [0]
    assert TitleIndex([]).in_question("anything") == [] and TitleIndex(["", "!?"]).in_document("!? anything") == []


def part(numbers, titles, allowed=None):
    table = WordTable.of((title, "") for title in titles)
    return WordPart(table, np.asarray(numbers), None if allowed is None else np.asarray(allowed))


def named(text, parts, *, any_case=False):
    names = TextNames(text, any_case=any_case)
    return list(names.chosen(names.runs(parts)))


def test_documents_may_be_in_several_segments_and_out_of_sight():
    parts = [part([2, 4], ["New York", "New York"]), part([9], ["York"])]
    assert named("to New York", parts) == [2, 4]
    assert named("to New York", [part([2, 4], ["New York"] * 2, [True, False]), parts[1]]) == [2]
    # Who may not see New York is told of York, as if New York had never been stored.
    assert named("to new york", [part([2, 4], ["New York"] * 2, [False, False]), parts[1]], any_case=True) == [9]
    assert named("to New York", []) == [] and named("", parts) == []


def test_names_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("msa_plugin.bank.words.hashed_names", lambda names: np.full(len(names), 7))
    monkeypatch.setattr("msa_plugin.retrieval.names.hashed_runs", lambda words: np.full((LONGEST, len(words)), 7))
    assert named("from New York to Port Blair", [part([1, 2, 3], ["New York", "Port Blair", "York"])]) == [1, 2]
