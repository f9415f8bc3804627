"""The engine: one backbone, one adapter, one bank, and the parts that are made of them when a memory is opened.

What finds is a `Retriever`, what answers an `Answerer`: which one is decided here, once, and never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from msa_plugin.answering.answers import AnswerJob, Events, answering, in_turn, portions
from msa_plugin.answering.gathering import hits
from msa_plugin.answering.generative.generative import IdAnswerer
from msa_plugin.answering.generative.prompt_codec import PromptCodec
from msa_plugin.answering.layer_answers import LayerAnswerer, LayerRetriever, reader_rows
from msa_plugin.answering.per_layer import LayerRouting
from msa_plugin.answering.reading import Reader
from msa_plugin.answering.text_answers import Answerer, TextAnswerer
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
from msa_plugin.errors import AdapterError
from msa_plugin.retrieval.interleave import Gathered, Ranking, collect
from msa_plugin.retrieval.passages import Passages
from msa_plugin.retrieval.relevance import Relevance
from msa_plugin.retrieval.retriever import Retriever, SharedRetriever, Signals
from msa_plugin.retrieval.scorer import KeySearch
from msa_plugin.retrieval.search import BankSearch, Index, Search
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
        found = trained_reader(adapter, config)
        self._trained = None if found is None else found.fitted(backbone.model)
        self.mode = reading_mode(adapter, config)
        self.content = content_config(backbone, adapter, config)
        self.top_k = config.top_k or adapter.config.top_k
        self.batch_tokens = batch_tokens(config, backbone.device)
        self.context_tokens = context_tokens(config, backbone.device)
        self.least = least_relevance(adapter, config)
        self.tiers = Tiers(bank, config.tiers, backbone.device)
        self.encoder = self._encoder()
        self.reader = self._reader()
        self.passages = Passages(backbone, self.encoder.layout_of, adapter.config.routing.pooling)
        self.search = search or BankSearch(bank, adapter.config.routing, KeySearch.of(self.tiers.keys, config))
        self.relevance = Relevance(bank, adapter.config)
        self.retriever, self.text, self.answerer = self._chosen()

    def _encoder(self) -> Encoder:
        config, prefix = self.config, self.adapter.config.prefix
        return Encoder(
            self.backbone,
            self.router,
            self.content,
            prefix=[] if prefix is None else [self.backbone.special(prefix)],
            window=config.window,
            batch_tokens=self.batch_tokens,
            keys_dtype=getattr(torch, config.keys_dtype),
            content_dtype=None if config.content_dtype == "auto" else getattr(torch, config.content_dtype),
            numbering=Numbering.of(self.backbone, self.adapter.config),
            lora=self.lora,
            content_lora=self.lora if reads_updated(self.adapter) else self._trained,
        )

    def _reader(self) -> Reader:
        config, trained = self.config, self._trained
        return Reader(
            *(self.backbone, self.tiers.content, self.mode, self.content, self.encoder.layout, self.top_k),
            config.instruction,
            trained or (self.lora if self.adapter.answers_with_lora else None),
            config.kernels,
            trained=trained is not None,
            eight_bits=decoding_weights(self.backbone, config),
        )

    def _chosen(self) -> tuple[Retriever, TextAnswerer, Answerer]:
        """What finds, what answers from text whoever else does, and what answers.

        Raises ConfigError for words, names and recency where layers select for themselves.
        """
        weights, routing = beside_keys(self.adapter, self.config), self.adapter.config.routing
        signals = Signals.of(self.bank, self.router, self.search, weights)
        if routing.selection == "shared":
            parts = self.backbone, self.router, self.bank, self.encoder, self.search, signals, self.relevance
            shared = SharedRetriever(*parts, self.batch_tokens, self.lora)
            answerer = self._texts(shared)
            return shared, answerer, answerer
        content = () if self.content is None else self.content.layers
        given = self.backbone, self.router, self.bank, content, self.top_k, self.search, self.tiers.content
        layers, batch = LayerRouting(*given, self.lora), self.config.batch_questions
        numbering, writes = self.encoder.numbering, self.adapter.config.abilities.emit_ids and self.mode == "latent"
        if numbering is not None and writes:
            codec = PromptCodec(self.backbone, self.lora)
            routed = LayerRetriever(layers, codec.rows, lambda: codec.head, batch)
            budget, abilities = self.config.context_tokens or WHOLE_DOCUMENTS, self.adapter.config.abilities.names
            by_ids = IdAnswerer(routed, codec, numbering, self.passages, budget, abilities)
            return routed, self._texts(routed), by_ids
        rows = reader_rows(self.reader, self.encoder.layout.text, briefly=self.config.instruction is None)
        routed = LayerRetriever(layers, rows, lambda: self.reader.head_with(self.lora), batch)
        text = self._texts(routed, LayerAnswerer if self.mode == "latent" else TextAnswerer)
        return routed, text, text

    def _texts(self, retriever: Retriever, kind: type[TextAnswerer] = TextAnswerer) -> TextAnswerer:
        """What answers from the text that `retriever` finds."""
        known = self.adapter.config
        return kind(
            retriever,
            self.reader,
            self.bank,
            self.passages,
            relevance=known.relevance,
            abilities=known.abilities.names,
            top_k=self.top_k,
            context_tokens=self.context_tokens,
            reads=documents_read(trained=self.reader.trained),
            least=self.least,
            may_abstain=self.config.instruction is None,
        )

    def variant(self, weights: BesideConfig | None = None, prefilter: Index | None = None) -> Engine:
        """Another engine over the same parts, which finds by other weights of words and names; this one stays as it is.

        `weights` None: the same; `prefilter` None: among all documents. Raises ConfigError where layers select for
        themselves.
        """
        self.adapter.config.routing.check_shared("a ranking of one's own")
        assert isinstance(self.retriever, SharedRetriever)
        found, other = self.retriever, copy(self)
        signals = found.signals if weights is None else Signals.of(self.bank, self.router, self.search, weights)
        other.retriever = replace(found, signals=signals, prefilter=prefilter)
        other.text = other.answerer = replace(self.text, retriever=other.retriever)
        return other

    def rank(self, queries: Sequence[str], k: int, selection: Selected, also: Sequence[int] = ()) -> Ranking:
        """The best `k` documents of each query that `selection` allows; with `also`, all considered and these too."""
        return self.retriever.rank(queries, k, selection, also)

    def check_question(self, text: object) -> None:
        """Raises InvalidQueryError for a question that is not text, is blank, or is longer than a window."""
        check_question(text, self.backbone, self.encoder.layout.text)

    def routing_keys(self, ordinals: Sequence[int]) -> Tensor:
        """One unit vector [n, W] a document, float32: the mean of its chunks' routing keys, key groups side by side."""
        groups = [self.bank.key_rows(ordinals, group) for group in self.adapter.config.routing.key_groups]
        means = [torch.stack([rows.float().mean(0) for rows in group]) for group in groups]
        return torch.nn.functional.normalize(torch.cat(means, dim=1), dim=1)

    def hits(self, questions: Sequence[str], ranking: Ranking, k: int | None = None) -> list[Hits]:
        """See `gathering.hits`."""
        return hits(self.text.excerpts(), questions, ranking, k)

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """Answer a batch: yields (row, text piece) while decoding and (row, Answer) at the end.

        At most `batch_questions` are answered together, so that memory does not grow with the batch.
        """
        each = portions(questions, self.config.batch_questions)
        return self._in_turn((at, self.answerer.ask(some, selection, generation, rounds)) for at, some in each)

    def ask_from(
        self,
        questions: Sequence[str],
        ordinals: Sequence[Sequence[int]],
        selection: Selected,
        generation: GenerationConfig,
    ) -> Events:
        """Answer a batch from documents that the caller chose, best first, which `selection` allows; see `ask`."""
        each = portions([*zip(questions, ordinals, strict=True)], self.config.batch_questions)
        asked = ((at, [q for q, _ in some], [o for _, o in some]) for at, some in each)
        return self._in_turn((at, self.answerer.ask_from(q, o, selection, generation)) for at, q, o in asked)

    def chat(self, messages: Sequence[Mapping[str, str]], generation: GenerationConfig) -> Events:
        """Continue a conversation without memory; yields as `ask` does, for row 0."""
        return self._in_turn([(0, self._chat(messages, generation))])

    def _chat(self, messages: Sequence[Mapping[str, str]], generation: GenerationConfig) -> Events:
        prefill = self.reader.converse(messages, generation.max_new_tokens)
        asked, abilities = [AnswerJob(Gathered(""), [], {})], self.adapter.config.abilities.names
        yield from answering(self.backbone, asked, prefill, generation, "chat", abilities)

    def _in_turn(self, each: Iterable[tuple[int, Events]]) -> Events:
        return in_turn(each, self.backbone.turns, self.config.queue_timeout)

    def gather(self, questions: Sequence[str], selection: Selected, rounds: InterleaveConfig) -> list[AnswerJob]:
        """Run the rounds of routing and fit what was found to the context budget."""
        return collect(self.text.gathering(questions, selection, rounds))
