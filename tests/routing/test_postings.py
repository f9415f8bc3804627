"""BM25 by postings: whatever is added when, and whichever documents are asked about, as if these were indexed alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_plugin.routing.lexical import WordIndex
from msa_plugin.routing.postings import Postings

WORDS = ("lighthouse", "lighthouses", "violin", "glacier", "the", "", "keeper", "!!")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=24)


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, question=st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), data=st.data())
def test_scores_are_those_of_the_library_over_the_selection(texts, question, data):
    numbers = data.draw(st.lists(st.integers(0, 99), min_size=len(texts), max_size=len(texts), unique=True))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    postings = Postings()
    for start, end in zip([0, *cuts], [*cuts, len(texts)], strict=True):
        postings.add(numbers[start:end], texts[start:end])
    chosen = sorted(data.draw(st.sets(st.sampled_from(numbers))))
    by_number = dict(zip(numbers, texts, strict=True))
    wanted = WordIndex([by_number[n] for n in chosen]).asked(question)
    found = postings.scores(question, np.asarray(chosen, dtype=np.int64))
    assert found.dtype == np.float32
    assert found == pytest.approx(wanted, rel=1e-5)


def test_blocks_are_merged_as_they_grow():
    postings = Postings()
    for n in range(300):
        postings.add([n], [f"lighthouse {n} keeper {n % 7}"])
    assert 1 <= len(postings._blocks) <= 10
    assert postings.bytes > 0
    everyone = np.arange(300)
    assert postings.scores("lighthouse", everyone).all()
    assert np.flatnonzero(postings.scores("keeper 123", everyone)).size == 300
    assert int(postings.scores("123", everyone).argmax()) == 123


def test_nothing_to_count():
    postings = Postings()
    assert postings.scores("lighthouse", np.zeros(0, dtype=np.int64)).tolist() == []
    postings.add([], [])
    postings.add([3], ["the !!"])
    assert postings.scores("lighthouse", np.asarray([3])).tolist() == [0.0]
    postings.add([1], ["lighthouse"])
    assert postings.scores("", np.asarray([1, 3])).tolist() == [0.0, 0.0]
    assert postings.scores("lighthouse", np.asarray([1, 3]))[0] > 0
