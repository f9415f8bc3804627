"""From what routing found to what is read and shown: hits with their passages, and questions on their way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msa_plugin.engine.answering import Asked
from msa_plugin.engine.excerpts import Excerpts
from msa_plugin.engine.interleave import Found, Gathered, Ranking
from msa_plugin.engine.ranking import ChunkScores, Ranked
from msa_plugin.types import Hit, Round


def hits(excerpts: Excerpts, questions: Sequence[str], ranking: Ranking, k: int | None) -> list[list[Hit]]:
    """Each row's documents with text, metadata and passages; with `k` the best passages of all of them instead.

    A document that several rows found is read once.
    """
    excerpts.documents(r for row in ranking.rows for r in row)
    asked = zip(questions, ranking.rows, ranking.chunks, strict=True)
    if k is None:
        return [excerpts.hits(*one) for one in asked]
    return [excerpts.passage_hits(*one, k) for one in asked]


def to_read(gathered: Gathered, excerpts: Excerpts, chunks: ChunkScores, budget: int, *, each: bool = False) -> Asked:
    """What of the documents found is read, within a budget of tokens; the best is read last, by the question.

    With `each`, something of every one of them.
    """
    ranked = [f.ranked for f in gathered.found]
    read = excerpts.read(gathered.question, ranked, chunks, budget, each=each)
    return Asked(gathered, read, {d.ordinal: d for d in excerpts.documents(ranked)})


def read_whole(question: str, ranked: Sequence[Ranked], excerpts: Excerpts, seconds: Mapping[str, float]) -> Asked:
    """One round that found all of `ranked`, whole documents."""
    stored = excerpts.documents(ranked)
    names, scores = tuple(d.id for d in stored), tuple(r.score for r in ranked)
    gathered = Gathered(question, [Found(r, 1) for r in ranked], [Round(question, names, scores, seconds)])
    return Asked(gathered, excerpts.whole(ranked), {d.ordinal: d for d in stored})
