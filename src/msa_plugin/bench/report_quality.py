"""Quality: tables of retrieval and question answering, data sets against systems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.report_rows import BASE, Saved, comparable, costs, distinct, plain, setting, systems, timed
from msa_plugin.bench.report_tables import DASH, Cell, Column, Table, bold_best, joined, number, times

RETRIEVAL = ("nDCG@10", "R@5", "R@10")
QA = ("EM", "F1", "contains", "judge")
MARKS = ((0.01, "‡"), (0.05, "†"))
_P = "p:"

_BEST = "The best of each row is in bold."
Series = tuple[str, Any]  # system, passages read (None where there is no such setting)


def retrieval(saved: Saved) -> list[Table]:
    """One table a metric; those that are not in `RETRIEVAL` are folded."""
    rows = saved.part("retrieval")
    tests = _tests(rows)
    shown = plain(rows)
    found = dict.fromkeys([*RETRIEVAL, *(r.metric for r in shown)])
    tables = [_retrieval(saved, [r for r in shown if r.metric == m], tests, m) for m in found]
    return [t for t in tables if t is not None]


def _retrieval(saved: Saved, rows: list[ResultRow], tests: dict[Any, float], metric: str) -> Table | None:
    if not rows:
        return None
    columns: list[Series] = [(name, None) for name in systems(rows)]
    return by_dataset(saved, rows, columns, f"Retrieval, {metric}", tests, folded=metric not in RETRIEVAL)


def qa(saved: Saved) -> list[Table]:
    """For each metric systems against passages read, then data sets against both; lesser metrics are folded."""
    rows = saved.part("qa")
    tests = _tests(rows)
    shown = plain(rows, "passages")
    tables: list[Table] = []
    for metric in dict.fromkeys([*QA, *(r.metric for r in shown)]):
        some = [r for r in shown if r.metric == metric]
        if not some:
            continue
        tables.append(_overview(some, metric, tests))
        if len(datasets_of(some)) > 1:
            title = f"Answers, {metric}, by data set"
            tables.append(by_dataset(saved, some, series(some), title, tests, folded=metric not in QA))
    return tables


def _overview(rows: list[ResultRow], metric: str, tests: dict[Any, float]) -> Table:
    """Systems against passages read, averaged over the data sets where there are several."""
    datasets, names = datasets_of(rows), systems(rows)
    reads = order({setting("passages")(r) for r in rows})
    at = {(r.dataset, series_of(r)): r for r in rows}
    grid = {(name, read): average(at, datasets, (name, read)) for name in names for read in reads}
    cells = []
    for one, value in grid.items():
        only = at.get((datasets[0], one)) if len(datasets) == 1 else None
        cells.append(_cell(only, tests) if only else Cell(DASH if value is None else number(value, metric)))
    best = dict(zip(grid, bold_best(cells, list(grid.values()), least=costs(metric)), strict=True))
    fair = comparable(rows)
    over = _over_base(grid, names, reads, least=costs(metric)) if fair else {}
    body = [(Cell(n), *(best[n, r] for r in reads), Cell(times(over.get(n)))) for n in names]
    notes = ["The best of the table is in bold.", *_marks_note(cells), *_read_note(reads)]
    notes += [f"{DASH} in place of an average: the system lacks a data set."] if len(datasets) > 1 else []
    notes += [] if fair else ["No ratios: the rows come from different runs."]
    small = intervals(metric) if any(c.small for c in cells) else ""
    where = datasets[0] if len(datasets) == 1 else f"average of {len(datasets)} data sets"
    ratio = Column(f"{'least' if costs(metric) else 'best'} ÷ {names[0]}")
    head = (
        Column("system", number=False),
        *(Column(read_label(r) or ("own" if len(reads) > 1 else "value")) for r in reads),
        ratio,
    )
    return Table(f"Answers, {metric} ({where})", head, tuple(body), tuple(notes), metric not in QA, small=small)


def _over_base(
    grid: dict[Series, float | None], names: Sequence[str], reads: Sequence[Any], *, least: bool
) -> dict[str, float]:
    """The best value of each system over the base's: its adaptive choice, which comes last."""
    known = {n: [v for r in reads if (v := grid[n, r]) is not None] for n in names}
    if not names[0].startswith(BASE) or not known[names[0]] or not known[names[0]][-1]:
        return {}
    base = known[names[0]][-1]
    return {n: (min(values) if least else max(values)) / base for n, values in known.items() if values}


