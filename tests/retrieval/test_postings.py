"""Words by postings: whichever documents are asked about, in whatever segments, as if these were indexed alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.retrieval.postings import Counts, QuestionPostings, Words, word_scores
from said_words import said

WORDS = ("lighthouse", "lighthouses", "violin", "glacier", "the", "", "keeper", "!!", "who")
NOTHING = Counts(0, 0, ())
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join), min_size=1, max_size=24)


def parts_of(texts, cuts, chosen):
    """Documents 10, 20, ... of `texts`, in segments that end at `cuts`, of which those at the places `chosen` count."""
    parts = []
    for start, end in zip([0, *cuts], [*cuts, len(texts)], strict=True):
        allowed = np.isin(np.arange(start, end), chosen)
        if allowed.any():
            table = WordTable.of(("", text) for text in texts[start:end])
            parts.append(WordPart(table, 10 * np.arange(start + 1, end + 1), None if allowed.all() else allowed))
    return parts


def dense(words, chosen):
    by_ordinal = dict(zip(words.ordinals.tolist(), words.scores.tolist(), strict=True))
    assert list(by_ordinal) == sorted(by_ordinal) and by_ordinal.keys() <= {10 * (n + 1) for n in chosen}
    return [by_ordinal.get(10 * (n + 1), 0.0) for n in chosen]


@settings(deadline=None, max_examples=60)
@given(texts=TEXTS, question=st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join), data=st.data())
def test_scores_are_as_defined_over_the_selection(texts, question, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))
    chosen = sorted(data.draw(st.sets(st.integers(0, len(texts) - 1))))
    parts = parts_of(texts, cuts, chosen)
    [found] = word_scores([question], parts)
    assert found.scores.dtype == np.float32 and (found.scores > 0).all()
    assert dense(found, chosen) == pytest.approx(said([texts[n] for n in chosen], question), rel=1e-5)
    # Counted apart and added up, as over several processes, to the last bit.
    counted = [QuestionPostings(question).over(half) for half in (parts[::2], parts[1::2])]
    over = Counts.summed(one.counts for one in counted)
    again = Words.joined([one.words(over) for one in counted], over)
    assert again.counts == found.counts == over
    assert again.ordinals.tolist() == found.ordinals.tolist() and again.scores.tolist() == found.scores.tolist()


def test_shares_and_the_best():
    scores = np.asarray([1.0, 4.0, 1.0, 2.0], dtype=np.float32)
    words = Words(np.asarray([3, 5, 8, 9]), scores, NOTHING)
    assert words.best(3) == [5, 9, 3] and words.best(9) == [5, 9, 3, 8]
    assert words.shares([9, 4, 5, 100]) == [0.5, 0.0, 1.0, 0.0]
    none = Words.joined([], NOTHING)
    assert none.shares([1]) == [0.0] and none.best(3) == []


def test_many_small_segments_count_as_one():
    texts = [f"lighthouse {n} keeper {n % 7}" for n in range(300)]
    every, everyone = list(range(300)), list(range(1, 300))
    one, many = (dense(word_scores(["keeper 123"], parts_of(texts, cuts, every))[0], every) for cuts in ([], everyone))
    assert one == many and int(np.argmax(one)) == 123


def test_nothing_to_count():
    assert word_scores(["lighthouse"], [])[0].ordinals.tolist() == []
    silent = parts_of(["the !!", ""], [], [0, 1])
    assert word_scores(["lighthouse", "", "the"], silent)[1].scores.tolist() == []
    assert word_scores([""], parts_of(["lighthouse"], [], [0]))[0].ordinals.tolist() == []
    assert word_scores(["lighthouse"], parts_of(["", "lighthouse"], [], [0, 1]))[0].ordinals.tolist() == [20]


def test_a_text_with_every_word_is_ahead_of_one_that_repeats_some_and_asking_is_no_word_of_it():
    texts = ["keeper keeper keeper glacier", "keeper violin glacier", "who", "lighthouse"]
    [found] = word_scores(["who is the keeper of the violin glacier"], parts_of(texts, [], [0, 1, 2, 3]))
    assert found.best(2) == [20, 10]
    [alone] = word_scores(["who"], parts_of(texts, [], [0, 1, 2, 3]))
    assert alone.ordinals.tolist() == [30] and alone.scores[0] == pytest.approx(said(texts, "who")[2])
