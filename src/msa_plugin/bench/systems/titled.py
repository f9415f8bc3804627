"""Titles beside any ranking: what `msa+titles` does, for the systems that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.base import Cost, Found, Scored, System, Workspace
from msa_plugin.bench.systems.common import Seconds, best, shared, summed, timed
from msa_plugin.engine.titles import FOLLOWED
from msa_plugin.routing.titles import TitleIndex


class Titled:
    """A system of whose passages those gain that the question, or the best passages, name by their titles."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """`base` becomes its own. A passage that it does not rank has a score of 0."""
        self.name, self.workspace, self.base, self.weight = name, workspace, base, weight
        documents = workspace.dataset.documents
        self.places = {d.id: place for place, d in enumerate(documents)}
        self.titles = TitleIndex([d.title for d in documents])

    @property
    def notes(self) -> tuple[str, ...]:
        """What `base` has to say."""
        return tuple(getattr(self.base, "notes", ()))

    def prepare(self) -> Cost:
        """What `base` costs; titles are indexed with the system."""
        return self.base.prepare()

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question, of the whole corpus."""
        if not questions or not self.places:
            return self.base.find(questions, k)
        seconds: Seconds = {}
        found = self.base.find(questions, len(self.places))
        with timed(seconds, "search"):
            rows = [self._row(question, one, k) for question, one in zip(questions, found, strict=True)]
        share = shared(seconds, len(questions))
        return [
            Found(row, summed([one.seconds, share]), (question,))
            for question, one, row in zip(questions, found, rows, strict=True)
        ]

    def close(self) -> None:
        """Close `base`."""
        self.base.close()

    def _row(self, question: str, found: Found, k: int) -> tuple[Scored, ...]:
        scores: NDArray[np.float64] = np.zeros(len(self.places))
        for hit in found.ranking:
            scores[self.places[hit.id]] = hit.score
        scores[self.titles.in_question(question)] += self.weight * max(float(scores.max()), 0.0)
        gains = np.zeros_like(scores)
        documents = self.workspace.dataset.documents
        for place in best(scores, FOLLOWED):
            named = self.titles.in_document(documents[place].text, place)
            gains[named] = np.maximum(gains[named], scores[place] / max(len(named), 1) ** 0.5)
        scores += self.weight * gains
        return tuple(Scored(documents[i].id, float(scores[i])) for i in best(scores, k))
