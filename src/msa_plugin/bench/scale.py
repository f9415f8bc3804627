"""The same questions against memories that grow: what quality is lost, and what a question costs, at each size.

Every size is a bank of its own (see `growth`), and every system indexes exactly its passages, so nothing is measured
through a mask over something larger. Rows are those of part "scale"; what happened to each question is kept too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from msa_plugin.bench.base import Workspace, find_others
from msa_plugin.bench.command import Sizes, option
from msa_plugin.bench.driver import Run
from msa_plugin.bench.growing import AskingTime, GrowthCommand, InTime
from msa_plugin.bench.growth import NOISE, GrowthPlan, GrowthStep
from msa_plugin.bench.growth_rows import DEPTH, SCALE, loss_rows, scale_rows, scored
from msa_plugin.bench.scoring import exact_twin
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.data.datasets import Question
from msa_plugin.retrieval.prefilter import apart

_SYNTHETIC = ("msa",)  # systems that need routing keys only, and no text


class ScaleCommand(GrowthCommand):
    """What OUT holds is not measured again.

    Example: msa bench scale --data DATA/dev/nq --distractors DATA/distractors --out results
    """

    systems: Systems = option(
        "msa,msa-interleave,bm25,dense,hybrid", "Names of systems, by commas.", "--systems", "-s", min_length=1
    )
    sizes: Sizes = option("16K,64K,256K,1M,4M,10M", "Sizes of the memory in tokens, such as 16K,64K,1M.")
    answers: int = option(0, "So many of the questions are also answered.", ge=0)
    passages: int = option(5, "Passages read for an answer.", ge=1)
    synthetic: bool = option(False, "Fill sizes that the texts do not reach with made-up keys (MSA only).")
    part = SCALE
    own = ("answers", "passages")

    def measure(self, run: Run, planned: GrowthPlan, asking: AskingTime) -> None:
        """Measure every system at every size; one that failed at some size keeps the others, with a note."""
        failures: dict[str, list[str]] = {}
        cells = [cell for step in planned.steps for cell in self._missing(run, planned, step)]
        for number, (step, name) in enumerate(cells):
            at = f" at {step.size:,} tokens"
            run.watch.step(name + at, number, len(cells))
            try:
                with self._workspace(run, planned, step) as workspace:
                    self._measure(run, workspace, step, name, partial(asking.share, left=len(cells) - number))
            except Exception as error:
                failures.setdefault(name, []).append(f"{at[1:]}: {run.why(name, error)}")
        for name, reasons in failures.items():
            if run.results.questions(SCALE, planned.name, name):
                for why in reasons:
                    run.note(planned.name, f"{name} {why}")
            else:
                run.results.skip(SCALE, planned.name, name, reasons[0])
        for name in self.names:
            rows = loss_rows(run.results.questions(SCALE, planned.name, name), self.seed)
            run.results.put(replace(row, dataset=planned.name, system=name) for row in rows)

    def _missing(self, run: Run, planned: GrowthPlan, step: GrowthStep) -> Iterator[tuple[GrowthStep, str]]:
        """What was not measured yet at a size."""
        for name in run.missing(planned.name, self.names, _where(step)):
            if step.synthetic and apart(name)[0] not in _SYNTHETIC:
                run.note(planned.name, f"{name} needs texts: not run on synthetic passages")
            else:
                yield step, name

    @contextmanager
    def _workspace(self, run: Run, planned: GrowthPlan, step: GrowthStep) -> Iterator[Workspace]:
        dataset = planned.dataset(step)
        if not step.synthetic:
            with run.workspace(dataset) as workspace:
                _ = workspace.memory  # filling it is no part of a question's time
                yield workspace
            return
        run.banks.encode(dataset.documents, run.watch.step)
        with run.banks.open(dataset.documents, step.synthetic, planned.fillers, self.seed) as memory:
            yield Workspace(dataset, memory, run.cache, run.generation, run.watch.step)

    def _measure(self, run: Run, workspace: Workspace, step: GrowthStep, name: str, in_time: InTime) -> None:
        dataset, where = workspace.dataset, f" at {step.size:,} tokens"
        with run.prepared(name, workspace, where=where) as system:
            records = self._ask(system, workspace, in_time)
        if (twin := exact_twin(name)) is not None:  # what it finds without an index says what the index missed
            with run.prepared(twin, workspace, where=where) as system:
                asked = {q.id: q for q in dataset.questions}
                for record in records:
                    [found] = find_others(system, [asked[record["id"]]], DEPTH)
                    record["exact"] = [hit.id for hit in found.ranking]
        if len(records) < len(dataset.questions):
            count = f"{len(records)} of {len(dataset.questions)} questions"
            run.note(dataset.name, f"the budget allowed {count}, evenly spaced, for {name}{where}")
        kept = [{"memory_tokens": step.size, **record} for record in records]
        run.results.add_questions(SCALE, dataset.name, name, kept)
        stats = workspace.memory.stats()
        rows = [replace(row, settings={**_where(step), **row.settings}) for row in scale_rows(records)]
        run.store(rows, dataset.name, name, stats.documents, stats.tokens)

    def _ask(self, system: Any, workspace: Workspace, in_time: InTime) -> list[dict[str, Any]]:
        """Ask one question at a time until all are asked, or the time is up."""
        questions = workspace.dataset.questions
        finds = hasattr(system, "find")
        if finds:
            system.find([questions[0].text], DEPTH)  # caches and lazy imports are not the first question's fault
        records: list[dict[str, Any]] = []
        for number, question in in_time(questions):
            record: dict[str, Any] = {"id": question.id}
            ranking: list[str] = []
            if finds:
                start = time.perf_counter()
                [found] = find_others(system, [question], DEPTH)
                record["seconds"] = {**found.seconds, "total": time.perf_counter() - start}
                ranking = [hit.id for hit in found.ranking]
                record["ranking"] = ranking
            if number < self.answers or not finds:
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
            passages = count = int(self.passages)
            [reply] = workspace.read([question.text], [ranking[:count]])
        spent = time.perf_counter() - start
        return {"reply": reply.text, "read": list(reply.read), "passages": passages, "answer_seconds": spent}


def _where(step: GrowthStep) -> dict[str, Any]:
    """The settings of rows of one size."""
    return {"memory_tokens": step.size, **({"synthetic": True, "noise": NOISE} if step.synthetic else {})}
