"""How long a question takes, hop by hop and stage by stage, as the memory grows; and what indexing costs.

MSA's interleaved rounds against searching again and again with the same backbone, hops and number of passages read.
The systems take turns question by question, so that drift of the machine hits all alike. Rows are those of the parts
"latency" and "cost".
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from msa_plugin.bench.base import System, Workspace
from msa_plugin.bench.command import Sizes, option
from msa_plugin.bench.driver import Run, index_costs
from msa_plugin.bench.growing import AskingTime, GrowthCommand, InTime
from msa_plugin.bench.growth import GrowthPlan, GrowthStep
from msa_plugin.bench.growth_rows import DEPTH, LATENCY, latency_rows
from msa_plugin.bench.scoring import exact_twin
from msa_plugin.bench.systems import Options
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.prefilter import recall_against_exact

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


class LatencyCommand(GrowthCommand):
    """What OUT holds is not measured again.

    Example: msa bench latency --data DATA/dev/hotpotqa --distractors DATA/distractors --out results
    """

    systems: Systems = option(
        "msa-interleave,iterative:dense,iterative:bm25", "Names of systems, by commas.", "--systems", "-s", min_length=1
    )
    sizes: Sizes = option("16K,64K,256K,1M", "Sizes of the memory in tokens, such as 16K,64K,1M.")
    questions: int = option(20, "Questions of each data set, at most.", ge=1)
    hops: int = option(2, "Rounds of searching, for every system alike.", ge=1)
    per_round: int = option(3, "Passages that a round may add to what is read.", ge=1)
    repeats: int = option(3, "How often each question is asked, systems in turns.", ge=1)
    part = LATENCY
    own = ("hops", "per_round", "repeats")

    def measure(self, run: Run, planned: GrowthPlan, asking: AskingTime) -> None:
        """Measure every system at every size."""
        for number, step in enumerate(planned.steps):
            done = {"stage": "total", "memory_tokens": step.size}
            if missing := run.missing(planned.name, self.names, done):
                with run.workspace(planned.dataset(step)) as workspace, ExitStack() as stack:
                    _ = workspace.memory  # filling it is no part of a question's time
                    self._size(
                        run, workspace, stack, step, missing, partial(asking.share, left=len(planned.steps) - number)
                    )

    def _size(
        self,
        run: Run,
        workspace: Workspace,
        stack: ExitStack,
        step: GrowthStep,
        missing: Sequence[str],
        in_time: InTime,
    ) -> None:
        """All systems in turns: when one was not measured yet all are, since only times of one run compare."""
        ready = [one for name in self.names if (one := self._ready(run, name, workspace, stack)) is not None]
        if not set(missing) & {one.name for one in ready}:
            return
        dataset, stats = workspace.dataset, workspace.memory.stats()
        spent = self._ask(run, ready, dataset, step, in_time)
        for one in (one for one in ready if one.name in spent):
            records = _records(spent[one.name], dataset.questions, self._recall(run, one))
            at = {"memory_tokens": step.size}
            run.results.add_questions(LATENCY, dataset.name, one.name, [{**at, **record} for record in records])
            rows = index_costs(one.system.cost, **at)
            rows += [replace(row, settings={**at, **row.settings}) for row in latency_rows(records)]
            run.store(rows, dataset.name, one.name, stats.documents, stats.tokens)

    def _ready(self, run: Run, name: str, workspace: Workspace, stack: ExitStack) -> TimedSystem | None:
        """A system that has indexed the corpus and answered once; None, with a recorded reason, where it cannot."""
        hops, per_round = self.hops, self.per_round
        try:
            options = Options(rounds=hops, per_round=per_round)
            system = stack.enter_context(run.prepared(name, workspace, options))
            made = TimedSystem(name, system, workspace, hops, per_round)
            made.ask(workspace.dataset.questions[0].text)  # caches and lazy imports are not the first question's fault
        except Exception as error:
            run.skip(workspace.dataset.name, name, error)
            return None
        return made

    def _ask(
        self, run: Run, ready: Sequence[TimedSystem], dataset: Dataset, step: GrowthStep, in_time: InTime
    ) -> dict[str, list[dict[AtSize, float]]]:
        """Seconds of each question by system; the systems take turns, in an order that rotates.

        One that fails is out, and what it did so far is dropped.
        """
        spent: dict[str, list[dict[AtSize, float]]] = {one.name: [] for one in ready}
        turns = [q for _ in range(self.repeats) for q in dataset.questions]
        asked = 0
        for number, question in in_time(turns):
            run.watch.step(f"asking at {step.size:,} tokens", number, len(turns))
            playing = [one for one in ready if one.name in spent]
            for place in range(len(playing)):
                one = playing[(number + place) % len(playing)]
                try:
                    spent[one.name].append(one.ask(question.text))
                except Exception as error:
                    del spent[one.name]
                    run.skip(dataset.name, one.name, error)
            asked = number + 1
        if asked < len(turns):
            run.note(dataset.name, f"the budget allowed {asked} of {len(turns)} turns at {step.size:,} tokens")
        return spent

    def _recall(self, run: Run, one: TimedSystem) -> float | None:
        """Share of the exact best passages that a prefilter lets through; None without one."""
        if (twin := exact_twin(one.name)) is None:
            return None
        questions = [q.text for q in one.workspace.dataset.questions]
        with run.prepared(twin, one.workspace) as exact:
            memories = (exact.memory, one.system.memory)
            found = [[[h.id for h in row] for row in m.retrieve(questions, k=DEPTH)] for m in memories]
        return recall_against_exact(*found)


def _records(
    spent: Sequence[Mapping[AtSize, float]], questions: Sequence[Question], recall: float | None
) -> list[dict[str, Any]]:
    """What is kept of each turn: the question and its seconds by hop and stage; first what a prefilter let through."""
    records: list[dict[str, Any]] = [
        {
            "turn": turn,
            "id": questions[turn % len(questions)].id,
            "seconds": [[*at, value] for at, value in one.items()],
        }
        for turn, one in enumerate(spent)
    ]
    if recall is not None and records:
        records[0]["prefilter_recall"] = recall
    return records
