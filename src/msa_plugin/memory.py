"""`LatentMemory`: the facade. Documents in, routed documents and answers out, kept on disk.

memory = LatentMemory.open("bank/")
memory.add(["text", ...])
memory.ask("question").text
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from operator import index
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, overload

from msa_plugin.async_twins import AsyncTwins
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.intake import check_namespace
from msa_plugin.config import GenerationConfig, InterleaveConfig, MemoryConfig
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.engine import Engine, check_window, fingerprint
from msa_plugin.engine.ingestion import Ingestion, OnInvalid
from msa_plugin.errors import ConfigError, EmptyMemoryError, InvalidQueryError, UnknownDocumentError
from msa_plugin.progress import terminal_progress
from msa_plugin.types import (
    AddReport,
    Answer,
    DeleteReport,
    Document,
    DocumentLike,
    DocumentsLike,
    Filter,
    Hit,
    OnProgress,
    Stats,
    VerifyReport,
)


class AnswerStream(Iterator[str]):
    """The pieces of an answer as they are decoded; `answer` holds the whole one once the stream is exhausted."""

    def __init__(self, events: Generator[tuple[int, str | Answer], None, None]) -> None:
        """`events` come from `Engine.ask` for one question."""
        self._events = events
        self._turn = Lock()  # closing from one thread waits for the piece that another one is decoding
        self.answer: Answer | None = None

    def __next__(self) -> str:
        """The next piece of text."""
        with self._turn:
            for _, event in self._events:
                if isinstance(event, Answer):
                    self.answer = event
                else:
                    return event
        raise StopIteration

    def close(self) -> None:
        """Stop decoding; no piece follows, and `answer` stays None unless the stream was exhausted."""
        with self._turn:
            self._events.close()


class LatentMemory(AsyncTwins):
    """A language model's long-term memory in a folder. Safe to share between threads; use as a context manager."""

    def __init__(self, engine: Engine, bank: MemoryBank, namespace: str) -> None:
        """Use `LatentMemory.open`."""
        self._engine, self._bank, self.namespace = engine, bank, namespace
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
        **settings: Any,
    ) -> LatentMemory:
        """Open the memory in folder `path`, creating it when absent.

        `model` is a folder, a .gguf file, a hub id, a loaded `Backbone`, or None for the default; `adapter` a folder,
        an `Adapter`, or None for the one that fits the backbone. `namespace` is all that this handle can see or
        change. `snapshot` opens a named state, for reading. `settings` are fields of `MemoryConfig`.

        Raises BackboneNotFoundError, AdapterError, ConfigError, InvalidQueryError for a namespace that is not text,
        FingerprintMismatchError when the bank was built with something else, and the other Bank errors.
        """
        check_namespace(namespace)
        if config is not None and settings:
            raise ConfigError("give either config= or single settings, not both")
        config = config or MemoryConfig(**settings)
        backbone = (
            model if isinstance(model, Backbone) else Backbone.load(model, device=config.device, dtype=config.dtype)
        )
        chosen = find_adapter(backbone, adapter)
        check_window(backbone, config)
        bank = MemoryBank.open(
            Path(path),
            fingerprint(backbone, chosen, config),
            create=not read_only and snapshot is None,
            read_only=read_only,
            lock_timeout=config.lock_timeout,
            snapshot=snapshot,
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
            ingestion = Ingestion(self._engine, self._bank, self.namespace, self.config, on_invalid, report)
            return ingestion.run(documents)

    def update(self, document: DocumentLike) -> AddReport:
        """Replace a document by id. Raises UnknownDocumentError when the memory does not hold it."""
        new = Document.of(document)
        with self._bank_().writing():  # nobody deletes it in between, and what others stored is seen
            if not self._bank.lookup([new.id], self.namespace):
                raise UnknownDocumentError(f"no document {new.id!r} to update; use add() to store a new one")
            return self.add(new)

    def delete(self, ids: str | Sequence[str]) -> DeleteReport:
        """Forget documents: gone for the next question. Unknown ids are reported, not an error."""
        deleted, missing = self._bank_().delete(_ids(ids), self.namespace)
        return DeleteReport(tuple(deleted), tuple(missing))

    def get(self, ids: str | Sequence[str]) -> list[Document]:
        """Stored documents by id, in the order asked for; unknown ids are left out."""
        wanted = _ids(ids)
        found = self._bank_().get(wanted, self.namespace)
        return [found[i].document for i in wanted if i in found]

    def ids(self) -> Iterator[str]:
        """Ids of all documents in this namespace."""
        return self._bank_().iter_ids(self.namespace)

    @overload  # a str is a Sequence[str], hence the ignore: the first signature that fits is the one meant
    def retrieve(  # type: ignore[overload-overlap]
        self, question: str, k: int | None = None, *, filter: Filter | None = None
    ) -> list[Hit]: ...
    @overload
    def retrieve(
        self, question: Sequence[str], k: int | None = None, *, filter: Filter | None = None
    ) -> list[list[Hit]]: ...

    def retrieve(
        self, question: str | Sequence[str], k: int | None = None, *, filter: Filter | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """The `k` best documents for a question (or for each of several), best first; fewer when there are fewer.

        `filter` (a mapping over metadata, or a function of it) applies before the k best are taken.
        Raises InvalidQueryError for a blank question, a bad filter or k < 1.
        """
        questions = self._questions(question)
        k = self._engine.top_k if k is None else _count(k)
        selection = self._bank.select(self.namespace, filter)
        if not questions:
            return []
        ranking = self._engine.rank(questions, k, selection)
        rows = [self._engine.hits(row) for row in ranking.rows]
        return rows[0] if isinstance(question, str) else rows

    @overload
    def ask(self, question: str, *, filter: Filter | None = None, **options: Any) -> Answer: ...
    @overload
    def ask(self, question: Sequence[str], *, filter: Filter | None = None, **options: Any) -> list[Answer]: ...

    def ask(
        self, question: str | Sequence[str], *, filter: Filter | None = None, **options: Any
    ) -> Answer | list[Answer]:
        """Answer a question (or a batch of them) from memory, with sources and a trace.

        `options` override single fields of the generation and interleave settings: max_new_tokens, temperature,
        top_p, seed, stop, max_rounds, per_round, cut. Raises EmptyMemoryError when nothing may be read, and
        InvalidQueryError or ConfigError for bad input.
        """
        questions = self._questions(question)
        if not questions:
            return []
        events = self._ask(questions, filter, options)
        answers = {row: event for row, event in events if isinstance(event, Answer)}
        ordered = [answers[row] for row in sorted(answers)]
        return ordered[0] if isinstance(question, str) else ordered

    def stream(self, question: str, *, filter: Filter | None = None, **options: Any) -> AnswerStream:
        """Answer a question piece by piece; takes the same options as `ask`, and may be closed at any moment."""
        if not isinstance(question, str):
            raise InvalidQueryError("stream() takes one question; use ask() for a batch")
        return AnswerStream(self._ask(self._questions(question), filter, options))

    def _ask(
        self, questions: list[str], filter: Filter | None, options: dict[str, Any]
    ) -> Generator[tuple[int, str | Answer], None, None]:
        generation, rounds = _split_options(self.config, options)
        selection = self._bank.select(self.namespace, filter)
        if selection.documents == 0:
            where = "this filter matches no document" if filter is not None else "the memory is empty; add() documents"
            raise EmptyMemoryError(f"nothing to answer from: {where} (namespace {self.namespace!r})")
        return self._engine.ask(questions, selection, generation, rounds)

    def _questions(self, question: str | Sequence[str]) -> list[str]:
        self._check_open()
        if not isinstance(question, Iterable):
            raise InvalidQueryError(f"a question is a string, not {type(question).__name__}")
        questions = [question] if isinstance(question, str) else list(question)
        for text in questions:
            self._engine.check_question(text)
        return questions

    def compact(self) -> None:
        """Rewrite live documents and free the space of deleted ones. Snapshots keep what they need."""
        self._bank_().compact()

    def snapshot(self, name: str) -> None:
        """Name the present state of the whole bank, to be opened later with `open(..., snapshot=name)`."""
        self._bank_().snapshot(name)

    def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot; `compact` then frees what only it needed."""
        self._bank_().drop_snapshot(name)

    def verify(self) -> VerifyReport:
        """Read every file and compare it with its checksum; reports what is damaged instead of raising."""
        return self._bank_().verify()

    def stats(self) -> Stats:
        """Documents, tokens, chunks and bytes."""
        return self._bank_().stats(self.namespace)

    def refresh(self) -> None:
        """See what other processes have committed since this handle was opened or last wrote."""
        self._bank_().refresh()

    def close(self) -> None:
        """Release files and locks; idempotent."""
        if not self._closed:
            self._closed = True
            self._bank.close()

    def __enter__(self) -> LatentMemory:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _bank_(self) -> MemoryBank:
        self._check_open()
        return self._bank

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this memory was closed; open it again with LatentMemory.open(...)")


def _ids(ids: str | Sequence[str]) -> list[str]:
    if not isinstance(ids, Iterable):
        raise InvalidQueryError(f"ids are strings, not {ids!r}")
    wanted = [ids] if isinstance(ids, str) else list(ids)
    wrong = [i for i in wanted if not isinstance(i, str)]
    if wrong:
        raise InvalidQueryError(f"ids are strings, not {wrong[0]!r}")
    return wanted


def _count(k: int) -> int:
    """`k` as an int, of whatever integer type. Raises InvalidQueryError."""
    try:
        return int(index(k))
    except TypeError as error:
        raise InvalidQueryError(f"k must be a whole number, not {k!r}") from error


def _split_options(config: MemoryConfig, options: dict[str, Any]) -> tuple[GenerationConfig, InterleaveConfig]:
    """Apply per-call options to the settings they belong to. Raises ConfigError for unknown names."""
    generation = {k: v for k, v in options.items() if k in GenerationConfig.model_fields}
    rounds = {k: v for k, v in options.items() if k in InterleaveConfig.model_fields}
    unknown = sorted(set(options) - set(generation) - set(rounds))
    if unknown:
        known = sorted([*GenerationConfig.model_fields, *InterleaveConfig.model_fields])
        raise ConfigError(f"unknown options {unknown}; known: {', '.join(known)}")
    return (
        GenerationConfig(**{**config.generation.model_dump(), **generation}),
        InterleaveConfig(**{**config.interleave.model_dump(), **rounds}),
    )
