"""Tables of what grows: degradation, needles, latency and cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.report_quality import interval, intervals
from msa_plugin.bench.report_rows import BASE, Saved, comparable, distinct, ratio, setting, spelled, systems, timed
from msa_plugin.bench.report_tables import DASH, Cell, Column, Table, bold_best, number, times, tokens

STAGES = ("encode", "route", "gather", "prefill", "decode", "total")
COSTS = {
    "index_seconds_per_1k_tokens": "indexing, per 1,000 tokens",
    "disk_bytes_per_token": "disk, per token",
    "memory_bytes_per_token": "memory to search, per token",
    "peak_rss_bytes": "peak resident memory",
}
NEEDLE = ("recall", "answered")
LOSS = "relative_loss"
SHOWN = ("seconds", "seconds_p50", "answer_seconds_p50")  # of times by stage only these are not folded
P50, P95 = "seconds_p50", "seconds_p95"
memory_tokens, passages = setting("memory_tokens"), setting("passages")
length, depth, task = setting("length"), setting("depth"), setting("task")
stage, hop = setting("stage"), setting("hop")
_NO_RATIOS = "Rows of different runs: no ratios between them."
_PEAK = "Peak resident memory is that of the whole process, model and libraries included"
_WHOLE = 10**6  # where the whole of a question stands among its hops


def label(row: ResultRow) -> str:
    """A system with how much it read, as one line of a table or plot."""
    read = passages(row)
    return row.system if read is None or isinstance(read, str) else f"{row.system} R@{read:g}"


def labels(rows: Iterable[ResultRow]) -> list[str]:
    """Labels in the order of their systems."""
    given = list(rows)
    there = {(r.system, label(r)) for r in given}
    return [text for name in systems(given) for text in sorted(t for s, t in there if s == name)]


# Degradation


def scale(saved: Saved) -> list[Table]:
    """For each data set and metric, series against memory sizes and what was lost from the first to the last."""
    rows = sized(saved)
    losses = {(r.dataset, r.system, r.settings.get("of")): r for r in saved.part("scale") if r.metric == LOSS}
    groups = dict.fromkeys((r.dataset, r.metric) for r in sorted(rows, key=lambda r: timed(r.metric)))
    return [_scale([r for r in rows if (r.dataset, r.metric) == group], losses) for group in groups]


def sized(saved: Saved) -> list[ResultRow]:
    """Rows of the part "scale" at some memory size."""
    return [r for r in saved.part("scale") if memory_tokens(r) is not None and not r.metric.startswith("p:")]


def _scale(rows: list[ResultRow], losses: Mapping[tuple[str, str, Any], ResultRow]) -> Table:
    dataset, metric = rows[0].dataset, rows[0].metric
    sizes, names = distinct(rows, memory_tokens), labels(rows)
    at = {(label(r), memory_tokens(r)): r for r in rows}
    base = next((n for n in names if n.startswith(BASE)), None)
    columns: dict[Any, list[Cell]] = {}
    for size in sizes:
        found = [at.get((n, size)) for n in names]
        cells = [_grown(r, at.get((base, size)) if base else None) for r in found]
        columns[size] = bold_best(cells, [r.value if r else None for r in found], least=timed(metric))
    body = []
    for i, name in enumerate(names):
        own = next(r for r in rows if label(r) == name)
        loss = losses.get((dataset, own.system, metric))
        change = _lost(loss) if loss else Cell(_change(at.get((name, sizes[0])), at.get((name, sizes[-1]))))
        body.append((Cell(name), *(columns[s][i] for s in sizes), change))
    invented = {memory_tokens(r) for r in rows if r.settings.get("synthetic")}
    notes = ["Columns are tokens in memory. The best of each column is in bold."]
    small = intervals(metric) + (f" Then the ratio to {base}." if base and timed(metric) else "")
    notes += ["* A synthetic bank: what was added beyond the passages at hand is made up."] if invented else []
    notes += [] if comparable(rows) else [_NO_RATIOS]
    last = f"{tokens(sizes[-1])} ÷ {tokens(sizes[0])}" if timed(metric) else "lost, first to last"
    heads = (Column(tokens(s) + ("*" if s in invented else "")) for s in sizes)
    head = (Column("system", number=False), *heads, Column(last))
    return Table(
        f"Degradation, {spelled(metric)}, {dataset}",
        head,
        tuple(body),
        tuple(notes),
        timed(metric) and metric not in SHOWN,
        small=small,
    )


def _grown(row: ResultRow | None, base: ResultRow | None) -> Cell:
    if row is None:
        return Cell(DASH)
    over = ratio(row, base) if timed(row.metric) and base is not row else None
    small = [interval(row), times(over) if over is not None else ""]
    return Cell(number(row.value, row.metric), ", ".join(s for s in small if s))


def _lost(loss: ResultRow) -> Cell:
    """A loss that the run itself measured, over the questions that both sizes share."""
    bounds = "" if loss.low is None or loss.high is None else f"{100 * loss.low:.1f}{DASH}{100 * loss.high:.1f} %, "
    ends = [loss.settings.get(end) for end in ("from", "to")]
    return Cell(
        f"{100 * loss.value:.1f} %", bounds + " to ".join(tokens(e) for e in ends if isinstance(e, (int, float)))
    )


def _change(first: ResultRow | None, last: ResultRow | None) -> str:
    """Growth of a cost as a ratio, loss of quality in percent of the first."""
    quotient = None if first is last else ratio(last, first)
    if quotient is None or last is None:
        return DASH
    return times(quotient) if timed(last.metric) else f"{100 * (1 - quotient):.1f} %"


# Needles


def needle(saved: Saved) -> list[Table]:
    """For each metric: tasks against systems, lengths against systems and, folded, each system's heat map."""
    tables = []
    rows = [r for r in saved.part("needle") if length(r) is not None and depth(r) is not None]
    for metric in dict.fromkeys([*NEEDLE, *(r.metric for r in rows)]):
        some = [r for r in rows if r.metric == metric]
        if some:
            tables += [_means(some, task, "task", str), _means(some, length, "tokens", tokens)]
            tables += [_heat(some, name) for name in systems(some)]
    return tables


