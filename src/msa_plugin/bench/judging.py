"""Grading the replies of a run, resumable; an endpoint that fails leaves the rest marked as not judged."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from msa_plugin.bench.judge import Judge, Judgement, JudgeUnavailableError
from msa_plugin.bench.scoring import Record
from msa_plugin.bench.store import Results

_LOG = logging.getLogger("msa_plugin.bench.judging")


def judge_replies(results: Results, datasets: Sequence[str], systems: Sequence[str], judge: Judge) -> None:
    """Grade what has no score yet; each score is on the disk before the next reply is graded.

    Once the endpoint fails it is not asked again in this call; what it did not grade is recorded with the reason, and
    tried again by the next call.
    """
    failed = ""
    for dataset, system, record in _ungraded(results, datasets, systems):
        judgement = Judgement(None, failed)
        if not failed:
            try:
                judgement = judge.grade(record["text"], record["answers"], record["reply"])
            except JudgeUnavailableError as error:
                failed = str(error)
                _LOG.warning("%s; the rest is not judged", failed)
                judgement = Judgement(None, failed)
        told = {"id": record["id"], "passages": record["passages"], "score": judgement.score}
        results.add_questions("judge", dataset, system, [{**told, "reason": judgement.reason}])


def unjudged(results: Results, dataset: str, system: str) -> Counter[str]:
    """How many replies have no score although a judge was asked, by reason."""
    latest = {(r["id"], str(r["passages"])): r for r in results.questions("judge", dataset, system)}
    return Counter(r["reason"] for r in latest.values() if r["score"] is None)


def _ungraded(
    results: Results, datasets: Sequence[str], systems: Sequence[str]
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for dataset in datasets:
        for system in systems:
            graded = {
                (r["id"], str(r["passages"]))
                for r in results.questions("judge", dataset, system)
                if r["score"] is not None
            }
            latest: dict[tuple[str, str], Record] = {}
            for record in results.questions("qa", dataset, system):
                latest[record["id"], str(record["passages"])] = record
            for name, record in latest.items():
                if name not in graded:
                    yield dataset, system, record
