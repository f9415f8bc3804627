"""Rows of the parts that grow a memory ("scale", "latency", "needle"), from what was kept of each question.

The same code right after a run and years later. Records of one size (of needles: one cell) are appended in one go, so
one that was measured again begins where an id repeats, and the last block is the one that its rows are of.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean as mean
from typing import Any, TypeAlias

import numpy as np

from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.scoring import mean_row, percentiles, recalled
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.data.datasets import Question
from msa_plugin.data.needles import answered
from msa_plugin.measuring.metrics import question_scores, retrieval_scores

SCALE, LATENCY, NEEDLE = "scale", "latency", "needle"
METRICS = ("R@5", "R@10", "nDCG@10")
ANSWERS = ("EM", "F1")
DEPTH = 10
Record: TypeAlias = Mapping[str, Any]
_CELL = ("task", "length", "depth")


# What is kept, with everything that its scores need


def scored(record: dict[str, Any], question: Question | None = None) -> dict[str, Any]:
    """A record of part "scale" with its metrics, from the ranking and the reply that it holds.

    `question` adds what counts as right. A record of an older run, that does not say it, keeps the metrics it has.
    """
    if question is not None:
        record = {**record, "positives": dict(question.positives), "answers": list(question.answers)}
    if "positives" not in record:
        return record
    name = record["id"]
    asked = question or Question(name, "", tuple(record["answers"]), record["positives"])
    if "ranking" in record:
        found = retrieval_scores({name: asked.positives}, {name: record["ranking"]}, METRICS)
        record = {**record, **{metric: found[metric][name] for metric in METRICS}}
    if "reply" in record:
        scores = question_scores(record["reply"], record["read"], asked)
        record = {**record, **{metric: scores[metric] for metric in ANSWERS}}
    return record


# Rows of one size


def scale_rows(records: Sequence[Record]) -> Iterator[ResultRow]:
    """What answers, times and rankings of one system at one size come to; the last ones say that the size is done."""
    replies = [r for r in records if "passages" in r]
    for metric in ANSWERS if replies else ():
        yield mean_row(metric, [r[metric] for r in replies], {"passages": replies[0]["passages"]}, part=SCALE)
    spent: dict[str, list[float]] = {}
    for record in records:
        for stage, seconds in record.get("seconds", {}).items():
            spent.setdefault("" if stage == "total" else f"{stage}_", []).append(seconds)
        if "answer_seconds" in record:
            spent.setdefault("answer_", []).append(record["answer_seconds"])
    for stage, values in spent.items():
        yield from _times(SCALE, f"{stage}seconds", values, {})
    if shares := [recalled(r["exact"], r["ranking"]) for r in records if "exact" in r]:
        yield mean_row(f"prefilter_recall@{DEPTH}", shares, part=SCALE)
    found = [r for r in records if "ranking" in r]
    for metric in METRICS if found else ():
        yield mean_row(metric, [r[metric] for r in found], part=SCALE)


def _times(part: str, name: str, seconds: Sequence[float], settings: Mapping[str, Any]) -> Iterator[ResultRow]:
    p5, p50, p95 = percentiles(seconds)
    for metric, value in ((f"{name}_p50", p50), (f"{name}_p95", p95)):
        yield ResultRow(part, "", "", metric, value, p5, p95, len(seconds), settings=settings)


def loss_rows(records: Iterable[Record], seed: int) -> Iterator[ResultRow]:
    """The relative loss of one system from its smallest to its largest size, over the questions that both have."""
    sizes = _blocks(records, ("memory_tokens",), ("id",))
    if len(sizes) > 1:
        ends = {"from": min(sizes)[0], "to": max(sizes)[0]}
        before, after = ({r["id"]: r for r in sizes[size]} for size in (min(sizes), max(sizes)))
        for row in losses(before, after, seed):
            yield replace(row, settings={**row.settings, **ends})


def losses(first: Mapping[str, Record], last: Mapping[str, Record], seed: int = 0) -> Iterator[ResultRow]:
    """(first - last) / first of each metric's mean, with the 95 % interval over questions; records by question id."""
    for metric in (*METRICS, *ANSWERS):
        shared = [i for i in first if metric in first[i] and metric in last.get(i, {})]
        before, after = (np.array([side[i][metric] for i in shared]) for side in (first, last))
        if not shared or before.mean() == 0:
            continue
        draws = np.random.default_rng(seed).integers(0, len(shared), (1000, len(shared)))
        means = before[draws].mean(1)
        drawn = (means - after[draws].mean(1))[means > 0] / means[means > 0]
        low, high = (float(p) for p in np.percentile(drawn, [2.5, 97.5]))
        value = 1 - float(after.mean() / before.mean())
        yield ResultRow(SCALE, "", "", "relative_loss", value, low, high, len(shared), settings={"of": metric})


