"""MSA itself: one round of routing, or rounds of Memory Interleave, and answers from what it chooses to read.

Nothing is ranked here that the engine does not rank for a user: `msa` is `engine.rank`, `msa-interleave` is
`engine.gather` followed by what the first round ranks below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from msa_plugin.answering.answers import AnswerJob
from msa_plugin.bench.base import Cost, Found, Reply, Scored, Workspace
from msa_plugin.bench.systems.common import FoundInRounds, Options, merged, shared, summed
from msa_plugin.config import BesideConfig
from msa_plugin.retrieval.interleave import Ranking
from msa_plugin.retrieval.links import Titles
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.retrieval.search import Index
from msa_plugin.retrieval.shared_names import Mentions
from msa_plugin.retrieval.words import WordSignal


class Msa:
    """One round: the question's own ranking; the answer is read from what clears the adaptive cut."""

    def __init__(self, name: str, workspace: Workspace, options: Options) -> None:
        """`name` is what the command line called it."""
        self.name, self.workspace, self.options = name, workspace, options
        self.memory = workspace.memory
        self._prefilter: Index | None = None
        self._lexical: WordSignal | None = None
        self._titles: Titles | None = None
        self._mentions: Mentions | None = None

    @property
    def rounds(self) -> int:
        """How often it routes for one question, at most."""
        return 1

    def prepare(self) -> Cost:
        """The memory holds the corpus, words and names among it; a prefilter is built. Raises as `use_...` do.

        `seconds` is what adding took in all, as the workspace knows it. `disk_bytes` include the passages' texts,
        `memory_bytes` are routing keys, a prefilter's index, and words and names where they count.
        """
        stats = self.memory.stats()
        held = stats.bytes_keys + self._build_prefilter()
        self._use_words()
        if self._lexical or self._titles or self._mentions:
            held += stats.bytes_words
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
        with self._filtered():
            answers = self.memory.ask(list(questions), **options)
        return [Reply.of(answer) for answer in answers]

    def close(self) -> None:
        """Drop what was built; the memory is the workspace's."""
        self._prefilter = self._lexical = self._titles = self._mentions = None

    def _rank(self, questions: Sequence[str], k: int) -> Ranking:
        engine = self.memory.engine
        for question in questions:
            engine.check_question(question)
        with self._filtered():
            return engine.rank(questions, k, engine.bank.select(self.memory.namespace))

    def _scored(self, rows: Sequence[Sequence[Ranked]]) -> list[list[Scored]]:
        """Ids for ordinals, all rows at once."""
        ordinals = sorted({r.ordinal for row in rows for r in row})
        names = {d.ordinal: d.id for d in self.memory.engine.bank.documents(ordinals)}
        return [[Scored(names[r.ordinal], r.score) for r in row] for row in rows]

    def _build_prefilter(self) -> int:
        """The only place that knows how a prefilter is made; returns its bytes."""
        if self.options.prefilter is None:
            return 0
        engine, before = self.memory.engine, self.memory.engine.prefilter
        selection = engine.bank.select(self.memory.namespace)
        engine.use_prefilter(self.options.prefilter, self.workspace.cache / "prefilter", selection)
        self._prefilter, engine.prefilter = engine.prefilter, before
        return self._prefilter.bytes if self._prefilter is not None else 0

    def _use_words(self) -> None:
        engine = self.memory.engine
        before, options = (engine.lexical, engine.titles, engine.mentions), self.options
        engine.use_beside(BesideConfig(lexical=options.lexical, titles=options.titles, mentions=options.mentions))
        self._lexical, self._titles, self._mentions = engine.lexical, engine.titles, engine.mentions
        engine.lexical, engine.titles, engine.mentions = before

    @contextmanager
    def _filtered(self) -> Iterator[None]:
        """This system's prefilter, words and names are the engine's while inside; without them it stays as it is."""
        engine = self.memory.engine
        before = engine.prefilter, engine.lexical, engine.titles, engine.mentions
        engine.prefilter, engine.lexical = self._prefilter or before[0], self._lexical or before[1]
        engine.titles, engine.mentions = self._titles or before[2], self._mentions or before[3]
        try:
            yield
        finally:
            engine.prefilter, engine.lexical, engine.titles, engine.mentions = before


class Interleaved(Msa):
    """Rounds: each routes on the question together with what the one before found (the memory's own settings).

    The ranking is what the rounds chose to read, in the engine's order (first round, then what each further one
    brought, best first); behind that come the passages that the first round ranked but did not keep, until there are
    `k`. Scores that the order contradicts are lowered.
    """

    @property
    def rounds(self) -> int:
        """The memory's setting, and 2 where that is only one."""
        return max(2, self.memory.config.interleave.max_rounds)

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question; stage `fill` is the ranking below what the rounds kept."""
        if not questions:
            return []
        first = self._rank(questions, k)
        engine = self.memory.engine
        config = self.memory.config.interleave.model_copy(update={"max_rounds": self.rounds})
        with self._filtered():
            asked = engine.gather(questions, engine.bank.select(self.memory.namespace), config)
        fill = {"fill": sum(first.seconds.values()) / len(questions)}
        rows = zip(asked, self._scored(first.rows), strict=True)
        return [self._found(one, below, fill, k) for one, below in rows]

    def _found(self, asked: AnswerJob, below: list[Scored], fill: dict[str, float], k: int) -> FoundInRounds:
        gathered = asked.gathered
        kept = [[Scored(*hit) for hit in zip(r.selected, r.scores, strict=True)] for r in gathered.rounds]
        rounds = tuple(dict(r.seconds) for r in gathered.rounds)
        queries = tuple(r.query for r in gathered.rounds)
        return FoundInRounds(merged(kept, below, k), summed([*rounds, fill]), queries, rounds)
