"""Names that passages share beside any ranking: what `msa+mentions` does, for the systems that it is compared with."""

from __future__ import annotations

import numpy as np

from msa_plugin.bank.words import WordPart, WordTable
from msa_plugin.bench.base import Cost, System, Workspace
from msa_plugin.bench.systems.common import best
from msa_plugin.bench.systems.rescored import Rescored, Scores
from msa_plugin.retrieval.links import FOLLOWED
from msa_plugin.retrieval.mentions import holders, mentions
from msa_plugin.retrieval.shared_names import ASKED, BELOW, MOST, SHARE
from msa_plugin.stems import stems


class Mentioned(Rescored):
    """A system of whose passages those gain that have a rare name in common with the best ones."""

    def __init__(self, name: str, workspace: Workspace, base: System, weight: float) -> None:
        """As `Rescored`."""
        super().__init__(name, workspace, base, weight)
        documents = workspace.dataset.documents
        table = WordTable.of((document.title, document.text) for document in documents)
        self.parts = [WordPart(table, np.arange(len(documents), dtype=np.int64), None)]

    def prepare(self) -> Cost:
        """What `base` costs; words are indexed with the system."""
        return self.base.prepare()

    def again(self, question: str, scores: Scores) -> Scores:
        """Gains of what shares a name with the best (`retrieval.shared_names`)."""
        documents = self.workspace.dataset.documents
        asked, most = {*stems()([question])[0]}, min(MOST, len(documents) // SHARE)
        if len(asked) > ASKED or most < 2:
            return scores
        lifted = scores.copy()
        top = best(scores, FOLLOWED)
        for place, names in zip(top, mentions([documents[place].text for place in top]), strict=True):
            for held in holders([name for name in names if not asked.issuperset(name)], self.parts, most):
                others = [other for other in held if other != place]
                if others and len(held) <= most:
                    gained = scores[others] + self.weight * scores[place] / len(others) ** 0.5
                    lifted[others] = np.maximum(lifted[others], np.minimum(gained, BELOW * scores[place]))
        return lifted
