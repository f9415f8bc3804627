"""What a run folder holds, as the report needs it: rows by part, runs they come from, skips, notes, hops.

A ratio is formed only between rows of one run: same commit and machine, and for anything timed the same command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from msa_plugin.bench.base import ResultRow
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.errors import ConfigError

BASE = "msa"
_PERCENTILES = {"50": "median", "95": "95th percentile"}
_MULTI_HOP = 1.5  # hops a question, on average
_TITLED = 0.5  # of a data set's passages


class Skip(NamedTuple):
    """A system (or with system "" a whole data set) that did not run, and why."""

    part: str
    dataset: str
    system: str
    reason: str


class RowOrigin(NamedTuple):
    """What makes a run: rows that differ here are not compared as ratios."""

    commit: str
    hardware: str
    command: str


@dataclass(frozen=True)
class Saved:
    """Measurements with a finite value, and everything that is said beside them."""

    rows: tuple[ResultRow, ...]
    skipped: tuple[Skip, ...] = ()
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path) -> Saved:
        """From results.jsonl, config.json and, where there is one, skipped.jsonl.

        Raises ConfigError when there are no results, or a file cannot be read.
        """
        results = Results(out)
        if not results.path.is_file():
            raise ConfigError(f"{out.name or out} holds no results.jsonl; run `msa bench retrieval|qa ... --out` first")
        found = cls.of(results.rows(), results.config())
        more = tuple(_skips(out / "skipped.jsonl"))
        return cls(found.rows, tuple(dict.fromkeys([*found.skipped, *more])), found.notes, found.config)

    @classmethod
    def of(cls, rows: Iterable[ResultRow], config: Mapping[str, Any] | None = None) -> Saved:
        """From rows, the skips and notes among them set apart."""
        given = list(rows)
        config = config or {}
        skips = [Skip(r.part, r.dataset, r.system, _reason(r)) for r in given if r.metric == SKIPPED]
        said = [f"{r.dataset}: {_reason(r)}" if r.dataset else _reason(r) for r in given if r.metric == NOTE]
        numbers = [r for r in given if r.metric not in (SKIPPED, NOTE)]
        finite = [r for r in numbers if isinstance(r.value, (int, float)) and math.isfinite(r.value)]
        if len(finite) < len(numbers):
            said.append(f"{len(numbers) - len(finite)} measurements are not finite numbers and are not shown.")
        return cls(tuple(finite), tuple(dict.fromkeys(skips)), tuple(dict.fromkeys(said)), config)

    def part(self, name: str) -> list[ResultRow]:
        """Rows of one part."""
        return [r for r in self.rows if r.part == name]

    def origins(self) -> dict[RowOrigin, list[ResultRow]]:
        """The rows of each run, in the order in which the runs began."""
        found: dict[RowOrigin, list[ResultRow]] = {}
        for row in sorted(self.rows, key=lambda r: r.date):
            found.setdefault(origin(row), []).append(row)
        return found

    def hops(self) -> dict[str, float]:
        """Hops a question, on average, of the data sets where that is known from config.json or from the rows."""
        known = {}
        facts = self.config.get("datasets")
        for name, about in facts.items() if isinstance(facts, Mapping) else ():
            known[str(name)] = _mean_hops(about.get("hops") if isinstance(about, Mapping) else None)
        for row in self.rows:
            if known.get(row.dataset) is None and not _is_slice(row, self.rows):
                known[row.dataset] = _mean_hops(row.settings.get("hops"))
        return {name: hops for name, hops in known.items() if hops is not None}

    def multi_hop(self) -> list[str]:
        """Data sets whose questions mostly need more than one passage, as far as is known."""
        return [name for name, hops in self.hops().items() if hops >= _MULTI_HOP]

    def untitled(self) -> list[str]:
        """Data sets whose passages mostly have no title, as far as is known from config.json."""
        return untitled(self.config)


def untitled(config: Mapping[str, Any]) -> list[str]:
    """Data sets of a run's config.json whose passages mostly have no title."""
    facts = config.get("datasets")
    known = (
        {str(name): about for name, about in facts.items() if isinstance(about, Mapping)}
        if isinstance(facts, Mapping)
        else {}
    )
    return [name for name, about in known.items() if "titled" in about and about["titled"] < _TITLED]


