"""Which questions are asked when there is no time for all: the same for every system, of every number of hops."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msa_plugin.bench.base import Question


def in_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """A random order of which every beginning has the numbers of hops in about the proportions of the whole."""
    generator = random.Random(seed)
    strata: dict[int, list[Question]] = {}
    for question in questions:
        strata.setdefault(question.hops, []).append(question)
    placed: list[tuple[float, int, Question]] = []
    for hops in sorted(strata):
        stratum = strata[hops]
        generator.shuffle(stratum)
        start = generator.random()  # where in its interval each one is put, so that no stratum always comes first
        placed += [((i + start) / len(stratum), hops, q) for i, q in enumerate(stratum)]
    return [question for _, _, question in sorted(placed, key=lambda p: p[:2])]


@dataclass(frozen=True)
class Pace:
    """What one question of a data set takes, all systems together (seconds), and how many questions there are."""

    seconds: float
    questions: int


def affordable(paces: Mapping[str, Pace], budget: float, *, least: int) -> dict[str, int]:
    """Questions per data set that `budget` seconds are enough for: the same number of each, or all that it has.

    At least `least` of each, those that were already asked to measure the pace.
    """
    most = max((p.questions for p in paces.values()), default=0)
    low, high = min(least, most), most
    while low < high:  # the largest number that fits
        middle = (low + high + 1) // 2
        if sum(p.seconds * min(middle, p.questions) for p in paces.values()) <= budget:
            low = middle
        else:
            high = middle - 1
    return {name: min(low, p.questions) for name, p in paces.items()}
