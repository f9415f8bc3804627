"""Titles beside any ranking: what `msa+titles` does, for the systems that it is compared with."""

from __future__ import annotations

import numpy as np

from msa_plugin.bench.base import Cost, System, Workspace
from msa_plugin.bench.systems.common import best
from msa_plugin.bench.systems.rescored import Rescored, Scores
from msa_plugin.retrieval.links import FOLLOWED
from msa_plugin.retrieval.names import TitleIndex


class Titled(Rescored):
    """A system of whose passages those gain that the question, or the best passages, name by their titles."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """As `Rescored`."""
        super().__init__(name, workspace, base, weight)
        self.titles = TitleIndex([d.title for d in workspace.dataset.documents])

    def prepare(self) -> Cost:
        """What `base` costs; titles are indexed with the system."""
        return self.base.prepare()

    def again(self, question: str, scores: Scores) -> Scores:
        """Gains of what the question names, and then of what the best name (`retrieval.links`)."""
        scores[self.titles.in_question(question)] += self.weight * max(float(scores.max()), 0.0)
        gains = np.zeros_like(scores)
        documents = self.workspace.dataset.documents
        for place in best(scores, FOLLOWED):
            named = self.titles.in_document(documents[place].text, place)
            gains[named] = np.maximum(gains[named], scores[place] / max(len(named), 1) ** 0.5)
        return scores + self.weight * gains
