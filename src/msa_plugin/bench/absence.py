"""Does a memory know what it does not know? See `measuring.absence` for how answers are taken away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from msa_plugin.arguments import answer_settings
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.handle import Selected
from msa_plugin.bench.base import OnStep
from msa_plugin.bench.case import ModelCase, Row, Words, option
from msa_plugin.data.datasets import find_datasets, load_dataset
from msa_plugin.measuring.absence import AbsenceSample, Room, auc
from msa_plugin.measuring.metrics import f1
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Answer


class Absence(ModelCase):
    """The answer is taken away in two ways: the gold documents (gold), and all that hold an accepted answer (answer).

    Example: msa bench absence --data data/dev --sets nq,popqa --answers 100
    """

    columns: ClassVar = {
        "set": "{set}",
        "questions": "{questions}",
        "AUC gold": "{auc[gold]:.2f}",
        "answer": "{auc[answer]:.2f}",
        "by relevance: gold": "{below[gold]:.2f}",
        "answer ": "{below[answer]:.2f}",
        "wrongly": "{below[answerable]:.2f}",
        "says so: gold": "{says_so[gold]:.2f}",
        "answer  ": "{says_so[answer]:.2f}",
        "wrongly ": "{says_so[answerable]:.2f}",
        "F1": "{f1:.2f}",
    }
    notes = ("gold: its documents taken away; answer: all that hold one; wrongly: nothing taken away",)
    streams = True
    data: Path = option(..., "A data set, or a folder of them.", "--data", "-d")
    sets: Words = option(None, "Only these data sets, separated by commas.")
    questions: int = option(200, "Questions of each data set, at most.", ge=1)
    passages: int = option(2000, "Passages of each data set, at most; gold ones always.", ge=1)
    answers: int = option(0, "How many of the questions are answered, each in three ways.", ge=0)
    max_new_tokens: int = option(32, "At most this many tokens of answer.", ge=1)
    banks: Path = option("absence-banks", "Where the encoded passages are kept for another time.")
    seed: int = option(0, "Which questions and passages.", ge=0)

    def measure(self, backbone: Backbone, adapter: Adapter | Path | None) -> Iterator[Row]:
        """A row for each data set."""
        for path in find_datasets(self.data):
            if self.sets is None or path.resolve().name in self.sets:
                sample = AbsenceSample.of(load_dataset(path), self.questions, self.passages, self.seed)
                bank = self.banks / sample.dataset.name
                with LatentMemory.open(bank, model=backbone, adapter=adapter) as memory:
                    room = Room(memory, sample)
                    yield run(room, answers=self.answers, max_new_tokens=self.max_new_tokens)


def run(
    room: Room, *, answers: int = 0, on_step: OnStep = lambda what, done, total: None, **options: Any
) -> dict[str, Any]:
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
        on_step(room.sample.dataset.name, number, len(questions))
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
