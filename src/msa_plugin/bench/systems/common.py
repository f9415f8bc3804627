"""What the systems have in common: settings, stable order, shares of a batch's time, and what an index costs.

Ties are broken by the order of the corpus, so that a system says the same on every run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from msa_plugin.bench.base import Cost, Found, Scored
from msa_plugin.errors import ConfigError
from msa_plugin.prompts import document_text
from msa_plugin.types import Document

Seconds: TypeAlias = dict[str, float]


@dataclass(frozen=True)
class Options:
    """Settings that names do not carry.

    `prefilter` is `faiss:...` or `coarse:...` for MSA's router (None: exact), `lexical` its weight of BM25, `titles`
    and `mentions` those of names. `rounds` bound iterative systems, which keep `per_round` new passages a round and
    append the best `follow` of them to the next query; MSA's rounds follow the memory's own settings. `rerank_depth`
    passages are reranked. `fusion_k` and `fusion_depth` are of reciprocal rank fusion.
    """

    prefilter: str | None = None
    lexical: float = 0.0
    titles: float = 0.0
    mentions: float = 0.0
    rounds: int = 2
    per_round: int = 3
    follow: int = 1
    rerank_depth: int = 20
    fusion_k: int = 60
    fusion_depth: int = 100

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers below 1."""
        numbers = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        if wrong := [name for name, value in numbers.items() if value < 1]:
            raise ConfigError(f"{', '.join(wrong)} must be at least 1")


@dataclass(frozen=True)
class FoundInRounds(Found):
    """What a system with several rounds found; `rounds` are the seconds of each by stage, which `seconds` sums up."""

    rounds: tuple[Mapping[str, float], ...] = field(default=())


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


def total_cost(costs: Sequence[Cost], documents: Sequence[Document], tokens: int) -> Cost:
    """Several indexes over one corpus of `tokens` tokens, whose texts are kept once."""
    repeated = (len(costs) - 1) * text_bytes(documents)
    return Cost(
        sum(c.seconds for c in costs),
        tokens,
        sum(c.disk_bytes for c in costs) - repeated,
        sum(c.memory_bytes for c in costs),
    )
