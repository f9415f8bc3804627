"""Does a memory know what it does not know? See `measuring.absence` for how answers are taken away.

    python tools/bench/absent_answers.py --data data/dev --sets nq,popqa --answers 100

The answer is taken away in two ways: the gold documents (`gold`), and all that hold an accepted answer (`answer`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bench_shell import Row, main, words

from msa_plugin.arguments import answer_settings
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.handle import Selected
from msa_plugin.data.datasets import find_datasets, load_dataset
from msa_plugin.measuring.absence import AbsenceSample, Room, auc
from msa_plugin.measuring.metrics import f1
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer


def measure(
    backbone: Backbone,
    adapter: Any,
    *,
    data: Any,
    sets: Any = None,
    questions: int = 200,
    passages: int = 2000,
    answers: int = 0,
    max_new_tokens: int = 32,
    banks: Any = "absence-banks",
    seed: int = 0,
) -> Iterator[Row]:
    """A row for each data set in the folder `data`, of at most so many `questions` and `passages` (gold ones always).

    `answers` of the questions are answered, each in three ways. Encoded passages stay in `banks` for another time.
    """
    for path in find_datasets(Path(data)):
        if sets is None or path.resolve().name in words(sets):
            sample = AbsenceSample.of(load_dataset(path), questions, passages, seed)
            with LatentMemory.open(Path(banks) / sample.dataset.name, model=backbone, adapter=adapter) as memory:
                yield run(Room(memory, sample), answers=answers, max_new_tokens=max_new_tokens)


def run(room: Room, *, answers: int = 0, **options: Any) -> dict[str, Any]:
    """Relevance of all questions each way, and what is answered to the first `answers` of them.

    `auc` is the chance that a question that can be answered has a higher relevance than one that cannot, `below` the
    share of questions that a memory declines by relevance alone, `says_so` the share that it declines in all. Options
    are those of `LatentMemory.ask`.
    """
    questions = room.sample.dataset.questions
    relevance: dict[str, list[float]] = {}
    said: dict[str, list[bool]] = {}
    scores: list[float] = []
    for number, question in enumerate(questions):
        for way, selection in room.ways(question):
            relevance.setdefault(way, []).append(_best(room.memory, question.text, selection))
            if number < answers:
                answer = _answer(room.memory, question.text, selection, options)
                said.setdefault(way, []).append(answer.abstained)
                if way == "answerable":
                    scores.append(0.0 if answer.abstained else f1(answer.text, question.answers))
    return {
        "set": room.sample.dataset.name,
        "questions": len(questions),
        "passages": len(room.ordinals),
        "auc": {way: auc(relevance["answerable"], found) for way, found in relevance.items() if way != "answerable"},
        "below": {way: _share(value < room.memory.engine.least for value in found) for way, found in relevance.items()},
        "answers": min(answers, len(questions)),
        "says_so": {way: _share(found) for way, found in said.items()},
        "f1": float(np.mean(scores)) if scores else None,
    }


def _best(memory: LatentMemory, question: str, selection: Selected) -> float:
    [row] = memory.engine.rank([question], memory.engine.top_k, selection).rows
    return max((r.relevance for r in row if r.relevance is not None), default=0.0)


def _answer(memory: LatentMemory, question: str, selection: Selected, options: Mapping[str, Any]) -> Answer:
    generation, rounds = answer_settings(memory.config, dict(options))
    events = memory.engine.ask([question], selection, generation, rounds)
    return next(event for _, event in events if isinstance(event, Answer))


def _share(values: Iterable[bool]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else float("nan")


if __name__ == "__main__":
    main(measure)