def by_dataset(
    saved: Saved,
    rows: Sequence[ResultRow],
    columns: Sequence[Series],
    title: str,
    tests: dict[Any, float],
    *,
    folded: bool,
) -> Table:
    """Data sets against series, with averages (all sets, those of several hops, those without titles) and ratios."""
    datasets, metric = datasets_of(rows), rows[0].metric
    at = {(r.dataset, series_of(r)): r for r in rows}
    least = costs(metric)
    body = []
    for name in datasets:
        found = [at.get((name, c)) for c in columns]
        cells = bold_best([_cell(r, tests) for r in found], [r.value if r else None for r in found], least=least)
        body.append((Cell(name), Cell(f"{max((r.n for r in found if r), default=0):,}"), *cells))
    summary, notes = len(body), [_BEST, *_marks_note([c for line in body for c in line])]
    several = [d for d in datasets if d in saved.multi_hop()]
    plain_text = [d for d in datasets if d in saved.untitled()]
    for what, chosen in (
        ("average", datasets),
        ("multi-hop average", several),
        ("average without titles", plain_text if len(plain_text) < len(datasets) else []),
    ):
        if len(chosen) > 1:
            means = [average(at, chosen, c) for c in columns]
            cells = bold_best([Cell(DASH if v is None else number(v, metric)) for v in means], means, least=least)
            body.append((Cell(f"{what} ({len(chosen)})"), Cell(""), *cells))
    if several and len(datasets) > 1:
        notes.append(f"Mostly questions of several hops: {joined(several)}.")
    if len(datasets) > 1:
        notes.append(f"{DASH} in place of an average: the system lacks one of these data sets.")
    line, note = _ratios(at, datasets, columns)
    body += [line] if line else []
    notes += [note] if note else []
    small = intervals(metric) if any(c.small for line in body for c in line) else ""
    head = (Column("data set", number=False), Column("questions"), *(_column(c) for c in columns))
    return Table(title, head, tuple(body), tuple(notes), folded, summary, small)


def _ratios(
    at: dict[Any, ResultRow], datasets: Sequence[str], columns: Sequence[Series]
) -> tuple[tuple[Cell, ...] | None, str]:
    """The last line: each series over the base, of averages over all data sets."""
    first = next((name for name, _ in columns if name.startswith(BASE)), None)
    if first is None or len(columns) < 2:
        return None, ""
    base = [c for c in columns if c[0] == first][-1]  # its adaptive choice comes last
    cells, refused = [], False
    for column in columns:
        pairs = [(at.get((d, column)), at.get((d, base))) for d in datasets]
        if any(a is None or b is None for a, b in pairs):
            cells.append(Cell(DASH))
            continue
        fair = all(comparable([a, b]) for a, b in pairs if a and b)
        mine, its = average(at, datasets, column), average(at, datasets, base)
        refused |= not fair
        cells.append(Cell(times(mine / its) if fair and mine is not None and its else DASH))
    note = "No ratio where the rows come from different runs." if refused else ""
    return (Cell(f"ratio to {base[0]}"), Cell(""), *cells), note


def average(at: dict[Any, ResultRow], datasets: Sequence[str], of: Series) -> float | None:
    """Mean of a series over data sets, from rows by (data set, series); None when it lacks one of them."""
    found = [at.get((d, of)) for d in datasets]
    values = [r.value for r in found if r is not None]
    return sum(values) / len(values) if values and len(values) == len(datasets) else None


def _cell(row: ResultRow | None, tests: dict[Any, float]) -> Cell:
    if row is None:
        return Cell(DASH)
    p = tests.get((row.dataset, series_of(row), row.metric))
    mark = next((sign for limit, sign in MARKS if p is not None and p < limit), "")
    return Cell(number(row.value, row.metric), interval(row), mark)


def interval(row: ResultRow) -> str:
    """Its bounds, empty where there are none."""
    if row.low is None or row.high is None:
        return ""
    low, high = number(row.low, row.metric), number(row.high, row.metric)
    (first, _, unit), (_, _, other) = low.partition(" "), high.partition(" ")
    return f"{first if unit == other else low}{DASH}{high}"


def intervals(metric: str) -> str:
    """What the bounds of a metric's rows are."""
    return "Small print: " + ("5th to 95th percentile." if timed(metric) else "95 % intervals over questions.")


def _tests(rows: Iterable[ResultRow]) -> dict[Any, float]:
    """p-values against the base by (dataset, series, metric)."""
    tests = [r for r in rows if r.metric.startswith(_P) and r.settings.get("versus") == BASE]
    return {(r.dataset, series_of(r), r.metric.removeprefix(_P)): r.value for r in tests}


def _marks_note(cells: Iterable[Cell]) -> list[str]:
    if not any(c.mark for c in cells):
        return []
    return [
        f"† differs from {BASE} with p < 0.05, ‡ with p < 0.01, by a paired test over a data set's questions, "
        "not corrected for the number of tests."
    ]


def datasets_of(rows: Iterable[ResultRow]) -> list[str]:
    """Names as they first appear."""
    return list(dict.fromkeys(r.dataset for r in rows))


def series(rows: Sequence[ResultRow]) -> list[Series]:
    """Systems with what they read, in the order of `systems`."""
    reads = order(distinct(rows, setting("passages")))
    there = {series_of(r) for r in rows}
    return [(s, p) for s in systems(rows) for p in [None, *reads] if (s, p) in there]


def series_of(row: ResultRow) -> Series:
    """The series that a row belongs to."""
    return row.system, setting("passages")(row)


def order(reads: Iterable[Any]) -> list[Any]:
    """Numbers of passages ascending, then what was not told (None), then words ("adaptive")."""
    return sorted(reads, key=lambda r: (isinstance(r, str), r is None, r if isinstance(r, (int, float)) else 0, str(r)))


def read_label(passages: Any) -> str:
    """How many passages were read, as the MSA paper heads its columns."""
    return "" if passages is None else passages if isinstance(passages, str) else f"R@{passages:g}"


def _read_note(reads: Sequence[Any]) -> list[str]:
    if not any(isinstance(r, (int, float)) for r in reads):
        return []
    return ["R@k: answered from the k best passages that the system found; adaptive: the system chose what to read."]


def _column(of: Series) -> Column:
    name, passages = of
    return Column(read_label(passages), name) if passages is not None else Column(name)
