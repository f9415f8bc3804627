"""Words and names beside any ranking: what `msa+lexical+titles+mentions` does, for the systems it is compared with.

So neither side of a comparison is held back by how its scores are added. All passages are scored again before the best
are taken.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.bench.base import Cost, Found, System, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import Composite, Seconds, best, shared, summed, timed
from msa_plugin.retrieval.links import FOLLOWED, NAMED
from msa_plugin.retrieval.mentions import holders, mentions
from msa_plugin.retrieval.names import TitleIndex
from msa_plugin.retrieval.postings import word_scores
from msa_plugin.retrieval.shared_names import ASKED, BELOW, MOST, SHARE
from msa_plugin.stems import stems
from msa_plugin.types import Document

Scores = NDArray[np.float64]


class ScoreFusion(Composite, ABC):
    """Ranks by what `again` makes of the scores of its first base, over the whole corpus."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """`base` becomes its own; a passage that it does not rank has a score of 0. `weight` is for `again`."""
        super().__init__(name, workspace, (base,))
        self.weight = weight
        self.places = {d.id: place for place, d in enumerate(self.documents)}

    @abstractmethod
    def again(self, question: str, scores: Scores) -> Scores:
        """New scores [n] of all passages, in the order of the corpus."""

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question."""
        base = self.bases[0]
        if not questions or not self.places:
            return base.find(questions, k)
        seconds: Seconds = {}
        found = base.find(questions, len(self.places))
        with timed(seconds, "search"):
            rows = [self._row(question, one, k) for question, one in zip(questions, found, strict=True)]
        share = shared(seconds, len(questions))
        return [
            Found(row, summed([one.seconds, share]), (question,))
            for question, one, row in zip(questions, found, rows, strict=True)
        ]

    def _row(self, question: str, found: Found, k: int) -> tuple[Scored, ...]:
        scores = np.zeros(len(self.places))
        for hit in found.ranking:
            scores[self.places[hit.id]] = hit.score
        scores = self.again(question, scores)
        return tuple(Scored(self.documents[i].id, float(scores[i])) for i in best(scores, k))


class WithWords(ScoreFusion):
    """A passage's score is its cosine plus a weight times its share of the best words."""

    parts: Sequence[WordPart] = ()

    def prepare(self) -> Cost:
        """With what the words of all passages take."""
        cost, began = super().prepare(), time.perf_counter()
        self.parts = _indexed(self.documents)
        seconds = cost.seconds + time.perf_counter() - began
        held = sum(tensor.nbytes for part in self.parts for tensor in part.table.tensors().values())
        return Cost(seconds, cost.tokens, cost.disk_bytes + held, cost.memory_bytes + held)

    def again(self, question: str, scores: Scores) -> Scores:
        """Words added (`retrieval.postings`)."""
        said = word_scores([question], self.parts)[0]
        return scores + self.weight * np.asarray(said.shares(range(len(scores))))


class WithTitles(ScoreFusion):
    """Of its passages those gain that the question, or the best passages, name by their titles."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """As `ScoreFusion`."""
        super().__init__(name, workspace, base, weight)
        self.titles = TitleIndex([d.title for d in self.documents])

    def again(self, question: str, scores: Scores) -> Scores:
        """Gains of what the question names, and then of what the best name (`retrieval.links`)."""
        named = self.titles.in_question(question)
        scores[named] += NAMED * self.weight * np.maximum(scores[named], 0.0)
        gains = np.zeros_like(scores)
        for place in best(scores, FOLLOWED):
            named = self.titles.in_document(self.documents[place].text, place)
            gains[named] = np.maximum(gains[named], scores[place] / max(len(named), 1) ** 0.5)
        return scores + self.weight * gains


class WithMentions(ScoreFusion):
    """Of its passages those gain that have a rare name in common with the best ones."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """As `ScoreFusion`."""
        super().__init__(name, workspace, base, weight)
        self.parts = _indexed(self.documents)

    def again(self, question: str, scores: Scores) -> Scores:
        """Gains of what shares a name with the best (`retrieval.shared_names`)."""
        asked, most = {*stems()([question])[0]}, min(MOST, len(self.documents) // SHARE)
        if len(asked) > ASKED or most < 2:
            return scores
        lifted = scores.copy()
        top = best(scores, FOLLOWED)
        for place, names in zip(top, mentions([self.documents[place].text for place in top]), strict=True):
            for held in holders([name for name in names if not asked.issuperset(name)], self.parts, most):
                others = [other for other in held if other != place]
                if others and len(held) <= most:
                    gained = scores[others] + self.weight * scores[place] / len(others) ** 0.5
                    lifted[others] = np.maximum(lifted[others], np.minimum(gained, BELOW * scores[place]))
        return lifted


def _indexed(documents: Sequence[Document]) -> list[WordPart]:
    table = WordTable.of((document.title, document.text) for document in documents)
    return [WordPart(table, np.arange(len(documents), dtype=np.int64), None)]
