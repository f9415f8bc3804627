"""How long a question takes, hop by hop and stage by stage, as the memory grows; and what memory and indexing cost.

MSA's interleaved rounds against searching again and again with the same backbone, hops and number of passages read.
The systems take turns question by question, so that drift of the machine hits all alike. Rows are those of the parts
"latency" and "cost".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pydantic import Field

from msa_plugin.bench.base import Cost, ResultRow, Workspace
from msa_plugin.bench.case import Sizes, option
from msa_plugin.bench.driver import Run
from msa_plugin.bench.growing import GrowthCommand, GrowthRun, GrowthSettings
from msa_plugin.bench.growth import Banks, GrowthPlan, GrowthStep
from msa_plugin.bench.growth_rows import DEPTH, LATENCY, latency_rows
from msa_plugin.bench.indexing import Alone, TextSource, indexing_seconds, peak_of
from msa_plugin.bench.scoring import exact_twin
from msa_plugin.bench.systems import Options
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.bench.timed_system import AtSize, TimedSystem
from msa_plugin.bench.timing import percentiles
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.retrieval.prefilter import recall_against_exact
from msa_plugin.types import Document

COST = "cost"


class LatencySettings(GrowthSettings):
    """What is measured: `hops` rounds of `per_round` passages each; `encode_tokens` are what indexing is timed on."""

    systems: Systems = option(
        "msa-interleave,iterative:dense,iterative:bm25", "Names of systems, by commas.", "--systems", "-s", min_length=1
    )
    sizes: Sizes = option("16K,64K,256K,1M", "Sizes of the memory in tokens, such as 16K,64K,1M.")
    questions: int = option(20, "Questions of each data set, at most.", ge=1)
    hops: int = option(2, "Rounds of searching, for every system alike.", ge=1)
    per_round: int = option(3, "Passages that a round may add to what is read.", ge=1)
    repeats: int = option(3, "How often each question is asked, systems in turns.", ge=1)
    encode_tokens: int = Field(default=20_000, ge=1)


class Latency(GrowthRun):
    """One run over one data set."""

    def __init__(self, settings: Any, run: Run, budget: float | None = None, source: TextSource | None = None) -> None:
        """`source` is what another process loads to measure a system's peak memory alone; None leaves that out."""
        super().__init__(settings, run, budget)
        self.source = source

    def measure(self, planned: GrowthPlan) -> None:
        """Measure every system at every size, and what indexing costs."""
        self._indexing(planned)
        for number, step in enumerate(planned.steps):
            done = {"stage": "total", "memory_tokens": step.size}
            if missing := self.run.missing(planned.name, self.settings.names, done):
                with self.run.workspace(planned.dataset(step)) as workspace, ExitStack() as stack:
                    _ = workspace.memory  # filling it is no part of a question's time
                    self._size(workspace, stack, step, missing, len(planned.steps) - number)

    def _size(
        self, workspace: Workspace, stack: ExitStack, step: GrowthStep, missing: Sequence[str], left: int
    ) -> None:
        """All systems in turns: when one was not measured yet all are, since only times of one run compare."""
        ready = [one for name in self.settings.names if (one := self._ready(name, workspace, stack)) is not None]
        if not set(missing) & {one.name for one in ready}:
            return
        dataset, stats = workspace.dataset, workspace.memory.stats()
        spent = self._ask(ready, dataset, step, left)
        for one in (one for one in ready if one.name in spent):
            records = _records(spent[one.name], dataset.questions, self._recall(one))
            at = {"memory_tokens": step.size}
            self.run.results.add_questions(LATENCY, dataset.name, one.name, [{**at, **record} for record in records])
            rows = [*_costs(one.system.cost, step), *self._peak(one.name, dataset, step)]
            rows += [replace(row, settings={**at, **row.settings}) for row in latency_rows(records)]
            self.run.store(rows, dataset.name, one.name, stats.documents, stats.tokens)

    def _ready(self, name: str, workspace: Workspace, stack: ExitStack) -> TimedSystem | None:
        """A system that has indexed the corpus and answered once; None, with a recorded reason, where it cannot."""
        hops, per_round = self.settings.hops, self.settings.per_round
        try:
            options = Options(rounds=hops, per_round=per_round)
            system = stack.enter_context(self.run.prepared(name, workspace, options))
            made = TimedSystem(name, system, workspace, hops, per_round)
            made.ask(workspace.dataset.questions[0].text)  # caches and lazy imports are not the first question's fault
        except Exception as error:
            self.run.skip(workspace.dataset.name, name, error)
            return None
        return made

    def _ask(
        self, ready: Sequence[TimedSystem], dataset: Dataset, step: GrowthStep, left: int
    ) -> dict[str, list[dict[AtSize, float]]]:
        """Seconds of each question by system; the systems take turns, in an order that rotates.

        One that fails is out, and what it did so far is dropped.
        """
        spent: dict[str, list[dict[AtSize, float]]] = {one.name: [] for one in ready}
        turns = [q for _ in range(self.settings.repeats) for q in dataset.questions]
        asked = 0
        for number, question in self.in_time(turns, left):
            self.run.watch.step(f"asking at {step.size:,} tokens", number, len(turns))
            playing = [one for one in ready if one.name in spent]
            for place in range(len(playing)):
                one = playing[(number + place) % len(playing)]
                try:
                    spent[one.name].append(one.ask(question.text))
                except Exception as error:
                    del spent[one.name]
                    self.run.skip(dataset.name, one.name, error)
            asked = number + 1
        if asked < len(turns):
            self.run.note(dataset.name, f"the budget allowed {asked} of {len(turns)} turns at {step.size:,} tokens")
        return spent

    def _recall(self, one: TimedSystem) -> float | None:
        """Share of the exact best passages that a prefilter lets through; None without one."""
        if (twin := exact_twin(one.name)) is None:
            return None
        questions = [q.text for q in one.workspace.dataset.questions]
        with self.run.prepared(twin, one.workspace) as exact:
            memories = (exact.memory, one.system.memory)
            found = [[[h.id for h in row] for row in m.retrieve(questions, k=DEPTH)] for m in memories]
        return recall_against_exact(*found)

    def _peak(self, name: str, dataset: Dataset, step: GrowthStep) -> list[ResultRow]:
        if self.source is None:
            return []
        run, chosen = self.run, self.settings
        run.watch.step(f"peak memory of {name}", 0, 1)
        places = run.banks.folder.parent, run.cache
        try:
            peak = peak_of(Alone(self.source, *places, dataset, name, run.create, chosen.hops, chosen.per_round))
        except Exception as error:  # a process that the system ended, say; the times that were measured stand
            why = run.why(f"peak memory of {name}", error)
            run.note(dataset.name, f"peak memory of {name} at {step.size:,} tokens was not measured: {why}")
            return []
        return [ResultRow(COST, "", "", "peak_rss_bytes", float(peak), n=1, settings={"memory_tokens": step.size})]

    def _indexing(self, planned: GrowthPlan) -> None:
        """What indexing 1,000 tokens takes, per system that indexes: MSA's encoding beside an embedding model's."""
        chosen, results = self.settings, self.run.results
        settings = {"sample_tokens": chosen.encode_tokens}
        names = list(dict.fromkeys(_indexed(name) for name in chosen.systems))
        if all(results.has((COST, planned.name, name, settings)) for name in names):
            return
        sample, tokens = _sample(planned, self.run.banks, chosen.encode_tokens)
        found = indexing_seconds(names, sample, self.run, chosen.repeats)
        for name, why in found.skipped.items():
            results.note(COST, planned.name, f"indexing with {name}: {why}")
        for name, seconds in found.seconds.items():
            p5, p50, p95 = (1000 * value / tokens for value in percentiles(seconds))
            row = ResultRow(COST, "", "", "index_seconds_per_1k_tokens", p50, p5, p95, len(seconds), settings=settings)
            self.run.store([row], planned.name, name, len(sample.documents), tokens)


