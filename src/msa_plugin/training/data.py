"""From data sets to samples: a chain of n hops becomes n steps, each asking for what the ones before did not find.

Data sets are read as the benchmark reads them (`data.datasets`): a corpus, questions, answers and gold passages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msa_plugin.data.datasets import Dataset, Question, find_datasets
from msa_plugin.errors import IngestError, TrainingError
from msa_plugin.types import Document


@dataclass(frozen=True)
class Hop:
    """One retrieval step: `question` with the passages `found` so far asks for `wanted`; all are passages' ids.

    `answer` is set on the step after the last one, which wants nothing more.
    """

    corpus: str
    question: str
    found: tuple[str, ...]
    wanted: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True)
class Corpus:
    """The passages of one data set by id, and its steps."""

    name: str
    documents: dict[str, Document]
    steps: tuple[Hop, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Ids of the passages, in order."""
        return tuple(self.documents)


def named_sets(folder: Path, sets: Sequence[str] | None) -> dict[str, Path]:
    """The data sets in `folder` (or the one that it is) by name, only those in `sets` where it is given.

    Raises IngestError for what cannot be read and for sets that are missing, naming those there are.
    """
    paths = {path.resolve().name: path for path in find_datasets(folder)}
    if absent := [name for name in sets or () if name not in paths]:
        raise IngestError(f"{folder} lacks the data set {absent[0]!r}; it holds {', '.join(sorted(paths))}")
    return {name: path for name, path in paths.items() if sets is None or name in sets}


def corpus_of(dataset: Dataset, seed: int = 0) -> Corpus:
    """Steps of a data set; its `notes` say which questions it left out, for lack of a gold passage, say."""
    steps = [step for question in dataset.questions for step in steps_of(dataset.name, question)]
    random.Random(seed).shuffle(steps)
    return Corpus(dataset.name, {d.id: d for d in dataset.documents}, tuple(steps), dataset.notes)


def steps_of(corpus: str, question: Question) -> Iterator[Hop]:
    """A step for each hop, its passages in the order in which the data set names them, and one with the answer.

    At every step all passages that are still missing count as right: which comes first often does not matter.
    """
    chain = tuple(question.positives)
    for hop in range(len(chain)):
        yield Hop(corpus, question.text, chain[:hop], chain[hop:])
    if question.answers:
        yield Hop(corpus, question.text, chain, (), question.answers[0])


def batches(
    items: Sequence[tuple[Corpus, Hop]], size: int, seed: int, *, first: int = 0
) -> Iterator[list[tuple[Corpus, Hop]]]:
    """Endless batches, every epoch in an order of its own; `first` is the number of the first batch wanted.

    The same seed gives the same batches, wherever one starts: a resumed training goes on with the next one.
    Raises TrainingError when there are fewer steps than a batch takes.
    """
    if size < 1 or len(items) < size:
        raise TrainingError(f"a batch takes {size} steps and the data hold {len(items)}; make batches smaller")
    each = len(items) // size
    epoch, place = divmod(first, each)
    while True:
        order = random.Random(seed * 1_000_003 + epoch).sample(range(len(items)), len(items))
        for start in range(place * size, each * size, size):
            yield [items[i] for i in order[start : start + size]]
        epoch, place = epoch + 1, 0


def drawn_numbers(count: int, width: int, generator: random.Random) -> list[int]:
    """`count` different document numbers below 10 ** `width`, drawn afresh for every sample.

    A model that sees a document under another number each time learns to copy the number it reads.
    Raises TrainingError when there are not so many numbers.
    """
    if count > 10**width:
        raise TrainingError(f"{count} documents need different numbers of at most {width} digits")
    return generator.sample(range(10**width), count)


def held_apart(
    data: Sequence[Corpus], held_out: int, seed: int
) -> tuple[list[tuple[Corpus, Hop]], list[tuple[Corpus, Hop]]]:
    """Steps to train on, and those of `held_out` questions of each data set: a question's steps stay together."""
    training: list[tuple[Corpus, Hop]] = []
    aside: list[tuple[Corpus, Hop]] = []
    for corpus in data:
        questions = sorted({step.question for step in corpus.steps})
        if held_out >= len(questions) > 0:
            raise TrainingError(
                f"{corpus.name} has {len(questions)} questions; held_out={held_out} leaves none to train on"
            )
        kept = set(random.Random(f"{seed}/{corpus.name}").sample(questions, held_out))
        for step in corpus.steps:
            (aside if step.question in kept else training).append((corpus, step))
    random.Random(seed).shuffle(aside)
    return training, aside
