"""Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009): ranks are added up, scores need not compare."""

from __future__ import annotations

from collections.abc import Sequence

from msa_plugin.bench.base import Found
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import Composite, summed

_K = 60
_DEPTH = 100  # of each system's ranking, at least


def reciprocal_ranks(rankings: Sequence[Sequence[str]], k: int = _K) -> dict[str, float]:
    """Sum over `rankings` of 1 / (k + rank), ranks counted from 1, of each passage that is in any of them."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1 / (k + rank)
    return scores


class Fusion(Composite):
    """Several systems asked side by side; what they rank is fused."""

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question, from the best hundred (or `k`, if more) of each system."""
        depth = max(k, _DEPTH)
        places = {d.id: place for place, d in enumerate(self.documents)}
        found = []
        for question, *row in zip(questions, *(base.find(questions, depth) for base in self.bases), strict=True):
            scores = reciprocal_ranks([[hit.id for hit in one.ranking] for one in row])
            order = sorted(scores, key=lambda name: (-scores[name], places.get(name, len(places)), name))
            ranking = tuple(Scored(name, scores[name]) for name in order[:k])
            found.append(Found(ranking, summed(one.seconds for one in row), (question,)))
        return found
