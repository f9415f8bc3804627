"""BM25 of texts: by bm25s, whatever the texts are."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msa_plugin.retrieval.bm25 import WordIndex
from msa_plugin.stems import stems

TEXTS = ["The lighthouse keeper of Skagen", "Lighthouses and lighthouse keepers", "", "A violin; the", "!!!"]


def test_scores():
    index = WordIndex(TEXTS)
    scores = index.asked("Who keeps the lighthouse?")
    assert scores.shape == (5,) and scores.dtype == np.float32
    assert scores[1] > scores[0] > 0 and not scores[2:].any()  # stems: keepers, keeper and keeps differ
    assert index.asked("violin").argmax() == 3
    assert index.bytes > 0


def test_nothing_in_common():
    for texts in ([], [""], ["the", "!"], ["violin"]):
        index = WordIndex(texts)
        assert index.asked("Who keeps the lighthouse?").tolist() == [0.0] * len(texts)
        assert index.asked("").tolist() == [0.0] * len(texts)
    assert WordIndex([]).bytes == 0


def test_scores_depend_on_what_is_indexed_together():
    alone, more = WordIndex(TEXTS[:2]), WordIndex(TEXTS[:2] + ["lighthouse"] * 9)
    assert alone.asked("lighthouse")[0] != more.asked("lighthouse")[0]


@pytest.mark.slow
@given(st.lists(st.text() | st.text("aeist s_1'-.ÄßİΣ中 "), max_size=5))
@example(["The runners' RUNNING ran: a_b x1 İstanbul ΟΔΟΣ naïve 3.14 it will be", "there", ""])
def test_stems_are_those_of_bm25s(texts):
    import bm25s
    import Stemmer

    rows, numbers = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)
    words = {number: word for word, number in numbers.items()}
    assert stems()(texts) == [[words[number] for number in row] for row in rows]


def test_a_question_does_not_load_bm25s():
    code = "import sys; from msa_plugin.stems import stems; stems()(['two mills']); assert 'bm25s' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
