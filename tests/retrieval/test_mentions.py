"""Names in texts, and who has them."""

import numpy as np
import pytest

from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.retrieval.mentions import holders, mentions, names_in

TEXTS = ["Anna Veld wrote", "Anna sang to Veld", "Anna alone", "Veld alone", "Anna Veld slept"]


def tables(*sizes):
    rest = iter(TEXTS)
    return [WordTable.of(("", next(rest)) for _ in range(size)) for size in sizes]


def test_names_are_runs_with_capitals_and_numbers_with_units():
    text = "However, Anna Veld of Port Blair and Hugo Brandt built it in 1821, 412 metres from Kestrel."
    assert names_in(text) == ["Anna Veld of Port Blair", "Hugo Brandt", "412 metres", "Kestrel"]
    assert names_in("The Bank of Kestrel paid.") == ["The Bank of Kestrel"]
    assert names_in("") == names_in("nothing here is one. Neither is 1821") == []


def test_mentions_are_the_stems_of_each_name_once():
    assert mentions(["Anna Veld met Anna Veld near Kestrel Mills.", "", "It was In The end."]) == [
        [("anna", "veld"), ("kestrel", "mill")],
        [],
        [],
    ], "stop words alone are no name"


def test_holders_have_all_words_and_may_be_seen():
    first, second = tables(3, 2)
    parts = [
        WordPart(first, np.array([0, 1, 2]), None),
        WordPart(second, np.array([10, 11]), np.array([True, False])),
    ]
    wanted = [("anna", "veld"), ("anna",), ("nobodi",), ("anna", "nobodi")]
    assert holders(wanted, parts, 5) == [[0, 1], [0, 1, 2], [], []]
    everyone = [part._replace(allowed=None) for part in parts]
    assert holders(wanted[:1], everyone, 5) == [[0, 1, 11]]
    assert holders([], parts, 5) == [] and holders(wanted, [], 5) == [[], [], [], []]


@pytest.mark.parametrize("sizes", [(5,), (1, 1, 1, 1, 1), (2, 3)])
def test_of_many_holders_only_that_they_are_too_many_is_told(sizes):
    ordinals = iter(range(5))
    parts = [WordPart(t, np.array([next(ordinals) for _ in t.lengths]), None) for t in tables(*sizes)]
    [found] = holders([("anna",)], parts, 2)
    assert len(found) > 2, "four have it"
    assert holders([("anna", "veld")], parts, 3) == [[0, 1, 4]]
