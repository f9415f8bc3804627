"""Running the needle tasks: every system at every length and depth, as rows that make heat maps.

A row's `recall` is the share of a question's needles among the passages found (by systems that only answer: among
those read), `answered` the share of the values asked for that the answer holds.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import System, Workspace
from msa_plugin.bench.command import Command, Sizes, Voice, Words, option
from msa_plugin.bench.driver import Run, RunSettings, opened_run, show
from msa_plugin.bench.growth import keys_alone
from msa_plugin.bench.growth_rows import NEEDLE, needle_rows
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.systems.system_spec import Systems
from msa_plugin.config import GenerationConfig, MemoryConfig, Place
from msa_plugin.data.datasets import load_distractors
from msa_plugin.data.needles import TASKS, CountTokens, make_task
from msa_plugin.errors import ConfigError
from msa_plugin.types import Document

_SPARE = 1.1  # distractors read beyond the greatest length, since a haystack begins anywhere among them


def _evenly(given: Any) -> Any:
    """So many depths, evenly from first to last."""
    if not isinstance(given, str):
        return given
    if not given.isdecimal() or given == "0":
        raise ConfigError(f"{given!r} is not a number of depths")
    return tuple(n / (int(given) - 1) for n in range(int(given))) if given != "1" else (0.5,)


class NeedleConfig(RunSettings, Command):
    """The `k` best passages count as found, and are read by systems that do not choose for themselves.

    Without answers only recall is measured, and of systems that only answer nothing.

    Example: msa bench needle --systems msa,bm25 --lengths 4K,16K --out results
    """

    systems: Systems = option(
        "msa,msa-interleave,bm25,dense", "Names of systems, separated by commas.", "--systems", "-s", min_length=1
    )
    lengths: Sizes = option("4K,16K,64K", "Tokens of the haystacks, such as 4K,16K,64K.", min_length=1)
    depths: Annotated[tuple[float, ...], BeforeValidator(_evenly)] = option(
        "5", "Depths of the needles (0 to 1): how many, evenly from first to last.", min_length=1
    )
    tasks: Words = option(",".join(TASKS), "Names of tasks, separated by commas.", min_length=1)
    samples: int = option(1, "Haystacks for each task, length and depth, of seeds SEED, SEED + 1 ...", gt=0)
    k: int = option(5, "Passages that count as found.", "-k", gt=0)
    answers: bool = option(True, "Also answer, not only find.")
    distractors: Place | None = option(None, "Folder of *.jsonl[.gz] with passages in place of generated essays.")
    memory: MemoryConfig = keys_alone(MemoryConfig())
    generation: GenerationConfig = GenerationConfig(max_new_tokens=96)

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

    def identity(self, backbone: Backbone) -> dict[str, Any]:
        """What two runs must share to stand in one folder. Systems, tasks, lengths and depths may be added."""
        said = self.model_dump(mode="json", include={"samples", "seed", "k", "answers", "memory", "generation"})
        return {**said, "distractors": self.distractors.name if self.distractors else None}

    def run(self, out: Voice) -> None:
        """Run and show."""
        out.note(f"loading {self.model or 'the default backbone'} ...")
        rows = needles(self)
        show(out, self.out, rows)
        out.result([row.to_dict() for row in rows])


def needles(config: NeedleConfig, **given: Any) -> list[ResultRow]:
    """Run what is missing of `config` in its folder and return all rows of the part "needle".

    `given` are further arguments of `driver.opened_run`. Raises ConfigError for another configuration in the same
    folder and for lengths that the needles do not fit, IngestError for a bad folder of distractors.
    """
    generation = config.generation.model_dump(exclude_none=True)
    with opened_run(config, NEEDLE, config.identity, config.memory, generation, **given) as run:
        measure(config, run)
        return run.rows()


def measure(config: NeedleConfig, run: Run) -> None:
    """Measure the cells that the results lack, shortest haystacks first.

    A system that fails is recorded as skipped, with the reason, and not tried again here; the others go on.
    """
    cells = list(product(sorted(config.lengths), config.tasks or (), config.depths))

    def count(text: str) -> int:
        return len(run.banks.backbone.tokenize(text))

    filler = _filler(config, count)
    for number, (length, task, depth) in enumerate(cells):
        run.watch.step(f"{task}, {length:,} tokens, depth {depth:g}", number, len(cells))
        settings = {"task": task, "length": length, "depth": depth}
        missing = run.missing(NEEDLE, config.systems, settings)
        measured: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for sample in range(config.samples):
            if not (still := [name for name in missing if (NEEDLE, name) not in run.failed]):
                break
            case = make_task(task, length, depth, config.seed + sample, count, filler)
            with run.workspace(case.dataset) as workspace:
                for name in still:
                    if (record := _record(run, name, workspace, config)) is not None:
                        measured[name].append({"sample": sample, **record})
        for name in (name for name in measured if (NEEDLE, name) not in run.failed):
            run.results.add_questions(NEEDLE, NEEDLE, name, [{**settings, **record} for record in measured[name]])
            rows = [replace(row, settings=settings) for row in needle_rows(measured[name])]
            run.store(rows, NEEDLE, name, len(case.dataset.documents), case.tokens)


def _record(run: Run, name: str, workspace: Workspace, config: NeedleConfig) -> dict[str, Any] | None:
    """What happened to a haystack's question; None, with a recorded reason, where a system cannot run."""
    try:
        with run.prepared(name, workspace, where=None) as system:
            return _asked(system, workspace, config)
    except Exception as error:
        run.skip(NEEDLE, name, error)
        return None


def _asked(system: Any, workspace: Workspace, config: NeedleConfig) -> dict[str, Any]:
    """The question's needles, what was found (or read) and replied."""
    [question] = workspace.dataset.questions
    record: dict[str, Any] = {"id": question.id, "needles": [*question.positives], "expected": [*question.answers]}
    if isinstance(system, System):
        [found] = system.find([question.text], config.k)
        record["found"] = [hit.id for hit in found.ranking[: config.k]]
    elif not config.answers:
        raise ConfigError("it only answers, and answers were not asked for")
    if config.answers:
        asked = [question.text]
        [reply] = system.answer(asked) if hasattr(system, "answer") else workspace.read(asked, [record["found"]])
        record["reply"] = reply.text
        record.setdefault("found", list(reply.read))
    return record


def _filler(config: NeedleConfig, count: CountTokens) -> list[Document]:
    """Passages for the greatest length, from the folder of distractors if one is given."""
    if config.distractors is None:
        return []
    found = list(load_distractors(config.distractors, int(_SPARE * max(config.lengths)), count))
    if not found:
        raise ConfigError(f"{config.distractors.name} holds no passages; leave distractors out for generated essays")
    return found
