"""The engine: one backbone, one adapter, one bank. Documents in, rankings and answers out.

A question reads as a straight line: interleave -> rank (backbone, router, scorer) -> excerpts -> prefill -> decode.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.answering.abstaining import among, declined, parted, prefilled, told
from msa_plugin.answering.answers import AnswerJob, Events, answering, fetched, found_at_once, in_turn, portions
from msa_plugin.answering.excerpts import Excerpts
from msa_plugin.answering.gathering import hits, read_whole, to_read
from msa_plugin.answering.generative.generative import Generative
from msa_plugin.answering.per_layer import LayerRouting, LayerRow, RoutedPass
from msa_plugin.answering.reading import Prefill, Reader
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.handle import BankHandle, Selected
from msa_plugin.bank.tiers import Tiers
from msa_plugin.config import BesideConfig, GenerationConfig, InterleaveConfig, MemoryConfig
from msa_plugin.encoding.encoder import Encoder
from msa_plugin.encoding.numbering import Numbering
from msa_plugin.engine.setup import (
    WHOLE_DOCUMENTS,
    batch_tokens,
    beside_keys,
    check_question,
    content_config,
    context_tokens,
    decoding_weights,
    documents_read,
    least_relevance,
    reading_mode,
    reads_updated,
    trained_reader,
)
from msa_plugin.errors import AdapterError, InvalidQueryError
from msa_plugin.events import RetrievalEnded, RetrievalEvent, RoundStarted
from msa_plugin.retrieval.interleave import FoundDocument, Gathered, Query, Ranking, collect, interleave_steps
from msa_plugin.retrieval.key_search import KeySearch
from msa_plugin.retrieval.links import Titles
from msa_plugin.retrieval.passages import Passages
from msa_plugin.retrieval.prefilter import PrefilterSpec
from msa_plugin.retrieval.ranking import (
    ChunkScores,
    SharedQueries,
    chunks_of,
    interpolate,
    rank_routed,
    routed_chunks_of,
    shared_queries,
)
from msa_plugin.retrieval.relevance import Relevance
from msa_plugin.retrieval.retriever import SharedRanking
from msa_plugin.retrieval.search import BankSearch, Index, Search
from msa_plugin.retrieval.shared_names import Mentions
from msa_plugin.retrieval.words import WordSignal
from msa_plugin.types import Hits


class Engine:
    """Encoding, ranking and answering over one bank; holds no state between calls but what it caches."""

    def __init__(
        self,
        backbone: Backbone,
        adapter: Adapter,
        bank: BankHandle,
        config: MemoryConfig,
        search: Search | None = None,
    ) -> None:
        """The bank was opened with `fingerprint(backbone, adapter, config)`; `search` finds in it, by default here."""
        if adapter.config.hidden != backbone.spec.hidden:
            raise AdapterError(
                f"adapter {adapter.config.name} is for hidden size {adapter.config.hidden}, "
                f"{backbone.name} has {backbone.spec.hidden}; calibrate one with: msa calibrate --model ..."
            )
        self.backbone, self.adapter, self.bank, self.config = backbone, adapter, bank, config
        self.router = adapter.router.to(backbone.device, config.kernels)
        self.lora = None if adapter.lora is None else adapter.lora.fitted(backbone.model)
        self.mode = reading_mode(adapter, config)
        self.content = content_config(backbone, adapter, config)
        self.top_k = config.top_k or adapter.config.top_k
        self.batch_tokens = batch_tokens(config, backbone.device)
        prefix = adapter.config.prefix
        found = trained_reader(adapter, config)
        reader = None if found is None else found.fitted(backbone.model)
        self.encoder = Encoder(
            backbone,
            self.router,
            self.content,
            prefix=[] if prefix is None else [backbone.special(prefix)],
            window=config.window,
            batch_tokens=self.batch_tokens,
            keys_dtype=getattr(torch, config.keys_dtype),
            content_dtype=None if config.content_dtype == "auto" else getattr(torch, config.content_dtype),
            numbering=Numbering.of(backbone, adapter.config),
            lora=self.lora,
            content_lora=self.lora if reads_updated(adapter) else reader,
        )
        self.tiers = Tiers(bank, config.tiers, backbone.device)
        layout, store = self.encoder.layout, self.tiers.content
        lora = self.lora if adapter.answers_with_lora else None
        chosen = lora if reader is None else reader
        self.reader = Reader(
            *(backbone, store, self.mode, self.content, layout, self.top_k, config.instruction, chosen, config.kernels),
            trained=reader is not None,
            eight_bits=decoding_weights(backbone, config),
        )
        self.passages = Passages(backbone, self.encoder.layout_of, adapter.config.routing.pooling)
        self.context_tokens = context_tokens(config, backbone.device)
        self.search = search or BankSearch(bank, adapter.config.routing, KeySearch.of(self.tiers.keys, config))
        self.prefilter: Index | None = None
        self.use_beside(beside_keys(adapter, config))
        reading = () if self.content is None else self.content.layers
        self.relevance = Relevance(bank, adapter.config)
        self.least, self.may_abstain = least_relevance(adapter, config), config.instruction is None
        self.layers = LayerRouting(backbone, self.router, bank, reading, self.top_k, self.search, store, self.lora)

    def rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int] = ()) -> Ranking:
        """The best `k` documents of each query that `selection` allows; with `also`, all considered and these too."""
        if self.adapter.config.routing.selection == "shared":
            return self._rank_shared(queries, k, selection, also=also)
        each = portions(queries, self.config.batch_questions)
        parts = [self._rank_per_layer(portion, k, selection, also) for _, portion in each]
        seconds = {stage: sum(part.seconds[stage] for part in parts) for stage in ("encode", "route")}
        return Ranking([r for part in parts for r in part.rows], seconds, [c for part in parts for c in part.chunks])

    def use_prefilter(self, spec: PrefilterSpec | str | None, folder: Path, selection: Selected) -> None:
        """Route among the candidates of a FAISS index over `selection`, saved in `folder`; None: exactly again.

        Raises ConfigError and MissingExtraError as `Prefilter.build`.
        """
        self.prefilter = None if spec is None else self.search.prefilter(spec, folder, selection)

    def use_beside(self, weights: BesideConfig) -> None:
        """What counts beside routing keys: BM25, titles, shared names; 0: it does not. Raises as these do."""
        given = self.bank, self.router, self.search
        self.lexical = WordSignal(*given, weights.lexical) if weights.lexical else None
        self.titles = Titles(*given, weights.titles) if weights.titles else None
        self.mentions = Mentions(*given, weights.mentions) if weights.mentions else None

    def _rank_shared(
        self,
        queries: Sequence[str],
        k: int,
        selection: Selected,
        questions: Sequence[str] = (),
        weight: float = 0.0,
        also: Sequence[int] = (),
    ) -> Ranking:
        """Rank by one matrix product; a query that differs from its question in `questions` is blended with it."""
        began = time.perf_counter()
        asked = self._vectors(queries)
        follows = any(q != text for q, text in zip(questions, queries, strict=False))
        if follows:
            asked = interpolate(self._vectors(questions), asked, weight, self.router)
        encoded, routing = time.perf_counter(), self.adapter.config.routing
        ranking = SharedRanking(
            self.bank, routing, self.search, self.prefilter, self.lexical, self.titles, self.mentions, self.relevance
        )
        ranked = ranking.rank(queries, asked, k, selection, judge=not follows, also=also)
        seconds = {"encode": encoded - began, "route": time.perf_counter() - encoded}
        return Ranking(ranked, seconds, chunks_of(self.bank, asked))

    def _vectors(self, texts: Sequence[str]) -> SharedQueries:
        """Routing queries of texts, each different one encoded once."""
        distinct = list(dict.fromkeys(texts))
        rows = [self._query_ids(ids) for ids in self.backbone.tokenize_batch(distinct)]
        vectors = shared_queries(self.backbone, self.router, rows, self.batch_tokens, self.lora)
        order = [distinct.index(text) for text in texts]
        return SharedQueries(vectors.queries[order], vectors.shares[:, order], vectors.votes[order])

    def _query_ids(self, ids: list[int]) -> list[int]:
        """A query is read like a document; one longer than the window keeps its beginning, where the question is."""
        row = self.encoder.prefix + ids[: self.encoder.layout.text]
        if not row:
            raise InvalidQueryError("the question has no token that the backbone knows")
        return row

    def _rank_per_layer(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int]) -> Ranking:
        run = self._routed_pass(queries, max(k, self.top_k), selection, answering=False)
        ranked = rank_routed(self.bank, self.adapter.config.routing, run.source, run.votes, k, also)
        route = run.source.seconds["route"]
        chunks = routed_chunks_of(self.bank, self.adapter.config.routing, run.source, run.votes)
        return Ranking(ranked, {"encode": run.seconds - route, "route": route}, chunks)

    def _routed_pass(self, queries: Sequence[str], k: int, selection: Selected, *, answering: bool) -> RoutedPass:
        if self.generative is not None:
            codec = self.generative.codec
            rows = [codec.question(q) for q in queries]
            return self.layers.run(rows, codec.head, k, selection, answering=answering)
        briefly = answering and self.config.instruction is None
        asked = self.backbone.tokenize_batch([prompts.question_part(q, briefly=briefly) for q in queries])
        asked = [ids[: self.encoder.layout.text] for ids in asked]  # a follow-up may hold a long document
        tail = self.reader.tail_ids
        rows = [LayerRow(ids + tail, [True] * len(ids) + [False] * len(tail)) for ids in asked]
        return self.layers.run(rows, self.reader.head_with(self.lora), k, selection, answering=answering)

    def check_question(self, text: object) -> None:
        """Raises InvalidQueryError for a question that is not text, is blank, or is longer than a window."""
        check_question(text, self.backbone, self.encoder.layout.text)

    def routing_keys(self, ordinals: Sequence[int]) -> Tensor:
        """One unit vector [n, W] a document, float32: the mean of its chunks' routing keys, key groups side by side."""
        groups = [self.bank.key_rows(ordinals, group) for group in self.adapter.config.routing.key_groups]
        means = [torch.stack([rows.float().mean(0) for rows in group]) for group in groups]
        return torch.nn.functional.normalize(torch.cat(means, dim=1), dim=1)

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest score that a document can have."""
        low, high = self.adapter.config.routing.score_bounds
        high += 0.0 if self.lexical is None else self.lexical.weight
        return low, high * (1.0 if self.titles is None else (1.0 + self.titles.weight) ** 2)

    def hits(self, questions: Sequence[str], ranking: Ranking, k: int | None = None) -> list[Hits]:
        """See `gathering.hits`."""
        return hits(self._excerpts(), questions, ranking, k)

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """Answer a batch: yields (row, text piece) while decoding and (row, Answer) at the end.

        At most `batch_questions` are answered together, so that memory does not grow with the batch.
        """
        each = portions(questions, self.config.batch_questions)
        return self._in_turn((first, self._ask(some, selection, generation, rounds)) for first, some in each)

    def _in_turn(self, each: Iterable[tuple[int, Events]]) -> Events:
        return in_turn(each, self.backbone.turns, self.config.queue_timeout)

    def _ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        if self.generative is not None:
            yield from self.generative.ask(questions, selection, generation, rounds)
            return
        if self.mode == "latent" and self.adapter.config.routing.selection == "per_layer":
            rows = list(range(len(questions)))
            for row, question in enumerate(questions):
                yield row, RoundStarted(1, question)
            asked, prefill = self._read_while_routing(questions, selection)
            yield from found_at_once(asked)
            yield from fetched(asked)
        else:
            asked = yield from self._gathering(questions, selection, rounds)
            rows, silent = parted(asked, self.least)
            yield from declined(asked, silent, self.mode, self._abilities, self._beside)
            if not (asked := [asked[row] for row in rows]):
                return
            yield from among(rows, fetched(asked))
            prefill = prefilled(self.reader, asked, self.adapter.config.relevance)
        answers = answering(self.backbone, asked, prefill, generation, self.mode, self._abilities, self._beside)
        yield from among(rows, told(answers, asked, may_abstain=self.may_abstain))

    @cached_property
    def generative(self) -> Generative | None:
        """The loop in which the model writes document ids, for adapters that were trained to."""
        config, numbering = self.adapter.config, self.encoder.numbering
        per_layer = config.routing.selection == "per_layer"
        if numbering is None or not (config.abilities.emit_ids and per_layer and self.mode == "latent"):
            return None
        budget = self.config.context_tokens or WHOLE_DOCUMENTS
        return Generative(self.layers, self.bank, numbering, self._excerpts, budget, self._abilities)

    def ask_from(
        self,
        questions: Sequence[str],
        ordinals: Sequence[Sequence[int]],
        selection: Selected,
        generation: GenerationConfig,
    ) -> Events:
        """Answer a batch from documents that the caller chose, best first, which `selection` allows; see `ask`."""
        each = portions([*zip(questions, ordinals, strict=True)], self.config.batch_questions)
        return self._in_turn((first, self._ask_from(some, selection, generation)) for first, some in each)

    def _ask_from(
        self, chosen: Sequence[tuple[str, Sequence[int]]], selection: Selected, generation: GenerationConfig
    ) -> Events:
        questions, ordinals = [q for q, _ in chosen], [o for _, o in chosen]
        asked = self._given(questions, ordinals, selection)
        if self.generative is not None:
            given = [[f.ranked for f in one.gathered.found] for one in asked]
            yield from self.generative.ask_from(questions, given, selection, generation)
            return
        for row in range(len(asked)):
            yield row, RetrievalEnded(0, "given")
        yield from fetched(asked)
        prefill = prefilled(self.reader, asked, self.adapter.config.relevance)
        answers = answering(self.backbone, asked, prefill, generation, self.mode, self._abilities)
        yield from told(answers, asked, may_abstain=self.may_abstain)

    def chat(self, messages: Sequence[Mapping[str, str]], generation: GenerationConfig) -> Events:
        """Continue a conversation without memory; yields as `ask` does, for row 0."""
        return self._in_turn([(0, self._chat(messages, generation))])

    def _chat(self, messages: Sequence[Mapping[str, str]], generation: GenerationConfig) -> Events:
        prefill = self.reader.converse(messages, generation.max_new_tokens)
        asked = [AnswerJob(Gathered(""), [], {})]
        yield from answering(self.backbone, asked, prefill, generation, "chat", self._abilities)

    @property
    def _beside(self) -> dict[str, float]:
        counted = {"words": self.lexical, "names": self.titles, "mentions": self.mentions}
        return {name: one.weight for name, one in counted.items() if one is not None}

    @property
    def _abilities(self) -> tuple[str, ...]:
        return tuple(name for name, has in self.adapter.config.abilities.model_dump().items() if has)

    def _given(
        self, questions: Sequence[str], ordinals: Sequence[Sequence[int]], selection: Selected
    ) -> list[AnswerJob]:
        """The documents chosen for each question, in that order; routing says where long ones are cut."""
        wanted = sorted({o for row in ordinals for o in row})
        if not wanted:
            return [AnswerJob(Gathered(question), [], {}) for question in questions]
        ranking = self.rank(questions, len(wanted), selection.only(wanted))
        share = {stage: seconds / len(questions) for stage, seconds in ranking.seconds.items()}
        asked, excerpts = [], self._excerpts()
        for question, row, ranked, chunks in zip(questions, ordinals, ranking.rows, ranking.chunks, strict=True):
            scored = {r.ordinal: r for r in ranked}
            relevance = max((r.relevance for r in ranked if r.relevance is not None and r.ordinal in row), default=None)
            gathered = Gathered(question, [FoundDocument(scored[o], 1) for o in row], relevance=relevance)
            read = to_read(gathered, excerpts, chunks, self.context_tokens, each=True)
            asked.append(replace(read, seconds=share))
        return asked

    def _read_while_routing(self, questions: Sequence[str], selection: Selected) -> tuple[list[AnswerJob], Prefill]:
        """The reference's way: one forward routes and reads, each layer what it selected itself (paper section 3.3).

        The sources are the documents that any layer read. There is one round: further ones are the model's to ask for.
        """
        run = self._routed_pass(questions, self.top_k, selection, answering=True)
        assert run.logits is not None
        config, spent = self.adapter.config.routing, run.source.seconds
        ranked = rank_routed(self.bank, config, run.source, run.votes, self.top_k * len(config.layers))
        excerpts = self._excerpts()
        asked = [
            read_whole(q, row, excerpts, {"route": spent["route"]}) for q, row in zip(questions, ranked, strict=True)
        ]
        context = tuple(sum(e.stop for e in one.excerpts) for one in asked)
        seconds = {"gather": spent["gather"], "prefill": run.seconds - spent["gather"] - spent["route"]}
        lengths = tuple((run.votes.sum(1) + len(self.reader.tail_ids)).tolist())
        logits, head = run.logits[:, -1], self.reader.head.length
        return asked, Prefill(run.state, logits, run.positions, lengths, context, seconds, head)

    def gather(self, questions: Sequence[str], selection: Selected, rounds: InterleaveConfig) -> list[AnswerJob]:
        """Run the rounds of routing and fit what was found to the context budget."""
        return collect(self._gathering(questions, selection, rounds))

    def _gathering(
        self, questions: Sequence[str], selection: Selected, rounds: InterleaveConfig
    ) -> Generator[tuple[int, RetrievalEvent], None, list[AnswerJob]]:
        excerpts, chunks = self._excerpts(), list[ChunkScores]()

        def rank(queries: Sequence[Query], k: int) -> Ranking:
            ranking = self._rank_round(queries, k, selection, rounds.follow_weight)
            chunks.extend(ranking.chunks)  # the first round's are those of the questions, in order
            return ranking

        reads = documents_read(rounds, trained=self.reader.trained)
        rounds = rounds.model_copy(update={"reads": reads})
        gathered = yield from interleave_steps(questions, rank, excerpts.pieces, self.top_k, rounds, self.least)
        return [to_read(g, excerpts, chunks[row], self.context_tokens, reads=reads) for row, g in enumerate(gathered)]

    def _rank_round(self, queries: Sequence[Query], k: int, selection: Selected, weight: float) -> Ranking:
        """Route one round: bare questions as they are, questions with found text as follow-ups."""
        routing = self.adapter.config.routing
        texts = [prompts.follow_up(*q) if q.found else q.question for q in queries]
        if routing.selection != "shared" or routing.query_reduce != "pooled" or routing.heads > 1:
            return self.rank(texts, k, selection)
        return self._rank_shared(texts, k, selection, [q.question for q in queries], weight)

    def _excerpts(self) -> Excerpts:
        return Excerpts(self.backbone, self.bank, self.passages)
