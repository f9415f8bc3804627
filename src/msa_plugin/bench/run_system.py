"""One system's turn on one data set: prepare, then find and answer in batches, with everything kept as it goes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msa_plugin.bench.base import Answers, Found, Reply, System, Workspace, find_others
from msa_plugin.bench.driver import Run, index_costs
from msa_plugin.bench.result import ResultRow, Scored
from msa_plugin.bench.scoring import ADAPTIVE, Record, finished
from msa_plugin.data.datasets import Question
from msa_plugin.errors import ConfigError
from msa_plugin.measuring.peak import peak_bytes, reset_peak


@dataclass(frozen=True)
class SystemRun:
    """For part "retrieval" `k` passages are ranked, for "qa" the best of each number in `passages` are read."""

    run: Run
    workspace: Workspace
    k: int
    passages: tuple[int, ...]
    batch: int

    def take(self, name: str, questions: Sequence[Question]) -> None:
        """Let a system do what its records lack of `questions`; it is prepared only when something is lacking.

        Raises ConfigError when it cannot do what this part needs, and whatever the system raises.
        """
        part, results, dataset = self.run.part, self.run.results, self.workspace.dataset.name
        made = self.run.create(name, self.workspace)
        done = finished(results, part, dataset, name, self._expected(made))
        left = [q for q in questions if q.id not in done]
        self.run.watch.advance(len(questions) - len(left))
        if left:
            reset_peak()
            with self.run.prepared(name, self.workspace, made=made) as system:
                self._cost(name, index_costs(system.cost))
                for start in range(0, len(left), self.batch):
                    self._batch(name, system, left[start : start + self.batch])
                self._cost(name, [ResultRow("cost", "", "", "peak_rss_bytes", float(peak_bytes()), n=1)])
        if part == "retrieval":
            records = {r["id"]: r for r in results.questions(part, dataset, name)}
            found = {q.id: records[q.id]["ranking"] for q in questions}
            results.write_run(dataset, name, {q: [Scored(*hit) for hit in hits] for q, hits in found.items()})

    def _expected(self, system: System | Answers) -> list[Any]:
        """What each question has records for: None for a ranking, else numbers of passages read."""
        if self.run.part == "retrieval":
            if not isinstance(system, System):
                raise ConfigError("it does not rank passages")
            return [None]
        expected: list[Any] = list(self.passages) if isinstance(system, System) else []
        return [*expected, ADAPTIVE] if isinstance(system, Answers) else expected

    def _cost(self, name: str, rows: list[ResultRow]) -> None:
        """Keep what was not measured before: of a run that goes on, indexing was then."""
        dataset = self.workspace.dataset
        known = {
            r.metric for r in self.run.results.rows() if (r.part, r.dataset, r.system) == ("cost", dataset.name, name)
        }
        new = [row for row in rows if row.metric not in known]
        self.run.store(new, dataset.name, name, len(dataset.documents), self.workspace.tokens)

    def _batch(self, name: str, system: System | Answers, questions: Sequence[Question]) -> None:
        found: list[Found] = []
        began = time.perf_counter()
        if isinstance(system, System):
            k = self.k if self.run.part == "retrieval" else max(self.passages)
            found = find_others(system, questions, k)
        finding = (time.perf_counter() - began) / len(questions)
        if self.run.part == "qa":
            records = self._answers(system, questions, found, finding)
        else:
            records = [
                {
                    **_about(question),
                    "ranking": [[hit.id, float(hit.score)] for hit in one.ranking[: self.k]],
                    "queries": list(one.queries),
                    "seconds": dict(one.seconds),
                    "wall": finding,
                    "spent": finding,
                }
                for question, one in zip(questions, found, strict=True)
            ]
        self.run.results.add_questions(self.run.part, self.workspace.dataset.name, name, records)
        self.run.watch.advance(len(questions))

    def _answers(
        self, system: System | Answers, questions: Sequence[Question], found: Sequence[Found], finding: float
    ) -> list[Record]:
        """Replies read from the best of what was found, and those from what the system chooses to read itself."""
        records: list[Record] = []
        spent = finding  # finding happened once, however often what was found is read
        for number in self.passages if found else ():
            began = time.perf_counter()
            best = [[hit.id for hit in one.ranking[:number]] for one in found]
            replies = self.workspace.read([q.text for q in questions], best)
            reading = (time.perf_counter() - began) / len(questions)
            records += _replies(questions, replies, number, {"wall": finding + reading, "spent": spent + reading})
            spent = 0.0
        if isinstance(system, Answers):
            began = time.perf_counter()
            replies = system.answer([q.text for q in questions])
            wall = (time.perf_counter() - began) / len(questions)
            records += _replies(questions, replies, ADAPTIVE, {"wall": wall, "spent": wall})
        return records


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
