"""How long a question takes, hop by hop and stage by stage, as the memory grows; and what memory and indexing cost.

MSA's interleaved rounds against searching again and again with the same backbone, hops and number of passages read.
The systems take turns question by question, so that drift of the machine hits all alike. Rows are those of the parts
"latency" and "cost".
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msa_plugin.bench.base import Cost, Dataset, OnStep, Question, ResultRow, Workspace
from msa_plugin.bench.contestant import AtSize, Contestant, Create, registry
from msa_plugin.bench.growth import Banks, GrowthPlan, GrowthStep, plan
from msa_plugin.bench.growth_rows import DEPTH, LATENCY, latency_rows
from msa_plugin.bench.indexing import TextSource, indexing_seconds, peak_of
from msa_plugin.bench.store import Results
from msa_plugin.bench.timing import percentiles, reason
from msa_plugin.errors import ConfigError, MSAError
from msa_plugin.retrieval.prefilter import PrefilterSpec
from msa_plugin.types import Document

PART, COST = LATENCY, "cost"
SIZES = (16_384, 65_536, 262_144, 1_048_576)
SYSTEMS = ("msa-interleave", "iterative:dense", "iterative:bm25")
_LEAST = 5  # questions that are asked whatever the budget
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatencySettings:
    """What is measured: `hops` rounds of `per_round` passages each, `questions` asked `repeats` times at each size.

    `encode_tokens` is the sample that indexing is timed on. `prefilter` adds MSA behind that index.
    """

    systems: tuple[str, ...] = SYSTEMS
    sizes: tuple[int, ...] = SIZES
    questions: int = 20
    hops: int = 2
    per_round: int = 3
    repeats: int = 3
    encode_tokens: int = 20_000
    seed: int = 0
    prefilter: str | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be measured."""
        numbers = (self.hops, self.per_round, self.repeats, self.encode_tokens)
        if not self.systems or min(numbers) < 1 or (self.budget is not None and self.budget <= 0):
            raise ConfigError("give a system, and hops, passages, repeats, tokens and budget above 0")
        if self.prefilter is not None:
            PrefilterSpec.parse(self.prefilter)


