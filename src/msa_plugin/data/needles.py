"""Needles in haystacks: eight tasks after the needle tasks of RULER (Hsieh et al. 2024), generated here in own words.

A haystack is a set of passages, as memories and retrieval systems hold them; a needle is a sentence in one of them. At
another depth the same needles stand in other passages of the same filler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from msa_plugin.data import needle_text as words
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import ConfigError
from msa_plugin.types import Document

Haystack = Literal["noise", "essay", "distractors", "needles"]
Kind = Literal["word", "number", "uuid"]
CountTokens = Callable[[str], int]
_PER_PASSAGE = 5  # needles in a passage of a haystack made of needles, about 100 words
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_RETRIES = 100


@dataclass(frozen=True)
class Task:
    """What is hidden where: `keys` things are asked for, each holds `values` values; `decoys` things are not asked for.

    A haystack of needles consists of further decoys.
    """

    haystack: Haystack
    key: Kind
    value: Kind
    keys: int = 1
    values: int = 1
    decoys: int = 0


TASKS: dict[str, Task] = {
    "single-1": Task("noise", "word", "word"),
    "single-2": Task("essay", "word", "number"),
    "single-3": Task("distractors", "word", "uuid"),
    "multikey-1": Task("essay", "word", "number", decoys=3),
    "multikey-2": Task("needles", "word", "number"),
    "multikey-3": Task("needles", "uuid", "uuid"),
    "multivalue": Task("essay", "word", "number", values=4),
    "multiquery": Task("essay", "word", "number", keys=4),
}


class NeedleCase(NamedTuple):
    """A haystack of so many tokens with one question; its answers are the values, its positives where they are."""

    dataset: Dataset
    tokens: int


@dataclass
class _Passage:
    """A passage being made: its sentences, and the title that it came with."""

    sentences: list[str]
    title: str = ""

    @property
    def text(self) -> str:
        return " ".join(self.sentences)

    @property
    def whole(self) -> str:
        return f"{self.title}\n{self.text}" if self.title else self.text


def make_task(
    task: str,
    length_tokens: int,
    depth: float,
    seed: int,
    count_tokens: CountTokens,
    filler: Sequence[Document] = (),
) -> NeedleCase:
    """A haystack of at most about `length_tokens` tokens with the needles of `task` at `depth` (0 first, 1 last).

    Needles that are asked for stand in neighbouring passages, decoys anywhere. `filler` replaces generated essays and
    is what "distractors" are; without it these are essays as well. The same arguments give the same case.
    Raises ConfigError for an unknown task, a depth outside [0, 1], a length that the needles do not fit, or too little
    filler.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown needle task {task!r}; there are {', '.join(TASKS)}")
    if not 0 <= depth <= 1:
        raise ConfigError(f"a depth is between 0 and 1, not {depth}")
    chosen = TASKS[task]
    random = Random(f"{seed}/{task}/{length_tokens}")
    asked = words.names(random, chosen.key, chosen.keys + chosen.decoys)
    held = [[words.value(random, chosen.value) for _ in range(chosen.values)] for _ in asked]
    sentences = _sentences(chosen, asked, held)
    room = length_tokens - sum(map(count_tokens, sentences))
    passages = list(_fill(_stream(chosen, random, filler, set(asked)), room, count_tokens, endless=not filler))
    if len(passages) < len(sentences):
        raise ConfigError(
            f"{length_tokens} tokens make {len(passages)} passages, but {task} needs {len(sentences)}; "
            + ("give more filler or a greater length" if filler else "give a greater length")
        )
    held = _unheard(held, chosen, random, " ".join(p.whole for p in passages))
    sentences = _sentences(chosen, asked, held)
    wanted = chosen.keys * chosen.values
    places = _places(len(passages), wanted, len(sentences), depth, random)
    for sentence, place in zip(sentences, places, strict=True):
        into = passages[place].sentences
        into.insert(round(random.random() * len(into)), sentence)
    documents = tuple(Document(f"p{i:06d}", p.text, p.title) for i, p in enumerate(passages))
    question = Question(
        "q0",
        words.question(asked[: chosen.keys], chosen.value, chosen.values),
        tuple(value for values in held[: chosen.keys] for value in values),
        {documents[place].id: 1 for place in places[:wanted]},
        kind=task,
    )
    tokens = sum(count_tokens(p.whole) for p in passages)
    return NeedleCase(Dataset(f"needle-{task}", documents, (question,)), tokens)


