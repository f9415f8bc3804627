"""From what routing found to what is read and shown: hits with their passages, and questions on their way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msa_plugin.answering.answers import AnswerJob
from msa_plugin.answering.excerpts import Excerpts
from msa_plugin.bank.handle import Selected
from msa_plugin.retrieval.interleave import FoundDocument, Gathered, Ranking
from msa_plugin.retrieval.ranking import ChunkScores, Ranked
from msa_plugin.retrieval.retriever import Retriever
from msa_plugin.types import Hits, Round


def hits(excerpts: Excerpts, questions: Sequence[str], ranking: Ranking, k: int | None) -> list[Hits]:
    """Each row's documents with text, metadata and passages; with `k` the best passages of all of them instead.

    A document that several rows found is read once.
    """
    began = time.perf_counter()
    excerpts.documents(r for row in ranking.rows for r in row)
    rows = []
    for question, row, chunks in zip(questions, ranking.rows, ranking.chunks, strict=True):
        found = excerpts.hits(question, row, chunks) if k is None else excerpts.passage_hits(question, row, chunks, k)
        rows.append(Hits(found, question, excerpts.best_chunks(row)))
    stages = {**ranking.seconds, "passages": time.perf_counter() - began}
    for hits in rows:
        hits.seconds = {stage: seconds / len(rows) for stage, seconds in stages.items()}
    return rows


def to_read(
    gathered: Gathered,
    excerpts: Excerpts,
    chunks: ChunkScores | None,
    budget: int,
    *,
    reads: int | None = None,
    each: bool = False,
) -> AnswerJob:
    """What of the first `reads` documents found is read, within a budget of tokens; the best last, by the question.

    With `each`, something of every one of them.
    """
    ranked = [found.ranked for found in gathered.found[:reads]]
    read = excerpts.read(gathered.question, ranked, chunks, budget, each=each)
    return AnswerJob(gathered, read, {d.ordinal: d for d in excerpts.documents(ranked)})


class ChosenDocuments(NamedTuple):
    """Documents that a caller chose for a question, as they are ranked for it; their chunks; the seconds that took."""

    gathered: Gathered
    chunks: ChunkScores | None
    seconds: Mapping[str, float]


def chosen(
    retriever: Retriever, questions: Sequence[str], ordinals: Sequence[Sequence[int]], selection: Selected
) -> list[ChosenDocuments]:
    """The documents chosen for each question, in that order."""
    wanted = sorted({o for row in ordinals for o in row})
    if not wanted:
        return [ChosenDocuments(Gathered(question), None, {}) for question in questions]
    ranking = retriever.rank(questions, len(wanted), selection.only(wanted))
    share = {stage: seconds / len(questions) for stage, seconds in ranking.seconds.items()}
    each = []
    for question, row, ranked, chunks in zip(questions, ordinals, ranking.rows, ranking.chunks, strict=True):
        scored = {r.ordinal: r for r in ranked}
        relevance = max((r.relevance for r in ranked if r.relevance is not None and r.ordinal in row), default=None)
        gathered = Gathered(question, [FoundDocument(scored[o], 1) for o in row], relevance=relevance)
        each.append(ChosenDocuments(gathered, chunks, share))
    return each


def read_whole(question: str, ranked: Sequence[Ranked], excerpts: Excerpts, seconds: Mapping[str, float]) -> AnswerJob:
    """One round that found all of `ranked`, whole documents."""
    stored = excerpts.documents(ranked)
    names, scores = tuple(d.id for d in stored), tuple(r.score for r in ranked)
    gathered = Gathered(question, [FoundDocument(r, 1) for r in ranked], [Round(question, names, scores, seconds)])
    return AnswerJob(gathered, excerpts.whole(ranked), {d.ordinal: d for d in stored})
