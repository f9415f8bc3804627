"""What the head-to-head benchmark is made of: data sets, and systems that find and answer.

A data set goes through every system by the same road: `prepare` indexes the corpus, `find` ranks passages for
questions, and `answer` reads some of them with the one backbone, prompt and token budget that all systems share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from msa_plugin.bench.result import Scored
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.engine.engine import Engine
from msa_plugin.memory import LatentMemory
from msa_plugin.prompts import document_text
from msa_plugin.types import Answer


@dataclass(frozen=True)
class Found:
    """What a system found for one question: passages best first, seconds by stage, and the queries of each round.

    `rounds` are the seconds of each round, which `seconds` sums up; none for a system that has a single one.
    """

    ranking: tuple[Scored, ...]
    seconds: Mapping[str, float]
    queries: tuple[str, ...] = ()
    rounds: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Reply:
    """An answer: its text, the ids read for it (best first), seconds by stage, and what the model read and wrote.

    `abstained` says that no answer was given, because none is there.
    """

    text: str
    read: tuple[str, ...]
    seconds: Mapping[str, float]
    input_tokens: int
    output_tokens: int
    rounds: int = 1
    abstained: bool = False

    @classmethod
    def of(cls, answer: Answer) -> Reply:
        """What a memory's answer says; one that was given its documents counts as one round."""
        trace = answer.trace
        read, seconds = tuple(source.id for source in answer.sources), dict(trace.seconds)
        rounds, abstained = max(1, len(trace.rounds)), bool(getattr(answer, "abstained", False))
        return cls(answer.text, read, seconds, trace.input_tokens, trace.output_tokens, rounds, abstained)


@dataclass(frozen=True)
class Cost:
    """What indexing a corpus took: seconds, tokens seen, bytes kept on disk and needed in memory to search."""

    seconds: float
    tokens: int
    disk_bytes: int
    memory_bytes: int


@runtime_checkable
class System(Protocol):
    """One way to find passages. `name` is what the command line called it."""

    name: str

    def prepare(self) -> Cost:
        """Index the workspace's corpus, from its cache where it can; called once, before `find`."""

    def find(self, questions: Sequence[str], k: int) -> list[Found]:
        """The best `k` passages of each question; fewer when there are fewer."""

    def close(self) -> None:
        """Release what `prepare` took."""


@runtime_checkable
class Answers(Protocol):
    """A system that chooses for itself what to read (MSA's adaptive choice, closed book, full context)."""

    name: str

    def answer(self, questions: Sequence[str]) -> list[Reply]:
        """Answer each question; systems that only find are answered for by `Workspace.read`."""


def find_others(system: System, questions: Sequence[Question], k: int) -> list[Found]:
    """The best `k` passages of each question, without the question itself, which BEIR's evaluation leaves out too."""
    found = system.find([q.text for q in questions], k + any(q.itself for q in questions))
    rankings = [
        [hit for hit in one.ranking if not (q.itself and hit.id == q.id)][:k]
        for q, one in zip(questions, found, strict=True)
    ]
    return [replace(one, ranking=tuple(ranking)) for one, ranking in zip(found, rankings, strict=True)]


OnStep = Callable[[str, int, int], None]  # what is being done, done so far, of how many


@dataclass
class Workspace:
    """What the systems of one run share: the data set, the memory that holds its corpus, and a folder for caches.

    All systems that answer read through `memory`, so that backbone, prompt, token budget and decoding are the same.
    `fill` adds to `opened` what it lacks of `dataset`, and returns the seconds that encoding the corpus took, whenever
    that was; None for one that holds it already. `cache` keeps things by content, for any number of workspaces.
    `generation` are options of `LatentMemory.ask` for every answer.
    """

    dataset: Dataset
    opened: LatentMemory
    cache: Path
    generation: Mapping[str, Any] = field(default_factory=dict)
    on_step: OnStep = lambda what, done, total: None
    fill: Callable[[], float] | None = None

    @property
    def memory(self) -> LatentMemory:
        """The memory with every document of `dataset`, which are encoded when first needed. Raises as `fill`."""
        _ = self.encoding_seconds
        return self.opened

    @cached_property
    def encoding_seconds(self) -> float:
        """What encoding the corpus took; 0 for a memory that came with its documents."""
        return 0.0 if self.fill is None else self.fill()

    @property
    def engine(self) -> Engine:
        """Backbone, encoder and settings, for systems that need no document encoded."""
        return self.opened.engine

    @cached_property
    def tokens(self) -> int:
        """Tokens of the corpus as the encoder reads it."""
        texts = [document_text(d.title, d.text) for d in self.dataset.documents]
        return sum(map(len, self.engine.backbone.tokenize_batch(texts))) if texts else 0

    def read(self, questions: Sequence[str], passages: Sequence[Sequence[str]]) -> list[Reply]:
        """Answer each question from the passages found for it, best first; none of them means closed book."""
        rows = [list(ids) for ids in passages]
        return [Reply.of(a) for a in self.memory.ask(list(questions), documents=rows, **self.generation)]