def _means(rows: list[ResultRow], by: Callable[[ResultRow], Any], what: str, shown: Callable[[Any], str]) -> Table:
    names = systems(rows)
    lines = [(shown(v), [r for r in rows if by(r) == v]) for v in distinct(rows, by)]
    lines += [("all", rows)] if len(lines) > 1 else []
    body = []
    for title, some in lines:
        values = [_whole_mean(some, n) for n in names]
        cells = bold_best([Cell(DASH if v is None else f"{v:.3f}") for v in values], values)
        body.append((Cell(title), Cell(f"{max(_cases(some, n) for n in names):,}"), *cells))
    head = (Column(what, number=what != "task"), Column("cases"), *(Column(n) for n in names))
    notes = (
        f"Means over all lengths, depths and tasks of a line; {DASH} where a system lacks one. "
        "The best of each row is in bold.",
    )
    summary = len(body) - 1 if len(body) > 1 else None
    return Table(f"Needles, {rows[0].metric}, by {what}", head, tuple(body), notes, summary=summary)


def _heat(rows: list[ResultRow], system: str) -> Table:
    values = heat(rows, system)
    lengths, depths = sorted({k[0] for k in values}), sorted({k[1] for k in values})
    body = []
    for d in depths:
        line = [values.get((n, d)) for n in lengths]
        body.append((Cell(f"{100 * d:.0f} %"), *(Cell(DASH if v is None else f"{v:.3f}") for v in line)))
    head = (Column("depth"), *(Column(tokens(n)) for n in lengths))
    return Table(f"Needles, {rows[0].metric}, {system}: depth against tokens", head, tuple(body), folded=True)


def heat(rows: Iterable[ResultRow], system: str) -> dict[tuple[Any, Any], float]:
    """Mean over tasks by (length, depth), where the system has all tasks that any system has there."""
    places: dict[tuple[Any, Any], list[ResultRow]] = {}
    for row in rows:
        places.setdefault((length(row), depth(row)), []).append(row)
    found = {place: _whole_mean(some, system) for place, some in places.items()}
    return {place: value for place, value in found.items() if value is not None}


def _whole_mean(rows: Iterable[ResultRow], system: str) -> float | None:
    """A system's mean over the cells of `rows`; None when it lacks one, as its mean would be one of other cells."""
    given = list(rows)
    own = [r for r in given if r.system == system]
    return mean(own) if len(own) == len({(task(r), length(r), depth(r)) for r in given}) else None


def mean(rows: Iterable[ResultRow]) -> float | None:
    """Of the values; None when there are none."""
    values = [r.value for r in rows]
    return sum(values) / len(values) if values else None


def _cases(rows: Iterable[ResultRow], system: str) -> int:
    return sum(max(r.n, 1) for r in rows if r.system == system)


# Latency


def latency(saved: Saved) -> list[Table]:
    """Whole questions against memory sizes, then stages and hops at each size; smaller sizes are folded."""
    tables = []
    rows = [r for r in saved.part("latency") if r.metric in (P50, P95) and stage(r) is not None]
    for dataset in dict.fromkeys(r.dataset for r in rows):
        some = [r for r in rows if r.dataset == dataset]
        sizes = distinct(some, memory_tokens) or [None]
        totals = [r for r in some if stage(r) == "total" and hop(r) is None and memory_tokens(r) is not None]
        if totals:
            title = f"Latency of a whole question, {dataset}"
            tables.append(_latency(totals, title, memory_tokens, "tokens in memory", tokens))
        for size in reversed(sizes):
            here = [r for r in some if memory_tokens(r) == size]
            title = f"Latency by hop and stage, {dataset}" + (f", {tokens(size)} tokens in memory" if size else "")
            tables.append(_latency(here, title, place, "hop, stage", _placed, folded=size != sizes[-1]))
    return tables


