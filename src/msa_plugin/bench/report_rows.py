"""What a run folder holds, as the report needs it: rows by part, runs they come from, skips, notes, hops.

A ratio is formed only between rows of one run: same commit and machine, and for anything timed the same command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.store import NOTE, SKIPPED, Results
from msa_plugin.errors import ConfigError

BASE = "msa"
DEFAULT = "msa+lexical+titles+mentions"  # what a memory with the default adapter ranks by when nothing is said
COSTS = {
    "index_seconds_per_1k_tokens": "indexing, per 1,000 tokens",
    "disk_bytes_per_token": "disk, per token",
    "memory_bytes_per_token": "memory to search, per token",
    "peak_rss_bytes": "peak resident memory",
}
_NAMES = {**COSTS, "relative_loss": "share lost from the smallest to the largest memory"}
_PERCENTILES = {"50": "median", "95": "95th percentile"}
_MULTI_HOP = 1.5  # hops a question, on average
_TITLED = 0.5  # of a data set's passages


Origin: TypeAlias = tuple[str, str, str]  # commit, machine and command: rows that differ here come from other runs


@dataclass(frozen=True)
class Saved:
    """Measurements with a finite value, and everything that is said beside them."""

    rows: tuple[ResultRow, ...]
    skipped: tuple[ResultRow, ...] = ()  # what did not run: a system, or with system "" a whole data set
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, out: Path) -> Saved:
        """From results.jsonl and config.json.

        Raises ConfigError when there are no results, or a file cannot be read.
        """
        results = Results(out)
        if not results.path.is_file():
            raise ConfigError(f"{out.name or out} holds no results.jsonl; run `msa bench retrieval|qa ... --out` first")
        return cls.of(results.rows(), results.config())

    @classmethod
    def of(cls, rows: Iterable[ResultRow], config: Mapping[str, Any] | None = None) -> Saved:
        """From rows, the skips and notes among them set apart."""
        given = list(rows)
        skips = tuple(r for r in given if r.metric == SKIPPED)
        said = [f"{r.dataset}: {reason(r)}" if r.dataset else reason(r) for r in given if r.metric == NOTE]
        numbers = [r for r in given if r.metric not in (SKIPPED, NOTE)]
        finite = [r for r in numbers if isinstance(r.value, (int, float)) and math.isfinite(r.value)]
        if len(finite) < len(numbers):
            said.append(f"{len(numbers) - len(finite)} measurements are not finite numbers and are not shown.")
        return cls(tuple(finite), skips, tuple(dict.fromkeys(said)), config or {})

    def part(self, name: str) -> list[ResultRow]:
        """Rows of one part."""
        return [r for r in self.rows if r.part == name]

    def origins(self) -> dict[Origin, list[ResultRow]]:
        """The rows of each run, in the order in which the runs began."""
        found: dict[Origin, list[ResultRow]] = {}
        for row in sorted(self.rows, key=lambda r: r.date):
            found.setdefault((row.commit, row.hardware, row.command), []).append(row)
        return found

    def hops(self) -> dict[str, float]:
        """Hops a question, on average, of the data sets where config.json says that."""
        known = {name: about["hops"] for name, about in self._datasets().items() if about.get("hops")}
        return {
            name: sum(float(hops) * n for hops, n in each.items()) / sum(each.values()) for name, each in known.items()
        }

    def multi_hop(self) -> list[str]:
        """Data sets whose questions mostly need more than one passage, as far as is known."""
        return [name for name, hops in self.hops().items() if hops >= _MULTI_HOP]

    def untitled(self) -> list[str]:
        """Data sets whose passages mostly have no title, as far as is known from config.json."""
        return [name for name, about in self._datasets().items() if about.get("titled", 1.0) < _TITLED]

    def _datasets(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.config.get("datasets", {})
        return found


# Times and ratios


def timed(metric: str) -> bool:
    """Whether a metric is a time or a size, whose bounds are percentiles."""
    return "seconds" in metric or "bytes" in metric


def costs(metric: str) -> bool:
    """Whether less of a metric is better."""
    return timed(metric) or metric in ("input_tokens", "output_tokens", "rounds", "relative_loss")


def comparable(rows: Iterable[ResultRow]) -> bool:
    """Whether rows come from one run. Quality does not depend on the command that measured it; time may."""
    given = list(rows)
    command = any(timed(r.metric) for r in given)
    return len({(r.commit, r.hardware, r.command if command else "") for r in given}) <= 1


def ratio(row: ResultRow | None, over: ResultRow | None) -> float | None:
    """The quotient of two values of one run; None where it would compare runs, or divide by zero."""
    if row is None or over is None or not comparable([row, over]) or over.value == 0:
        return None
    return row.value / over.value


def spelled(metric: str) -> str:
    """A metric as a title has it: `route_seconds_p95` is "seconds to route, 95th percentile"."""
    what, found, percentile = metric.rpartition("seconds_p")
    if found and percentile in _PERCENTILES:
        return f"seconds{f' to {what[:-1]}' if what else ''}, {_PERCENTILES[percentile]}"
    return _NAMES.get(metric, metric).replace("prefilter_recall", "share of the exact search's best, recall")


# What rows are about


def setting(row: ResultRow, name: str) -> Any:
    """One setting of a row; what cannot be a key counts as text, what is not told is None."""
    value = row.settings.get(name)
    return value if isinstance(value, (str, int, float, type(None))) else json.dumps(value, sort_keys=True)


def systems(rows: Iterable[ResultRow]) -> list[str]:
    """Names as they first appear, the base and its variants in front."""
    names = list(dict.fromkeys(r.system for r in rows))
    return sorted(names, key=lambda name: (name != BASE, not name.startswith(BASE), names.index(name)))


def label(row: ResultRow) -> str:
    """A system with how much it read, as one line of a table or plot."""
    read = setting(row, "passages")
    return row.system if read is None or isinstance(read, str) else f"{row.system} R@{read:g}"


def datasets(rows: Iterable[ResultRow]) -> list[str]:
    """Names as they first appear."""
    return list(dict.fromkeys(r.dataset for r in rows))


def distinct(rows: Iterable[ResultRow], name: str) -> list[Any]:
    """Values of a setting, in order; None is left out."""
    return sorted({v for r in rows if (v := setting(r, name)) is not None}, key=rank)


def rank(value: Any) -> tuple[bool, bool, float, str]:
    """Sorts values of a setting: numbers ascending, then what was not told (None), then words."""
    return isinstance(value, str), value is None, value if isinstance(value, (int, float)) else 0.0, str(value)


def by_metric(rows: Iterable[ResultRow], first: Sequence[str] = ()) -> dict[str, list[ResultRow]]:
    """The rows of each metric, those of `first` in front."""
    found: dict[str, list[ResultRow]] = {name: [] for name in first}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return {name: some for name, some in found.items() if some}


def reason(row: ResultRow) -> str:
    """Of a skip or a note."""
    return str(row.settings.get("reason", "no reason was recorded"))
