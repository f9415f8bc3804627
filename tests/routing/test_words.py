"""BM25 of texts: by bm25s, whatever the texts are."""

import numpy as np

from msa_plugin.routing.lexical import WordIndex

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
