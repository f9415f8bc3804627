"""Rows from what happened to each question: the same code right after a run and years later.

A record of part "retrieval" holds the question, its positives and the ranking; of part "qa" also what was read and
replied, for one number of passages; of part "judge" a score. Rankings are read from the TREC runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from msa_plugin.bench import metrics
from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.store import Results
from msa_plugin.data.datasets import Question

BASE = "msa"  # what other systems are tested against
ADAPTIVE = "adaptive"
_PREFILTER = re.compile(
    r"\+(?:faiss|coarse):[^+~)]*"
)  # in the name of a system: candidates come from an approximate index
EXACT = "exact_recall@10"  # what that costs: how many of the exact search's ten best it still finds
EXACT_READ = "exact_read"  # and for answers: the share of what is read behind exact search that is read here too
PARTS = ("retrieval", "qa")
TESTED = (*metrics.RETRIEVAL, "EM", "F1", "contains", "judge")
Record: TypeAlias = dict[str, Any]
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
        found = [replace(_mean(m, list(v.values()), seed), settings=settings) for m, v in values.items()]
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
    runs: dict[str, dict[str, list[str]]] = {}
    k = int(results.config().get("parts", {}).get("retrieval", {}).get("k", 100))
    for system in _systems(results, "retrieval", dataset):
        records = {r["id"]: r for r in results.questions("retrieval", dataset, system)}
        if not _whole(results, "retrieval", dataset, records):
            continue
        rankings = results.rankings(dataset, system) or {q: ranked(r) for q, r in records.items()}
        positives = {q: r["positives"] for q, r in records.items()}
        values = metrics.retrieval_scores(positives, rankings, metrics.within(metrics.RETRIEVAL, k))
        found[system, None] = {**values, "seconds": {q: r["wall"] for q, r in records.items()}}
        runs[system] = rankings
    for system, rankings in runs.items():
        exact = exact_twin(system)
        if exact is not None and exact in runs:
            best = runs[exact]
            found[system, None][EXACT] = {q: _share(ids[:10], best.get(q, [])[:10]) for q, ids in rankings.items()}
    return found


def ranked(record: Mapping[str, Any]) -> list[str]:
    """The ids that a record ranks; of a packed one, which says where relevant ones stood, numbers elsewhere."""
    if "places" not in record:
        return [hit[0] for hit in record.get("ranking", ())]
    ids = [f" {n}" for n in range(max(record["places"].values(), default=0))]
    for name, place in record["places"].items():
        ids[place - 1] = name
    return ids


def exact_twin(system: str) -> str | None:
    """The system that is the same without a prefilter; None for one that has none."""
    name = _PREFILTER.sub("", system)
    return None if name == system else name


def _share(approximate: Sequence[str], exact: Sequence[str]) -> float:
    """The share of what exact search gave that another one gave too."""
    wanted = set(exact)
    return len(wanted & set(approximate)) / len(wanted) if wanted else 1.0


def _qa(results: Results, dataset: str) -> dict[Series, Values]:
    found: dict[Series, Values] = {}
    read: dict[tuple[Any, Any], dict[str, list[str]]] = {}
    for system in _systems(results, "qa", dataset):
        series: dict[Any, dict[str, Record]] = {}
        for record in results.questions("qa", dataset, system):
            series.setdefault(record["passages"], {})[record["id"]] = record
        scores = _judged(results, dataset, system)
        for passages, records in series.items():
            if _whole(results, "qa", dataset, records):
                found[system, passages] = _answers(records, scores.get(passages, {}))
                read[system, passages] = {q: r["read"] for q, r in records.items()}
    for (name, passages), rows in read.items():
        twin = read.get((exact_twin(name), passages))
        if twin is not None:
            found[name, passages][EXACT_READ] = {q: _share(ids, twin.get(q, [])) for q, ids in rows.items()}
    return found


def _answers(records: Mapping[str, Record], judged: Mapping[str, float]) -> Values:
    values: Values = {}
    for name, r in records.items():
        question = Question(name, r.get("text", ""), tuple(r["answers"]), r["positives"])
        for metric, value in metrics.question_scores(r["reply"], r["read"], question).items():
            values.setdefault(metric, {})[name] = value
        for metric, key in (("seconds", "wall"), ("input_tokens",) * 2, ("output_tokens",) * 2, ("rounds",) * 2):
            values.setdefault(metric, {})[name] = float(r[key])
        values.setdefault("abstained", {})[name] = float(r.get("abstained", False))  # older records do not say
    if not any(values["abstained"].values()):  # none ever did: a column of zeros says nothing
        del values["abstained"]
    if not any(r["read"] for r in records.values()):  # closed book: there are no sources to be right or wrong
        del values["sources_precision"], values["sources_recall"]
    scored = {name: judged[name] for name in records if name in judged}
    return {**values, "judge": scored} if scored else values


def _judged(results: Results, dataset: str, system: str) -> dict[Any, dict[str, float]]:
    scores: dict[Any, dict[str, float]] = {}
    for record in results.questions("judge", dataset, system):
        if record["score"] is not None:
            scores.setdefault(record["passages"], {})[record["id"]] = record["score"]
    return scores


def _mean(metric: str, values: list[float], seed: int) -> ResultRow:
    mean = float(np.mean(values))
    if metric == "seconds":
        low, high = (float(p) for p in np.percentile(values, [5, 95]))
    else:
        low, high = metrics.bootstrap(values, seed=seed)
    return ResultRow("", "", "", metric, mean, low, high, n=len(values))


def _tests(values: Values, base: Values, settings: Mapping[str, Any]) -> list[ResultRow]:
    rows = []
    for metric in TESTED:
        ours, theirs = base.get(metric, {}), values.get(metric, {})
        if ours and ours.keys() == theirs.keys():
            p = metrics.p_value([ours[q] for q in ours], [theirs[q] for q in ours])
            versus = {**settings, "versus": BASE}
            rows.append(ResultRow("", "", "", f"p:{metric}", p, n=len(ours), settings=versus))
    return rows


def _whole(results: Results, part: str, dataset: str, records: Mapping[str, Record]) -> bool:
    """Whether every question that this run asks has its record."""
    asked = results.dataset_facts(dataset).get("asked", {}).get(part)
    return bool(records) and len(records) == asked


def _systems(results: Results, part: str, dataset: str) -> list[str]:
    return [system for name, system in results.question_sets(part) if name == dataset]