class LatencyCommand(LatencySettings, GrowthCommand):
    """What OUT holds is not measured again.

    Example: msa bench latency --data DATA/dev/hotpotqa --distractors DATA/distractors --out results
    """

    part = LATENCY
    own = ("hops", "per_round", "repeats")
    peak: bool = option(True, "Measure peak memory of each system in a process of its own.")

    def measuring(self, run: Run, budget: float | None) -> Latency:
        """What is run on one data set, with what another process loads."""
        source = TextSource(self.model, self.adapter, MemoryConfig()) if self.peak else None
        return Latency(self, run, budget, source)


def _indexed(name: str) -> str:
    """The system whose index `name` searches."""
    plain = name.split("+")[0]
    kind, _, base = plain.partition(":")
    if plain.startswith("msa"):
        return "msa"
    return (base or "dense") if kind in ("iterative", "decompose") else plain


def _sample(planned: GrowthPlan, banks: Banks, tokens: int) -> tuple[Dataset, int]:
    """The first passages of the corpus that have at least `tokens` tokens, and how many they have."""
    chosen: list[Document] = []
    total = 0
    for document in planned.documents:
        if total >= tokens:
            break
        chosen.append(document)
        total += banks.tokens([document])[0]
    return Dataset(planned.name, tuple(chosen), planned.questions), total


def _costs(cost: Cost | None, step: GrowthStep) -> Iterator[ResultRow]:
    """Bytes that an index keeps on the disk and in memory, per token."""
    if cost is None or not cost.tokens:
        return
    for metric, value in (("disk_bytes_per_token", cost.disk_bytes), ("memory_bytes_per_token", cost.memory_bytes)):
        yield ResultRow(COST, "", "", metric, value / step.tokens, n=1, settings={"memory_tokens": step.size})


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
