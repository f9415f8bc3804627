"""One system in a comparison of times: asked one question at a time, it says where the seconds went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from msa_plugin.bench.base import Cost, System, Workspace
from msa_plugin.bench.growth import NAMESPACE
from msa_plugin.bench.systems import Options
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.prefilter import apart, recall_against_exact
from msa_plugin.retrieval.search import Index

READING = ("gather", "prefill", "decode")
# Searching an index is what routing is for a memory; one name lets a table put them side by side.
_STAGES = {"search": "route"}
Create = Callable[..., Any]


def registry() -> Create:
    """The systems that the command line knows by name."""
    from msa_plugin.bench.systems import create

    made: Create = create
    return made


class AtSize(NamedTuple):
    """Where time was spent: a stage, of a hop (1-based) or of the question as a whole (0)."""

    hop: int
    stage: str


class TimedSystem:
    """One system ready to be asked, whose `ask` says where the time went."""

    def __init__(self, name: str, workspace: Workspace, create: Create, *, hops: int, per_round: int) -> None:
        """`hops` rounds may find `per_round` passages each. `name` may end in a prefilter, such as `+faiss:...`.

        Raises what `create` raises, and ConfigError for a system that does not search.
        """
        self.name, self.workspace, self.hops, self.per_round = name, workspace, hops, per_round
        self.msa = name.startswith("msa")
        plain, spec = apart(name)
        self.prefilter = spec if self.msa else None
        self.system = create(plain, workspace, Options(rounds=hops, per_round=per_round))
        if not self.msa and not isinstance(self.system, System):
            raise ConfigError(f"{name} does not search; times are compared between systems that do")
        self.cost: Cost | None = None
        self._index: Index | None = None

    def prepare(self) -> None:
        """Index the corpus, and remember what that cost."""
        if hasattr(self.system, "prepare"):
            self.cost = self.system.prepare()
        if self.prefilter is not None:
            engine, folder = self.workspace.memory.engine, self.workspace.cache / "prefilter"
            engine.use_prefilter(self.prefilter, folder, engine.bank.select(NAMESPACE))
            self._index, engine.prefilter = engine.prefilter, None
            if self.cost is not None and self._index is not None:
                self.cost = replace(self.cost, memory_bytes=self.cost.memory_bytes + self._index.bytes)

    def close(self) -> None:
        """Release what was prepared."""
        self._index = None
        if hasattr(self.system, "close"):
            self.system.close()

    def ask(self, question: str) -> dict[AtSize, float]:
        """Answer one question; seconds by hop and stage, and in all."""
        if not self.msa:
            return self._search_and_read(question)
        with self._behind_index():
            return self._remember(question)

    def recall(self, questions: Sequence[str], k: int) -> float | None:
        """Share of the exact `k` best passages that the prefilter lets through; None without one."""
        if self.prefilter is None:
            return None
        memory = self.workspace.memory
        exact = memory.retrieve(list(questions), k=k)
        with self._behind_index():
            found = memory.retrieve(list(questions), k=k)
        return recall_against_exact([[h.id for h in row] for row in exact], [[h.id for h in row] for row in found])

    @contextmanager
    def _behind_index(self) -> Iterator[None]:
        engine = self.workspace.memory.engine
        engine.prefilter = self._index
        try:
            yield
        finally:
            engine.prefilter = None

    def _remember(self, question: str) -> dict[AtSize, float]:
        """MSA's rounds; the cut is lifted, so that as many rounds take place as hops are wanted."""
        hops = self.hops if "interleave" in self.name else 1
        passages = self.per_round * self.hops // hops
        options = {**self.workspace.generation, "max_rounds": hops, "per_round": passages, "cut": 0.0}
        start = time.perf_counter()
        answer = self.workspace.memory.ask(question, **options)
        spent = {AtSize(0, "total"): time.perf_counter() - start}
        for number, one in enumerate(answer.trace.rounds, start=1):
            spent |= {AtSize(number, stage): seconds for stage, seconds in one.seconds.items()}
        return spent | {AtSize(0, s): answer.trace.seconds[s] for s in READING if s in answer.trace.seconds}

    def _search_and_read(self, question: str) -> dict[AtSize, float]:
        """Search, then read as many passages as MSA may read."""
        passages = self.per_round * self.hops
        start = time.perf_counter()
        [found] = self.system.find([question], passages)
        [reply] = self.workspace.read([question], [[hit.id for hit in found.ranking]])
        spent = {AtSize(0, "total"): time.perf_counter() - start}
        rounds = getattr(found, "rounds", ()) or (found.seconds,)
        for number, seconds in enumerate(rounds, start=1):
            for stage, value in seconds.items():
                at = AtSize(number, _STAGES.get(stage, stage))
                spent[at] = spent.get(at, 0.0) + value  # a fusion routes and searches
        return spent | {AtSize(0, s): reply.seconds[s] for s in READING if s in reply.seconds}
