"""The report's tables: one for each metric of a part, a line for every data set and setting, a column a system."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from msa_plugin.bench.report_rows import (
    BASE,
    COSTS,
    Saved,
    by_metric,
    comparable,
    costs,
    datasets,
    label,
    rank,
    setting,
    spelled,
    systems,
    timed,
)
from msa_plugin.bench.report_tables import Cell, Table, bold_best
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.units import DASH, times, tokens

TEST = "p:"  # a metric: the p-value of a paired test of the metric named behind it
STAGES = ("encode", "route", "gather", "prefill", "decode", "total")
_SIGNS = ((0.01, "‡"), (0.05, "†"))
_SIGNED = (
    f"† differs from {BASE} with p < 0.05, ‡ with p < 0.01, by a paired test over a data set's questions, "
    "not corrected for the number of tests."
)
_MISSING = f"{DASH} in place of a mean or ratio: something that others have is missing, or is of another run."
# Settings in the order of their columns, with how their numbers are shown; others follow as they are.
_SHOWN: dict[str, Callable[[Any], str]] = {
    "of": str,
    "memory_tokens": tokens,
    "task": str,
    "length": tokens,
    "depth": lambda share: f"{100 * share:.0f} %",
    "passages": lambda read: f"R@{read:g}",
    "hop": str,
    "stage": str,
    "from": tokens,
    "to": tokens,
}
Place: TypeAlias = tuple[Any, ...]  # of a line: its data set, then a value for each setting of the table
Line: TypeAlias = Mapping[str, ResultRow]  # a row for each column that has one
Cells: TypeAlias = tuple[Cell, ...]
Tests: TypeAlias = Mapping[tuple[Any, ...], float]  # p-values by data set, system, passages read and metric
_UNTESTED: Tests = {}


class Part(NamedTuple):
    """A kind of run: its chapter, and the metrics whose tables are not folded."""

    title: str
    about: str
    shown: tuple[str, ...]


PARTS = {
    "retrieval": Part(
        "Retrieval",
        "How well each system ranks the passages that a question needs.",
        ("nDCG@10", "R@5", "R@10"),
    ),
    "qa": Part(
        "Answers",
        "Every system answers with the same backbone, prompt, token budget and decoding. "
        "R@k: from the k best passages that the system found; adaptive: the system chose what to read.",
        ("EM", "F1", "contains", "judge"),
    ),
    "scale": Part(
        "Degradation",
        "The same questions while the memory is filled up with passages that have nothing to do with them.",
        ("R@5", "R@10", "nDCG@10", "EM", "F1", "relative_loss", "seconds", "seconds_p50", "answer_seconds_p50"),
    ),
    "needle": Part("Needles", "Sentences hidden among filler, to be found and told.", ("recall", "answered")),
    "latency": Part("Latency", "Where the time of a question goes: hop by hop, and in all.", ("seconds_p50",)),
    "cost": Part(
        "Cost",
        "What it takes to index a corpus and to keep it searchable. Peak resident memory is that of the whole process, "
        "model and libraries included; where no memory tokens are told, also what earlier systems left loaded.",
        tuple(COSTS),
    ),
}


def tables(saved: Saved, name: str) -> list[Table]:
    """The tables of a part, one a metric; those of an unknown part are folded."""
    rows, part = saved.part(name), PARTS.get(name, Part(name, "", ()))
    tests = {_compared(r, r.metric.removeprefix(TEST)): r.value for r in rows if r.metric.startswith(TEST)}
    found = []
    for metric, some in by_metric((r for r in rows if not r.metric.startswith(TEST)), part.shown).items():
        title, folded = f"{part.title}, {spelled(metric)}", metric not in part.shown
        grid = Grid(some, by_system=name == "qa")
        if name == "needle":
            for what in ("task", "length"):
                each = grid.by(what)
                every = each.mean("all", grid.lines.values())
                found.append(each.table(f"{title}, by {what}", more=[every]))
            found.append(grid.by("length", "depth").table(f"{title}, by length and depth", folded=True))
        elif name in ("retrieval", "qa"):
            found.append(grid.table(title, tests, [*grid.averages(saved), *grid.over_base()], folded=folded))
        else:
            found.append(grid.table(title, folded=folded))
    return found


class Grid:
    """Rows of one metric: a line for every data set and setting, a column for every system."""

    def __init__(self, rows: Sequence[ResultRow], *, by_system: bool = False) -> None:
        """What a system read stands in the names of columns, or in that of lines when these are `by_system`."""

        def column(row: ResultRow) -> str:
            return row.system if by_system else label(row)

        told = {name for row in rows for name in row.settings} - (set() if by_system else {"passages"})
        self.rows, self.metric, self.datasets, names = rows, rows[0].metric, datasets(rows), systems(rows)
        self.settings: tuple[str, ...] = (*(n for n in _SHOWN if n in told), *sorted(told - {*_SHOWN}))
        lines: dict[Place, dict[str, ResultRow]] = {}
        for row in sorted(rows, key=self._order):
            place = (row.dataset, *(setting(row, name) for name in self.settings))
            lines.setdefault(place, {})[column(row)] = row
        self.lines: Mapping[Place, Line] = lines
        ordered = sorted(rows, key=lambda row: (names.index(row.system), rank(setting(row, "passages"))))
        self.columns = list(dict.fromkeys(map(column, ordered)))
        self.base = next((name for name in self.columns if name.startswith(BASE)), "")

    def _order(self, row: ResultRow) -> tuple[Any, ...]:
        values = [setting(row, name) for name in self.settings]
        return self.datasets.index(row.dataset), *(rank(STAGES.index(v) if v in STAGES else v) for v in values)

    def table(self, title: str, tests: Tests = _UNTESTED, more: Sequence[Cells] = (), *, folded: bool = False) -> Table:
        """All lines, then `more`; values that `tests` tell from the base's are marked."""
        body: list[Cells] = []
        for place, line in self.lines.items():
            own = line.get(self.base) if timed(self.metric) else None
            cells = [Cell.of(row, own, _sign(row, tests)) for row in map(line.get, self.columns)]
            body.append(self._line(place, cells, f"{max((row.n for row in line.values()), default=0):,}"))
        shown = [cell for line in body for cell in line]
        notes = ["The best of each row is in bold."]
        notes += [_SIGNED] if any(c.mark for c in shown) else []
        notes += [_MISSING] if any(c.text == DASH for line in more for c in line) else []
        heads = ("data set", *(name.replace("_", " ") for name in self.settings), "n", *self.columns)
        small = self._small() if any(c.small for c in shown) else ""
        return Table(title, heads, (*body, *more), notes, folded, words=1 + len(self.settings), small=small)

    def _small(self) -> str:
        if not timed(self.metric):
            return "Small print: 95 % intervals over questions."
        over = f", and the ratio to {self.base} in the same run" if self.base else ""
        return f"Small print: 5th to 95th percentile{over}."

    def _line(self, place: Place, cells: Sequence[Cell], n: str = "") -> Cells:
        values = zip(self.settings, place[1:], strict=False)
        told = [_SHOWN.get(name, str)(v) if isinstance(v, (int, float)) else str(v or "") for name, v in values]
        told += [""] * (len(self.settings) - len(told))
        return (*map(Cell, (place[0], *told, n)), *bold_best(cells, least=costs(self.metric)))

    # Means over lines

    def by(self, *names: str) -> Grid:
        """Means over all lines that share these settings, of columns that stand in all of these lines."""
        groups: dict[Place, list[Line]] = {}
        for place, line in self.lines.items():
            told = dict(zip(self.settings, place[1:], strict=True))
            groups.setdefault((place[0], *(told.get(name) for name in names)), []).append(line)
        made = copy(self)
        made.settings, made.lines = names, {place: means(lines) for place, lines in groups.items()}
        return made

    def mean(self, name: str, lines: Iterable[Line], values: Place = ()) -> Cells:
        """A line of such means."""
        found = means(lines)
        cells = [Cell.mean(found[c].value if c in found else None, self.metric) for c in self.columns]
        return self._line((name, *values), cells)

    def averages(self, saved: Saved) -> list[Cells]:
        """Means over all data sets, over those of several hops, and over those without titles."""
        untitled = [d for d in self.datasets if d in saved.untitled()]
        groups = {
            "average": self.datasets,
            "multi-hop average": [d for d in self.datasets if d in saved.multi_hop()],
            "average without titles": untitled if len(untitled) < len(self.datasets) else [],
        }
        return [
            self.mean(f"{what} ({len(chosen)})", self._across(chosen, values), values)
            for what, chosen in groups.items()
            if len(chosen) > 1
            for values in self._values()
        ]

    def over_base(self) -> list[Cells]:
        """The best mean of each column over the base's own, which comes last: its adaptive choice."""
        whole = [means(self._across(self.datasets, values)) for values in self._values()]
        base = [line[self.base].value for line in whole if self.base in line]
        if not base or len(self.columns) < 2:
            return []
        best, cells = min if costs(self.metric) else max, []
        for column in self.columns:
            known = [line[column].value for line in whole if column in line]
            cells.append(Cell(times(best(known) / base[-1] if known and base[-1] and self._fair(column) else None)))
        return [self._line((f"ratio to {self.base}",), cells)]

    def _values(self) -> list[Place]:
        return list(dict.fromkeys(place[1:] for place in self.lines))

    def _across(self, chosen: Iterable[str], values: Place) -> list[Line]:
        return [self.lines.get((dataset, *values), {}) for dataset in chosen]

    def _fair(self, column: str) -> bool:
        """Whether a column and the base come from the same run, data set by data set."""
        rows: dict[str, list[ResultRow]] = {name: [] for name in self.datasets}
        for place, line in self.lines.items():
            rows[place[0]] += [line[c] for c in (column, self.base) if c in line]
        return all(map(comparable, rows.values()))


def means(lines: Iterable[Line]) -> Line:
    """For each column that stands in all lines a row with the mean of its values."""
    given = list(lines)
    found = {}
    for column in dict.fromkeys(c for line in given for c in line):
        rows = [line[column] for line in given if column in line]
        if len(rows) == len(given):
            mean = sum(r.value for r in rows) / len(rows)
            found[column] = replace(rows[0], value=mean, low=None, high=None, n=sum(r.n for r in rows))
    return found


def _sign(row: ResultRow | None, tests: Tests) -> str:
    p = 1.0 if row is None else tests.get(_compared(row, row.metric), 1.0)
    return next((sign for limit, sign in _SIGNS if p < limit), "")


def _compared(row: ResultRow, metric: str) -> tuple[Any, ...]:
    return row.dataset, row.system, setting(row, "passages"), metric