def latency_rows(records: Sequence[Record]) -> Iterator[ResultRow]:
    """p50 and p95 of each stage of each hop (hop 0: the question as a whole); the last says that the size is done."""
    spent: dict[tuple[int, str], list[float]] = {}
    for record in records:
        for hop, stage, seconds in record["seconds"]:
            spent.setdefault((hop, stage), []).append(seconds)
    told = [r for r in records if "prefilter_recall" in r]
    if told:
        value, asked = told[0]["prefilter_recall"], len({r["id"] for r in records})
        yield ResultRow(LATENCY, "", "", f"prefilter_recall@{DEPTH}", value, n=asked)
    for hop, stage in sorted(spent, key=lambda at: (at == (0, "total"), at[0] or 99, at[1])):
        yield from _times(LATENCY, "seconds", spent[hop, stage], {"stage": stage} | ({"hop": hop} if hop else {}))


def needle_rows(records: Sequence[Record]) -> Iterator[ResultRow]:
    """Recall and share of values answered of one cell: means over samples of the means over a haystack's questions."""
    samples: dict[int, list[Record]] = {}
    for record in records:
        samples.setdefault(record["sample"], []).append(record)
    each = list(samples.values())
    scores = {
        "recall": [
            mean(len({*r["needles"]} & {*r["found"]}) / len({*r["needles"]}) for r in some)
            for some in each
            if "found" in some[0]
        ],
        "answered": [mean(answered(r["reply"], r["expected"]) for r in some) for some in each if "reply" in some[0]],
    }
    for metric, values in scores.items():
        if values:
            row = mean_row(metric, values, part=NEEDLE)
            yield row if len(values) > 1 else replace(row, low=None, high=None)


# Rows of a folder


def rows_of(results: Results, part: str, dataset: str) -> list[ResultRow]:
    """All rows of a part and data set that its records give.

    The rows that are there say how large each memory was and which sizes were finished; values come from the records.
    """
    rows: list[ResultRow] = []
    seed = int(results.config().get("parts", {}).get(part, {}).get("seed", 0))
    make, group, block = _PARTS[part]
    for system in (system for name, system in results.question_sets(part) if name == dataset):
        where: dict[str, Any] = {"dataset": dataset, "system": system}
        records = results.questions(part, dataset, system)
        if part == SCALE:
            records = list(map(scored, records))
        known = _finished(results, part, dataset, system, group)
        for values, some in _blocks(records, group, block).items():
            if (one := known.get(values)) is None:
                continue
            kept = {n: one.settings[n] for n in (*group, "synthetic", "noise") if n in one.settings}
            sizes = {"documents": one.documents, "tokens": one.tokens}
            rows += [replace(r, **where, **sizes, settings={**kept, **r.settings}) for r in make(some)]
        if part == SCALE:
            rows += [replace(r, **where) for r in loss_rows(records, seed)]
    return rows


_PARTS: dict[str, Any] = {
    SCALE: (scale_rows, ("memory_tokens",), ("id",)),
    LATENCY: (latency_rows, ("memory_tokens",), ("turn",)),
    NEEDLE: (needle_rows, _CELL, ("sample", "id")),
}
PARTS = tuple(_PARTS)


def _finished(
    results: Results, part: str, dataset: str, system: str, group: Sequence[str]
) -> dict[tuple[Hashable, ...], ResultRow]:
    """One row of each size that was finished."""
    return {
        tuple(row.settings[n] for n in group): row
        for row in results.rows()
        if (row.part, row.dataset, row.system) == (part, dataset, system)
        and row.metric not in (SKIPPED, NOTE)
        and all(n in row.settings for n in group)
    }


def _blocks(
    records: Iterable[Record], group: Sequence[str], block: Sequence[str]
) -> dict[tuple[Any, ...], list[Record]]:
    """Records by the values of `group`; of several blocks the last: one begins where the values of `block` repeat."""
    found: dict[tuple[Any, ...], dict[tuple[Any, ...], Record]] = {}
    for record in records:
        where, name = (tuple(record[n] for n in names) for names in (group, block))
        if name in found.setdefault(where, {}):
            found[where] = {}
        found[where][name] = record
    return {where: list(some.values()) for where, some in found.items()}
