"""MSA itself: one round of routing, or rounds of Memory Interleave, and answers from what it chooses to read.

Nothing is ranked here that the engine does not rank for a user: `msa` is `engine.rank`, `msa-interleave` is
`engine.gather` followed by what the first round ranks below.
"""

from __future__ import annotations

from collections.abc import Sequence

from msa_plugin.answering.answers import AnswerJob
from msa_plugin.bench.base import Cost, Found, Reply, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.bench.systems.common import BenchSystem, Options, merged, shared, summed
from msa_plugin.config import BesideConfig
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.interleave import Ranking
from msa_plugin.retrieval.ranking import Ranked


class Msa(BenchSystem):
    """One round: the question's own ranking; the answer is read from what clears the adaptive cut.

    `memory` is a view of the workspace's, with weights of words and names and a prefilter of its own.
    """

    rounds = 1  # how often it routes for one question, at most

    def __init__(
        self, name: str, workspace: Workspace, options: Options, beside: BesideConfig, prefilter: str | None
    ) -> None:
        """Without weights the memory's own count. The memory is filled now, where it is not."""
        super().__init__(name, workspace, options)
        self.beside, self.prefilter = beside, prefilter
        self.memory = workspace.memory

    def prepare(self) -> Cost:
        """The memory holds the corpus, words and names among it; a prefilter is built. Raises as `Engine.variant`.

        `seconds` is what adding took in all, as the workspace knows it. `disk_bytes` include the passages' texts,
        `memory_bytes` are routing keys, a prefilter's index, and words and names where they count.
        """
        stats, engine = self.memory.stats(), self.memory.engine
        held = stats.bytes_keys
        weights = None if self.beside == BesideConfig() else self.beside
        held += 0 if weights is None else stats.bytes_words
        index = None
        if self.prefilter is not None:
            selection = engine.bank.select(self.memory.namespace)
            index = engine.search.prefilter(self.prefilter, self.workspace.cache / "prefilter", selection)
            held += index.bytes
        if weights is not None or index is not None:
            self.memory = LatentMemory(engine.variant(weights, index), engine.bank, self.memory.namespace)
        return Cost(self.workspace.encoding_seconds, stats.tokens, stats.bytes_total, held)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question. Raises InvalidQueryError as `LatentMemory.retrieve`."""
        if not questions:
            return []
        ranking = self._rank(questions, k)
        seconds = shared(ranking.seconds, len(questions))
        return [
            Found(tuple(row), seconds, (question,))
            for question, row in zip(questions, self._scored(ranking.rows), strict=True)
        ]

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answers from what MSA chooses to read, with as many rounds as this system has."""
        options = {**self.workspace.generation, "max_rounds": self.rounds}
        return [Reply.of(answer) for answer in self.memory.ask(list(questions), **options)]

    def _rank(self, questions: Sequence[str], k: int) -> Ranking:
        engine = self.memory.engine
        for question in questions:
            engine.check_question(question)
        return engine.rank(questions, k, engine.bank.select(self.memory.namespace))

    def _scored(self, rows: Sequence[Sequence[Ranked]]) -> list[list[Scored]]:
        """Ids for ordinals, all rows at once."""
        ordinals = sorted({r.ordinal for row in rows for r in row})
        names = {d.ordinal: d.id for d in self.memory.engine.bank.documents(ordinals)}
        return [[Scored(names[r.ordinal], r.score) for r in row] for row in rows]


class Interleaved(Msa):
    """Rounds: each routes on the question together with what the one before found (the memory's own settings).

    The ranking is what the rounds chose to read, in the engine's order (first round, then what each further one
    brought, best first); behind that come the passages that the first round ranked but did not keep, until there are
    `k`. Scores that the order contradicts are lowered.
    """

    @property
    def rounds(self) -> int:  # type: ignore[override]  # what is set for one round is a setting for several
        """The memory's setting, and 2 where that is only one."""
        return max(2, self.memory.config.interleave.max_rounds)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question; stage `fill` is the ranking below what the rounds kept."""
        if not questions:
            return []
        first = self._rank(questions, k)
        engine = self.memory.engine
        config = self.memory.config.interleave.model_copy(update={"max_rounds": self.rounds, "reads": k})
        asked = engine.gather(questions, engine.bank.select(self.memory.namespace), config)
        fill = {"fill": sum(first.seconds.values()) / len(questions)}
        rows = zip(asked, self._scored(first.rows), strict=True)
        return [self._found(one, below, fill, k) for one, below in rows]

    def _found(self, asked: AnswerJob, below: list[Scored], fill: dict[str, float], k: int) -> Found:
        gathered = asked.gathered
        kept = [[Scored(*hit) for hit in zip(r.selected, r.scores, strict=True)] for r in gathered.rounds]
        rounds = tuple(dict(r.seconds) for r in gathered.rounds)
        queries = tuple(r.query for r in gathered.rounds)
        return Found(merged(kept, below, k), summed([*rounds, fill]), queries, rounds)
