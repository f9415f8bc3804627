"""The same questions against memories that grow: what quality is lost, and what a question costs, at each size.

Every size is a bank of its own (see `growth`), and every system indexes exactly its passages, so nothing is measured
through a mask over something larger. Rows are those of part "scale"; what happened to each question is kept too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msa_plugin.bench.base import Dataset, OnStep, Question, Workspace, find_others
from msa_plugin.bench.contestant import Create, registry
from msa_plugin.bench.growth import NAMESPACE, NOISE, Banks, GrowthPlan, GrowthStep, plan
from msa_plugin.bench.growth_rows import DEPTH, SCALE, loss_rows, scale_rows, scored
from msa_plugin.bench.store import Results
from msa_plugin.bench.timing import reason
from msa_plugin.errors import ConfigError, MSAError
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.prefilter import PrefilterSpec, apart
from msa_plugin.types import Document

PART = SCALE
SIZES = (16_384, 65_536, 262_144, 1_048_576, 4_194_304, 10_485_760)
_LEAST = 5  # questions that are measured whatever the budget
_LOG = logging.getLogger(__name__)
_SYNTHETIC = ("msa",)  # systems that need routing keys only, and no text


def _nothing(what: str, done: int, total: int) -> None:
    return None


@dataclass(frozen=True)
class ScaleSettings:
    """What is measured: `sizes` in tokens, `questions` at most, `answers` of them also answered from `passages`.

    `synthetic` fills sizes that the texts do not reach with passages made of noise. `prefilter` adds each MSA system a
    second time behind that index. `budget` (seconds to ask, without
    indexing) cuts the questions of each size and system short, evenly.
    """

    systems: tuple[str, ...] = ("msa", "bm25")
    sizes: tuple[int, ...] = SIZES
    questions: int = 100
    answers: int = 0
    passages: int = 5
    seed: int = 0
    synthetic: bool = False
    prefilter: str | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be measured."""
        if not self.systems or self.answers < 0 or self.passages < 1 or (self.budget is not None and self.budget <= 0):
            raise ConfigError("give at least one system and passage, no negative answers, and a budget above 0")
        if self.prefilter is not None:
            PrefilterSpec.parse(self.prefilter)

    @property
    def variants(self) -> tuple[tuple[str, str, str | None], ...]:
        """Name in the results, name in the registry, and prefilter."""
        found: list[tuple[str, str, str | None]] = []
        for name in self.systems:
            plain, given = apart(name)
            spec = None if given is None else str(PrefilterSpec.parse(given))
            found.append((f"{plain}+{spec}" if spec else name, plain, spec))
        if self.prefilter is not None:
            spec = str(PrefilterSpec.parse(self.prefilter))
            found += [(f"{name}+{spec}", name, spec) for name in self.systems if name in ("msa", "msa-interleave")]
        return tuple(found)


@dataclass(frozen=True)
class _ScaleCell:
    """One system at one size."""

    name: str
    system: str
    prefilter: str | None
    step: GrowthStep

    @property
    def settings(self) -> dict[str, Any]:
        more = {"synthetic": True, "noise": NOISE} if self.step.synthetic else {}
        return {"memory_tokens": self.step.size, **more}


