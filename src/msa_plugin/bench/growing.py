"""What commands that grow a memory share: settings, the plan of sizes, time to ask."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from pydantic import model_validator

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.command import Command, Sizes, Voice, option
from msa_plugin.bench.driver import Run, RunSettings, opened_run, show
from msa_plugin.bench.growth import GrowthPlan, plan
from msa_plugin.bench.systems.system_spec import Systems, behind
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, Question, dataset_hash, find_datasets, load_distractors
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.prefilter import PrefilterSpec, apart
from msa_plugin.types import Document

_LEAST = 5  # questions that are asked whatever the budget
InTime: TypeAlias = Callable[[Sequence[Question]], Iterable[tuple[int, Question]]]  # as many as there is time for


class AskingTime:
    """Time to ask: `seconds` in all (None: as long as it takes), which cut the questions of each size short, evenly."""

    def __init__(self, seconds: float | None = None) -> None:
        """Nothing is spent yet."""
        self.seconds, self.spent = seconds, 0.0

    def share(self, turns: Sequence[Question], left: int) -> Iterator[tuple[int, Question]]:
        """The turns with their numbers, as long as the share of the time lasts that `left` such loops have."""
        began = time.monotonic()
        allowed = None if self.seconds is None else (self.seconds - self.spent) / left
        for number, turn in enumerate(turns):
            if allowed is not None and number >= _LEAST and time.monotonic() - began > allowed:
                break
            yield number, turn
        self.spent += time.monotonic() - began


class GrowthCommand(RunSettings, Command):
    """Options of the commands that grow a memory: `systems` at `sizes` in tokens. What is measured is kept."""

    systems: Systems
    sizes: Sizes
    questions: int = option(100, "Questions of each data set, at most.", ge=1)
    prefilter: str | None = option(
        None, "Also measure MSA behind this index, e.g. faiss:HNSW32@candidates=200 or coarse:128."
    )
    data: Path | None = option(
        None, "A data set, or a folder of data sets; the sample corpus when left out.", "--data", "-d"
    )
    distractors: Path | None = option(None, "Folder of *.jsonl[.gz] with passages to grow the memory with.")
    minutes: float | None = option(
        None, "Minutes to ask in all, without indexing; fewer questions are asked, evenly.", "--budget", ge=0.01
    )
    part: ClassVar[str]
    own: ClassVar[tuple[str, ...]]  # further settings that rows must share to stand side by side

    @model_validator(mode="after")
    def _named(self) -> GrowthCommand:
        _ = self.names  # a prefilter that cannot be is told at once
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Systems as the results name them, prefilters spelled out; those behind the index last."""
        parts = [(name, *apart(name)) for name in self.systems]
        named = (name if spec is None else f"{plain}+{PrefilterSpec.parse(spec)}" for name, plain, spec in parts)
        return (*named, *behind(self.systems, self.prefilter))

    @abstractmethod
    def measure(self, run: Run, planned: GrowthPlan, asking: AskingTime) -> None:
        """Measure every system at every size; what a former run has stored is not measured again."""

    def over(
        self, run: Run, dataset: Dataset, distractors: Iterable[Document], seconds: float | None = None
    ) -> GrowthPlan:
        """Measure on one data set, with so many seconds to ask; returns what was planned."""
        planned = plan(
            dataset,
            distractors,
            self.sizes,
            run.banks.tokens,
            questions=self.questions,
            seed=self.seed,
            synthetic=getattr(self, "synthetic", False),
        )
        for note in planned.notes:
            run.note(planned.name, note)
        self.measure(run, planned, AskingTime(seconds))
        return planned

    def run(self, out: Voice) -> None:
        """Measure every data set. A mistyped path is told before a backbone is loaded or anything is written."""
        paths = [] if self.data is None else find_datasets(self.data)
        if self.distractors is not None and next(load_distractors(self.distractors, 1), None) is None:
            raise ConfigError(f"{self.distractors.name} holds no passages to grow the memory with")
        budget = None if self.minutes is None else 60 * self.minutes / max(1, len(paths))

        def identity(backbone: Backbone) -> dict[str, Any]:
            """Systems, sets and larger sizes may be added."""
            return {
                **{name: getattr(self, name) for name in self.own},
                "first_size": self.sizes[0],
                "questions": self.questions,
                "seed": self.seed,
                "budget_seconds": budget,
                "distractors": None if self.distractors is None else self.distractors.resolve().name,
            }

        out.note(f"loading {self.model or 'the default backbone'} ...")
        with opened_run(self, self.part, identity, MemoryConfig(), {"max_new_tokens": 32}) as run:
            for dataset in run.datasets(paths):
                run.results.describe(dataset.name, {"hash": dataset_hash(dataset)})
                out.note(f"{dataset.name}: {len(dataset.documents):,} passages, {len(dataset.questions):,} questions")
                # By the rule of thumb for tokens; the plan stops taking them when its own count is reached.
                more = load_distractors(self.distractors, 2 * max(self.sizes)) if self.distractors else iter(())
                self.over(run, dataset, more, budget)
            rows = run.rows("cost")
        show(out, self.out, rows)
        out.result([row.to_dict() for row in rows])
