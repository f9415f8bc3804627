"""The head-to-head run: every system on every data set, resumable question by question, whatever happens to one.

Per data set a workspace is opened and the systems take turns (run_system.py). Rows are computed from what happened to
each question (scoring.py), so that a resumed run, an uninterrupted one and a recomputed one say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.command import Words, one_size, option
from msa_plugin.bench.dialogues import dialogues
from msa_plugin.bench.driver import Run, RunSettings, opened_run
from msa_plugin.bench.growth import distractors, keys_alone, padded
from msa_plugin.bench.judge import Judge, judge_replies, unjudged
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.run_system import SystemRun
from msa_plugin.bench.sampling import Others, affordable, in_order, thinned
from msa_plugin.bench.scoring import exact_twin, rows_of
from msa_plugin.bench.store import NOTE, Results
from msa_plugin.config import GenerationConfig, MemoryConfig, Place
from msa_plugin.data.datasets import Dataset, Question, dataset_hash, find_datasets, load_distractors
from msa_plugin.errors import ConfigError

PILOT = 4  # questions of each data set that every system answers first, to measure its pace


class RunOptions(RunSettings):
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
    batch: int = option(8, "Questions asked at once; times per question are those of their batch divided by it.", gt=0)


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

    def identity(self, backbone: Backbone) -> dict[str, Any]:
        """What two runs must share for their results to stand in one folder. Systems and data may be added."""
        own = "k" if self.part == "retrieval" else "passages"
        names = {"questions", "budget_minutes", "seed", "batch", "memory", "generation", own}
        name = backbone.name
        said = self.model_dump(mode="json", include=names)
        return {**said, "backbone": Path(name).name if Path(name).is_absolute() else name}

    def paths(self) -> list[Path]:
        """Folders of the data sets. Raises IngestError if there is none, ConfigError if one of `sets` is missing."""
        found = [] if self.data is None else find_datasets(self.data)
        if self.sets is None:
            return found
        known = {path.resolve().name: path for path in found}
        if missing := [name for name in self.sets if name not in known]:
            raise ConfigError(f"there is no data set {missing[0]!r} here; there are {', '.join(known) or 'none'}")
        return [known[name] for name in self.sets]


def compare(config: CompareConfig, *, judge: Judge | None = None, **given: Any) -> list[ResultRow]:
    """Run what is missing of `config` and return the rows of its part and of "cost".

    `judge` grades the replies in the end; `given` are further arguments of `driver.opened_run`. A system that cannot
    run is recorded as skipped, with the reason.
    Raises ConfigError for another configuration in the same folder, and IngestError when no data set can be read.
    """
    paths = config.paths()  # a mistyped path is told before a backbone is loaded
    if config.distractors is not None:
        next(load_distractors(config.distractors, 1), None)
    limit = config.generation.max_new_tokens
    generation = {**config.generation.model_dump(exclude_defaults=True), "max_new_tokens": limit}
    with opened_run(config, config.part, config.identity, config.memory, generation, **given) as run:
        comparison = Comparison(config, run)
        if config.fresh:  # also the judgements, and what these systems cost
            if config.part == "qa":
                run.results.remove("judge")
            run.results.rewrite(r for r in run.results.rows() if r.part != "cost" or r.system not in config.systems)
        datasets = comparison.datasets(paths)
        comparison.measure(datasets)
        if judge is not None and config.part == "qa":
            _judge(run.results, judge, [d.name for d in datasets], config.systems)
        return run.rows("cost")


@dataclass
class Comparison:
    """One call of `compare`."""

    config: CompareConfig
    run: Run

    def measure(self, datasets: Sequence[Dataset]) -> None:
        """Ask every system about every data set."""
        asked = {d.name: self._asked(d) for d in datasets}
        if undecided := [d for d in datasets if asked[d.name] is None]:
            asked.update(self._fit_budget(undecided))
        self.run.watch.expect(sum(n or 0 for n in asked.values()) * len(self.config.systems))
        for dataset in datasets:
            self._ask(dataset, self._questions(dataset)[: asked[dataset.name]], final=True)

    def datasets(self, paths: Sequence[Path]) -> list[Dataset]:
        """All data sets, smallest corpus first, so that a run that is cut short has finished as many as it could."""
        c = self.config
        if c.dialogues is not None and c.data is not None:
            return dialogues(c.data, c.dialogues)
        found = list(self.run.datasets(paths, self._usable))
        if not found:
            raise ConfigError(f"none of the {len(paths)} data sets in {c.data} can be used; the log says why")
        if c.corpus is not None:
            found = [thinned(d, self._questions(d), c.corpus, c.seed, c.others) for d in found]
        smallest_first = sorted(found, key=lambda dataset: len(dataset.documents))
        if c.distractors is None or c.added is None:
            return smallest_first
        others = distractors(c.distractors, c.added, self.run.banks.tokens)
        return [padded(dataset, others, c.added) for dataset in smallest_first]

    def _usable(self, dataset: Dataset) -> None:
        if not self._questions(dataset):
            raise ConfigError("no question has an answer to compare with")

    def _questions(self, dataset: Dataset) -> list[Question]:
        """The questions in the order in which they are asked; for qa those that have an answer to compare with."""
        usable = [q for q in dataset.questions if q.answers or self.config.part == "retrieval"]
        return in_order(usable, self.config.seed)[: self.config.questions]

    def _asked(self, dataset: Dataset) -> int | None:
        """How many questions are asked, None while a budget has to decide; records what the data set is."""
        c, results = self.config, self.run.results
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
            self.run.note(dataset.name, note)
        without = sum(not q.answers for q in dataset.questions)
        if c.part == "qa" and without:
            self.run.note(dataset.name, f"{without} questions have no answer to compare with and were left out")
        if c.part in asked:
            return int(asked[c.part])
        if c.budget_minutes is not None:
            return None
        return self._decide(dataset, len(self._questions(dataset)), f"--questions {c.questions}")

    def _decide(self, dataset: Dataset, number: int, why: str) -> int:
        """Record how many questions are asked, with a note where these are not all."""
        c, results = self.config, self.run.results
        facts = results.dataset_facts(dataset.name)
        results.describe(dataset.name, {**facts, "asked": {**facts["asked"], c.part: number}})
        usable = sum(bool(q.answers) or c.part == "retrieval" for q in dataset.questions)
        if number < usable:
            drawn = f"{number} of {usable} questions were asked, drawn evenly over numbers of hops with seed {c.seed}"
            self.run.note(dataset.name, f"{drawn} ({why})")
        return number

    def _fit_budget(self, datasets: Sequence[Dataset]) -> dict[str, int]:
        """Let every system answer a few questions of each data set, and choose how many the budget is enough for."""
        c = self.config
        assert c.budget_minutes is not None
        pilots = {d.name: self._questions(d)[:PILOT] for d in datasets}
        self.run.watch.expect(sum(map(len, pilots.values())) * len(c.systems))
        paces = {}
        for dataset in datasets:
            pilot = pilots[dataset.name]
            self._ask(dataset, pilot, final=False)
            pace = self._seconds(dataset.name, pilot) / len(pilot)
            paces[dataset.name] = (pace, len(self._questions(dataset)))
        chosen = affordable(paces, c.budget_minutes * 60, least=PILOT)
        why = f"--budget {c.budget_minutes:g} minutes without indexing, at the pace of the first {PILOT} questions"
        return {d.name: self._decide(d, chosen[d.name], why) for d in datasets}

    def _seconds(self, dataset: str, questions: Sequence[Question]) -> float:
        """Seconds that all systems together took for these questions."""
        wanted, of = {q.id for q in questions}, self.run.results.questions
        records = (r for system in self.config.systems for r in of(self.config.part, dataset, system))
        return sum(float(r["spent"]) for r in records if r["id"] in wanted)

    def _ask(self, dataset: Dataset, questions: Sequence[Question], *, final: bool) -> None:
        """Ask what is missing of `questions`, system by system; rows are computed when these are all (`final`).

        What goes wrong with one is recorded, and nothing of the others is lost.
        """
        c, run = self.config, self.run
        with run.workspace(dataset) as workspace:
            facts = run.results.dataset_facts(dataset.name)
            run.results.describe(dataset.name, {**facts, "tokens": workspace.tokens})
            if c.part == "qa":  # every answer is read through the memory; where nobody asks MSA, finding needs none
                _ = workspace.memory
            asking = SystemRun(run, workspace, c.k, c.passages, c.batch)
            for name in (name for name in c.systems if (dataset.name, name) not in run.failed):
                try:
                    asking.take(name, questions)
                except Exception as error:
                    kept = len({r["id"] for r in run.results.questions(c.part, dataset.name, name)})
                    also = f" (after {kept} questions, which are kept; the same command goes on from there)"
                    run.skip(dataset.name, name, error, also if kept else "")
                if final:
                    run.results.put(rows_of(run.results, c.part, dataset.name))


def _judge(results: Results, judge: Judge, datasets: Sequence[str], systems: Sequence[str]) -> None:
    judge_replies(results, datasets, systems, judge)
    for dataset in datasets:
        results.put(rows_of(results, "qa", dataset))
    notes = []
    for dataset, system in product(datasets, systems):
        for why, n in unjudged(results, dataset, system).items():
            said = {"reason": f"{n} replies of {system} were not judged: {why}", "about": "judge"}
            notes.append(ResultRow("qa", dataset, system, NOTE, 0.0, settings=said))
    results.rewrite([r for r in results.rows() if r.metric != NOTE or r.settings.get("about") != "judge"])
    results.put(notes)
