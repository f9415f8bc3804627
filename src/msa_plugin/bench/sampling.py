"""Which questions are asked, and over which passages, when there is no time for all: the same for every system."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, TypeAlias

import numpy as np

from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.prompts import document_text
from msa_plugin.retrieval.bm25 import WordIndex

Others: TypeAlias = Literal["even", "hard"]  # which passages a small corpus has beside those that answer


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


def thinned(dataset: Dataset, asked: Sequence[Question], passages: int, seed: int, others: Others = "even") -> Dataset:
    """The data set with `asked` as its questions over a smaller corpus, whose size joins the name; a note says so.

    All passages that answer stay, however many they are. Others are drawn until there are `passages`: evenly, or
    "hard", which are the best of BM25 for the questions, in turns.
    """
    gold = {i for question in asked for i in question.positives}
    rest = [d.id for d in dataset.documents if d.id not in gold]
    room = min(len(rest), max(0, passages - len(gold)))
    drawn = set(random.Random(seed).sample(rest, room) if others == "even" else _hard(dataset, asked, gold, room))
    corpus = tuple(d for d in dataset.documents if d.id in gold or d.id in drawn)
    name = f"{dataset.name}-of-{passages}" if passages else f"{dataset.name}-gold"
    name += "-hard" if others == "hard" and drawn else ""
    how = (
        f"drawn with seed {seed}, among which they are found more easily"
        if others == "even"
        else ("that BM25 ranks best for the questions: as hard as all for BM25, easier for whoever errs elsewhere")
    )
    note = (
        f"{len(asked)} of {len(dataset.questions)} questions over {len(corpus)} of {len(dataset.documents)} passages: "
        f"the {len(gold)} that answer them" + (f" and {len(drawn)} others {how}" if drawn else "")
    )
    return Dataset(name, corpus, tuple(asked), (*dataset.notes, note))


def _hard(dataset: Dataset, asked: Sequence[Question], gold: Collection[str], count: int) -> Iterator[str]:
    """Ids of `count` passages without an answer: each question's best by BM25, then each one's second best, ..."""
    index = WordIndex([document_text(d.title, d.text) for d in dataset.documents])
    orders = [np.argsort(-index.asked(question.text), kind="stable") for question in asked]
    ids = (dataset.documents[place].id for column in zip(*orders, strict=True) for place in column)
    return islice((i for i in dict.fromkeys(ids) if i not in gold), count)


def affordable(paces: Mapping[str, tuple[float, int]], budget: float, *, least: int) -> dict[str, int]:
    """Questions per data set that `budget` seconds are enough for: the same number of each, or all that it has.

    `paces` are the seconds that one question takes, all systems together, and how many questions there are. At least
    `least` are asked of each, those that were already asked to measure the pace.
    """
    most = max((questions for _, questions in paces.values()), default=0)
    low, high = min(least, most), most
    while low < high:  # the largest number that fits
        middle = (low + high + 1) // 2
        if sum(pace * min(middle, questions) for pace, questions in paces.values()) <= budget:
            low = middle
        else:
            high = middle - 1
    return {name: min(low, questions) for name, (_, questions) in paces.items()}
