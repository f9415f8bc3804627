"""Rows from what happened to each question: the same code right after a run and years later.

A record of part "retrieval" holds the question, its positives and the ranking; of part "qa" also what was read and
replied, for one number of passages; of part "judge" a score.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.store import Results
from msa_plugin.data.datasets import Question
from msa_plugin.measuring import metrics

BASE = "msa"  # what other systems are tested against
ADAPTIVE = "adaptive"
# In the name of a system: candidates come from an approximate index.
_PREFILTER = re.compile(r"\+(?:faiss|coarse):[^+~)]*")
EXACT = "exact_recall@10"  # what that costs: how many of the exact search's ten best it still finds
EXACT_READ = "exact_read"  # and for answers: the share of what is read behind exact search that is read here too
PARTS = ("retrieval", "qa")
TESTED = (*metrics.RETRIEVAL, "EM", "F1", "contains", "judge")
_COUNTED = ("input_tokens", "output_tokens", "rounds")
Record: TypeAlias = dict[str, Any]
Rankings: TypeAlias = Mapping[str, Sequence[str]]  # ids by question
Values: TypeAlias = dict[str, dict[str, float]]  # metric -> question id -> value
Series: TypeAlias = tuple[str, Any]  # system, and for qa the passages that were read (else None)


def rows_of(results: Results, part: str, dataset: str) -> list[ResultRow]:
    """All rows of one part and data set that its records give; systems that did not finish give none."""
    measured = retrieval_values(results, dataset) if part == "retrieval" else _qa(results, dataset)
    facts = results.dataset_facts(dataset)
    documents, tokens = int(facts.get("documents", 0)), int(facts.get("tokens", 0))
    seed = int(results.config().get("parts", {}).get(part, {}).get("seed", 0))
    rows = []
    for (system, passages), values in measured.items():
        base = measured.get((BASE, None if passages is None else ADAPTIVE))
        settings = {} if passages is None else {"passages": passages}
        found = [mean_row(metric, list(scores.values()), settings, seed) for metric, scores in values.items()]
        found += _tests(values, base, settings) if base is not None and system != BASE else []
        where: dict[str, Any] = {"part": part, "dataset": dataset, "system": system}
        rows += [replace(row, **where, documents=documents, tokens=tokens) for row in found]
    return rows


def finished(results: Results, part: str, dataset: str, system: str, passages: Sequence[Any]) -> set[str]:
    """Ids of the questions whose records are all there, for every one of `passages`."""
    done: dict[str, set[str]] = {}
    for record in results.questions(part, dataset, system):
        done.setdefault(record["id"], set()).add(str(record.get("passages")))
    return {name for name, there in done.items() if {str(p) for p in passages} <= there}


def retrieval_values(results: Results, dataset: str) -> dict[Series, Values]:
    """What every question of a data set got, of the systems that were asked all of them."""
    found: dict[Series, Values] = {}
    rankings: dict[Series, Rankings] = {}
    k = int(results.config().get("parts", {}).get("retrieval", {}).get("k", 100))
    for (system, _), records in _whole(results, "retrieval", dataset).items():
        rankings[system, None] = {q: ranked(r) for q, r in records.items()}
        positives = {q: r["positives"] for q, r in records.items()}
        kept = metrics.within(metrics.RETRIEVAL, k)
        scores = metrics.retrieval_scores(positives, rankings[system, None], kept)
        found[system, None] = {**scores, "seconds": {q: r["wall"] for q, r in records.items()}}
    _add_exact(found, EXACT, {one: {q: ids[:10] for q, ids in run.items()} for one, run in rankings.items()})
    return found


def ranked(record: Mapping[str, Any]) -> list[str]:
    """The ids that a record ranks; of a packed one, which says where relevant ones stood, numbers elsewhere."""
    if "places" not in record:
        return [hit[0] for hit in record["ranking"]]
    ids = [f" {n}" for n in range(max(record["places"].values(), default=0))]
    for name, place in record["places"].items():
        ids[place - 1] = name
    return ids


def recalled(exact: Collection[str], found: Collection[str]) -> float:
    """The share of what exact search found that was found too; 1 where it found nothing."""
    return len({*exact} & {*found}) / len({*exact}) if exact else 1.0


def exact_twin(system: str) -> str | None:
    """The system that is the same without a prefilter; None for one that has none."""
    name = _PREFILTER.sub("", system)
    return None if name == system else name


def _add_exact(found: dict[Series, Values], metric: str, told: Mapping[Series, Rankings]) -> None:
    """Of systems behind a prefilter the share of what their exact twin tells that they tell too."""
    for (system, passages), ids in told.items():
        exact = told.get((exact_twin(system) or "", passages))
        if exact is not None:
            shares = {q: recalled(exact.get(q, ()), some) for q, some in ids.items()}
            found[system, passages][metric] = shares


def _qa(results: Results, dataset: str) -> dict[Series, Values]:
    found: dict[Series, Values] = {}
    whole = _whole(results, "qa", dataset)
    for (system, passages), records in whole.items():
        graded = [r for r in results.questions("judge", dataset, system) if r["score"] is not None]
        judged = {r["id"]: r["score"] for r in graded if r["passages"] == passages}
        found[system, passages] = _answers(records, judged)
    _add_exact(found, EXACT_READ, {one: {q: r["read"] for q, r in some.items()} for one, some in whole.items()})
    return found


def _answers(records: Mapping[str, Record], judged: Mapping[str, float]) -> Values:
    each: dict[str, dict[str, float]] = {}
    for name, r in records.items():
        question = Question(name, r.get("text", ""), tuple(r["answers"]), r["positives"])
        spent = {"seconds": r["wall"], **{metric: float(r[metric]) for metric in _COUNTED}}
        spent["abstained"] = float(r.get("abstained", False))  # older records do not say
        each[name] = {**metrics.question_scores(r["reply"], r["read"], question), **spent}
    values = {metric: {q: scores[metric] for q, scores in each.items()} for metric in next(iter(each.values()))}
    if not any(values["abstained"].values()):  # none ever did: a column of zeros says nothing
        del values["abstained"]
    if not any(r["read"] for r in records.values()):  # closed book: there are no sources to be right or wrong
        del values["sources_precision"], values["sources_recall"]
    scored = {name: judged[name] for name in records if name in judged}
    return {**values, "judge": scored} if scored else values


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """5th, 50th and 95th percentile, interpolated."""
    low, middle, high = np.percentile(np.asarray(seconds, dtype=np.float64), [5, 50, 95])
    return float(low), float(middle), float(high)


def mean_row(
    metric: str, values: Sequence[float], settings: Mapping[str, Any] | None = None, seed: int = 0, part: str = ""
) -> ResultRow:
    """A mean with its 95 % interval over questions; of seconds with their 5th and 95th percentile."""
    if metric == "seconds":
        low, _, high = percentiles(values)
    else:
        low, high = metrics.bootstrap(values, seed=seed)
    return ResultRow(part, "", "", metric, float(np.mean(values)), low, high, len(values), settings=settings or {})


def _tests(values: Values, base: Values, settings: Mapping[str, Any]) -> list[ResultRow]:
    rows = []
    for metric in TESTED:
        ours, theirs = base.get(metric, {}), values.get(metric, {})
        if ours and ours.keys() == theirs.keys():
            p = metrics.p_value([ours[q] for q in ours], [theirs[q] for q in ours])
            versus = {**settings, "versus": BASE}
            rows.append(ResultRow("", "", "", f"p:{metric}", p, n=len(ours), settings=versus))
    return rows


def _whole(results: Results, part: str, dataset: str) -> dict[Series, dict[str, Record]]:
    """The latest record of each question, of the systems and numbers of passages that have one for every question."""
    asked = results.dataset_facts(dataset).get("asked", {}).get(part)
    found: dict[Series, dict[str, Record]] = {}
    for system in (name for of, name in results.question_sets(part) if of == dataset):
        for record in results.questions(part, dataset, system):
            found.setdefault((system, record.get("passages")), {})[record["id"]] = record
    return {one: records for one, records in found.items() if len(records) == asked}
