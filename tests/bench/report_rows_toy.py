"""Rows of an invented run for the tests of the report; numbers follow from names, so that tests can recompute them."""

from __future__ import annotations

import json
from typing import Any

from msa_plugin.bench.result import ResultRow

RUN: dict[str, Any] = {
    "hardware": "two cores",
    "commit": "abc123",
    "command": "msa bench retrieval --out out",
    "date": "2026-01-02T03:04:05Z",
    "versions": {"python": "3.11"},
}
SETS = {"one": 1.0, "two": 2.2, "three": 3.0}
SYSTEMS = ("bm25", "msa", "dense")
CONFIG = {"datasets": {name: {"hops": {str(hops): 1}} for name, hops in SETS.items()}}


def row(part, dataset, system, metric, value, **more):
    return ResultRow(part, dataset, system, metric, value, **{**RUN, **more})


def score(dataset, system, metric):
    """Between 0.1 and 0.9, another one for each combination."""
    return 0.1 + 0.001 * (sum(map(ord, f"{dataset}/{system}/{metric}")) * 37 % 800)


def retrieval():
    rows = []
    for dataset in SETS:
        for system in SYSTEMS:
            for metric in ("nDCG@10", "R@5", "R@10", "AP"):
                value = score(dataset, system, metric)
                more = {"low": value - 0.05, "high": value + 0.05, "n": 40, "documents": 1000, "tokens": 99_000}
                rows.append(row("retrieval", dataset, system, metric, value, **more))
    versus = {"versus": "msa"}
    rows.append(row("retrieval", "one", "bm25", "p:nDCG@10", 0.003, settings=versus))
    rows.append(row("retrieval", "two", "bm25", "p:nDCG@10", 0.03, settings=versus))
    rows.append(row("retrieval", "three", "bm25", "p:nDCG@10", 0.3, settings=versus))
    return rows


def qa(datasets=("one", "two")):
    rows = []
    for dataset in datasets:
        for system, reads in (("msa", ("adaptive",)), ("bm25", (10, 1, 5)), ("closed-book", (None,))):
            for read in reads:
                settings = {} if read is None else {"passages": read}
                for metric in ("EM", "F1", "sources_recall"):
                    value = score(dataset, f"{system}{read}", metric)
                    rows.append(row("qa", dataset, system, metric, value, n=40, settings=settings))
                rows.append(row("qa", dataset, system, "seconds", 0.5 + (read == 5), n=40, settings=settings))
    return rows


def scale(dataset="one"):
    rows = []
    for system, falls in (("msa", 0.9), ("bm25", 0.8)):
        for step, size in enumerate((16_384, 65_536, 1_048_576)):
            made_up = {"synthetic": True} if step == 2 else {}
            settings = {"memory_tokens": size, **made_up}
            value, seconds = 0.8 * falls**step, 0.01 * (step + 1) * (2 if system == "bm25" else 1)
            more = {"low": value - 0.1, "high": value + 0.1}
            rows.append(row("scale", dataset, system, "R@10", value, settings=settings, **more))
            rows.append(row("scale", dataset, system, "seconds_p50", seconds, settings=settings))
            rows.append(row("scale", dataset, system, "route_seconds_p50", seconds / 2, settings=settings))
    return rows


def needles():
    return [
        row("needle", "needle", system, metric, value / (1 + (metric == "answered")), n=2,
            settings={"task": task, "length": length, "depth": depth})
        for system, full in (("msa", 1.0), ("bm25", 0.5))
        for metric in ("recall", "answered")
        for task in ("single-1", "multivalue")
        for length in (4096, 16_384)
        for depth, value in ((0.0, full), (0.5, full / 2), (1.0, 0.0))
    ]  # fmt: skip


def latency():
    rows = []
    for system, slow in (("msa", 1), ("iterative", 3)):
        for size in (16_384, 1_048_576):
            stages = [(hop, stage) for hop in (1, 2) for stage in ("decode", "route", "encode")]
            for hop, stage in [*stages, (None, "total")]:
                where = {"stage": stage, "memory_tokens": size} | ({} if hop is None else {"hop": hop})
                spent = slow * (0.1 if hop else 0.6)
                rows.append(row("latency", "one", system, "seconds_p50", spent, settings=where))
                rows.append(row("latency", "one", system, "seconds_p95", 2 * spent, settings=where))
    return rows


def costs():
    values = {"index_seconds_per_1k_tokens": 0.2, "disk_bytes_per_token": 27.0, "peak_rss_bytes": 3 * 2**30}
    return [
        row("cost", "one", system, metric, value * times)
        for system, times in (("msa", 1), ("dense", 4))
        for metric, value in values.items()
    ]


def everything():
    return [*retrieval(), *qa(), *scale(), *needles(), *latency(), *costs()]


def saved(out, rows, **config):
    """The folder of a run that holds these rows."""
    out.mkdir(exist_ok=True)
    lines = "".join(json.dumps(r.to_dict()) + "\n" for r in rows)
    (out / "results.jsonl").write_text(lines, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return out
