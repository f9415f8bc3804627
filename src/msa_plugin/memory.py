"""`LatentMemory`: the facade. Documents in, routed documents and answers out, kept on disk.

memory = LatentMemory.open("bank/")
memory.add(["text", ...])
memory.ask("question").text
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, overload

from msa_plugin import arguments
from msa_plugin.answering.answers import Events, completed
from msa_plugin.arguments import By, Retrieval, id_list
from msa_plugin.async_twins import AsyncTwins, awaited
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.handle import BankHandle
from msa_plugin.bank.scopes import check_namespace
from msa_plugin.chat import Chat
from msa_plugin.cluster.ingestion import ClusterIngestion
from msa_plugin.cluster.manifest import check_plain
from msa_plugin.cluster.opening import ask_for_cluster, open_cluster
from msa_plugin.config import ClusterConfig, MemoryConfig
from msa_plugin.conversations import Conversations
from msa_plugin.dates import Asof, Recency, When
from msa_plugin.encoding.ingestion import BankIngestion, Ingestion
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.engine import Engine
from msa_plugin.engine.explaining import explain
from msa_plugin.engine.setup import check_kernels, check_window, fingerprint
from msa_plugin.errors import ConfigError, EmptyMemoryError, InvalidQueryError, UnknownDocumentError
from msa_plugin.events import AnswerPiece, Event
from msa_plugin.namespaces import Namespaces
from msa_plugin.progress import terminal_progress
from msa_plugin.retrieval.recency import SHARE
from msa_plugin.streams import AnswerStream
from msa_plugin.types import (
    AddReport,
    Answer,
    DeleteReport,
    Document,
    DocumentLike,
    DocumentsLike,
    Explanation,
    Filter,
    Hit,
    Hits,
    OnInvalid,
    OnProgress,
)
from msa_plugin.upkeep import Upkeep

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack  # typing has it since Python 3.11


class LatentMemory(Namespaces, Conversations, Chat, Upkeep, AsyncTwins):
    """A language model's long-term memory in a folder. Safe to share between threads; use as a context manager."""

    def __init__(
        self, engine: Engine, bank: BankHandle, namespace: str, ingestion: type[Ingestion] = BankIngestion
    ) -> None:
        """Use `LatentMemory.open`."""
        self._engine, self._bank, self.namespace, self._ingestion = engine, bank, namespace, ingestion
        self._closed = False

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | Backbone | None = None,
        adapter: str | Path | Adapter | None = None,
        namespace: str = "default",
        read_only: bool = False,
        snapshot: str | None = None,
        config: MemoryConfig | None = None,
        cluster: ClusterConfig | Mapping[str, Any] | int | None = None,
        **settings: Any,
    ) -> LatentMemory:
        """Open the memory in folder `path`, creating it when absent.

        `model` is a folder, a .gguf file, a hub id, a loaded `Backbone`, or None for the default; `adapter` a folder,
        an `Adapter`, or None for the one that fits the backbone. `namespace` is all that this handle can see or
        change. Each call sees what other processes have stored and deleted, unless `follow=False` says that this
        handle keeps its state until `refresh`. `snapshot` opens a named state, for reading, which never changes.
        `settings` are fields of `MemoryConfig`. With `cluster`
        (settings, or just the number of shards) the bank is split over Ray actors; see `ClusterConfig`.

        Raises BackboneNotFoundError, AdapterError, ConfigError, InvalidQueryError for a namespace that is not text,
        FingerprintMismatchError when the bank was built with something else, ClusterError for a plain bank opened as a
        cluster, the reverse, or another number of shards, MissingExtraError, and the other Bank errors.
        """
        check_namespace(namespace)
        folder = Path(path).resolve()  # once: whatever becomes of the working directory, it stays this memory
        shards = None if cluster is None else ask_for_cluster(cluster)
        if config is not None and settings:
            raise ConfigError("give either config= or single settings, not both")
        config = config or MemoryConfig(**settings)
        backbone = (
            model
            if isinstance(model, Backbone)
            else Backbone.load(model, device=config.device, dtype=config.dtype, cosine=config.cosine)
        )
        chosen = find_adapter(backbone, adapter)
        check_window(backbone, config)
        check_kernels(config, chosen.config.routing, backbone.device)
        if shards is not None:
            engine, split = open_cluster(
                folder, model, backbone, chosen, config, shards, read_only=read_only, snapshot=snapshot
            )
            return cls(engine, split, namespace, ClusterIngestion)
        check_plain(folder, read_only=read_only or snapshot is not None)
        bank = MemoryBank.open(
            folder,
            fingerprint(backbone, chosen, config),
            create=not read_only and snapshot is None,
            read_only=read_only,
            lock_timeout=config.lock_timeout,
            snapshot=snapshot,
            follow=config.follow,
        )
        return cls(Engine(backbone, chosen, bank, config), bank, namespace)

    @property
    def engine(self) -> Engine:
        """The engine below the facade, for benchmarks and integrations."""
        self._check_open()
        return self._engine

    @property
    def config(self) -> MemoryConfig:
        """The settings this memory was opened with."""
        return self._engine.config

    def add(
        self,
        documents: DocumentsLike,
        *,
        on_progress: OnProgress | None = None,
        on_invalid: OnInvalid = "raise",
    ) -> AddReport:
        """Encode and store documents; durable on return. Known ids with the same content cost nothing.

        A document is a string, a mapping {"id", "text", "title"?, "metadata"?} or a `Document`. A sequence is
        validated as a whole first; a generator is consumed as it comes, in bounded memory, and what was committed
        before an error stays. Without `on_progress` a bar is shown on a terminal. Other writers wait until it is
        done, for as long as their `lock_timeout`.

        Raises InvalidDocumentError, DuplicateDocumentError when one call gives an id to two documents that differ,
        BankLockedError, BankReadOnlyError and BankWriteError.
        """
        self._check_open()
        with terminal_progress("encoding", on_progress, sys.stderr) as report:
            encoder = self._engine.encoder
            ingestion = self._ingestion(encoder, self._bank, self.namespace, self.config, on_invalid, report)
            return ingestion.run(documents)

    def update(self, document: DocumentLike) -> AddReport:
        """Replace a document by id. Raises UnknownDocumentError when the memory does not hold it."""
        new = Document.of(document)
        with self._bank_().writing():  # nobody deletes it in between, and what others stored is seen
            if not self._bank.lookup([new.id], self.namespace):
                raise UnknownDocumentError(f"no document {new.id!r} to update; use add() to store a new one")
            return self.add(new)

    def revise(self, ids: str | Sequence[str], change: Callable[[Document], Document | None]) -> AddReport:
        """Replace stored documents by what `change` makes of each, or delete those for which it returns None.

        Nobody writes in between; unknown ids are passed over. Raises as `add`.
        """
        with self._bank_().writing():
            changed = {document.id: change(document) for document in self.get(ids)}
            self.delete([i for i, new in changed.items() if new is None])
            return self.add([new for new in changed.values() if new is not None])

    def delete(self, ids: str | Sequence[str]) -> DeleteReport:
        """Forget documents: gone for the next question. Unknown ids are reported, not an error."""
        wanted = id_list(ids)
        known = self._bank_().lookup(wanted, self.namespace)
        deleted, missing = self._bank.delete(wanted, self.namespace)
        self._engine.tiers.content.forget(at.ordinal for at in known.values())
        return DeleteReport(tuple(deleted), tuple(missing))

    @overload  # a str is a Sequence[str], hence the ignore: the first signature that fits is the one meant
    def retrieve(  # type: ignore[overload-overlap]
        self, question: str, k: int | None = None, **options: Unpack[Retrieval]
    ) -> Hits: ...
    @overload
    def retrieve(self, question: Sequence[str], k: int | None = None, **options: Unpack[Retrieval]) -> list[Hits]: ...

    def retrieve(
        self,
        question: str | Sequence[str],
        k: int | None = None,
        *,
        filter: Filter | None = None,
        at: When | None = None,
        history: bool = False,
        recency: Recency | None = None,
        by: By = "document",
        min_relevance: float | None = None,
    ) -> Hits | list[Hits]:
        """The `k` best documents for a question (or for each of several), best first; fewer when there are fewer.

        Each has its best `passages`. `by="passage"` gives the `k` best passages of the `k` best documents (see `Hit`).
        `filter` (a mapping over metadata, or a function of it) applies before the k best are taken; `min_relevance`
        (0 to 1, see `Hit.relevance`) then leaves out those below it. Found is what is valid now, or as of `at` (a
        datetime, date or ISO text; UTC where it has no zone), or with `history` at any time (see `Hit.validity`).
        With `recency`, the age (timedelta or days) at which what being new adds has halved, newer documents rank
        higher; None: as the memory was opened, 0: not. How old one is, `valid_from` says, else when it was stored.
        Of a cluster, `missed_shards` says what was lost.
        Raises InvalidQueryError for bad input, ConfigError for `min_relevance` where the adapter knows no relevance.
        """
        questions, admits = self._questions(question), arguments.relevant(min_relevance, self._engine.adapter.config)
        k, passages = self._engine.top_k if k is None else arguments.count(k), arguments.by_passage(by)
        time = self._time(at, history, recency)
        selection = self._bank.select(self.namespace, filter, below=self.below, asof=time)
        if not questions:
            return []
        rows = self._engine.hits(questions, self._engine.rank(questions, k, selection), k if passages else None)
        for row in rows:
            row[:] = [hit for hit in row if admits(hit)]
            row.missed_shards = selection.missed
        return rows[0] if isinstance(question, str) else rows

    def explain(
        self,
        question: str,
        document: str | Hit,
        *,
        filter: Filter | None = None,
        at: When | None = None,
        history: bool = False,
        recency: Recency | None = None,
    ) -> Explanation:
        """Why `retrieve` ranks a document, by id or hit, where it does: its chunks, words, names and relevance.

        A notebook draws it. Raises InvalidQueryError for bad input, and UnknownDocumentError for a document that this
        memory does not hold, or `filter`, `at` and `history` (see `retrieve`) do not admit.
        """
        [asked] = self._questions([question])
        with self._bank.one_moment():
            time = self._time(at, history, recency)
            selection = self._bank.select(self.namespace, filter, below=self.below, asof=time)
            ordinal = arguments.one_of(self._bank, self.namespace, document, selection)
            return explain(self._engine, asked, ordinal, selection)

    @overload
    def ask(
        self, question: str, *, filter: Filter | None = None, documents: Sequence[str] | None = None, **options: Any
    ) -> Answer: ...
    @overload
    def ask(
        self,
        question: Sequence[str],
        *,
        filter: Filter | None = None,
        documents: Sequence[Sequence[str]] | None = None,
        **options: Any,
    ) -> list[Answer]: ...

    def ask(
        self,
        question: str | Sequence[str],
        *,
        filter: Filter | None = None,
        at: When | None = None,
        history: bool = False,
        recency: Recency | None = None,
        documents: Sequence[str] | Sequence[Sequence[str]] | None = None,
        on_event: Callable[[int, Event], None] | None = None,
        **options: Any,
    ) -> Answer | list[Answer]:
        """Answer a question (or a batch of them) from memory, with sources and a trace.

        With `documents` (ids, best first; for a batch a list of ids for each question) exactly these are read instead
        of what routing would find, superseded or not; none of them means closed book. `filter`, `at`,
        `history` and `recency` are as for `retrieve`.
        `options` override single fields of the generation
        and interleave settings: max_new_tokens, temperature, top_p, seed, stop, max_rounds, per_round, reads and more.
        `on_event` is told what happens to which question, as `stream` would, without the answer.

        Raises EmptyMemoryError when nothing may be read, UnknownDocumentError for `documents` that this memory does
        not hold or `filter` does not admit, InvalidQueryError or ConfigError for bad input, and BusyError when those of
        other threads, which are answered in the order in which they were asked, took longer than `queue_timeout`.
        """
        answers: dict[int, Answer] = {}
        for row, event in self._ask(question, filter, self._time(at, history, recency), documents, options):
            if isinstance(event, Answer):
                answers[row] = event
            elif on_event is not None:
                on_event(row, AnswerPiece(event) if isinstance(event, str) else event)
        ordered = [answers[row] for row in sorted(answers)]
        return ordered[0] if isinstance(question, str) else ordered

    def stream(
        self,
        question: str,
        *,
        filter: Filter | None = None,
        at: When | None = None,
        history: bool = False,
        recency: Recency | None = None,
        documents: Sequence[str] | None = None,
        **options: Any,
    ) -> AnswerStream:
        """Answer a question piece by piece; takes what `ask` takes, and may be closed at any moment."""
        if not isinstance(question, str):
            raise InvalidQueryError("stream() takes one question; use ask() for a batch")
        return AnswerStream(self._ask(question, filter, self._time(at, history, recency), documents, options), question)

    def _ask(
        self,
        question: str | Sequence[str],
        filter: Filter | None,
        time: Asof,
        documents: Sequence[str] | Sequence[Sequence[str]] | None,
        options: dict[str, Any],
    ) -> Events:
        began = perf_counter()
        questions = self._questions(question)
        generation, rounds = arguments.answer_settings(self.config, options)
        if documents is not None and time.at is None:
            time = time._replace(history=True)  # they were chosen, and one may have expired since
        with self._bank.one_moment():  # of the filter, and of the ids of chosen documents
            selection = self._bank.select(self.namespace, filter, below=self.below, asof=time)
            given: Any = [documents] if isinstance(question, str) and documents is not None else documents
            chosen = arguments.chosen_of(self._bank, self.namespace, questions, given, selection)
        if chosen is not None:
            events = self._engine.ask_from(questions, chosen, selection, generation)
            return completed(events, perf_counter() - began, selection)
        if questions and selection.documents == 0:
            raise EmptyMemoryError(f"nothing to answer from: {self._why_empty(filter)} (namespace {self.namespace!r})")
        events = self._engine.ask(questions, selection, generation, rounds)
        return completed(events, perf_counter() - began, selection)

    def _why_empty(self, filter: Filter | None) -> str:
        if filter is not None:
            return "this filter matches no document"
        if self._bank.count(self.namespace):
            return "no document is valid at that time; history=True reads what was superseded too"
        return "the memory is empty; add() documents"

    def _time(self, at: When | None, history: bool, recency: Recency | None) -> Asof:
        return arguments.time_of(at, history, recency, self.config, self._engine.adapter.config)

    def _questions(self, question: str | Sequence[str]) -> list[str]:
        self._check_open()
        return arguments.questions_of(question, self._engine.check_question)

    def routing_keys(self, ids: str | Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """A unit vector [W] for each known id: the mean of its chunks' routing keys, to compare documents by."""
        known = self._bank_().lookup(id_list(ids), self.namespace)
        if not known:
            return {}
        vectors = self._engine.routing_keys([at.ordinal for at in known.values()]).numpy()
        return dict(zip(known, vectors, strict=True))

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest routing score that this memory's adapter can give; infinite if unbounded."""
        low, high = self._engine.retriever.score_bounds
        return low, high if self.config.recency is None else high * (1.0 + SHARE)

    def close(self) -> None:
        """Release files and locks; idempotent. Closing a handle of `within` leaves the memory that it is of open."""
        if not self._closed:
            self._closed = True
            if self._parent is None:
                self._bank.close()

    def __enter__(self) -> LatentMemory:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    aadd, aupdate, adelete, aexplain = awaited(add), awaited(update), awaited(delete), awaited(explain)

    def _bank_(self) -> BankHandle:
        self._check_open()
        return self._bank

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this memory was closed; open it again with LatentMemory.open(...)")
        if self._parent is not None:
            self._parent._check_open()