def origin(row: ResultRow) -> RowOrigin:
    """The run that a row comes from."""
    return RowOrigin(row.commit, row.hardware, row.command)


def ratio(row: ResultRow | None, over: ResultRow | None) -> float | None:
    """The quotient of two values of one run; None where it would compare runs, or divide by zero."""
    if row is None or over is None or not comparable([row, over]) or over.value == 0:
        return None
    return row.value / over.value


def comparable(rows: Sequence[ResultRow]) -> bool:
    """Whether rows come from one run. Quality does not depend on the command that measured it; time may."""
    command = any(timed(r.metric) for r in rows)
    return len({(r.commit, r.hardware, r.command if command else "") for r in rows}) <= 1


def timed(metric: str) -> bool:
    """Whether a metric is a time or a size, whose bounds are percentiles."""
    return "seconds" in metric or "bytes" in metric


def spelled(metric: str) -> str:
    """A metric of a memory that grows as a title has it: `route_seconds_p95` is "seconds to route, 95th percentile"."""
    what, found, percentile = metric.rpartition("seconds_p")
    if found and percentile in _PERCENTILES:
        return f"seconds {f'to {what[:-1]}' if what else 'in all'}, {_PERCENTILES[percentile]}"
    return metric.replace("prefilter_recall", "share of the exact search's best, recall")


def costs(metric: str) -> bool:
    """Whether less of a metric is better."""
    return timed(metric) or metric in ("input_tokens", "output_tokens", "rounds")


def systems(rows: Iterable[ResultRow]) -> list[str]:
    """Names as they first appear, the base and its variants in front."""
    names = list(dict.fromkeys(r.system for r in rows))
    return sorted(names, key=lambda name: (name != BASE, not name.startswith(BASE), names.index(name)))


def distinct(rows: Iterable[ResultRow], key: Callable[[ResultRow], Any]) -> list[Any]:
    """Values of `key`, sorted where they can be compared, else as they appear; None is left out."""
    found = list(dict.fromkeys(v for v in map(key, rows) if v is not None))
    try:
        return sorted(found)
    except TypeError:
        return found


def setting(name: str) -> Callable[[ResultRow], Any]:
    """A function that reads one setting of a row; what cannot be a key counts as text."""

    def read(row: ResultRow) -> Any:
        value = row.settings.get(name)
        return value if isinstance(value, (str, int, float, type(None))) else json.dumps(value, sort_keys=True)

    return read


def plain(rows: Iterable[ResultRow], *known: str) -> list[ResultRow]:
    """Rows without settings other than `known` (annotations of the data set do not count)."""
    return [r for r in rows if set(r.settings) <= {*known, "hops"}]


def whole(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows over all questions: those over the questions of some number of hops are left out."""
    return [r for r in rows if not _is_slice(r, rows)]


def _is_slice(row: ResultRow, rows: Iterable[ResultRow]) -> bool:
    """Whether "hops" names a share of the questions: another row of the same measurement has other hops, or none."""
    if "hops" not in row.settings:
        return False
    return any(
        r.settings.get("hops") != row.settings["hops"]
        for r in rows
        if (r.part, r.dataset, r.system, r.metric) == (row.part, row.dataset, row.system, row.metric)
        and _without_hops(r) == _without_hops(row)
    )


def _without_hops(row: ResultRow) -> dict[str, Any]:
    return {name: value for name, value in row.settings.items() if name != "hops"}


def _mean_hops(value: Any) -> float | None:
    """Of a number, a list of numbers of hops, or a mapping from hops to questions; None for anything else."""
    try:
        if isinstance(value, Mapping):
            total = sum(float(n) for n in value.values())
            return sum(float(hops) * float(n) for hops, n in value.items()) / total
        if isinstance(value, (list, tuple)):
            return sum(map(float, value)) / len(value)
        return None if value is None else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _reason(row: ResultRow) -> str:
    return str(row.settings.get("reason", "no reason was recorded"))


def _skips(path: Path) -> Iterable[Skip]:
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            yield Skip(*(str(record.get(name, "")) for name in Skip._fields))
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{path.name}, line {number} is not a record of a skipped system ({error})") from error
