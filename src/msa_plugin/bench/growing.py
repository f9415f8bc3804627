"""What runs on growing memories share: settings, the folder they write to, time to ask; and their commands."""

from __future__ import annotations

import logging
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field, field_validator

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import OnStep, ResultRow
from msa_plugin.bench.case import ADAPTER, MODEL, Command, Sizes, Voice, option
from msa_plugin.bench.growth import BANKS, Banks, GrowthPlan, plan
from msa_plugin.bench.report import table, write_report
from msa_plugin.bench.store import NOTE, Results
from msa_plugin.bench.systems.system_spec import MEMORIES, Systems
from msa_plugin.bench.timed_system import Create, registry
from msa_plugin.bench.timing import reason
from msa_plugin.bench.watch import Watch
from msa_plugin.bench.workspaces import made_with
from msa_plugin.config import MemoryConfig, Place, Settings
from msa_plugin.data.datasets import (
    Dataset,
    dataset_hash,
    find_datasets,
    load_dataset,
    load_distractors,
    sample_dataset,
)
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError, MissingExtraError, MSAError
from msa_plugin.retrieval.prefilter import PrefilterSpec
from msa_plugin.types import Document

_LEAST = 5  # questions that are asked whatever the budget
_LOG = logging.getLogger(__name__)
T = TypeVar("T")


class GrowthSettings(Settings):
    """What is measured: `systems` at `sizes` in tokens, on at most so many `questions`.

    `budget` (seconds to ask, without indexing) cuts the questions of each size short, evenly.
    """

    systems: Systems = option(..., "Names of systems, separated by commas.", "--systems", "-s", min_length=1)
    sizes: Sizes = option(..., "Sizes of the memory in tokens, such as 16K,64K,1M.")
    questions: int = option(100, "Questions of each data set, at most.", ge=1)
    seed: int = option(0, "Seed of what is sampled.")
    prefilter: str | None = option(
        None, "Also measure MSA behind this index, e.g. faiss:HNSW32@candidates=200 or coarse:128."
    )
    budget: float | None = Field(default=None, gt=0)

    @field_validator("prefilter")
    @classmethod
    def _spelled_out(cls, given: str | None) -> str | None:
        return None if given is None else str(PrefilterSpec.parse(given))

    @property
    def behind(self) -> tuple[str, ...]:
        """Systems that are measured a second time, behind the index."""
        return () if self.prefilter is None else tuple(name for name in self.systems if name in MEMORIES)


class GrowthRun:
    """One run over one data set; what a former run has stored is not measured again."""

    part: ClassVar[str]

    def __init__(
        self,
        settings: Any,
        results: Results,
        banks: Banks,
        cache: Path,
        *,
        create: Create | None = None,
        generation: Mapping[str, Any] | None = None,
        on_step: OnStep = lambda what, done, total: None,
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
            synthetic=getattr(chosen, "synthetic", False),
        )
        for note in planned.notes:
            self.note(planned.name, note)
        self.measure(planned)
        return planned

    @abstractmethod
    def measure(self, planned: GrowthPlan) -> None:
        """Measure what is missing."""

    def note(self, dataset: str, said: str) -> None:
        """Something that a reader of the results must know."""
        self.results.note(self.part, dataset, said)

    def store(self, rows: Iterable[ResultRow], dataset: str, system: str, documents: int, tokens: int) -> None:
        """Keep rows of one system at one size."""
        where: dict[str, Any] = {"dataset": dataset, "system": system, "documents": documents, "tokens": tokens}
        self.results.add(replace(row, **where) for row in rows)

    def in_time(self, turns: Sequence[T], left: int) -> Iterator[tuple[int, T]]:
        """The turns with their numbers, as long as the share of the budget lasts that `left` such loops have."""
        began = time.monotonic()
        allowed = None if self.settings.budget is None else (self.settings.budget - self._asking) / left
        for number, turn in enumerate(turns):
            if allowed is not None and number >= _LEAST and time.monotonic() - began > allowed:
                break
            yield number, turn
        self._asking += time.monotonic() - began

    def failed(self, name: str, error: Exception) -> str:
        """Log that a system is left out; returns why."""
        _LOG.warning("%s is left out: %s", name, error, exc_info=not isinstance(error, MSAError))
        return reason(error)


