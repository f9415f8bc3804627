"""Generative Memory Interleave over a bank: the model writes which documents it needs, until it has enough to answer.

The default loop. Where it departs from the reference, docs/compatibility.md says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from msa_plugin.answering.answers import Events, source
from msa_plugin.answering.decoding import TextStream, TokenSampler
from msa_plugin.answering.excerpts import Excerpts, all_of
from msa_plugin.answering.gathering import chosen
from msa_plugin.answering.generative.ids import Ids, Library
from msa_plugin.answering.generative.prompt_codec import PromptCodec, Transcript
from msa_plugin.answering.generative.scheduler import Prefill, Scheduler, Started
from msa_plugin.answering.generative.state import Conversation
from msa_plugin.answering.layer_answers import LayerRetriever
from msa_plugin.answering.per_layer import RowRouting
from msa_plugin.answering.resume import Earlier, kept_rows
from msa_plugin.bank.handle import Selected
from msa_plugin.config import GenerationConfig, InterleaveConfig
from msa_plugin.encoding.numbering import Numbering
from msa_plugin.events import DocumentsFetched, RetrievalEnded
from msa_plugin.retrieval.assembly import Extent
from msa_plugin.retrieval.passages import Passages
from msa_plugin.retrieval.ranking import score_routed
from msa_plugin.types import Answer, Trace


class IdAnswerer:
    """Answers with a model that writes document numbers and reads latents."""

    def __init__(
        self,
        retriever: LayerRetriever,
        codec: PromptCodec,
        numbering: Numbering,
        passages: Passages,
        context_tokens: int,
        abilities: tuple[str, ...],
    ) -> None:
        """`retriever` runs the prefills, in the words of `codec`; `context_tokens` bounds what one prompt fetches."""
        self.retriever, self.codec, self.numbering, self.passages = retriever, codec, numbering, passages
        self.context_tokens, self.abilities, self.layers = context_tokens, abilities, retriever.layers
        self.backbone, self.bank = self.layers.backbone, self.layers.bank

    def ask(
        self, questions: Sequence[str], selection: Selected, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Events:
        """Answer a batch; yields (row, event), (row, text piece) and (row, Answer) as they come."""
        library = self._library(selection)
        conversations = [
            self._conversation(row, question, library, generation, rounds) for row, question in enumerate(questions)
        ]

        def prefill(starting: Sequence[Conversation], earlier: Sequence[Earlier | None]) -> Started:
            return self._routed(starting, earlier, selection)

        yield from self._run(conversations, prefill, library.ids.mode)

    def ask_from(
        self,
        questions: Sequence[str],
        ordinals: Sequence[Sequence[int]],
        selection: Selected,
        generation: GenerationConfig,
    ) -> Events:
        """Answer a batch from documents that the caller chose, best first, as if one round had fetched them."""
        given = [one.gathered.found for one in chosen(self.retriever, questions, ordinals, selection)]
        library = self._library(selection)
        conversations = []
        for row, (question, found) in enumerate(zip(questions, given, strict=True)):
            one = self._conversation(row, question, library, generation, InterleaveConfig())
            one.sources, texts, _ = library.fetch([f.ranked for f in found], self.context_tokens, 1)
            one.known = {o: self.numbering.number(o) for o in texts}
            if texts:
                one.transcript.add({one.known[o]: text for o, text in texts.items()})
            one.final, one.ended = True, "given"
            conversations.append(one)
            yield row, DocumentsFetched(1, tuple(one.sources))
            yield row, RetrievalEnded(0, "given")
        yield from self._run(conversations, self._chosen, library.ids.mode)

    def _library(self, selection: Selected) -> Library:
        excerpts = Excerpts(self.backbone, self.bank, self.passages)
        return Library(self.bank, Ids(self.numbering, selection), excerpts)

    def _conversation(
        self, row: int, question: str, library: Library, generation: GenerationConfig, rounds: InterleaveConfig
    ) -> Conversation:
        return Conversation(
            row=row,
            transcript=Transcript(self.codec, question),
            documents=library,
            stream=TextStream(self.backbone, generation.stop, generation.repetition),
            sampler=TokenSampler(generation, 1),
            rounds_allowed=rounds,
            max_new_tokens=generation.max_new_tokens,
            budget=self.context_tokens,
        )

    def _run(self, conversations: Sequence[Conversation], prefill: Prefill, ids: str) -> Events:
        for conversation, step in Scheduler(self.backbone, prefill).run(conversations):
            yield conversation.row, self._answered(conversation, ids) if step is None else step

    def _routed(
        self, starting: Sequence[Conversation], earlier: Sequence[Earlier | None], selection: Selected
    ) -> Started:
        """Prefill rows of which every router layer selects for itself."""
        rows = [c.prompt() for c in starting]
        run = self.layers.resume(rows, self.codec.head, self.layers.top_k, selection, earlier)
        assert run.logits is not None
        config = self.layers.router.config
        routed = []
        for row in range(len(rows)):
            found = {int(o) for layer in run.source.routed.values() for o in layer.ordinals[row]}
            ranked = score_routed(self.bank, config, run.source, run.votes, row, found)
            routed.append(RowRouting(self.bank, config, run.source, run.votes, row, ranked))
        spent = run.source.seconds
        seconds = {**spent, "prefill": run.seconds - sum(spent.values())}
        lengths = [len(row.ids) for row in rows]
        kept = [] if run.hidden is None else kept_rows([row.ids for row in rows], run.hidden)
        return Started(run.state, run.logits[:, -1], run.positions.tolist(), lengths, routed, seconds, kept)

    def _chosen(self, starting: Sequence[Conversation], earlier: Sequence[Earlier | None]) -> Started:
        """Prefill rows that read the latents of the documents they were given, whole, in every reading layer."""
        rows = [c.prompt() for c in starting]
        run = self.layers.read(rows, self.codec.head, [[Extent(o) for o in c.known] for c in starting])
        assert run.logits is not None
        lengths = [len(row.ids) for row in rows]
        seconds = {"prefill": run.seconds}
        return Started(run.state, run.logits[:, -1], run.positions.tolist(), lengths, [None] * len(rows), seconds)

    def _answered(self, one: Conversation, ids: str) -> Answer:
        sources = tuple(one.sources)
        latent = [r.ordinal for r in one.routed.ranked] if one.routed is not None else list(one.known)
        stored = {d.ordinal: d for d in self.bank.documents(latent)}
        if not sources and one.routed is not None:  # nothing was fetched: it was answered from latents alone
            read = [(stored[r.ordinal], r.score) for r in one.routed.ranked]
            sources = tuple(source(d, all_of(d, score), score, 1) for d, score in read)
        trace = Trace(
            mode="latent",
            abilities=self.abilities,
            rounds=tuple(one.rounds),
            seconds=dict(one.seconds),
            prompt_tokens=one.prompt_tokens,
            context_tokens=sum(d.tokens for d in stored.values()),
            new_tokens=one.written,
            finish=one.stream.finish,
            head_tokens=self.codec.head.length,
            interleave="ids",
            ended=one.ended or "",
            ids=ids,
        )
        return Answer(one.stream.text, sources, trace)
