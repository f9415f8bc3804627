"""What a group teaches the router: labels, a teacher's similarities, and a teacher's vectors.

Shapes: P passages, M questions of the pool, Q steps of a group, D routing-key width, W a teacher's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from msa_plugin.config import Settings
from msa_plugin.training.groups import Group, Pool
from msa_plugin.training.losses import distillation_loss, routing_loss
from msa_plugin.training.teacher import Taught


class LossConfig(Settings):
    """How the losses of a group are mixed; each counts by its weight.

    `labels` weighs the contrastive loss, `teacher` the distillation: the teacher's similarity of a question and a
    passage is the embedding's cosine plus `lexical` times BM25 as a share of the question's best. `similar` weighs the
    same divergence between a group's documents, and between its questions, by the means of their vectors.
    `vectors` weighs one minus the cosine of a document's, and a question's, vector with the teacher's own, reduced to
    the router's width and turned to where training begins: each text teaches as many numbers, whatever is beside it.
    `words` is the weight at which BM25's share counts beside the router's scores where labels are learnt, as it does
    when a memory searches; the teacher is followed by the router alone. Temperatures divide scores.
    """

    labels: float = Field(default=1.0, ge=0)
    teacher: float = Field(default=1.0, ge=0)
    similar: float = Field(default=0.0, ge=0)
    vectors: float = Field(default=0.0, ge=0)
    lexical: float = Field(default=0.3, ge=0)
    words: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=0.05, gt=0)
    teacher_temperature: float = Field(default=0.05, gt=0)


@dataclass(frozen=True)
class GroupScores:
    """Cosines [Q, P] of a group, unit vectors of its documents [P, D] and questions [Q', D], and the tokens it took."""

    scores: Tensor
    documents: Tensor
    questions: Tensor
    tokens: int


class GroupLosses:
    """The losses of groups of `pool` by the names of their weights in `LossConfig`."""

    def __init__(self, pool: Pool, config: LossConfig, target: Taught | None) -> None:
        """`target` is what `vectors` has the router's own vectors learn, passages [P, D] and questions [M, D]."""
        self.pool, self.config, self.target = pool, config, target

    def of(self, group: Group, scored: GroupScores) -> dict[str, Tensor]:
        """Those that have a weight and something to learn from."""
        scores, parts = scored.scores, {}
        numbers = [ask.question for ask in group.asks]
        asked = list(dict.fromkeys(numbers))
        shares = self._shares(group, numbers).to(scores.device)
        labelled = [i for i, ask in enumerate(group.asks) if not ask.made]
        if self.config.labels and labelled:
            both = scores + self.config.words * shares
            shown = [(both[i][~group.absent[i]], group.positives[i][~group.absent[i]]) for i in labelled]
            losses = [routing_loss(row, right, temperature=self.config.temperature) for row, right in shown]
            parts["labels"] = torch.stack(losses).mean()
        first = torch.tensor([not ask.found for ask in group.asks])
        if self.pool.teacher is not None:
            passages, questions = (torch.from_numpy(v) for v in self.pool.teacher)
            taught = passages[list(group.passages)]
            if self.config.teacher and bool(first.any()):
                cosines = questions[numbers] @ taught.T + self.config.lexical * shares.cpu()
                parts["teacher"] = self._divergence(scores[first], cosines[first])
            if self.config.similar:
                parts["similar"] = self._among(scored.documents, taught) + self._among(
                    scored.questions, questions[asked]
                )
        if self.target is not None:
            passages, questions = (torch.from_numpy(v) for v in self.target)
            parts["vectors"] = _apart(scored.documents, passages[list(group.passages)]) + _apart(
                scored.questions, questions[asked]
            )
        return parts

    def _divergence(self, scores: Tensor, taught: Tensor) -> Tensor:
        c = self.config
        scales = {"temperature": c.temperature, "teacher_temperature": c.teacher_temperature}
        return distillation_loss(scores, taught.to(scores.device), **scales)

    def _among(self, vectors: Tensor, taught: Tensor) -> Tensor:
        """The divergence between vectors [N, D] of the same kind; none is compared with itself."""
        if len(vectors) < 3:
            return vectors.new_zeros(())
        with torch.autocast(vectors.device.type, enabled=False):
            mine = vectors.float() @ vectors.float().T
        other = ~torch.eye(len(vectors), dtype=torch.bool)
        rows = [products[other.to(products.device)].view(len(vectors), -1) for products in (mine, taught @ taught.T)]
        return self._divergence(*rows)

    def _shares(self, group: Group, numbers: Sequence[int]) -> Tensor:
        """BM25 of a group's steps [Q, P], each as a share of its best over the pool."""
        columns = list(group.passages)
        if not (self.config.words or (self.config.lexical and self.pool.teacher is not None)):
            return torch.zeros(len(numbers), len(columns))
        found = {q: _share(torch.from_numpy(self.pool.lexical(q)), columns) for q in dict.fromkeys(numbers)}
        return torch.stack([found[q] for q in numbers])


def _apart(vectors: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of vectors [N, D] with what they should be, on average."""
    return 1 - F.cosine_similarity(vectors.float(), target.to(vectors.device), dim=1).mean()


def _share(scores: Tensor, columns: list[int]) -> Tensor:
    return scores[columns] / scores.max().clamp(min=1e-6)
