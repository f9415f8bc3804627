"""One question under generative interleave, as a state machine: it says what to feed next and is told what came out.

It holds no tensor but the one it is given, and runs no model, so questions can be stepped together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from torch import Tensor

from msa_plugin.answering.decoding import TextStream, TokenSampler
from msa_plugin.answering.generative.constraint import IdList
from msa_plugin.answering.generative.ids import IdCandidates, Library
from msa_plugin.answering.generative.prompt_codec import Transcript
from msa_plugin.answering.per_layer import LayerRow, RowRouting
from msa_plugin.config import InterleaveConfig
from msa_plugin.events import DocumentsChosen, DocumentsFetched, EndReason, RetrievalEnded, RetrievalEvent, RoundStarted
from msa_plugin.retrieval.ranking import Ranked
from msa_plugin.types import Round, Source

Step = str | RetrievalEvent


class IdPhase(Enum):
    """What a question needs next: a prefill, a token of its list of ids, or of its answer; or nothing."""

    PREFILL = auto()
    CHOOSING = auto()
    ANSWERING = auto()
    DONE = auto()


@dataclass(eq=False)
class Conversation:
    """A question on its way to an answer; `budget` is the tokens of documents that its prompt may still take."""

    row: int
    transcript: Transcript
    documents: Library
    stream: TextStream
    sampler: TokenSampler
    rounds_allowed: InterleaveConfig
    max_new_tokens: int
    budget: int
    phase: IdPhase = IdPhase.PREFILL
    final: bool = False  # the next prefill ends where the answer begins
    pending: list[int] = field(default_factory=list)
    position: int = 0
    known: dict[int, int] = field(default_factory=dict)  # ordinals fetched, with the numbers they were named by
    sources: list[Source] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ended: EndReason | None = None
    prompt_tokens: int = 0
    written: int = 0
    routed: RowRouting | None = None
    _list: IdList | None = None
    _candidates: IdCandidates | None = None
    _round_began: dict[str, float] = field(default_factory=dict)

    def prompt(self) -> LayerRow:
        """The row to prefill."""
        return self.transcript.row(answering=self.final)

    def begin(self) -> Iterator[Step]:
        """Before a prefill: a round starts, unless it is the one for the answer."""
        if not self.final:
            self._round_began = dict(self.seconds)
            number = len(self.rounds) + 1
            fetched = f" + {len(self.transcript.rounds[-1][0])} documents" if self.transcript.rounds else ""
            yield RoundStarted(number, self.transcript.question + fetched)

    def prefilled(self, routed: RowRouting | None, position: int, tokens: int) -> None:
        """After a prefill of `tokens`: what it routed to, and the position of the next token."""
        self.routed, self.position, self.prompt_tokens = routed, position, tokens
        self.phase = IdPhase.ANSWERING if self.final else IdPhase.CHOOSING
        if self.final:
            return
        assert routed is not None
        self._candidates = self.documents.ids.candidates([r.ordinal for r in routed.ranked], self.known)
        vocabulary = self.transcript.codec.numbers
        self._list = IdList(vocabulary, self._candidates.numbers, self.rounds_allowed.ids_per_round)

    def fed(self) -> None:
        """The pending tokens were fed to the model."""
        self.position += len(self.pending)
        self.pending = []

    def take(self, logits: Tensor) -> Iterator[Step]:
        """The logits [V] behind the last token fed: choose the next one."""
        if self.phase is IdPhase.CHOOSING:
            yield from self._choose(logits)
        elif self.phase is IdPhase.ANSWERING:
            yield from self._answer(logits)

    def _choose(self, logits: Tensor) -> Iterator[Step]:
        assert self._list is not None
        codec, allowed = self.transcript.codec, self._list.allowed()
        if self._list.between:
            allowed.append(codec.list_end)
            if not self._list.chosen:
                allowed.append(codec.retrieved[0])
        token = allowed[int(logits[allowed].argmax())]
        self.written += 1
        if token == codec.retrieved[0] and token not in codec.numbers.tokens:
            yield from self._end_of_round([], "model")
        elif token == codec.list_end:
            yield from self._end_of_round(self._list.chosen, "empty")
        else:
            self._list.take(token)
            self.pending = [token]

    def _end_of_round(self, numbers: Sequence[int], without: EndReason) -> Iterator[Step]:
        assert self._candidates is not None and self.routed is not None
        named = {self._candidates.ordinal(n): n for n in numbers}
        scored = self.routed.score(list(named))
        number = len(self.rounds) + 1
        ids, scores = tuple(self.documents.name([r.ordinal for r in scored])), tuple(r.score for r in scored)
        spent = {k: v - self._round_began.get(k, 0.0) for k, v in self.seconds.items()}
        self.rounds.append(Round(self.transcript.question, ids, scores, spent))
        yield DocumentsChosen(number, ids, scores)
        new = [r for r in scored if r.ordinal not in self.known]
        if not numbers:
            # Nothing was written since the prefill, so the answer can begin right there.
            yield self._end(without)
            self.pending = self.transcript.codec.answer_start(self.transcript.question)
            self.prompt_tokens += len(self.pending)
            self.phase = IdPhase.ANSWERING
        elif not new:
            yield self._end("repeated")
            self._conclude()
        else:
            yield from self._fetch(new, named, number)

    def _fetch(self, new: Sequence[Ranked], named: dict[int, int], number: int) -> Iterator[Step]:
        sources, texts, tokens = self.documents.fetch(new, self.budget, number)
        self.budget -= tokens
        if not texts:
            yield self._end("budget")
            self._conclude()
            return
        self.sources += sources
        self.known |= {o: named[o] for o in texts}
        self.transcript.add({n: texts[o] for o, n in named.items() if o in texts})
        yield DocumentsFetched(number, tuple(sources))
        self.phase = IdPhase.PREFILL
        if number >= self.rounds_allowed.generated_rounds:
            yield self._end("rounds")
            self.final = True

    def _end(self, reason: EndReason) -> RetrievalEnded:
        self.ended = reason
        return RetrievalEnded(len(self.rounds), reason)

    def _conclude(self) -> None:
        """Answer from what is known: the list that led nowhere is left out of the transcript."""
        self.final, self.phase = True, IdPhase.PREFILL

    def _answer(self, logits: Tensor) -> Iterator[Step]:
        token = self.sampler.pick(logits[None])[0]
        self.written += 1
        if token in self.transcript.codec.answer_ends:
            piece = self.stream.end("stop")
        else:
            piece = self.stream.push(token)
            self.pending = [token]
            if self.stream.tokens >= self.max_new_tokens:
                piece += self.stream.end("length")
        if self.stream.finish:
            self.phase = IdPhase.DONE
        if piece:
            yield piece

    def spend(self, stage: str, seconds: float) -> None:
        """Note this question's share of a forward."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