class GrowthCommand(GrowthSettings, Command):
    """Options of the commands that grow a memory. What is measured is kept whatever happens."""

    out: Place = option(..., "Folder for results and the report; what it holds is not measured again.", "--out", "-o")
    data: Path | None = option(
        None, "A data set, or a folder of data sets; the sample corpus when left out.", "--data", "-d"
    )
    distractors: Path | None = option(None, "Folder of *.jsonl[.gz] with passages to grow the memory with.")
    minutes: float | None = option(
        None, "Minutes to ask in all, without indexing; fewer questions are asked, evenly.", "--budget", ge=0.01
    )
    cache: Path | None = option(None, "Folder for encoded passages and indexes, to share among runs [OUT/cache].")
    fresh: bool = option(False, "Forget earlier results of this part in OUT.")
    model: str | None = MODEL
    adapter: Path | None = ADAPTER
    kind: ClassVar[type[GrowthRun]]
    own: ClassVar[tuple[str, ...]]  # further settings that rows must share to stand side by side

    def more(self) -> dict[str, Any]:
        """Further arguments of `kind`."""
        return {}

    def identity(self, budget: float | None) -> dict[str, Any]:
        """What runs must share for their rows to stand side by side; systems, sets and larger sizes may be added."""
        return {
            **{name: getattr(self, name) for name in self.own},
            "first_size": self.sizes[0],
            "questions": self.questions,
            "seed": self.seed,
            "budget_seconds": budget,
            "distractors": None if self.distractors is None else self.distractors.resolve().name,
        }

    def run(self, out: Voice) -> None:
        """Measure every data set. A mistyped path is told before a backbone is loaded or anything is written."""
        paths = [None] if self.data is None else find_datasets(self.data)
        if self.distractors is not None and next(load_distractors(self.distractors, 1), None) is None:
            raise ConfigError(f"{self.distractors.name} holds no passages to grow the memory with")
        budget = None if self.minutes is None else 60 * self.minutes / len(paths)
        config, cache, part = MemoryConfig(), self.cache or self.out / "cache", self.kind.part
        with Results(self.out, seed=self.seed) as results, Watch(sys.stderr) as watch:
            results.claim()
            out.note(f"loading {self.model or 'the default backbone'} ...")
            backbone = Backbone.load(self.model, device=config.device, dtype=config.dtype)
            adapter = find_adapter(backbone, self.adapter)
            identity = {**self.identity(budget), "made_with": made_with(backbone, adapter, config)}
            results.configure(part, identity, fresh=self.fresh)
            banks, settings = (
                Banks(cache / BANKS, backbone, adapter, config),
                self.model_copy(update={"budget": budget}),
            )
            options: dict[str, Any] = {"generation": {"max_new_tokens": 32}, "on_step": watch.step, **self.more()}
            for dataset in _datasets(paths, results, part, out.note):
                # By the rule of thumb for tokens; the plan stops taking them when its own count is reached.
                more = load_distractors(self.distractors, 2 * max(self.sizes)) if self.distractors else iter(())
                self.kind(settings, results, banks, cache, **options).run(dataset, more)
            rows = [row for row in results.rows() if row.part in (part, "cost")]
        show(out, self.out, rows)


def _datasets(
    paths: Sequence[Path | None], results: Results, part: str, note: Callable[[str], None]
) -> Iterator[Dataset]:
    """The data sets (None: the sample corpus); one of several that cannot be read is skipped."""
    for path in paths:
        try:
            dataset = sample_dataset() if path is None else load_dataset(path)
        except MSAError as error:
            if path is None or len(paths) == 1:
                raise
            note(f"{path.name} is left out: {error}")
            results.skip(part, path.resolve().name, "", str(error).replace(str(path), path.name))
            continue
        results.describe(dataset.name, {"hash": dataset_hash(dataset)})
        note(f"{dataset.name}: {len(dataset.documents):,} passages, {len(dataset.questions):,} questions")
        yield dataset


def show(out: Voice, folder: Path, rows: Sequence[ResultRow]) -> None:
    """Say the notes and tables of `rows`, and write the folder's report."""
    for row in rows:
        if row.metric == NOTE:
            out.say(f"note: {row.dataset}: {row.settings['reason']}")
    out.say(table(rows))
    try:
        out.say(f"report: {write_report(folder)}")
    except MissingExtraError as error:
        out.note(f"no report: {error}")
    out.result([row.to_dict() for row in rows])
