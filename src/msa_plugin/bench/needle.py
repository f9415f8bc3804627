"""Running the needle tasks: every system at every length and depth, as rows that make heat maps.

A row's `recall` is the share of a question's needles among the passages found (by systems that only answer: among
those read), `answered` the share of the values asked for that the answer holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, model_validator

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import Answers, OnStep, ResultRow, System, Workspace
from msa_plugin.bench.case import ADAPTER, MODEL, Command, Sizes, Voice, Words, option
from msa_plugin.bench.growing import show
from msa_plugin.bench.growth import BANKS, Banks, keys_alone
from msa_plugin.bench.growth_rows import NEEDLE, needle_rows
from msa_plugin.bench.needle_cases import TASKS, CountTokens, NeedleCase, make_task
from msa_plugin.bench.store import Results
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.bench.timed_system import registry
from msa_plugin.bench.watch import Watch
from msa_plugin.bench.workspaces import made_with
from msa_plugin.config import GenerationConfig, MemoryConfig, Place
from msa_plugin.data.datasets import Dataset, Question, load_distractors
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError, MSAError
from msa_plugin.types import Document

_SPARE = 1.1  # distractors read beyond the greatest length, since a haystack begins anywhere among them
Create: TypeAlias = Callable[[str, Workspace], "System | Answers"]
Open: TypeAlias = Callable[[Dataset], AbstractContextManager[Workspace]]


def _evenly(given: Any) -> Any:
    """So many depths, evenly from first to last."""
    if not isinstance(given, str):
        return given
    if not given.isdecimal() or given == "0":
        raise ConfigError(f"{given!r} is not a number of depths")
    return tuple(n / (int(given) - 1) for n in range(int(given))) if given != "1" else (0.5,)


class NeedleConfig(Command):
    """The `k` best passages count as found, and are read by systems that do not choose for themselves.

    Without answers only recall is measured, and of systems that only answer nothing.

    Example: msa bench needle --systems msa,bm25 --lengths 4K,16K --out results
    """

    systems: Systems = option(
        "msa,msa-interleave,bm25,dense", "Names of systems, separated by commas.", "--systems", "-s", min_length=1
    )
    out: Place = option(..., "Folder for results and the report; what it holds is not measured again.", "--out", "-o")
    lengths: Sizes = option("4K,16K,64K", "Tokens of the haystacks, such as 4K,16K,64K.", min_length=1)
    depths: Annotated[tuple[float, ...], BeforeValidator(_evenly)] = option(
        "5", "Depths of the needles (0 to 1): how many, evenly from first to last.", min_length=1
    )
    tasks: Words = option(",".join(TASKS), "Names of tasks, separated by commas.", min_length=1)
    samples: int = option(1, "Haystacks for each task, length and depth, of seeds SEED, SEED + 1 ...", gt=0)
    seed: int = option(0, "Seed of what is made.")
    k: int = option(5, "Passages that count as found.", "-k", gt=0)
    answers: bool = option(True, "Also answer, not only find.")
    distractors: Place | None = option(None, "Folder of *.jsonl[.gz] with passages in place of generated essays.")
    model: str | None = MODEL
    adapter: Path | None = ADAPTER
    memory: MemoryConfig = keys_alone(MemoryConfig())
    generation: GenerationConfig = GenerationConfig(max_new_tokens=96)
    fresh: bool = option(False, "Forget earlier results of this part in OUT.")
    cache: Place | None = option(None, "Folder for encoded passages and indexes, to share among runs [OUT/cache].")

    @property
    def kept(self) -> Path:
        """Where encoded passages and indexes are kept."""
        return self.cache or self.out / "cache"

    @model_validator(mode="after")
    def _sensible(self) -> NeedleConfig:
        for name in ("systems", "lengths", "depths", "tasks"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be distinct")
        if unknown := sorted(set(self.tasks or ()) - set(TASKS)):
            raise ValueError(f"unknown tasks {unknown}; there are {', '.join(TASKS)}")
        if min(self.lengths) < 1 or min(self.depths) < 0 or max(self.depths) > 1:
            raise ValueError("lengths are above 0, depths between 0 and 1")
        return self

    def identity(self, made: dict[str, Any]) -> dict[str, Any]:
        """What two runs must share to stand in one folder. Systems, tasks, lengths and depths may be added."""
        said = self.model_dump(mode="json", include={"samples", "seed", "k", "answers", "memory", "generation"})
        return {**said, "distractors": self.distractors.name if self.distractors else None, "made_with": made}

    def run(self, out: Voice) -> None:
        """Run and show."""
        out.note(f"loading {self.model or 'the default backbone'} ...")
        with Watch(sys.stderr) as watch:
            rows = run(self, on_step=watch.step)
        show(out, self.out, rows)


@dataclass(frozen=True)
class _Cell:
    """One square of a heat map, of one task."""

    task: str
    length: int
    depth: float

    @property
    def settings(self) -> dict[str, Any]:
        return {"task": self.task, "length": self.length, "depth": self.depth}


def run(
    config: NeedleConfig,
    *,
    create: Create | None = None,
    backbone: Backbone | None = None,
    adapter: Adapter | None = None,
    on_step: OnStep = lambda what, done, total: None,
) -> list[ResultRow]:
    """Run what is missing of `config` in its folder and return all rows of the part "needle".

    `create` makes systems (by default the registry's), `backbone` and `adapter` replace the configured ones.
    Raises ConfigError for another configuration in the same folder and for lengths that the needles do not fit,
    IngestError for a bad folder of distractors.
    """
    with Results(config.out, seed=config.seed) as results:
        results.claim()
        backbone = backbone or Backbone.load(config.model, device=config.memory.device, dtype=config.memory.dtype)
        adapter = find_adapter(backbone, adapter or config.adapter)
        banks = Banks(config.kept / BANKS, backbone, adapter, config.memory)

        def count(text: str) -> int:
            return len(backbone.tokenize(text))

        results.configure(NEEDLE, config.identity(made_with(backbone, adapter, config.memory)), fresh=config.fresh)
        measure(config, results, lambda d: _workspace(d, banks, config, on_step), create or registry(), count, on_step)
        return [row for row in results.rows() if row.part == NEEDLE]


def measure(
    config: NeedleConfig,
    results: Results,
    workspace_of: Open,
    create: Create,
    count: CountTokens,
    on_step: OnStep = lambda what, done, total: None,
) -> list[ResultRow]:
    """Measure the cells that `results` lacks, shortest haystacks first, and return their rows.

    A system that fails is recorded as skipped, with the reason, and not tried again here; the others go on.
    """
    cells = [_Cell(t, n, d) for n, t, d in product(sorted(config.lengths), config.tasks or (), config.depths)]
    found: list[ResultRow] = []
    failed: set[str] = set()
    filler = _filler(config, count)
    for number, cell in enumerate(cells):
        missing = [s for s in config.systems if not results.has((NEEDLE, NEEDLE, s, cell.settings))]
        on_step(f"{cell.task}, {cell.length:,} tokens, depth {cell.depth:g}", number, len(cells))
        measured: dict[str, list[dict[str, Any]]] = {}
        documents = tokens = 0
        for sample in range(config.samples):
            still = [s for s in missing if s not in failed]
            if not still:
                break
            case = make_task(cell.task, cell.length, cell.depth, config.seed + sample, count, filler)
            documents, tokens = len(case.documents), case.tokens
            with workspace_of(_dataset(case)) as workspace:
                for name in still:
                    records = _measure(create, name, workspace, case, config.k, config.answers)
                    if isinstance(records, MSAError):
                        failed.add(name)
                        results.skip(NEEDLE, NEEDLE, name, str(records))
                    else:
                        measured.setdefault(name, []).extend({"sample": sample, **record} for record in records)
        for name in (n for n in measured if n not in failed):
            results.add_questions(NEEDLE, NEEDLE, name, [{**cell.settings, **record} for record in measured[name]])
            where: dict[str, Any] = {"dataset": NEEDLE, "system": name, "documents": documents, "tokens": tokens}
            rows = [replace(r, **where, settings=cell.settings) for r in needle_rows(measured[name])]
            results.add(rows)
            found += rows
    on_step("done", len(cells), len(cells))
    return found


def _measure(
    create: Create, name: str, workspace: Workspace, case: NeedleCase, k: int, answers: bool
) -> list[dict[str, Any]] | MSAError:
    """What happened to each question of a haystack, or the error that kept a system from it."""
    try:
        system = create(name, workspace)
        try:
            return _records(system, workspace, case, k, answers)
        finally:
            if isinstance(system, System):
                system.close()
    except MSAError as error:
        return error


def _records(
    system: System | Answers, workspace: Workspace, case: NeedleCase, k: int, answers: bool
) -> list[dict[str, Any]]:
    """Of each question the needles and what was found (or read) and replied."""
    questions = list(case.questions)
    passages: list[list[str]] = []
    records: list[dict[str, Any]] = [
        {"id": f"q{i}", "needles": list(ids), "expected": list(expected)}
        for i, (ids, expected) in enumerate(zip(case.needles, case.expected, strict=True))
    ]
    if isinstance(system, System):
        system.prepare()
        passages = [[hit.id for hit in found.ranking[:k]] for found in system.find(questions, k)]
    elif not answers:
        raise ConfigError("it only answers, and answers were not asked for")
    if answers:
        replies = system.answer(questions) if isinstance(system, Answers) else workspace.read(questions, passages)
        passages = passages or [list(reply.read) for reply in replies]
        for record, reply in zip(records, replies, strict=True):
            record["reply"] = reply.text
    for record, found in zip(records, passages, strict=True) if passages else ():
        record["found"] = found
    return records


def _dataset(case: NeedleCase) -> Dataset:
    questions = (
        Question(f"q{i}", text, expected, dict.fromkeys(ids, 1), kind=case.task)
        for i, (text, expected, ids) in enumerate(zip(case.questions, case.expected, case.needles, strict=True))
    )
    return Dataset(f"{NEEDLE}-{case.task}", case.documents, tuple(questions))


@contextmanager
def _workspace(dataset: Dataset, banks: Banks, config: NeedleConfig, on_step: OnStep) -> Iterator[Workspace]:
    """A bank of the haystack; passages that other haystacks share are encoded once."""
    banks.encode(dataset.documents)
    with banks.open(dataset.documents) as memory:
        generation = config.generation.model_dump(exclude_none=True)
        yield Workspace(dataset, memory, config.kept, generation, on_step)


def _filler(config: NeedleConfig, count: CountTokens) -> list[Document]:
    """Passages for the greatest length, from the folder of distractors if one is given."""
    if config.distractors is None:
        return []
    wanted = int(_SPARE * max(config.lengths))
    found = list(load_distractors(config.distractors, wanted, count))
    if not found:
        raise ConfigError(f"{config.distractors.name} holds no passages; leave distractors out for generated essays")
    return found
