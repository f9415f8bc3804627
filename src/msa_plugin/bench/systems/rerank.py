"""Ranking again what another system found: by the backbone's likelihood of the question, or by a cross-encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch

from msa_plugin.bench.base import Cost, Found, System, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import Composite, Seconds, best, falling, timed
from msa_plugin.embedding.models import sentence_transformers
from msa_plugin.embedding.rerankers import CrossEncoder, Likelihood, Scorer

RERANKED = 20  # passages, where a name gives no number


class Reranked(Composite):
    """The best `depth` of a base's ranking in a scorer's order, followed by the rest of the base's ranking."""

    def __init__(self, name: str, workspace: Workspace, base: System, depth: int, cross_encoder: str | None) -> None:
        """The backbone scores unless a `cross_encoder` is named. Raises MissingExtraError if that has no library."""
        super().__init__(name, workspace, (base,))
        self.depth, self.model = depth, cross_encoder
        if cross_encoder is not None:
            sentence_transformers()

    @cached_property
    def scorer(self) -> Scorer:
        """Loaded when it is needed. Raises ConfigError for a cross-encoder that cannot be."""
        engine = self.workspace.engine
        return Likelihood(engine) if self.model is None else CrossEncoder(self.model, str(engine.backbone.device))

    def prepare(self) -> Cost:
        """The base's; a reranker indexes nothing. Raises as `scorer`."""
        _ = self.scorer
        return super().prepare()

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question; stage `rerank` is the scorer's time."""
        found = self.bases[0].find(questions, max(k, self.depth))
        return [self._reranked(question, one, k) for question, one in zip(questions, found, strict=True)]

    def _reranked(self, question: str, found: Found, k: int) -> Found:
        first, rest = found.ranking[: self.depth], found.ranking[self.depth :]
        seconds: Seconds = {}
        with timed(seconds, "rerank"):
            ordered = self._ordered(question, first)
        spent = {**found.seconds, "rerank": found.seconds.get("rerank", 0.0) + seconds["rerank"]}
        reranked = replace(found, ranking=falling((*ordered, *rest))[:k], seconds=spent)
        if reranked.rounds:  # it happens once, after the last round
            *before, last = reranked.rounds
            return replace(reranked, rounds=(*before, {**last, "rerank": last.get("rerank", 0.0) + seconds["rerank"]}))
        return reranked

    def _ordered(self, question: str, hits: Sequence[Scored]) -> list[Scored]:
        if not hits:
            return []
        scores = torch.tensor(self.scorer.scores(question, [self.texts[h.id] for h in hits]), dtype=torch.float64)
        return [Scored(hits[i].id, float(scores[i])) for i in best(scores.numpy(), len(hits))]
