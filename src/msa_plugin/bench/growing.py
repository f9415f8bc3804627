"""What runs on growing memories share: settings, the plan of sizes, time to ask; and their commands."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import model_validator

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.command import Command, Sizes, Voice, option
from msa_plugin.bench.driver import Run, RunSettings, opened_run, show
from msa_plugin.bench.growth import GrowthPlan, plan
from msa_plugin.bench.systems.system_spec import Systems, behind
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, dataset_hash, find_datasets, load_distractors
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.prefilter import PrefilterSpec, apart
from msa_plugin.types import Document

_LEAST = 5  # questions that are asked whatever the budget
T = TypeVar("T")


class GrowthRun:
    """A run over data sets, one after another; what a former run has stored is not measured again."""

    def __init__(self, settings: Any, run: Run, budget: float | None = None) -> None:
        """`settings` are a `GrowthCommand`; `budget` (seconds to ask) cuts the questions of each size short, evenly."""
        self.settings, self.run, self.budget = settings, run, budget
        self._asking = 0.0  # seconds spent on questions so far

    def over(self, dataset: Dataset, distractors: Iterable[Document]) -> GrowthPlan:
        """Measure every system at every size; returns what was planned."""
        chosen = self.settings
        planned = plan(
            dataset,
            distractors,
            chosen.sizes,
            self.run.banks.tokens,
            questions=chosen.questions,
            seed=chosen.seed,
            synthetic=getattr(chosen, "synthetic", False),
        )
        for note in planned.notes:
            self.run.note(planned.name, note)
        self.measure(planned)
        return planned

    @abstractmethod
    def measure(self, planned: GrowthPlan) -> None:
        """Measure what is missing."""

    def in_time(self, turns: Sequence[T], left: int) -> Iterator[tuple[int, T]]:
        """The turns with their numbers, as long as the share of the budget lasts that `left` such loops have."""
        began = time.monotonic()
        allowed = None if self.budget is None else (self.budget - self._asking) / left
        for number, turn in enumerate(turns):
            if allowed is not None and number >= _LEAST and time.monotonic() - began > allowed:
                break
            yield number, turn
        self._asking += time.monotonic() - began


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
    kind: ClassVar[type[GrowthRun]]
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
                self.kind(self, run, budget).over(dataset, more)
            rows = run.rows("cost")
        show(out, self.out, rows)
        out.result([row.to_dict() for row in rows])