def place(row: ResultRow) -> tuple[int, int, str]:
    """Where in a question's course a row belongs, sortable: hop (0: none), rank of the stage, its name."""
    name, at = str(stage(row)), hop(row)
    rank = STAGES.index(name) if name in STAGES else len(STAGES)
    if name == "total" and at is None:
        return _WHOLE, rank, name
    return (int(at) if isinstance(at, (int, float)) else 0), rank, name


def _placed(at: tuple[int, int, str]) -> str:
    return at[2] if at[0] in (0, _WHOLE) else f"{at[0]}, {at[2]}"


def _latency(
    rows: list[ResultRow],
    title: str,
    by: Callable[[ResultRow], Any],
    what: str,
    shown: Callable[[Any], str],
    folded: bool = False,
) -> Table:
    names = labels(rows)
    at = {(by(r), label(r), r.metric): r for r in rows}
    base = next((n for n in names if n.startswith(BASE)), None)
    body = []
    for key in distinct(rows, by):
        found = [at.get((key, n, P50)) for n in names]
        own = at.get((key, base, P50)) if base else None
        cells = [_timing(r, at.get((key, n, P95)), own) for r, n in zip(found, names, strict=True)]
        least = bold_best(cells, [r.value if r else None for r in found], least=True)
        body.append((Cell(shown(key)), *least))
    notes = ["Medians. The least of each row is in bold."]
    small = "Small print: the 95th percentile" + (f" and the ratio of medians to {base}." if base else ".")
    notes += [] if comparable(rows) else [_NO_RATIOS]
    head = (Column(what, number=what != "hop, stage"), *(Column(n) for n in names))
    return Table(title, head, tuple(body), tuple(notes), folded, small=small)


def _timing(row: ResultRow | None, p95: ResultRow | None, base: ResultRow | None) -> Cell:
    if row is None:
        return Cell(DASH)
    over = ratio(row, base) if base is not row else None
    small = [f"p95 {number(p95.value, P95)}" if p95 else "", times(over) if over is not None else ""]
    return Cell(number(row.value, row.metric), ", ".join(s for s in small if s))


# Cost


def cost(saved: Saved) -> list[Table]:
    """Systems against what indexing and keeping a corpus costs; of several memory sizes all but the largest folded."""
    rows = [r for r in saved.rows if r.metric in COSTS]
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in sorted(rows, key=lambda r: -(memory_tokens(r) or 0)):
        groups.setdefault((row.dataset, json.dumps(row.settings, sort_keys=True, default=str)), []).append(row)
    tables, seen = [], set()
    for dataset in dict.fromkeys(r.dataset for r in rows):
        for (name, _), some in groups.items():
            if name == dataset:
                whole_set = memory_tokens(some[0]) is None
                tables.append(_cost(some, folded=not whole_set and dataset in seen))
                seen |= set() if whole_set else {dataset}
    return tables


def _cost(rows: list[ResultRow], *, folded: bool) -> Table:
    names = systems(rows)
    base = names[0] if names[0].startswith(BASE) else None
    at = {(r.system, r.metric): r for r in rows}
    metrics = [m for m in COSTS if any(r.metric == m for r in rows)]
    columns = []
    for metric in metrics:
        found = [at.get((n, metric)) for n in names]
        cells = [_priced(r, at.get((base, metric)) if base else None) for r in found]
        columns.append(bold_best(cells, [r.value if r else None for r in found], least=True))
    body = [(Cell(n), *(column[i] for column in columns)) for i, n in enumerate(names)]
    notes = ["The least of each column is in bold."]
    small = f"Small print: the ratio to {base}." if base else ""
    notes += [] if comparable(rows) else [_NO_RATIOS]
    if "peak_rss_bytes" in metrics:
        alone = memory_tokens(rows[0]) is not None  # measured in a process of its own
        notes.append(f"{_PEAK}." if alone else f"{_PEAK}, and what earlier systems left loaded.")
    head = (Column("system", number=False), *(Column(COSTS[m]) for m in metrics))
    said = {name: tokens(v) if name == "memory_tokens" else v for name, v in rows[0].settings.items()}
    where = "".join(f", {name.replace('_', ' ')} {value}" for name, value in said.items())
    return Table(f"Cost, {rows[0].dataset}{where}", head, tuple(body), tuple(notes), folded, small=small)


def _priced(row: ResultRow | None, base: ResultRow | None) -> Cell:
    if row is None:
        return Cell(DASH)
    over = ratio(row, base) if base is not row else None
    return Cell(number(row.value, row.metric), times(over) if over is not None else "")
