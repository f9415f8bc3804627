"""Words beside vectors: a passage's score is its cosine plus a weight times its share of the question's best BM25.

What `msa+lexical` does, for embeddings, so that neither side of a comparison is held back by how its scores are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msa_plugin.bench.base import Cost, Found, Scored, System, Workspace
from msa_plugin.bench.systems.common import Seconds, best, shared, summed, timed, total_cost
from msa_plugin.bench.systems.lexical import Bm25


class Worded:
    """A system that scores every passage, with BM25 added to its scores."""

    def __init__(self, name: str, workspace: Workspace, base: System, words: Bm25, weight: float) -> None:
        """`base` and `words` become its own. `base` must rank as many passages as it is asked for."""
        self.name, self.workspace, self.base, self.words, self.weight = name, workspace, base, words, weight
        self.places = {d.id: place for place, d in enumerate(workspace.dataset.documents)}

    @property
    def notes(self) -> tuple[str, ...]:
        """What `base` has to say."""
        return tuple(getattr(self.base, "notes", ()))

    def prepare(self) -> Cost:
        """Index with both; the costs add up."""
        costs = [self.base.prepare(), self.words.prepare()]
        return total_cost(costs, self.workspace.dataset.documents, self.workspace.tokens)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question by both scores, of the whole corpus."""
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
        """Close both."""
        self.base.close()
        self.words.close()

    def _row(self, question: str, found: Found, k: int) -> tuple[Scored, ...]:
        scores = np.zeros(len(self.places))
        for hit in found.ranking:
            scores[self.places[hit.id]] = hit.score
        words = self.words.asked(question)
        if (highest := float(words.max())) > 0:
            scores += self.weight * words / highest
        documents = self.workspace.dataset.documents
        return tuple(Scored(documents[i].id, float(scores[i])) for i in best(scores, k))
