"""Answers from what rounds of retrieval find: rank, read the best passages, decode.

What was found is read as text or as stored K, V, whichever the memory was opened for.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from msa_plugin.answering.abstaining import among, declined, parted, prefilled, told
from msa_plugin.answering.answers import AnswerJob, Events, answering, fetched
from msa_plugin.answering.excerpts import Excerpts
from msa_plugin.answering.gathering import chosen, to_read
from msa_plugin.answering.reading import Prefill, Reader
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.config import GenerationConfig, InterleaveConfig, RelevanceConfig
from msa_plugin.events import RetrievalEnded, RetrievalEvent
from msa_plugin.retrieval.interleave import Query, Ranking, interleave_steps
from msa_plugin.retrieval.passages import Passages
from msa_plugin.retrieval.ranking import ChunkScores
from msa_plugin.retrieval.retriever import Retriever


class Answerer(Protocol):
    """Answers batches: yields (row, event), (row, text piece) while decoding, and (row, Answer) at the end."""

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """From what `selection` allows."""

    def ask_from(
        self,
        questions: Sequence[str],
        ordinals: Sequence[Sequence[int]],
        selection: Selected,
        generation: GenerationConfig,
    ) -> Events:
        """From documents that the caller chose, best first, which `selection` allows."""


@dataclass(frozen=True, eq=False)
class TextAnswerer:
    """Finds by a `Retriever`, in rounds, and then reads by a `Reader`."""

    retriever: Retriever
    reader: Reader
    bank: BankHandle
    passages: Passages
    relevance: RelevanceConfig | None
    abilities: tuple[str, ...]
    top_k: int
    context_tokens: int
    reads: int | None  # documents, where the settings do not say it; None: all that fit
    least: float  # relevance below which the memory does not say it
    may_abstain: bool  # the reader was asked to say when the answer is not there

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """See `Answerer`; nothing is read for those that find nothing relevant."""
        asked = yield from self.gathering(questions, selection, rounds)
        rows, silent = parted(asked, self.least)
        yield from declined(asked, silent, self.reader.mode, self.abilities, self.retriever.signals.weights)
        if asked := [asked[row] for row in rows]:
            yield from among(rows, self._answers(asked, generation, self.retriever.signals.weights))

    def ask_from(
        self,
        questions: Sequence[str],
        ordinals: Sequence[Sequence[int]],
        selection: Selected,
        generation: GenerationConfig,
    ) -> Events:
        """See `Answerer`; routing says where long documents are cut."""
        asked = self.given(questions, ordinals, selection)
        for row in range(len(asked)):
            yield row, RetrievalEnded(0, "given")
        yield from self._answers(asked, generation, {})

    def given(
        self, questions: Sequence[str], ordinals: Sequence[Sequence[int]], selection: Selected
    ) -> list[AnswerJob]:
        """What of the chosen documents is read: something of each."""
        excerpts, asked = self.excerpts(), []
        for one in chosen(self.retriever, questions, ordinals, selection):
            read = to_read(one.gathered, excerpts, one.chunks, self.context_tokens, each=True)
            asked.append(replace(read, seconds=one.seconds))
        return asked

    def gathering(
        self, questions: Sequence[str], selection: Selected, rounds: InterleaveConfig
    ) -> Generator[tuple[int, RetrievalEvent], None, list[AnswerJob]]:
        """Run the rounds of routing and fit what was found to the context budget."""
        excerpts, chunks = self.excerpts(), list[ChunkScores]()

        def rank(queries: Sequence[Query], k: int) -> Ranking:
            ranking = self.retriever.rank_round(queries, k, selection, rounds.follow_weight)
            chunks.extend(ranking.chunks)  # the first round's are those of the questions, in order
            return ranking

        reads = rounds.reads or self.reads
        rounds = rounds.model_copy(update={"reads": reads})
        gathered = yield from interleave_steps(questions, rank, excerpts.pieces, self.top_k, rounds, self.least)
        return [to_read(g, excerpts, chunks[row], self.context_tokens, reads=reads) for row, g in enumerate(gathered)]

    def excerpts(self) -> Excerpts:
        """For one call."""
        return Excerpts(self.reader.backbone, self.bank, self.passages)

    def _answers(self, asked: Sequence[AnswerJob], generation: GenerationConfig, weights: dict[str, float]) -> Events:
        yield from fetched(asked)
        yield from self.decoded(asked, prefilled(self.reader, asked, self.relevance), generation, weights)

    def decoded(
        self, asked: Sequence[AnswerJob], prefill: Prefill, generation: GenerationConfig, weights: dict[str, float]
    ) -> Events:
        """Answers after a prefill that has read for them."""
        reader = self.reader
        answers = answering(reader.backbone, asked, prefill, generation, reader.mode, self.abilities, weights)
        return told(answers, asked, may_abstain=self.may_abstain)