class Latency:
    """One run over one data set; what a former run has stored is not measured again."""

    def __init__(
        self,
        settings: LatencySettings,
        results: Results,
        banks: Banks,
        cache: Path,
        *,
        create: Create | None = None,
        generation: Mapping[str, Any] | None = None,
        on_step: OnStep = lambda what, done, total: None,
        source: TextSource | None = None,
    ) -> None:
        """`create` makes a system for a workspace (None: from the registry); `cache` is for the systems' indexes.

        `source` is what another process loads to measure a system's peak memory alone; None leaves that out.
        """
        self.settings, self.results, self.banks, self.cache = settings, results, banks, cache.resolve()
        self.create = create or registry()
        self.generation, self.on_step = dict(generation or {}), on_step
        self.source, self._asking = source, 0.0  # the latter: seconds spent on questions so far

    @property
    def names(self) -> tuple[str, ...]:
        """Systems as the results name them."""
        chosen = self.settings
        if chosen.prefilter is None:
            return chosen.systems
        spec = str(PrefilterSpec.parse(chosen.prefilter))
        return (*chosen.systems, *(f"{name}+{spec}" for name in chosen.systems if name in ("msa", "msa-interleave")))

    def run(self, dataset: Dataset, distractors: Iterable[Document]) -> GrowthPlan:
        """Measure every system at every size, and what indexing costs; returns what was planned."""
        chosen = self.settings
        planned = plan(
            dataset, distractors, chosen.sizes, self.banks.tokens, questions=chosen.questions, seed=chosen.seed
        )
        for note in planned.notes:
            self.results.note(PART, planned.name, note)
        self._indexing(planned)
        for number, step in enumerate(planned.steps):
            self._size(planned, step, len(planned.steps) - number)
        return planned

    def _size(self, planned: GrowthPlan, step: GrowthStep, left: int) -> None:
        """All systems in turns: when one was not measured yet all are, since only times of one run compare."""
        done = {"stage": "total", "memory_tokens": step.size}
        missing = {n for n in self.names if not self.results.has((PART, planned.name, n, done))}
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
        for contestant in ready:
            if contestant.name not in spent:
                continue
            records = _records(spent[contestant.name], planned.questions, recalls[contestant.name])
            at = {"memory_tokens": step.size}
            self.results.add_questions(PART, planned.name, contestant.name, [{**at, **record} for record in records])
            rows = [*_costs(contestant.cost, step), *self._peak(contestant.name, dataset, step)]
            rows += [replace(row, settings={**at, **row.settings}) for row in latency_rows(records)]
            self._store(rows, planned.name, contestant.name, stats.documents, stats.tokens)

    def _store(self, rows: Sequence[ResultRow], dataset: str, system: str, documents: int, tokens: int) -> None:
        where: dict[str, Any] = {"dataset": dataset, "system": system, "documents": documents, "tokens": tokens}
        self.results.add(replace(row, **where) for row in rows)

    def _ready(self, name: str, workspace: Workspace, stack: ExitStack) -> Contestant | None:
        """A system that has indexed the corpus and answered once; None, with a recorded reason, where it cannot."""
        chosen, question = self.settings, workspace.dataset.questions[0].text
        try:
            made = Contestant(name, workspace, self.create, hops=chosen.hops, per_round=chosen.per_round)
            stack.callback(made.close)
            self.on_step(f"preparing {name}", 0, 1)
            made.prepare()
            for note in getattr(made.system, "notes", ()):
                self.results.note(PART, workspace.dataset.name, f"{name}: {note}")
            made.ask(question)  # caches and lazy imports are not the first question's fault
        except Exception as error:
            _LOG.warning("%s is left out: %s", name, error, exc_info=not isinstance(error, MSAError))
            self.results.skip(PART, workspace.dataset.name, name, reason(error))
            return None
        return made

    def _ask(
        self, ready: Sequence[Contestant], planned: GrowthPlan, step: GrowthStep, left: int
    ) -> dict[str, list[dict[AtSize, float]]]:
        """Seconds of each question by system; the systems take turns, in an order that rotates."""
        chosen, began = self.settings, time.monotonic()
        allowed = None if chosen.budget is None else (chosen.budget - self._asking) / left
        spent: dict[str, list[dict[AtSize, float]]] = defaultdict(list)
        playing = list(ready)
        turns = [q for _ in range(chosen.repeats) for q in planned.questions]
        for number, question in enumerate(turns):
            if allowed is not None and number >= _LEAST and time.monotonic() - began > allowed:
                note = f"the budget allowed {number} of {len(turns)} turns at {step.size:,} tokens"
                self.results.note(PART, planned.name, note)
                break
            self.on_step(f"asking at {step.size:,} tokens", number, len(turns))
            for place in range(len(playing)):
                one = playing[(number + place) % len(playing)]
                self._turn(one, question, spent, planned.name)
            playing = [one for one in playing if one.name in spent]
        self._asking += time.monotonic() - began
        return spent

    def _turn(
        self, one: Contestant, question: Question, spent: dict[str, list[dict[AtSize, float]]], dataset: str
    ) -> None:
        """One question; a system that fails is out, and what it did so far is dropped."""
        try:
            spent[one.name].append(one.ask(question.text))
        except Exception as error:
            _LOG.warning("%s is left out: %s", one.name, error, exc_info=not isinstance(error, MSAError))
            spent.pop(one.name, None)
            self.results.skip(PART, dataset, one.name, reason(error))

    def _peak(self, name: str, dataset: Dataset, step: GrowthStep) -> list[ResultRow]:
        if self.source is None:
            return []
        chosen = self.settings
        self.on_step(f"peak memory of {name}", 0, 1)
        banks, hops, kept = self.banks.folder.parent, chosen.hops, chosen.per_round
        try:
            peak = peak_of(self.source, banks, self.cache, dataset, name, self.create, hops=hops, per_round=kept)
        except Exception as error:  # a process that the system ended, say; the times that were measured stand
            _LOG.warning("peak memory of %s was not measured: %s", name, error)
            note = f"peak memory of {name} at {step.size:,} tokens was not measured: {reason(error)}"
            self.results.note(PART, dataset.name, note)
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
            self._store([row], planned.name, name, len(sample.documents), tokens)


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
