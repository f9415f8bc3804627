"""The same questions against memories that grow: what quality is lost, and what a question costs, at each size.

Every size is a bank of its own (see `growth`), and every system indexes exactly its passages, so nothing is measured
through a mask over something larger. Rows are those of part "scale"; what happened to each question is kept too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msa_plugin.bench.base import Workspace, find_others
from msa_plugin.bench.case import Sizes, option
from msa_plugin.bench.growing import GrowthCommand, GrowthRun, GrowthSettings
from msa_plugin.bench.growth import NAMESPACE, NOISE, GrowthPlan, GrowthStep
from msa_plugin.bench.growth_rows import DEPTH, SCALE, loss_rows, scale_rows, scored
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.data.datasets import Question
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.prefilter import PrefilterSpec, apart

_SYNTHETIC = ("msa",)  # systems that need routing keys only, and no text


class ScaleSettings(GrowthSettings):
    """What is measured. `synthetic` fills sizes that the texts do not reach with passages made of noise."""

    systems: Systems = option(
        "msa,msa-interleave,bm25,dense,hybrid", "Names of systems, by commas.", "--systems", "-s", min_length=1
    )
    sizes: Sizes = option("16K,64K,256K,1M,4M,10M", "Sizes of the memory in tokens, such as 16K,64K,1M.")
    answers: int = option(0, "So many of the questions are also answered.", ge=0)
    passages: int = option(5, "Passages read for an answer.", ge=1)
    synthetic: bool = option(False, "Fill sizes that the texts do not reach with made-up keys (MSA only).")

    @property
    def variants(self) -> tuple[tuple[str, str, str | None], ...]:
        """Name in the results, name in the registry, and prefilter."""
        found: list[tuple[str, str, str | None]] = []
        for name in self.systems:
            plain, given = apart(name)
            spec = None if given is None else str(PrefilterSpec.parse(given))
            found.append((f"{plain}+{spec}" if spec else name, plain, spec))
        return (*found, *((f"{name}+{self.prefilter}", name, self.prefilter) for name in self.behind))


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


class Scale(GrowthRun):
    """One run over one data set."""

    part = SCALE

    def measure(self, planned: GrowthPlan) -> None:
        """Measure every system at every size."""
        cells = list(self._cells(planned))
        open_cells = [c for c in cells if not self.results.has((SCALE, planned.name, c.name, c.settings))]
        failures: dict[str, list[str]] = {}
        for number, cell in enumerate(open_cells):
            self.on_step(f"{cell.name} at {cell.step.size:,} tokens", number, len(open_cells))
            try:
                self._measure(planned, cell, len(open_cells) - number)
            except Exception as error:
                why = self.failed(cell.name, error)
                failures.setdefault(cell.name, []).append(f"at {cell.step.size:,} tokens: {why}")
        self._say(planned.name, failures)
        for name, _, _ in self.settings.variants:
            rows = loss_rows(self.results.questions(SCALE, planned.name, name), self.settings.seed)
            self.results.put(replace(row, dataset=planned.name, system=name) for row in rows)

    def _cells(self, planned: GrowthPlan) -> Iterator[_ScaleCell]:
        for step in planned.steps:
            for name, system, prefilter in self.settings.variants:
                if step.synthetic and system not in _SYNTHETIC:
                    self.note(planned.name, f"{name} needs texts: not run on synthetic passages")
                    continue
                yield _ScaleCell(name, system, prefilter, step)

    def _say(self, dataset: str, failures: Mapping[str, Sequence[str]]) -> None:
        """A system that ran at no size is skipped; one that failed at some size keeps the others, with a note."""
        for name, reasons in failures.items():
            if self.results.questions(SCALE, dataset, name):
                for reason in reasons:
                    self.note(dataset, f"{name} {reason}")
            else:
                self.results.skip(SCALE, dataset, name, reasons[0])

    def _measure(self, planned: GrowthPlan, cell: _ScaleCell, left: int) -> None:
        dataset, at = planned.dataset(cell.step), f"{cell.name} at {cell.step.size:,} tokens"
        self.banks.encode(dataset.documents, self.on_step)
        with self.banks.open(dataset.documents, cell.step.synthetic, planned.fillers, self.settings.seed) as memory:
            workspace = Workspace(dataset, memory, self.cache, self.generation, self.on_step)
            system = self.create(cell.system, workspace)
            try:
                if hasattr(system, "prepare"):
                    system.prepare()
                for note in getattr(system, "notes", ()):
                    self.note(planned.name, f"{at}: {note}")
                with _prefiltered(memory, cell.prefilter, self.cache):
                    records = self._ask(system, workspace, left)
                if cell.prefilter is not None:
                    _add_exact(system, planned.questions, records)
            finally:
                if hasattr(system, "close"):
                    system.close()
            stats = memory.stats()
        if len(records) < len(planned.questions):
            count = f"{len(records)} of {len(planned.questions)} questions"
            self.note(planned.name, f"the budget allowed {count}, evenly spaced, for {at}")
        kept = [{"memory_tokens": cell.step.size, **record} for record in records]
        self.results.add_questions(SCALE, planned.name, cell.name, kept)
        rows = [replace(row, settings={**cell.settings, **row.settings}) for row in scale_rows(records)]
        self.store(rows, planned.name, cell.name, stats.documents, stats.tokens)

    def _ask(self, system: Any, workspace: Workspace, left: int) -> list[dict[str, Any]]:
        """Ask one question at a time until all are asked, or the time is up."""
        questions = workspace.dataset.questions
        finds = hasattr(system, "find")
        if finds:
            system.find([questions[0].text], DEPTH)  # caches and lazy imports are not the first question's fault
        records: list[dict[str, Any]] = []
        for number, question in self.in_time(questions, left):
            record: dict[str, Any] = {"id": question.id}
            ranking: list[str] = []
            if finds:
                start = time.perf_counter()
                [found] = find_others(system, [question], DEPTH)
                record["seconds"] = {**found.seconds, "total": time.perf_counter() - start}
                ranking = [hit.id for hit in found.ranking]
                record["ranking"] = ranking
            if number < self.settings.answers or not finds:
                record |= self._answer(system, workspace, question, ranking)
            records.append(scored(record, question))
        return records

    def _answer(self, system: Any, workspace: Workspace, question: Question, ranking: Sequence[str]) -> dict[str, Any]:
        """A system that chooses what to read does so; for others the best passages that they found are read."""
        start = time.perf_counter()
        if hasattr(system, "answer"):
            [reply] = system.answer([question.text])
            passages: int | str = "adaptive"
        else:
            passages = count = int(self.settings.passages)
            [reply] = workspace.read([question.text], [ranking[:count]])
        spent = time.perf_counter() - start
        return {"reply": reply.text, "read": list(reply.read), "passages": passages, "answer_seconds": spent}


class ScaleCommand(ScaleSettings, GrowthCommand):
    """What OUT holds is not measured again.

    Example: msa bench scale --data DATA/dev/nq --distractors DATA/distractors --out results
    """

    kind = Scale
    own = ("answers", "passages")


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
