"""Layers that select documents for themselves: as a ranking, and as answers that are read in the same forward.

The reference's way (paper section 3.3): routing happens inside the question's prefill, each layer by its own queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msa_plugin import prompts
from msa_plugin.answering.answers import AnswerJob, Events, fetched, found_at_once, portions
from msa_plugin.answering.gathering import read_whole
from msa_plugin.answering.per_layer import LayerRouting, LayerRow, RoutedPass
from msa_plugin.answering.reading import Prefill, Reader
from msa_plugin.answering.text_answers import TextAnswerer
from msa_plugin.bank.handle import Selected
from msa_plugin.config import GenerationConfig, InterleaveConfig, RoutingConfig
from msa_plugin.events import RoundStarted
from msa_plugin.retrieval.assembly import TemplateHead
from msa_plugin.retrieval.interleave import Query, Ranking
from msa_plugin.retrieval.ranking import rank_routed, routed_chunks_of
from msa_plugin.retrieval.retriever import Signals, follow_up

# The rows of questions, those that are to be answered or only ranked.
Rows = Callable[[Sequence[str], bool], list[LayerRow]]


def reader_rows(reader: Reader, longest: int, *, briefly: bool) -> Rows:
    """Questions as a reader asks them, cut to `longest` tokens: a follow-up may hold a long document."""

    def rows(questions: Sequence[str], answering: bool) -> list[LayerRow]:
        parts = [prompts.question_part(q, briefly=briefly and answering) for q in questions]
        asked = [ids[:longest] for ids in reader.backbone.tokenize_batch(parts)]
        tail = reader.tail_ids
        return [LayerRow(ids + tail, [True] * len(ids) + [False] * len(tail)) for ids in asked]

    return rows


@dataclass(frozen=True, eq=False)
class LayerRetriever:
    """Ranks by what the layers of a prefill select, `batch` questions at a time; nothing counts beside the keys."""

    layers: LayerRouting
    rows: Rows
    head: Callable[[], TemplateHead]
    batch: int

    @property
    def signals(self) -> Signals:
        """None."""
        return Signals()

    @property
    def routing(self) -> RoutingConfig:
        """The adapter's."""
        return self.layers.router.config

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest score that a document can have."""
        return self.routing.score_bounds

    def rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int] = ()) -> Ranking:
        """The best `k` documents of each query that `selection` allows; with `also`, all considered and these too."""
        parts = [self._rank(portion, k, selection, also) for _, portion in portions(queries, self.batch)]
        seconds = {stage: sum(part.seconds[stage] for part in parts) for stage in ("encode", "route")}
        return Ranking([r for part in parts for r in part.rows], seconds, [c for part in parts for c in part.chunks])

    def rank_round(self, queries: Sequence[Query], k: int, selection: Selected, weight: float) -> Ranking:
        """The same for a round; `weight` is for vectors that can be added."""
        return self.rank([follow_up(query) for query in queries], k, selection)

    def routed(self, queries: Sequence[str], k: int, selection: Selected, *, answering: bool) -> RoutedPass:
        """The prefill itself; it goes to the end when `answering`."""
        return self.layers.run(self.rows(queries, answering), self.head(), k, selection, answering=answering)

    def _rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int]) -> Ranking:
        run = self.routed(queries, max(k, self.layers.top_k), selection, answering=False)
        ranked = rank_routed(self.layers.bank, self.routing, run.source, run.votes, k, also)
        route = run.source.seconds["route"]
        chunks = routed_chunks_of(self.layers.bank, self.routing, run.source, run.votes)
        return Ranking(ranked, {"encode": run.seconds - route, "route": route}, chunks)


@dataclass(frozen=True, eq=False)
class LayerAnswerer(TextAnswerer):
    """One forward routes and reads; the sources are the documents that any layer read.

    There is one round: further ones are the model's to ask for. Documents that a caller chose are read as by a
    `TextAnswerer`.
    """

    retriever: LayerRetriever

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """See `Answerer`."""
        for row, question in enumerate(questions):
            yield row, RoundStarted(1, question)
        asked, prefill = self.read_while_routing(questions, selection)
        yield from found_at_once(asked)
        yield from fetched(asked)
        yield from self.decoded(asked, prefill, generation, {})

    def read_while_routing(self, questions: Sequence[str], selection: Selected) -> tuple[list[AnswerJob], Prefill]:
        """What each question's layers read, and the prefill that read it."""
        run = self.retriever.routed(questions, self.top_k, selection, answering=True)
        assert run.logits is not None
        config, spent = self.retriever.routing, run.source.seconds
        ranked = rank_routed(self.bank, config, run.source, run.votes, self.top_k * len(config.layers))
        excerpts = self.excerpts()
        asked = [
            read_whole(q, row, excerpts, {"route": spent["route"]}) for q, row in zip(questions, ranked, strict=True)
        ]
        context = tuple(sum(e.stop for e in one.excerpts) for one in asked)
        seconds = {"gather": spent["gather"], "prefill": run.seconds - spent["gather"] - spent["route"]}
        lengths = tuple((run.votes.sum(1) + len(self.reader.tail_ids)).tolist())
        logits, head = run.logits[:, -1], self.reader.head.length
        return asked, Prefill(run.state, logits, run.positions, lengths, context, seconds, head)
