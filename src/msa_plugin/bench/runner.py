"""The head-to-head run: every system on every data set, resumable question by question, whatever happens to one.

Per data set a workspace is opened and the systems take turns (run_system.py). Rows are computed from what happened to
each question (scoring.py), so that a resumed run, an uninterrupted one and a recomputed one say the same.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator, model_validator

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import Answers, ResultRow, System, Workspace
from msa_plugin.bench.case import ADAPTER, MODEL, Words, one_size, option
from msa_plugin.bench.dialogues import dialogues
from msa_plugin.bench.growth import BANKS, Banks, distractors, keys_alone, padded
from msa_plugin.bench.judge import Judge, judge_replies, unjudged
from msa_plugin.bench.run_system import SystemRun
from msa_plugin.bench.sampling import Others, Pace, affordable, in_order, thinned
from msa_plugin.bench.scoring import exact_twin, rows_of
from msa_plugin.bench.store import NOTE, Results
from msa_plugin.bench.watch import Watch
from msa_plugin.bench.workspaces import made_with, open_workspace
from msa_plugin.config import GenerationConfig, MemoryConfig, Place, Settings
from msa_plugin.data.datasets import (
    Dataset,
    Question,
    dataset_hash,
    find_datasets,
    load_dataset,
    load_distractors,
    sample_dataset,
)
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError, MSAError
from msa_plugin.memory import LatentMemory

_LOG = logging.getLogger("msa_plugin.bench.runner")
PILOT = 4  # questions of each data set that every system answers first, to measure its pace
Make: TypeAlias = Callable[[str, Workspace], System | Answers]


class RunOptions(Settings):
    """Settings of a run that are options of its commands as they are."""

    out: Place = option("bench-results", "Folder for results, caches and the report.", "--out", "-o")
    data: Place | None = option(
        None, "A data set, or a folder of them: corpus, queries, qrels as BEIR lays them out.", "--data", "-d"
    )
    sets: Words = option(None, "Only these data sets of the folder, separated by commas.", min_length=1)
    corpus: int | None = option(
        None,
        "At most this many passages of each data set: those that answer its questions (0: no others) and others.",
        ge=0,
    )
    others: Others = option(
        "even", "Which these others are: even (drawn evenly), or hard (BM25's best for the questions)."
    )
    distractors: Place | None = option(
        None, "Folder of *.jsonl[.gz] with passages to add to every corpus; --added says how many."
    )
    added: Annotated[int | None, BeforeValidator(one_size)] = option(
        None, "Tokens of these passages that are added, such as 1M; the corpus gets another name by it.", gt=0
    )
    questions: int | None = option(None, "At most this many questions of each data set.", gt=0)
    budget_minutes: float | None = option(
        None, "Minutes to find and answer in all, without indexing; questions are sampled.", "--budget", gt=0
    )
    seed: int = option(0, "Decides which questions are sampled.")
    batch: int = option(8, "Questions asked at once; times per question are those of their batch divided by it.", gt=0)
    model: str | None = MODEL
    adapter: Path | None = ADAPTER
    fresh: bool = option(False, "Forget this folder's earlier results of this kind.")
    cache: Place | None = option(None, "Folder for encoded passages and indexes, to share among runs [OUT/cache].")


class CompareConfig(RunOptions):
    """What to run. `data` None is the sample corpus; `systems` are names of the registry.

    `dialogues` takes `data` as conversations, each a data set by turns or by sessions (see `bench.dialogues`).
    `k` passages are ranked for retrieval; for qa a system that finds is answered for from the best of each number in
    `passages`. `memory` and `generation` hold for all systems.
    """

    part: Literal["retrieval", "qa"]
    systems: tuple[str, ...] = Field(min_length=1)
    dialogues: Literal["turns", "sessions"] | None = None
    k: int = Field(default=100, gt=0)
    passages: tuple[int, ...] = Field(default=(1, 5, 10), min_length=1)
    memory: MemoryConfig = keys_alone(MemoryConfig())
    generation: GenerationConfig = GenerationConfig(max_new_tokens=32)

    _keys_alone = field_validator("memory")(keys_alone)

    @model_validator(mode="after")
    def _distinct(self) -> CompareConfig:
        if len(set(self.systems)) < len(self.systems) or len(set(self.passages)) < len(self.passages):
            raise ValueError("systems and passages must be distinct")
        if min(self.passages) < 1:
            raise ValueError("passages must be positive; the system closed-book reads none")
        if (self.distractors is None) != (self.added is None):
            raise ValueError("distractors and added belong together: a folder of passages, and how many tokens of them")
        missing = {exact_twin(system) for system in self.systems} - {*self.systems, None}
        if missing:
            raise ValueError(
                f"what a prefilter finds is compared with exact search: add {', '.join(map(str, missing))}"
            )
        return self

    def identity(self, backbone: Backbone, adapter: Adapter) -> dict[str, Any]:
        """What two runs must share for their results to stand in one folder. Systems and data may be added."""
        own = "k" if self.part == "retrieval" else "passages"
        names = {"questions", "budget_minutes", "seed", "batch", "memory", "generation", own}
        said = self.model_dump(mode="json", include=names)
        name = backbone.name
        return {
            **said,
            "backbone": Path(name).name if Path(name).is_absolute() else name,
            "made_with": made_with(backbone, adapter, self.memory),
        }


@dataclass
class _Session:
    """One call of `compare`; `failed` are the (data set, system) that are not tried again in it."""

    config: CompareConfig
    results: Results
    make: Make
    watch: Watch
    banks: Banks
    failed: set[tuple[str, str]] = field(default_factory=set)


def compare(
    config: CompareConfig,
    *,
    make: Make | None = None,
    backbone: Backbone | None = None,
    adapter: Adapter | None = None,
    judge: Judge | None = None,
    watch: Watch | None = None,
) -> list[ResultRow]:
    """Run what is missing of `config` and return the rows of its part and of "cost".

    `make` creates systems (by default the registry's), `backbone` and `adapter` replace the configured ones, `judge`
    grades the replies in the end. A system that cannot run is recorded as skipped, with the reason.
    Raises ConfigError for another configuration in the same folder, and IngestError when no data set can be read.
    """
    _paths(config)  # a mistyped path is told before a backbone is loaded
    if config.distractors is not None:
        next(load_distractors(config.distractors, 1), None)
    backbone = backbone or Backbone.load(config.model, device=config.memory.device, dtype=config.memory.dtype)
    adapter = find_adapter(backbone, adapter or config.adapter)
    with Results(config.out, seed=config.seed) as results, watch or Watch() as shown:
        results.configure(config.part, config.identity(backbone, adapter), fresh=config.fresh)
        if config.fresh:
            _forget(results, config)
        banks = Banks((config.cache or config.out / "cache") / BANKS, backbone, adapter, config.memory)
        session = _Session(config, results, make or _registered, shown, banks)
        datasets = _datasets(session)
        _run(session, datasets)
        if judge is not None and config.part == "qa":
            _judge(session, judge, [d.name for d in datasets])
        return [row for row in results.rows() if row.part in (config.part, "cost")]


def _registered(name: str, workspace: Workspace) -> System | Answers:
    from msa_plugin.bench.systems import create

    return create(name, workspace)


def _forget(results: Results, config: CompareConfig) -> None:
    """What `fresh` removes besides the part itself: its judgements, and what its systems cost."""
    if config.part == "qa":
        results.remove("judge")
    results.rewrite([r for r in results.rows() if r.part != "cost" or r.system not in config.systems])


def _run(session: _Session, datasets: Sequence[Dataset]) -> None:
    asked = {d.name: _asked(session, d) for d in datasets}
    if undecided := [d for d in datasets if asked[d.name] is None]:
        asked.update(_fit_budget(session, undecided))
    session.watch.expect(sum(n or 0 for n in asked.values()) * len(session.config.systems))
    for dataset in datasets:
        _ask(session, dataset, _questions(session, dataset)[: asked[dataset.name]], final=True)


# Data sets


def _datasets(session: _Session) -> list[Dataset]:
    """All data sets, smallest corpus first, so that a run that is cut short has finished as many as it could.

    One of several that cannot be used is recorded as skipped.
    """
    c = session.config
    if c.dialogues is not None and c.data is not None:
        return dialogues(c.data, c.dialogues)
    paths = _paths(c)
    tried = [_load(session, path, must=len(paths) == 1) for path in paths]
    found = [dataset for dataset in tried if dataset is not None]
    if paths and not found:
        raise ConfigError(f"none of the {len(paths)} data sets in {c.data} can be used; the log says why")
    found = found if paths else [sample_dataset()]
    if c.corpus is not None:
        found = [thinned(d, _questions(session, d), c.corpus, c.seed, c.others) for d in found]
    smallest_first = sorted(found, key=lambda dataset: len(dataset.documents))
    if c.distractors is None or c.added is None:
        return smallest_first
    others = distractors(c.distractors, c.added, session.banks.tokens)
    return [padded(dataset, others, c.added) for dataset in smallest_first]


def _paths(config: CompareConfig) -> list[Path]:
    """Folders of the data sets. Raises IngestError if there is none, ConfigError if one of `sets` is missing."""
    found = [] if config.data is None else find_datasets(config.data)
    if config.sets is None:
        return found
    known = {path.resolve().name: path for path in found}
    if missing := [name for name in config.sets if name not in known]:
        raise ConfigError(f"there is no data set {missing[0]!r} here; there are {', '.join(known) or 'none'}")
    return [known[name] for name in config.sets]


def _load(session: _Session, path: Path, *, must: bool) -> Dataset | None:
    try:
        dataset = load_dataset(path)
        if not _questions(session, dataset):
            raise ConfigError("no question has an answer to compare with")
    except MSAError as error:
        if must:
            raise
        _LOG.warning("%s is left out: %s", path.name, error)
        reason = str(error).replace(str(path), path.name)
        session.results.skip(session.config.part, path.resolve().name, "", reason)
        return None
    return dataset


def _questions(session: _Session, dataset: Dataset) -> list[Question]:
    """The questions in the order in which they are asked; for qa those that have an answer to compare with."""
    usable = [q for q in dataset.questions if q.answers or session.config.part == "retrieval"]
    return in_order(usable, session.config.seed)[: session.config.questions]


def _asked(session: _Session, dataset: Dataset) -> int | None:
    """How many questions are asked, None while a budget has to decide; records what the data set is."""
    c, results = session.config, session.results
    facts = {
        "hash": dataset_hash(dataset),
        "documents": len(dataset.documents),
        "questions": len(dataset.questions),
        "hops": dict(Counter(str(q.hops) for q in dataset.questions)),
        "titled": sum(bool(d.title) for d in dataset.documents) / len(dataset.documents),
    }
    asked = dict(results.dataset_facts(dataset.name).get("asked", {}))
    if c.fresh:
        asked.pop(c.part, None)
    results.describe(dataset.name, {**facts, "asked": asked})
    for note in dataset.notes:
        results.note(c.part, dataset.name, note)
    without = sum(not q.answers for q in dataset.questions)
    if c.part == "qa" and without:
        results.note(c.part, dataset.name, f"{without} questions have no answer to compare with and were left out")
    if c.part in asked:
        return int(asked[c.part])
    if c.budget_minutes is not None:
        return None
    return _decide(session, dataset, len(_questions(session, dataset)), f"--questions {c.questions}")


def _decide(session: _Session, dataset: Dataset, number: int, why: str) -> int:
    """Record how many questions are asked, with a note where these are not all."""
    c, results = session.config, session.results
    facts = results.dataset_facts(dataset.name)
    results.describe(dataset.name, {**facts, "asked": {**facts["asked"], c.part: number}})
    usable = sum(bool(q.answers) or c.part == "retrieval" for q in dataset.questions)
    if number < usable:
        drawn = f"{number} of {usable} questions were asked, drawn evenly over numbers of hops with seed {c.seed}"
        results.note(c.part, dataset.name, f"{drawn} ({why})")
    return number


def _fit_budget(session: _Session, datasets: Sequence[Dataset]) -> dict[str, int]:
    """Let every system answer a few questions of each data set, and choose how many the budget is enough for."""
    c = session.config
    assert c.budget_minutes is not None
    pilots = {d.name: _questions(session, d)[:PILOT] for d in datasets}
    session.watch.expect(sum(map(len, pilots.values())) * len(c.systems))
    paces = {}
    for dataset in datasets:
        pilot = pilots[dataset.name]
        _ask(session, dataset, pilot, final=False)
        pace = _seconds(session, dataset.name, pilot) / len(pilot)
        paces[dataset.name] = Pace(pace, len(_questions(session, dataset)))
    chosen = affordable(paces, c.budget_minutes * 60, least=PILOT)
    why = f"--budget {c.budget_minutes:g} minutes without indexing, at the pace of the first {PILOT} questions"
    return {d.name: _decide(session, d, chosen[d.name], why) for d in datasets}


def _seconds(session: _Session, dataset: str, questions: Sequence[Question]) -> float:
    """Seconds that all systems together took for these questions."""
    wanted, total = {q.id for q in questions}, 0.0
    for system in session.config.systems:
        records = session.results.questions(session.config.part, dataset, system)
        total += sum(r["spent"] for r in records if r["id"] in wanted)
    return total


# Systems


def _ask(session: _Session, dataset: Dataset, questions: Sequence[Question], *, final: bool) -> None:
    """Ask what is missing of `questions`, system by system; rows are computed when these are all (`final`)."""
    c, results = session.config, session.results
    generation = {**c.generation.model_dump(exclude_defaults=True), "max_new_tokens": c.generation.max_new_tokens}
    with open_workspace(
        dataset, session.banks, generation, session.watch.step, lambda memory: _warm(c.part, memory)
    ) as workspace:
        facts = results.dataset_facts(dataset.name)
        results.describe(dataset.name, {**facts, "tokens": workspace.tokens})
        if c.part == "qa":  # every answer is read through the memory; where nobody asks MSA, finding needs none
            _ = workspace.memory
        turn = SystemRun(c.part, results, workspace, session.watch, c.k, c.passages, c.batch)
        for system in c.systems:
            if (dataset.name, system) not in session.failed:
                _guarded(session, turn, system, questions)
                if final:
                    results.put(rows_of(results, c.part, dataset.name))


def _warm(part: str, memory: LatentMemory) -> None:
    """What is computed once per memory (the prompt's head, mapped keys) is not charged to whoever comes first."""
    memory.retrieve("Is everything ready?", 1)
    if part == "qa":
        memory.ask("Is everything ready?", documents=[], max_new_tokens=1)


def _guarded(session: _Session, turn: SystemRun, name: str, questions: Sequence[Question]) -> None:
    """One system's turn; what goes wrong in it is recorded, and nothing of the others is lost."""
    dataset, results, part = turn.workspace.dataset.name, session.results, session.config.part
    try:
        turn.take(name, session.make(name, turn.workspace), questions)
    except Exception as error:
        _LOG.warning("%s on %s is skipped: %s", name, dataset, error, exc_info=not isinstance(error, MSAError))
        reason = str(error) if isinstance(error, MSAError) else f"{type(error).__name__}: {error}"
        if kept := len({r["id"] for r in results.questions(part, dataset, name)}):
            reason += f" (after {kept} questions, which are kept; the same command goes on from there)"
        results.skip(part, dataset, name, reason)
        session.failed.add((dataset, name))


def _judge(session: _Session, judge: Judge, datasets: Sequence[str]) -> None:
    results, systems = session.results, session.config.systems
    judge_replies(results, datasets, systems, judge)
    for dataset in datasets:
        results.put(rows_of(results, "qa", dataset))
    notes = [
        ResultRow(
            "qa",
            dataset,
            system,
            NOTE,
            0.0,
            settings={"reason": f"{n} replies of {system} were not judged: {why}", "about": "judge"},
        )
        for dataset in datasets
        for system in systems
        for why, n in unjudged(results, dataset, system).items()
    ]
    results.rewrite([r for r in results.rows() if r.metric != NOTE or r.settings.get("about") != "judge"])
    results.put(notes)
