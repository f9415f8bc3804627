"""What the systems have in common: how they are made, stable order, and shares of a batch's time.

Ties are broken by the order of the corpus, so that a system says the same on every run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.base import Cost, System, Workspace
from msa_plugin.bench.result import Scored
from msa_plugin.errors import ConfigError
from msa_plugin.prompts import document_text
from msa_plugin.types import Document

Seconds: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Options:
    """Settings that names do not carry.

    `rounds` bound iterative systems, which keep `per_round` new passages a round; MSA's rounds follow the memory's own.
    """

    rounds: int = 2
    per_round: int = 3

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers below 1."""
        if wrong := [name for name, value in vars(self).items() if value < 1]:
            raise ConfigError(f"{', '.join(wrong)} must be at least 1")


@contextmanager
def timed(seconds: Seconds, stage: str) -> Iterator[None]:
    """Add the time inside to `seconds[stage]`."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def shared(seconds: Mapping[str, float], questions: int) -> Seconds:
    """One question's part of the seconds that a batch of `questions` took."""
    return {stage: value / questions for stage, value in seconds.items()}


def summed(parts: Iterable[Mapping[str, float]]) -> Seconds:
    """Seconds of several parts, added up stage by stage."""
    total: Seconds = {}
    for part in parts:
        for stage, value in part.items():
            total[stage] = total.get(stage, 0.0) + value
    return total


def best(scores: NDArray[Any], k: int) -> list[int]:
    """Positions of the `k` largest of `scores` [n], best first; of equal ones the first ones."""
    if 0 < k < len(scores):
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= least)
    else:
        candidates = np.arange(len(scores))
    order = np.argsort(-scores[candidates], kind="stable")
    return [int(i) for i in candidates[order][:k]]


def falling(ranking: Iterable[Scored]) -> tuple[Scored, ...]:
    """The same order with no score above the one before it, for rankings put together from several searches."""
    kept: list[Scored] = []
    for hit in ranking:
        kept.append(Scored(hit.id, min(hit.score, kept[-1].score) if kept else hit.score))
    return tuple(kept)


def merged(rounds: Sequence[Sequence[Scored]], rest: Sequence[Scored], k: int) -> tuple[Scored, ...]:
    """The `k` best of what rounds kept, in the order of the rounds, and then of `rest`; each passage once."""
    first: dict[str, Scored] = {}
    for hit in (h for ranking in (*rounds, rest) for h in ranking):
        first.setdefault(hit.id, hit)
    return falling(list(first.values())[:k])


def texts(documents: Sequence[Document]) -> list[str]:
    """Title and text of each passage, as every system indexes it."""
    return [document_text(d.title, d.text) for d in documents]


def text_bytes(documents: Sequence[Document]) -> int:
    """Bytes of the passages themselves, which every system must keep to read them (MSA's bank has them inside)."""
    return sum(len(d.title.encode()) + len(d.text.encode()) for d in documents)


class BenchSystem:
    """What every system is made of: its name on the command line, the workspace it works on, and options."""

    def __init__(self, name: str, workspace: Workspace, options: Options | None = None) -> None:
        """Nothing is indexed before `prepare`."""
        self.name, self.workspace, self.options = name, workspace, options or Options()

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """The corpus."""
        return self.workspace.dataset.documents

    def close(self) -> None:
        """Release what `prepare` took."""


class Composite(BenchSystem):
    """A system that is made of others: it prepares and closes them, and tells what they have to say."""

    def __init__(
        self, name: str, workspace: Workspace, bases: Sequence[System], options: Options | None = None
    ) -> None:
        """`bases` become its own."""
        super().__init__(name, workspace, options)
        self.bases = tuple(bases)

    @property
    def notes(self) -> tuple[str, ...]:
        """What its bases have to say."""
        return tuple(note for base in self.bases for note in getattr(base, "notes", ()))

    @cached_property
    def texts(self) -> dict[str, str]:
        """Title and text of each passage, by id."""
        return dict(zip((d.id for d in self.documents), texts(self.documents), strict=True))

    def prepare(self) -> Cost:
        """Index with each base; costs add up, but for the passages themselves, which are kept once."""
        costs = [base.prepare() for base in self.bases]
        repeated = (len(costs) - 1) * text_bytes(self.documents)
        return Cost(
            sum(c.seconds for c in costs),
            costs[0].tokens,
            sum(c.disk_bytes for c in costs) - repeated,
            sum(c.memory_bytes for c in costs),
        )

    def close(self) -> None:
        """Close its bases."""
        for base in self.bases:
            base.close()