def answered(reply: str, expected: Sequence[str]) -> float:
    """The share of the expected values that stand in a reply, whatever their case, hyphens or digit grouping."""
    said = _spoken(reply)
    return sum(re.search(rf"(?<!\w){re.escape(_spoken(v))}(?!\w)", said) is not None for v in expected) / len(expected)


def _spoken(text: str) -> str:
    grouped = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text.lower())
    return " ".join(re.sub(r"[^\w]+", " ", grouped).split())


def _sentences(task: Task, names: Sequence[str], held: Sequence[Sequence[str]]) -> list[str]:
    """Needles, those asked for first."""
    several = task.values > 1
    return [words.needle(n, task.value, v, several=several) for n, vs in zip(names, held, strict=True) for v in vs]


def _stream(task: Task, random: Random, filler: Sequence[Document], taken: set[str]) -> Iterator[_Passage]:
    """Passages without the needles that are asked for."""
    if task.haystack == "needles":
        yield from map(_Passage, _decoys(task, random, taken))
    elif task.haystack == "noise":
        yield from map(_Passage, words.noise(random))
    elif filler:
        start = random.randrange(len(filler))
        for document in (*filler[start:], *filler[:start]):
            yield _Passage(_SENTENCES.split(document.text.strip()), document.title)
    else:
        yield from map(_Passage, words.essays(random))


def _decoys(task: Task, random: Random, taken: set[str]) -> Iterator[list[str]]:
    """Needles that nobody asks for, `_PER_PASSAGE` a passage; they end when there are no more names."""
    known = set(taken)
    while len(known) < words.KEYS // 2:  # past that, drawing new names would take ever longer
        passage: list[str] = []
        while len(passage) < _PER_PASSAGE:
            [name] = words.names(random, task.key, 1)
            if name not in known:
                known.add(name)
                passage.append(words.needle(name, task.value, words.value(random, task.value)))
        yield passage


def _fill(stream: Iterator[_Passage], room: int, count_tokens: CountTokens, *, endless: bool) -> Iterator[_Passage]:
    """Passages while they fit. Raises ConfigError when they run out before."""
    spent = 0
    for passage in stream:
        spent += count_tokens(passage.whole)
        if spent > room:
            return
        yield passage
    raise ConfigError(
        f"there are only {spent:,} tokens of {'needles' if endless else 'filler'} for {room:,}; "
        f"{'use a smaller length' if endless else 'give more distractors or a smaller length'}"
    )


def _unheard(held: list[list[str]], task: Task, random: Random, text: str) -> list[list[str]]:
    """The values, those that are said elsewhere or twice replaced."""
    seen: set[str] = set()
    heard = _spoken(text)

    def fresh(value: str) -> str:
        for _ in range(_RETRIES):
            if value not in seen and _spoken(value) not in heard:
                seen.add(value)
                return value
            value = words.value(random, task.value)
        raise ConfigError("the filler says every value that a needle could hold; use other filler")

    return [[fresh(value) for value in values] for values in held]


def _places(passages: int, asked: int, needles: int, depth: float, random: Random) -> list[int]:
    """Passages for the needles: those asked for next to each other at `depth`, the others anywhere else."""
    first = round(depth * (passages - asked))
    wanted = list(range(first, first + asked))
    rest = [p for p in range(passages) if not first <= p < first + asked]
    return [*wanted, *random.sample(rest, needles - asked)]
