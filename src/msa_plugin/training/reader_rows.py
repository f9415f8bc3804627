"""Rows that teach reading: a question, passages with the answer among others or without it, and what is to be said.

A row looks like what `ask` puts into a prompt: several cut passages, some of them from the same article as the right
one, some merely similar, sometimes dressed as a manual would print them. In a share of the rows the passage that holds
the answer is left out, so that the model learns to say so.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import Field, model_validator

from msa_plugin import prompts
from msa_plugin.config import Settings
from msa_plugin.errors import TrainingError
from msa_plugin.training.data import Corpus, Hop
from msa_plugin.training.dressing import SENTENCE, CutPassage, dressed
from msa_plugin.training.identifiers import coded
from msa_plugin.training.samples import LexicalNegatives

_CLAIMS = {"SUPPORTS": "yes", "REFUTES": "no"}
_ASKED = ("Is it true? {}", "Is this right: {}", "True or not: {}", "Does this hold? {}")


class RowConfig(Settings):
    """What rows hold. Words are those between blanks; a word has about 1.4 tokens.

    `mix` is the share of each data set (None: in proportion to their questions). `others` are the odds of 0, 1, 2, ...
    passages beside those that the answer needs; `words` bounds a passage, `most_words` all of them together. A share
    `absent` of the rows lacks the passage with the answer, in a share `coded` of the others the answer is replaced by a
    name as programs use it, a share `dressed` is made to look like a manual, a web page or a listing, and a share
    `plain` of the questions is written without capitals and question mark.
    """

    mix: Mapping[str, float] | None = None
    others: tuple[float, ...] = (0.3, 0.25, 0.22, 0.15, 0.08)
    words: tuple[int, int] = (30, 110)
    most_words: int = Field(default=360, gt=0)
    absent: float = Field(default=0.16, ge=0, lt=1)
    coded: float = Field(default=0.3, ge=0, le=1)
    dressed: float = Field(default=0.4, ge=0, le=1)
    plain: float = Field(default=0.12, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> RowConfig:
        if not 0 < self.words[0] <= self.words[1]:
            raise ValueError("words must be the least and the most words of a passage, at least one")
        if not self.others or min(self.others) < 0 or sum(self.others) <= 0:
            raise ValueError("others must be odds, not all of them zero")
        if self.mix is not None and (not self.mix or min(self.mix.values()) < 0 or sum(self.mix.values()) <= 0):
            raise ValueError("mix must be shares of data sets, not all of them zero")
        return self


@dataclass(frozen=True)
class ReaderRow:
    """Passages in the order in which they are read, the question, and what is to be answered."""

    passages: tuple[str, ...]
    question: str
    answer: str

    @property
    def absent(self) -> bool:
        """Whether the passages do not hold the answer."""
        return self.answer == prompts.ABSENT


class RowBuilder:
    """Makes rows of steps with answers."""

    def __init__(self, data: Sequence[Corpus], config: RowConfig) -> None:
        """Indexes every corpus by words, to find passages that look right."""
        self.config = config
        self._mine = LexicalNegatives(data)
        self._siblings: dict[str, dict[str, list[str]]] = {}
        for corpus in data:
            titled: dict[str, list[str]] = defaultdict(list)
            for name, document in corpus.documents.items():
                if document.title:
                    titled[document.title].append(name)
            self._siblings[corpus.name] = titled

    def drawn(self, steps: Sequence[tuple[Corpus, Hop]], count: int, draw: random.Random) -> list[ReaderRow]:
        """`count` rows of `steps`, each data set with its share of the mix.

        Raises TrainingError for a mix that names none of the data sets.
        """
        by_set: dict[str, list[tuple[Corpus, Hop]]] = defaultdict(list)
        for corpus, step in steps:
            by_set[corpus.name].append((corpus, step))
        names = sorted(by_set)
        mix = self.config.mix
        shares = [float(len(by_set[n])) if mix is None else mix.get(n, 0.0) for n in names]
        if sum(shares) <= 0:
            raise TrainingError(f"mix: none of {', '.join(names)} has a share")
        return [self.row(*draw.choice(by_set[name]), draw) for name in draw.choices(names, shares, k=count)]

    def row(self, corpus: Corpus, step: Hop, draw: random.Random) -> ReaderRow:
        """A row for a step that has an answer. Raises TrainingError for passages that the corpus lacks."""
        if absent := [name for name in step.found if name not in corpus.documents]:
            raise TrainingError(f"{corpus.name}: {step.question!r} needs {absent[0]!r}, which its corpus lacks")
        question, answer = self._exchange(step, draw)
        without = draw.random() < self.config.absent
        needed = self._without(corpus, step, draw) if without else list(step.found)
        wanted = draw.choices(range(len(self.config.others)), self.config.others)[0]
        others = self._others(corpus, step, max(wanted, int(without)), draw, without=without)
        passages = self._cut(corpus, needed, others, step.answer, draw)
        if not without and answer == step.answer.strip() and draw.random() < self.config.coded:
            passages, answer = coded(passages, question, answer, draw) or (passages, answer)
        if draw.random() < self.config.dressed:
            passages = dressed(passages, answer, draw)
        texts = tuple(prompts.passage_text(p.title, p.heading, p.text) for p in passages)
        return ReaderRow(texts, question, prompts.ABSENT if without else answer)

    def _exchange(self, step: Hop, draw: random.Random) -> tuple[str, str]:
        question, answer = step.question.strip(), step.answer.strip()
        if answer in _CLAIMS:  # a claim is no question: it becomes one
            return draw.choice(_ASKED).format(question), _CLAIMS[answer]
        if draw.random() < self.config.plain:
            question = question.lower().rstrip("?").rstrip()
        return question, answer

    def _without(self, corpus: Corpus, step: Hop, draw: random.Random) -> list[str]:
        """What is left of the right passages when those with the answer are gone, or one of them where none has it."""
        kept = [name for name in step.found if not _holds(corpus.documents[name].text, step.answer)]
        if len(kept) == len(step.found):
            kept.remove(draw.choice(kept))
        return kept

    def _others(self, corpus: Corpus, step: Hop, count: int, draw: random.Random, *, without: bool) -> list[str]:
        """Passages that the answer does not need: from the same article, similar ones, and any."""
        gold = {corpus.documents[name].content_hash for name in step.found}
        found: list[str] = []
        for name in self._candidates(corpus, step, draw, near=0.8 if without else 0.55):
            if len(found) == count:
                break
            document = corpus.documents[name]
            told = without and _holds(document.text, step.answer)
            if name not in found and document.content_hash not in gold and not told:
                found.append(name)
        return found

    def _candidates(self, corpus: Corpus, step: Hop, draw: random.Random, near: float) -> Iterator[str]:
        mined = list(self._mine(corpus, replace(step, found=())))
        titles = [corpus.documents[name].title for name in step.found]
        siblings = [n for t in titles if t for n in self._siblings[corpus.name][t]]
        draw.shuffle(siblings)
        if draw.random() < 0.5:  # otherwise from best to worst
            draw.shuffle(mined)
        for _ in range(200):
            kind = draw.random()
            if kind < near and mined:
                yield mined.pop(0)
            elif kind < 0.85 and siblings:
                yield siblings.pop()
            else:
                yield corpus.names[draw.randrange(len(corpus.names))]

    def _cut(
        self, corpus: Corpus, needed: Sequence[str], others: Sequence[str], answer: str, draw: random.Random
    ) -> list[CutPassage]:
        """All passages in random order, each cut at sentence ends; needed ones keep the sentence with the answer."""
        found: list[CutPassage] = []
        room = self.config.most_words
        for name in (*needed, *others):
            document, size = corpus.documents[name], draw.randint(*self.config.words)
            if room < self.config.words[0] and found:
                break
            text = cut(document.text, min(size, max(room, self.config.words[0])), answer, draw)
            room -= len(text.split())
            found.append(CutPassage(document.title, "", text))
        draw.shuffle(found)
        return found


def cut(text: str, words: int, answer: str, draw: random.Random) -> str:
    """A run of sentences of about `words` words, with `answer` in it where the text holds it."""
    sentences = [part for s in SENTENCE.split(text) for part in _pieces(s, words)]
    lengths = [len(s.split()) for s in sentences]
    holding = [i for i, s in enumerate(sentences) if _holds(s, answer)]
    if sum(lengths) <= words or (not holding and _holds(text, answer)):
        return text
    first = last = draw.choice(holding) if holding else draw.randrange(len(sentences))
    total = lengths[first]
    while total < words:
        left, right = first > 0, last + 1 < len(sentences)
        if left and (not right or draw.random() < 0.5):
            first -= 1
            total += lengths[first]
        elif right:
            last += 1
            total += lengths[last]
        else:
            break
    return " ".join(sentences[first : last + 1])


def _pieces(sentence: str, words: int) -> list[str]:
    """The sentence, or parts of at most `words` words of one that is none: a table, a listing, a page without stops."""
    found = sentence.split()
    if len(found) <= words:
        return [sentence]
    return [" ".join(found[at : at + words]) for at in range(0, len(found), words)]


def _holds(text: str, answer: str) -> bool:
    return " ".join(answer.lower().split()) in " ".join(text.lower().split())
