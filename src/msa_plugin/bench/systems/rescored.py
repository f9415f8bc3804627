"""A system whose passages are all scored again before the best are taken: what words and names beside it share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.base import Found, Scored, System, Workspace
from msa_plugin.bench.systems.common import Seconds, best, shared, summed, timed

Scores = NDArray[np.float64]


class Rescored(ABC):
    """Ranks by what `again` makes of the scores of `base`, over the whole corpus."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """`base` becomes its own; a passage that it does not rank has a score of 0. `weight` is for `again`."""
        self.name, self.workspace, self.base, self.weight = name, workspace, base, weight
        self.places = {d.id: place for place, d in enumerate(workspace.dataset.documents)}

    @abstractmethod
    def again(self, question: str, scores: Scores) -> Scores:
        """New scores [n] of all passages, in the order of the corpus."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What `base` has to say."""
        return tuple(getattr(self.base, "notes", ()))

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question."""
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
        scores = np.zeros(len(self.places))
        for hit in found.ranking:
            scores[self.places[hit.id]] = hit.score
        scores = self.again(question, scores)
        documents = self.workspace.dataset.documents
        return tuple(Scored(documents[i].id, float(scores[i])) for i in best(scores, k))
