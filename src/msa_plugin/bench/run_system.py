"""One system's turn on one data set: prepare, then find and answer in batches, with everything kept as it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msa_plugin.bench.base import Answers, Cost, Found, Reply, ResultRow, Scored, System, Workspace, find_others
from msa_plugin.bench.peak import peak_bytes, reset_peak
from msa_plugin.bench.scoring import ADAPTIVE, Record, finished
from msa_plugin.bench.store import Results
from msa_plugin.bench.watch import Watch
from msa_plugin.data.datasets import Question
from msa_plugin.errors import ConfigError


@dataclass(frozen=True)
class SystemRun:
    """`part` is retrieval or qa; `k` passages are ranked, or for qa the best of each number in `passages` are read."""

    part: str
    results: Results
    workspace: Workspace
    watch: Watch
    k: int
    passages: tuple[int, ...]
    batch: int

    def take(self, name: str, system: System | Answers, questions: Sequence[Question]) -> None:
        """Let `system` (as `name`) do what its records lack of `questions`; prepares only when something is lacking.

        Raises ConfigError when it cannot do what this part needs, and whatever the system raises.
        """
        dataset = self.workspace.dataset.name
        done = finished(self.results, self.part, dataset, name, self._expected(system))
        left = [q for q in questions if q.id not in done]
        self.watch.advance(len(questions) - len(left))
        if left:
            reset_peak()
            try:
                self._prepare(name, system)
                for start in range(0, len(left), self.batch):
                    self._batch(name, system, left[start : start + self.batch])
                self._cost(name, {"peak_rss_bytes": float(peak_bytes())})
            finally:
                if (close := getattr(system, "close", None)) is not None:
                    close()
        if self.part == "retrieval":
            records = {r["id"]: r for r in self.results.questions(self.part, dataset, name)}
            found = {q.id: records[q.id]["ranking"] for q in questions}
            self.results.write_run(dataset, name, {q: [Scored(*hit) for hit in hits] for q, hits in found.items()})

    def _expected(self, system: System | Answers) -> list[Any]:
        """What each question has records for: None for a ranking, else numbers of passages read."""
        if self.part == "retrieval":
            if not isinstance(system, System):
                raise ConfigError("it does not rank passages")
            return [None]
        expected: list[Any] = list(self.passages) if isinstance(system, System) else []
        return [*expected, ADAPTIVE] if isinstance(system, Answers) else expected

    def _prepare(self, name: str, system: System | Answers) -> None:
        self.watch.say(f"{self.workspace.dataset.name}: {name}")
        prepare = getattr(system, "prepare", None)  # one that only answers may have nothing to prepare
        cost: Cost | None = None if prepare is None else prepare()
        for note in getattr(system, "notes", ()):
            self.results.note(self.part, self.workspace.dataset.name, f"{name}: {note}")
        if cost is not None and cost.tokens:
            per_token = {
                "index_seconds_per_1k_tokens": 1000 * cost.seconds / cost.tokens,
                "disk_bytes_per_token": cost.disk_bytes / cost.tokens,
                "memory_bytes_per_token": cost.memory_bytes / cost.tokens,
            }
            self._cost(name, per_token)

    def _cost(self, name: str, values: dict[str, float]) -> None:
        dataset = self.workspace.dataset
        known = {r.metric for r in self.results.rows() if (r.part, r.dataset, r.system) == ("cost", dataset.name, name)}
        new = {metric: value for metric, value in values.items() if metric not in known}
        size, tokens = len(dataset.documents), self.workspace.tokens
        rows = [ResultRow("cost", dataset.name, name, m, v, n=1, documents=size, tokens=tokens) for m, v in new.items()]
        self.results.add(rows)

    def _batch(self, name: str, system: System | Answers, questions: Sequence[Question]) -> None:
        texts = [q.text for q in questions]
        records: list[Record] = []
        found, finding = self._find(system, questions)
        if self.part == "retrieval":
            for question, one in zip(questions, found, strict=True):
                ranking = [[hit.id, float(hit.score)] for hit in one.ranking[: self.k]]
                extra = {"ranking": ranking, "queries": list(one.queries), "seconds": dict(one.seconds)}
                records.append({**_about(question), **extra, "wall": finding, "spent": finding})
        elif isinstance(system, System):
            spent = finding
            for number in self.passages:
                began = time.perf_counter()
                replies = self.workspace.read(texts, [[s.id for s in one.ranking[:number]] for one in found])
                reading = (time.perf_counter() - began) / len(texts)
                times = {"wall": finding + reading, "spent": spent + reading}
                spent = 0.0  # finding happened once, however often what was found is read
                records += _replies(questions, replies, number, times)
        if self.part == "qa" and isinstance(system, Answers):
            began = time.perf_counter()
            replies = system.answer(texts)
            wall = (time.perf_counter() - began) / len(texts)
            records += _replies(questions, replies, ADAPTIVE, {"wall": wall, "spent": wall})
        self.results.add_questions(self.part, self.workspace.dataset.name, name, records)
        self.watch.advance(len(questions))

    def _find(self, system: System | Answers, questions: Sequence[Question]) -> tuple[list[Found], float]:
        """What `system` finds, and the seconds a question."""
        if not isinstance(system, System):
            return [], 0.0
        k = self.k if self.part == "retrieval" else max(self.passages)
        began = time.perf_counter()
        found = find_others(system, questions, k)
        return found, (time.perf_counter() - began) / len(questions)


def _about(question: Question) -> Record:
    return {
        "id": question.id,
        "text": question.text,
        "positives": dict(question.positives),
        "hops": question.hops,
        "kind": question.kind,
    }


def _replies(
    questions: Sequence[Question], replies: Sequence[Reply], passages: int | str, times: dict[str, float]
) -> list[Record]:
    return [
        {
            **_about(question),
            "answers": list(question.answers),
            "passages": passages,
            "reply": reply.text,
            "read": list(reply.read),
            "seconds": dict(reply.seconds),
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
            "rounds": reply.rounds,
            "abstained": reply.abstained,
            **times,
        }
        for question, reply in zip(questions, replies, strict=True)
    ]
