"""Words beside vectors: a passage's score is its cosine plus a weight times its share of the question's best BM25.

What `msa+lexical` does, for embeddings, so that neither side of a comparison is held back by how its scores are added.
"""

from __future__ import annotations

from msa_plugin.bench.base import Cost, System, Workspace
from msa_plugin.bench.systems.common import total_cost
from msa_plugin.bench.systems.lexical import Bm25
from msa_plugin.bench.systems.rescored import Rescored, Scores


class Worded(Rescored):
    """A system that scores every passage, with BM25 added to its scores."""

    def __init__(self, name: str, workspace: Workspace, base: System, words: Bm25, weight: float) -> None:
        """`base` and `words` become its own. `base` must rank as many passages as it is asked for."""
        super().__init__(name, workspace, base, weight)
        self.words = words

    def prepare(self) -> Cost:
        """Index with both; the costs add up."""
        costs = [self.base.prepare(), self.words.prepare()]
        return total_cost(costs, self.workspace.dataset.documents, self.workspace.tokens)

    def again(self, question: str, scores: Scores) -> Scores:
        """Words added, as a share of the best."""
        words = self.words.asked(question)
        highest = float(words.max())
        return scores + self.weight * words / highest if highest > 0 else scores

    def close(self) -> None:
        """Close both."""
        super().close()
        self.words.close()
