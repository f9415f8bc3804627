"""One system in a comparison of times: asked one question at a time, it says where the seconds went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from msa_plugin.bench.base import System, Workspace
from msa_plugin.errors import ConfigError

READING = ("gather", "prefill", "decode")
# Searching an index is what routing is for a memory; one name lets a table put them side by side.
_STAGES = {"search": "route"}


class AtSize(NamedTuple):
    """Where time was spent: a stage, of a hop (1-based) or of the question as a whole (0)."""

    hop: int
    stage: str


@dataclass
class TimedSystem:
    """A prepared system, whose `ask` says where the time went; `hops` rounds may find `per_round` passages each."""

    name: str
    system: Any
    workspace: Workspace
    hops: int
    per_round: int

    def __post_init__(self) -> None:
        """Raises ConfigError for a system that does not search."""
        self.msa = self.name.startswith("msa")
        if not isinstance(self.system, System):
            raise ConfigError(f"{self.name} does not search; times are compared between systems that do")

    def ask(self, question: str) -> dict[AtSize, float]:
        """Answer one question; seconds by hop and stage, and in all."""
        return self._remember(question) if self.msa else self._search_and_read(question)

    def _remember(self, question: str) -> dict[AtSize, float]:
        """MSA's rounds; the cut is lifted, so that as many rounds take place as hops are wanted."""
        hops = self.hops if "interleave" in self.name else 1
        passages = self.per_round * self.hops // hops
        options = {**self.workspace.generation, "max_rounds": hops, "per_round": passages, "cut": 0.0}
        start = time.perf_counter()
        answer = self.system.memory.ask(question, **options)
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
        rounds = found.rounds or (found.seconds,)
        for number, seconds in enumerate(rounds, start=1):
            for stage, value in seconds.items():
                at = AtSize(number, _STAGES.get(stage, stage))
                spent[at] = spent.get(at, 0.0) + value  # a fusion routes and searches
        return spent | {AtSize(0, s): reply.seconds[s] for s in READING if s in reply.seconds}
