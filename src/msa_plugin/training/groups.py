"""Groups of passages that are easily mistaken for each other, and every question that they answer.

A batch of contrastive training is one group: a few steps are drawn, each brings what it wants and its hard negatives
(by BM25, and the teacher's neighbours of what it wants), and then all other steps whose passages happen to be there ask
too, which costs little: a question has a tenth of a passage's tokens. P passages, Q steps.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from msa_plugin.config import Settings
from msa_plugin.errors import TrainingError
from msa_plugin.prompts import document_text
from msa_plugin.retrieval.bm25 import WordIndex
from msa_plugin.training.data import Corpus

Vectors = NDArray[np.float32]
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_OPENING = 700  # characters of a passage, of which a training sees that many tokens at most
_WORDS = range(5, 41)  # of a sentence that can pass for a question
_NEIGHBOURS = 32  # of which hard negatives are drawn: always the very nearest would be the same few every time


class GroupConfig(Settings):
    """How a group is put together: `passages` in it, brought by `seeds` steps; at most `steps` of them ask.

    `follow_ups` is the share of seeds that are steps after the first. A data set is drawn from in proportion to the
    number of its steps to the power of `evenness` (1: all steps alike, 0: all sets alike).
    `held_out` is the share of questions that are never trained on and serve for evaluation.
    """

    passages: int = Field(default=64, ge=2)
    seeds: int = Field(default=8, ge=1)
    steps: int = Field(default=96, ge=1)
    follow_ups: float = Field(default=0.25, ge=0, le=1)
    evenness: float = Field(default=0.6, ge=0, le=1)
    held_out: float = Field(default=0.02, ge=0, lt=1)


@dataclass(frozen=True)
class Ask:
    """A step by passage numbers: `question` is the number of its question, `found` and `wanted` are passages.

    `made`: the question is a sentence of a passage that nobody asks about, so that only a teacher can judge it.
    """

    corpus: int
    question: int
    found: tuple[int, ...]
    wanted: tuple[int, ...]
    made: bool = False


@dataclass(frozen=True)
class Group:
    """Numbers of the passages [P], the steps that ask [Q], and for each which passages are right, bool [Q, P].

    `absent` bool [Q, P] marks what a step has found already: neither right nor wrong.
    """

    passages: tuple[int, ...]
    asks: tuple[Ask, ...]
    positives: Tensor
    absent: Tensor


@dataclass
class Pool:
    """All passages and questions of some data sets, numbered, with what is needed to find hard negatives.

    `teacher` holds unit vectors of passages [P, W] and of questions [M, W], or None without a teacher.
    """

    texts: list[str]
    questions: list[str]
    asks: list[Ask]
    names: list[str]
    teacher: tuple[Vectors, Vectors] | None = None
    _bm25: Any = None
    _asking: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, corpora: Sequence[Corpus]) -> Pool:
        """Number the passages, and index them for BM25; passages without questions are asked for by a sentence each.

        Raises TrainingError without a step.
        """
        texts: list[str] = []
        questions: dict[str, int] = {}
        asks: list[Ask] = []
        for place, corpus in enumerate(corpora):
            numbers = {id: len(texts) + i for i, id in enumerate(corpus.documents)}
            texts += [document_text(d.title, d.text) for d in corpus.documents.values()]
            if not corpus.steps:
                asks += _made(place, corpus, numbers, questions)
            for step in sorted((s for s in corpus.steps if s.wanted), key=lambda s: (s.question, len(s.found))):
                question = questions.setdefault(step.question, len(questions))
                found, wanted = (tuple(numbers[i] for i in ids) for ids in (step.found, step.wanted))
                asks.append(Ask(place, question, found, wanted))
        if all(ask.made for ask in asks):
            raise TrainingError("no data set has a question with a gold passage; routing has nothing to learn")
        pool = cls(texts, list(questions), asks, [c.name for c in corpora], _bm25=WordIndex(texts).asked)
        for place, ask in enumerate(asks):
            for passage in ask.wanted:
                pool._asking[passage].append(place)
        return pool

    def lexical(self, question: int) -> Vectors:
        """BM25 scores [P] of every passage."""
        scores: Vectors = self._bm25(self.questions[question])
        return scores

    def negatives(self, ask: Ask, count: int, draw: random.Random) -> list[int]:
        """Passages near to the question, or to what it wants, that are not right: drawn from each source in turn."""
        sources = [np.argsort(-self.lexical(ask.question), kind="stable")[:_NEIGHBOURS].tolist()]
        if self.teacher is not None:
            passages, questions = self.teacher
            for vector in (questions[ask.question], passages[draw.choice(ask.wanted)]):
                near = passages @ vector
                best = np.argpartition(-near, min(_NEIGHBOURS, len(near) - 1))[:_NEIGHBOURS]
                sources.append(best[np.argsort(-near[best], kind="stable")].tolist())
        taken: dict[int, None] = {}
        barred = {*ask.wanted, *ask.found}
        rest = [[p for p in source if p not in barred] for source in sources]
        while len(taken) < count and any(rest):
            for source in rest:
                if source and len(taken) < count:
                    taken[source.pop(min(int(draw.expovariate(0.3)), len(source) - 1))] = None
        return list(taken)


def _made(place: int, corpus: Corpus, numbers: dict[str, int], questions: dict[str, int]) -> Iterator[Ask]:
    """A sentence of each passage as a question; the same one every time."""
    for document in corpus.documents.values():
        sentences = [s for s in _SENTENCES.split(document.text[:_OPENING]) if len(s.split()) in _WORDS]
        sentence = random.Random(document.id).choice(sentences or [document.title or document.text[:_OPENING]])
        passage = numbers[document.id]
        yield Ask(place, questions.setdefault(sentence, len(questions)), (), (passage,), made=True)


class Groups:
    """Groups by number: the same seed and number give the same group, on any machine."""

    def __init__(self, pool: Pool, config: GroupConfig, seed: int) -> None:
        """Raises TrainingError when nothing is left to train on."""
        self.pool, self.config, self.seed = pool, config, seed
        order = list(range(len(pool.questions)))
        random.Random(seed).shuffle(order)
        self._held = {*order[: int(len(order) * config.held_out)]}
        self._training = self._by_corpus(held=False)
        if not self._training:
            raise TrainingError("every question is held out; lower `held_out`")

    def training(self, number: int) -> Group:
        """Group `number` of training."""
        return self._group(random.Random(f"{self.seed}/{number}"), self._training, held=False)

    def evaluation(self, count: int) -> Iterator[Group]:
        """`count` groups whose asking steps are held out; empty when nothing is."""
        held = self._by_corpus(held=True)
        for number in range(count if held else 0):
            yield self._group(random.Random(f"{self.seed}/held/{number}"), held, held=True)

    def _by_corpus(self, *, held: bool) -> list[tuple[list[int], list[int]]]:
        """For each data set, places of first steps and of later ones."""
        rows: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for place, ask in enumerate(self.pool.asks):
            if (ask.question in self._held) == held and not (held and ask.made):
                rows[ask.corpus][bool(ask.found)].append(place)
        return [rows[corpus] for corpus in sorted(rows)]

    def _group(self, draw: random.Random, corpora: list[tuple[list[int], list[int]]], *, held: bool) -> Group:
        c, pool = self.config, self.pool
        quota = -(-c.passages // c.seeds)
        passages: dict[int, None] = {}
        asking: dict[int, None] = {}
        for _ in range(c.seeds):
            place = self._seed(draw, corpora)
            ask = pool.asks[place]
            asking[place] = None
            wanted = draw.sample(ask.wanted, min(len(ask.wanted), quota // 2 or 1))
            for passage in [*wanted, *pool.negatives(ask, quota - len(wanted), draw)]:
                passages[passage] = None
        chosen = list(passages)[: c.passages]
        others = [p for passage in chosen for p in pool._asking[passage] if p not in asking]
        others = [p for p in dict.fromkeys(others) if (pool.asks[p].question in self._held) == held]
        others = [p for p in others if not (held and pool.asks[p].made)]
        draw.shuffle(others)
        return self._labelled(chosen, [pool.asks[p] for p in [*asking, *others][: c.steps]])

    def _seed(self, draw: random.Random, corpora: list[tuple[list[int], list[int]]]) -> int:
        later = draw.random() < self.config.follow_ups
        options = [steps[later] for steps in corpora]
        if not any(options):
            options = [steps[not later] for steps in corpora]
        weights = [len(steps) ** self.config.evenness if steps else 0.0 for steps in options]
        return draw.choice(draw.choices(options, weights)[0])

    def _labelled(self, passages: list[int], asks: list[Ask]) -> Group:
        column = {p: i for i, p in enumerate(passages)}
        positives = torch.zeros(len(asks), len(passages), dtype=torch.bool)
        absent = torch.zeros_like(positives)
        for row, ask in enumerate(asks):
            positives[row, [column[p] for p in ask.wanted if p in column]] = True
            absent[row, [column[p] for p in ask.found if p in column]] = True
        kept = positives.any(1)
        return Group(
            tuple(passages), tuple(a for a, k in zip(asks, kept, strict=True) if k), positives[kept], absent[kept]
        )
