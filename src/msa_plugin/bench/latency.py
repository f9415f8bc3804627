"""How long a question takes, hop by hop and stage by stage, as the memory grows; and what memory and indexing cost.

MSA's interleaved rounds against searching again and again with the same backbone, hops and number of passages read.
The systems take turns question by question, so that drift of the machine hits all alike. Rows are those of the parts
"latency" and "cost".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pydantic import Field

from msa_plugin.bench.base import Cost, ResultRow, Workspace
from msa_plugin.bench.case import Sizes, option
from msa_plugin.bench.growing import GrowthCommand, GrowthRun, GrowthSettings
from msa_plugin.bench.growth import Banks, GrowthPlan, GrowthStep
from msa_plugin.bench.growth_rows import DEPTH, LATENCY, latency_rows
from msa_plugin.bench.indexing import TextSource, indexing_seconds, peak_of
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.bench.timed_system import AtSize, TimedSystem
from msa_plugin.bench.timing import percentiles
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, Question
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

    part = LATENCY

    def __init__(self, *given: Any, source: TextSource | None = None, **more: Any) -> None:
        """`source` is what another process loads to measure a system's peak memory alone; None leaves that out."""
        super().__init__(*given, **more)
        self.source = source

    @property
    def names(self) -> tuple[str, ...]:
        """Systems as the results name them."""
        chosen = self.settings
        return (*chosen.systems, *(f"{name}+{chosen.prefilter}" for name in chosen.behind))

    def measure(self, planned: GrowthPlan) -> None:
        """Measure every system at every size, and what indexing costs."""
        self._indexing(planned)
        for number, step in enumerate(planned.steps):
            self._size(planned, step, len(planned.steps) - number)

    def _size(self, planned: GrowthPlan, step: GrowthStep, left: int) -> None:
        """All systems in turns: when one was not measured yet all are, since only times of one run compare."""
        done = {"stage": "total", "memory_tokens": step.size}
        missing = {n for n in self.names if not self.results.has((LATENCY, planned.name, n, done))}
        if not missing:
            return
        dataset = planned.dataset(step)
        self.banks.encode(dataset.documents, self.on_step)
        with self.banks.open(dataset.documents) as memory, ExitStack() as stack:
            workspace = Workspace(dataset, memory, self.cache, self.generation, self.on_step)
            ready = [c for name in self.names if (c := self._ready(name, workspace, stack)) is not None]
            if not missing & {c.name for c in ready}:
                return
            spent = self._ask(ready, planned, step, left)
            recalls = {c.name: c.recall([q.text for q in planned.questions], DEPTH) for c in ready}
            stats = memory.stats()
        for one in ready:
            if one.name not in spent:
                continue
            records = _records(spent[one.name], planned.questions, recalls[one.name])
            at = {"memory_tokens": step.size}
            self.results.add_questions(LATENCY, planned.name, one.name, [{**at, **record} for record in records])
            rows = [*_costs(one.cost, step), *self._peak(one.name, dataset, step)]
            rows += [replace(row, settings={**at, **row.settings}) for row in latency_rows(records)]
            self.store(rows, planned.name, one.name, stats.documents, stats.tokens)

    def _ready(self, name: str, workspace: Workspace, stack: ExitStack) -> TimedSystem | None:
        """A system that has indexed the corpus and answered once; None, with a recorded reason, where it cannot."""
        chosen, question = self.settings, workspace.dataset.questions[0].text
        try:
            made = TimedSystem(name, workspace, self.create, hops=chosen.hops, per_round=chosen.per_round)
            stack.callback(made.close)
            self.on_step(f"preparing {name}", 0, 1)
            made.prepare()
            for note in getattr(made.system, "notes", ()):
                self.note(workspace.dataset.name, f"{name}: {note}")
            made.ask(question)  # caches and lazy imports are not the first question's fault
        except Exception as error:
            self.results.skip(LATENCY, workspace.dataset.name, name, self.failed(name, error))
            return None
        return made

    def _ask(
        self, ready: Sequence[TimedSystem], planned: GrowthPlan, step: GrowthStep, left: int
    ) -> dict[str, list[dict[AtSize, float]]]:
        """Seconds of each question by system; the systems take turns, in an order that rotates."""
        spent: dict[str, list[dict[AtSize, float]]] = defaultdict(list)
        playing = list(ready)
        turns = [q for _ in range(self.settings.repeats) for q in planned.questions]
        asked = 0
        for number, question in self.in_time(turns, left):
            self.on_step(f"asking at {step.size:,} tokens", number, len(turns))
            for place in range(len(playing)):
                one = playing[(number + place) % len(playing)]
                self._turn(one, question, spent, planned.name)
            playing = [one for one in playing if one.name in spent]
            asked = number + 1
        if asked < len(turns):
            self.note(planned.name, f"the budget allowed {asked} of {len(turns)} turns at {step.size:,} tokens")
        return spent

    def _turn(
        self, one: TimedSystem, question: Question, spent: dict[str, list[dict[AtSize, float]]], dataset: str
    ) -> None:
        """One question; a system that fails is out, and what it did so far is dropped."""
        try:
            spent[one.name].append(one.ask(question.text))
        except Exception as error:
            spent.pop(one.name, None)
            self.results.skip(LATENCY, dataset, one.name, self.failed(one.name, error))

    def _peak(self, name: str, dataset: Dataset, step: GrowthStep) -> list[ResultRow]:
        if self.source is None:
            return []
        chosen = self.settings
        self.on_step(f"peak memory of {name}", 0, 1)
        banks, hops, kept = self.banks.folder.parent, chosen.hops, chosen.per_round
        try:
            peak = peak_of(self.source, banks, self.cache, dataset, name, self.create, hops=hops, per_round=kept)
        except Exception as error:  # a process that the system ended, say; the times that were measured stand
            why = self.failed(f"peak memory of {name}", error)
            self.note(dataset.name, f"peak memory of {name} at {step.size:,} tokens was not measured: {why}")
            return []
        return [ResultRow(COST, "", "", "peak_rss_bytes", float(peak), n=1, settings={"memory_tokens": step.size})]

    def _indexing(self, planned: GrowthPlan) -> None:
        """What indexing 1,000 tokens takes, per system that indexes: MSA's encoding beside an embedding model's."""
        chosen = self.settings
        settings = {"sample_tokens": chosen.encode_tokens}
        names = list(dict.fromkeys(_indexed(name) for name in chosen.systems))
        if all(self.results.has((COST, planned.name, name, settings)) for name in names):
            return
        sample, tokens = _sample(planned, self.banks, chosen.encode_tokens)
        found = indexing_seconds(names, sample, self.banks, self.create, chosen.repeats, self.on_step)
        for name, why in found.skipped.items():
            self.results.note(COST, planned.name, f"indexing with {name}: {why}")
        for name, seconds in found.seconds.items():
            p5, p50, p95 = (1000 * value / tokens for value in percentiles(seconds))
            row = ResultRow(COST, "", "", "index_seconds_per_1k_tokens", p50, p5, p95, len(seconds), settings=settings)
            self.store([row], planned.name, name, len(sample.documents), tokens)


class LatencyCommand(LatencySettings, GrowthCommand):
    """What OUT holds is not measured again.

    Example: msa bench latency --data DATA/dev/hotpotqa --distractors DATA/distractors --out results
    """

    kind = Latency
    own = ("hops", "per_round", "repeats")
    peak: bool = option(True, "Measure peak memory of each system in a process of its own.")

    def more(self) -> dict[str, Any]:
        """What another process loads."""
        return {"source": TextSource(self.model, self.adapter, MemoryConfig()) if self.peak else None}


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