class Scale:
    """One run over one data set; what a former run has stored is not measured again."""

    def __init__(
        self,
        settings: ScaleSettings,
        results: Results,
        banks: Banks,
        cache: Path,
        *,
        create: Create | None = None,
        generation: Mapping[str, Any] | None = None,
        on_step: OnStep = _nothing,
    ) -> None:
        """`create` makes a system for a workspace (None: from the registry); `cache` is for the systems' indexes."""
        self.settings, self.results, self.banks, self.cache = settings, results, banks, cache.resolve()
        self.create = create or registry()
        self.generation, self.on_step = dict(generation or {}), on_step
        self._asking = 0.0  # seconds spent on questions so far

    def run(self, dataset: Dataset, distractors: Iterable[Document]) -> GrowthPlan:
        """Measure every system at every size; returns what was planned."""
        chosen = self.settings
        planned = plan(
            dataset,
            distractors,
            chosen.sizes,
            self.banks.tokens,
            questions=chosen.questions,
            seed=chosen.seed,
            synthetic=chosen.synthetic,
        )
        for note in planned.notes:
            self.results.note(PART, dataset.name, note)
        cells = list(self._cells(planned))
        open_cells = [c for c in cells if not self.results.has((PART, planned.name, c.name, c.settings))]
        failures: dict[str, list[str]] = {}
        for number, cell in enumerate(open_cells):
            allowed = None
            if chosen.budget is not None:
                allowed = (chosen.budget - self._asking) / (len(open_cells) - number)
            self.on_step(f"{cell.name} at {cell.step.size:,} tokens", number, len(open_cells))
            try:
                self._measure(planned, cell, allowed)
            except Exception as error:
                _LOG.warning("%s is left out: %s", cell.name, error, exc_info=not isinstance(error, MSAError))
                failures.setdefault(cell.name, []).append(f"at {cell.step.size:,} tokens: {reason(error)}")
        self._say(planned.name, failures)
        self._losses(planned)
        return planned

    def _cells(self, planned: GrowthPlan) -> Iterator[_ScaleCell]:
        for step in planned.steps:
            for name, system, prefilter in self.settings.variants:
                if step.synthetic and system not in _SYNTHETIC:
                    self.results.note(PART, planned.name, f"{name} needs texts: not run on synthetic passages")
                    continue
                yield _ScaleCell(name, system, prefilter, step)

    def _say(self, dataset: str, failures: Mapping[str, Sequence[str]]) -> None:
        """A system that ran at no size is skipped; one that failed at some size keeps the others, with a note."""
        for name, reasons in failures.items():
            if self.results.questions(PART, dataset, name):
                for reason in reasons:
                    self.results.note(PART, dataset, f"{name} {reason}")
            else:
                self.results.skip(PART, dataset, name, reasons[0])

    def _measure(self, planned: GrowthPlan, cell: _ScaleCell, allowed: float | None) -> None:
        with self._memory(planned, cell.step) as memory:
            workspace = Workspace(planned.dataset(cell.step), memory, self.cache, self.generation, self.on_step)
            system = self.create(cell.system, workspace)
            try:
                if hasattr(system, "prepare"):
                    system.prepare()
                for note in getattr(system, "notes", ()):
                    self.results.note(PART, planned.name, f"{cell.name} at {cell.step.size:,} tokens: {note}")
                with _prefiltered(memory, cell.prefilter, self.cache):
                    records = self._ask(system, workspace, allowed)
                if cell.prefilter is not None:
                    _add_exact(system, planned.questions, records)
            finally:
                if hasattr(system, "close"):
                    system.close()
            stats = memory.stats()
        if len(records) < len(planned.questions):
            self.results.note(
                PART,
                planned.name,
                f"the budget allowed {len(records)} of {len(planned.questions)} questions, evenly spaced, for "
                f"{cell.name} at {cell.step.size:,} tokens",
            )
        kept = [{"memory_tokens": cell.step.size, **record} for record in records]
        self.results.add_questions(PART, planned.name, cell.name, kept)
        self.results.add(
            replace(
                row,
                dataset=planned.name,
                system=cell.name,
                documents=stats.documents,
                tokens=stats.tokens,
                settings={**cell.settings, **row.settings},
            )
            for row in scale_rows(records)
        )

    def _ask(self, system: Any, workspace: Workspace, allowed: float | None) -> list[dict[str, Any]]:
        """Ask one question at a time until all are asked, or the time is up."""
        chosen, began = self.settings, time.monotonic()
        questions = workspace.dataset.questions
        finds = hasattr(system, "find")
        if finds:
            system.find([questions[0].text], DEPTH)  # caches and lazy imports are not the first question's fault
        records: list[dict[str, Any]] = []
        for number, question in enumerate(questions):
            if allowed is not None and number >= _LEAST and time.monotonic() - began > allowed:
                break
            record: dict[str, Any] = {"id": question.id}
            ranking: list[str] = []
            if finds:
                start = time.perf_counter()
                [found] = find_others(system, [question], DEPTH)
                record["seconds"] = {**found.seconds, "total": time.perf_counter() - start}
                ranking = [hit.id for hit in found.ranking]
                record["ranking"] = ranking
            if number < chosen.answers or not finds:
                record |= self._answer(system, workspace, question, ranking)
            records.append(scored(record, question))
        self._asking += time.monotonic() - began
        return records

    def _answer(self, system: Any, workspace: Workspace, question: Question, ranking: Sequence[str]) -> dict[str, Any]:
        """A system that chooses what to read does so; for others the best passages that they found are read."""
        start = time.perf_counter()
        if hasattr(system, "answer"):
            [reply] = system.answer([question.text])
            passages: int | str = "adaptive"
        else:
            passages = self.settings.passages
            [reply] = workspace.read([question.text], [ranking[:passages]])
        spent = time.perf_counter() - start
        return {"reply": reply.text, "read": list(reply.read), "passages": passages, "answer_seconds": spent}

    @contextmanager
    def _memory(self, planned: GrowthPlan, step: GrowthStep) -> Iterator[LatentMemory]:
        documents = planned.dataset(step).documents
        self.banks.encode(documents, self.on_step)
        with self.banks.open(documents, step.synthetic, planned.fillers, self.settings.seed) as memory:
            yield memory

    def _losses(self, planned: GrowthPlan) -> None:
        for name, _, _ in self.settings.variants:
            rows = loss_rows(self.results.questions(PART, planned.name, name), self.settings.seed)
            self.results.put(replace(row, dataset=planned.name, system=name) for row in rows)


@contextmanager
def _prefiltered(memory: LatentMemory, spec: str | None, cache: Path) -> Iterator[None]:
    """The memory routes behind an index while inside."""
    engine = memory.engine
    engine.use_prefilter(spec, cache / "prefilter", engine.bank.select(NAMESPACE))
    try:
        yield
    finally:
        engine.prefilter = None


def _add_exact(system: Any, questions: Sequence[Question], records: list[dict[str, Any]]) -> None:
    """Add what the same system finds without an index, to say what the index missed."""
    asked = {q.id: q for q in questions}
    for record in records:
        [found] = find_others(system, [asked[record["id"]]], DEPTH)
        record["exact"] = [hit.id for hit in found.ranking]
