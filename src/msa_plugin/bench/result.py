"""What a run keeps: rows of results, and rankings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Scored(NamedTuple):
    """A passage and the score that a system gave it; higher is better."""

    id: str
    score: float


@dataclass(frozen=True)
class ResultRow:
    """One measurement, a line of results.jsonl.

    `part` is the kind of run (retrieval, qa, scale, needle, latency); `settings` what distinguishes rows of one metric
    (k, tokens in memory, depth, hop, stage ...). `low` and `high` bound a 95 % interval (bootstrap over questions; for
    timings the 5th and 95th percentile), None where there is none. The rest says where the number comes from.
    """

    part: str
    dataset: str
    system: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    documents: int = 0
    tokens: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    commit: str = ""
    command: str = ""
    date: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy."""
        return asdict(self)
