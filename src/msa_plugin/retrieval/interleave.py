"""Score-driven Memory Interleave (paper section 3.5): route, read what was found, route again, until nothing new.

Each round routes on the question together with the text that the previous round found, piece by piece, so that one
telling sentence is not drowned by the rest of its document; new documents that clear an adaptive cut are kept.
Questions of a batch go through their rounds side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from msa_plugin.config import InterleaveConfig
from msa_plugin.events import DocumentsChosen, RetrievalEnded, RetrievalEvent, RoundStarted
from msa_plugin.retrieval.ranking import ChunkScores, Ranked, best_first
from msa_plugin.types import Round


class Query(NamedTuple):
    """What a round routes on: the question and, after the first round, a piece of text that was found."""

    question: str
    found: str = ""


Rank = Callable[[Sequence[Query], int], "Ranking"]
ReadText = Callable[[Sequence[Ranked]], list[tuple[str, list[str]]]]


@dataclass(frozen=True)
class Ranking:
    """Ranked documents of each query, and the seconds that a query's share of the batch took, by stage.

    `chunks` score the chunks of any document, for each query.
    """

    rows: list[list[Ranked]]
    seconds: dict[str, float]
    chunks: Sequence[ChunkScores] = ()


@dataclass(frozen=True)
class FoundDocument:
    """A document worth reading, and the 1-based round that found it."""

    ranked: Ranked
    round: int

    @property
    def relevance(self) -> float | None:
        """To the question; later rounds look for what belongs to text that was found, which nothing was fitted for."""
        return self.ranked.relevance if self.round == 1 else None


@dataclass
class Gathered:
    """What the rounds of one question found, best first within each round.

    `relevance` is the highest that the first round saw, and None where it is not known; below `least` there is no
    further round.
    """

    question: str
    found: list[FoundDocument] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    relevance: float | None = None
    least: float = 0.0
    open_queries: list[Query] = field(init=False)  # what the next round routes on; empty when there will be none

    def __post_init__(self) -> None:
        """The first round routes on the question alone."""
        self.open_queries = [Query(self.question)]

    @property
    def query(self) -> str:
        """What the next round routes on, for people."""
        return f"{self.question} + {len(self.open_queries)} pieces of what was found" if self.rounds else self.question

    def take(
        self, results: Sequence[list[Ranked]], seconds: dict[str, float], config: InterleaveConfig, read: ReadText
    ) -> None:
        """Take one round's rankings, one per open query; decides what is kept and what is asked next."""
        number = len(self.rounds) + 1
        if number == 1:
            judged = [r.relevance for row in results for r in row if r.relevance is not None]
            self.relevance = max(judged, default=None)
        new = self._best_new(results, config)
        texts = read(new)
        self.rounds.append(
            Round(
                query=self.query,
                selected=tuple(name for name, _ in texts),
                scores=tuple(r.score for r in new),
                seconds=seconds,
            )
        )
        self.found += [FoundDocument(ranked, number) for ranked in new]
        self.open_queries = [Query(self.question, piece) for _, pieces in texts for piece in pieces]
        unrelated = self.relevance is not None and self.relevance < self.least
        enough = config.reads is not None and len(self.found) >= config.reads
        if number >= config.max_rounds or unrelated or enough:
            self.open_queries = []

    def _best_new(self, results: Sequence[list[Ranked]], config: InterleaveConfig) -> list[Ranked]:
        """Documents not found before, each at its best score over the queries, above the cut, best first."""
        known = {f.ranked.ordinal for f in self.found}
        best: dict[int, Ranked] = {}
        for ranked in (r for row in results for r in row):
            if ranked.ordinal not in known and (
                ranked.ordinal not in best or ranked.score > best[ranked.ordinal].score
            ):
                best[ranked.ordinal] = ranked
        ordered = best_first(best.values())
        if not ordered:
            return []
        top = self.found[0].ranked.score if self.found else ordered[0].score
        floor = top - (1 - config.cut) * abs(top)  # cut * top, and as far below a score that is negative
        kept = [r for r in ordered[: config.per_round] if r.score >= floor]
        return kept if kept or self.found else ordered[:1]  # the first round always finds its best


T = TypeVar("T")
Steps = Generator[tuple[int, RetrievalEvent], None, list[Gathered]]


def collect(steps: Generator[object, None, T]) -> T:
    """What a generator returns, when nobody wants what it yields."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        returned: T = end.value
        return returned


def interleave_steps(
    questions: Sequence[str], rank: Rank, read: ReadText, k: int, config: InterleaveConfig, least: float = 0.0
) -> Steps:
    """Run the rounds of every question, and tell what happens, as (index of the question, event), while it does.

    `rank(queries, k)` routes, `read(ranked)` gives (id, pieces of text). A question of which nothing is at least so
    relevant (`least`) has one round.
    """
    gathered = [Gathered(question, least=least) for question in questions]
    while active := [g for g in gathered if g.open_queries]:
        for index, g in enumerate(gathered):
            if g.open_queries:
                yield index, RoundStarted(len(g.rounds) + 1, g.query)
        queries = [query for g in active for query in g.open_queries]
        began = time.perf_counter()
        ranking = rank(queries, k)
        overhead = time.perf_counter() - began - sum(ranking.seconds.values())
        rows = iter(ranking.rows)
        for g in active:
            share = len(g.open_queries) / len(queries)
            seconds = {stage: value * share for stage, value in ranking.seconds.items()}
            seconds["other"] = max(0.0, overhead * share)
            g.take([next(rows) for _ in g.open_queries], seconds, config, read)
        for index, g in enumerate(gathered):
            if g in active:
                last = g.rounds[-1]
                yield index, DocumentsChosen(len(g.rounds), last.selected, last.scores)
                if not g.open_queries:
                    yield index, RetrievalEnded(len(g.rounds), "scores")
    return gathered
