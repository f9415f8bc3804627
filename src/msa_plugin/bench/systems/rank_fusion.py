"""Reciprocal rank fusion (Cormack, Clarke and Buettcher, 2009): ranks are added up, scores need not compare."""

from __future__ import annotations

from collections.abc import Sequence

from msa_plugin.bench.base import Cost, Found, Scored, System, Workspace
from msa_plugin.bench.systems.common import Options, summed, total_cost


def reciprocal_ranks(rankings: Sequence[Sequence[str]], k: int) -> dict[str, float]:
    """Sum over `rankings` of 1 / (k + rank), ranks counted from 1, of each passage that is in any of them."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, name in enumerate(ranking, start=1):
            scores[name] = scores.get(name, 0.0) + 1 / (k + rank)
    return scores


class Fusion:
    """Several systems asked side by side; what they rank is fused."""

    def __init__(self, name: str, workspace: Workspace, systems: Sequence[System], options: Options) -> None:
        """`systems` become its own: it prepares and closes them."""
        self.name, self.workspace, self.systems = name, workspace, tuple(systems)
        self.k, self.depth = options.fusion_k, options.fusion_depth
        self.places = {d.id: place for place, d in enumerate(workspace.dataset.documents)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What its systems have to say."""
        return tuple(note for system in self.systems for note in getattr(system, "notes", ()))

    def prepare(self) -> Cost:
        """Index with each system; the costs add up."""
        costs = [system.prepare() for system in self.systems]
        return total_cost(costs, self.workspace.dataset.documents, self.workspace.tokens)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question, from the best `fusion_depth` (or `k`, if more) of each system."""
        depth = max(k, self.depth)
        columns = [system.find(questions, depth) for system in self.systems]
        return [self._fused(question, row, k) for question, *row in zip(questions, *columns, strict=True)]

    def close(self) -> None:
        """Close its systems."""
        for system in self.systems:
            system.close()

    def _fused(self, question: str, row: Sequence[Found], k: int) -> Found:
        scores = reciprocal_ranks([[hit.id for hit in found.ranking] for found in row], self.k)
        order = sorted(scores, key=lambda name: (-scores[name], self.places.get(name, len(self.places)), name))
        ranking = tuple(Scored(name, scores[name]) for name in order[:k])
        return Found(ranking, summed(found.seconds for found in row), (question,))
