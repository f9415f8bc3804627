"""Titles as names: which documents a text names."""

import pytest

from msa_plugin.routing.titles import TitleIndex

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


def test_documents_may_come_later_and_be_out_of_sight():
    index = TitleIndex()
    index.add([4], ["New York"])
    index.add([9, 2], ["York", "New York"])
    assert index.in_document("to New York") == [4, 2]
    assert index.in_document("to New York", visible=lambda found: [n for n in found if n != 4]) == [2]
    # Who may not see New York is told of York, as if New York had never been stored.
    assert index.in_question("to new york", lambda found: [n for n in found if n == 9]) == [9]
    assert index.in_document("York", own=1000) == [9]
