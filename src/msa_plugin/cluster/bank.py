"""A bank whose documents are spread over shards, with the methods of one that lies in this process."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from msa_plugin.bank.documents import Known, StoredDocument
from msa_plugin.bank.filters import compile_filter
from msa_plugin.bank.handle import Selected
from msa_plugin.bank.lock import WriterLock
from msa_plugin.bank.scopes import check_namespace, grouped
from msa_plugin.bank.words import WordPart
from msa_plugin.cluster.manifest import Manifest, home
from msa_plugin.cluster.selection import PLACES, ShardedSelection
from msa_plugin.cluster.serialization import unflat_document, unpack
from msa_plugin.cluster.shard import ShardQuestion
from msa_plugin.cluster.shards import Shards
from msa_plugin.cluster.shipping import Shipped
from msa_plugin.errors import (
    BankCorruptError,
    BankError,
    BankReadOnlyError,
    ConfigError,
    InvalidQueryError,
    SnapshotError,
)
from msa_plugin.types import PRESENT, Asof, Document, Filter, Stats, VerifyReport

_PAGE = 1000


class ClusterBank:
    """A handle on a cluster. Safe to share among threads.

    What it finds through a selection is of one moment for each shard. Changes need every shard.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        shards: Shards,
        load: Callable[[], Shipped],
        *,
        read_only: bool,
        lock_timeout: float,
    ) -> None:
        """Use `open_cluster`; `load` makes what shards encode with, once it is needed."""
        self.path, self.fingerprint, self.shards, self.read_only = path, manifest.fingerprint, shards, read_only
        self._load = load
        self._lock = WriterLock(path, lock_timeout)
        self._next = manifest.next_ordinal
        self._shipped: Callable[[], Any] | None = None
        self._places: dict[int, int] = {}
        self._tokens = itertools.count(1)
        self._over: deque[int] = deque()
        self._guard = threading.Lock()

    @property
    def version(self) -> int:
        """The sum of the shards' versions."""
        return sum(self.shards.all("version", seconds=self.shards.config.timeout))

    @property
    def next_ordinal(self) -> int:
        """The number that the next document gets; within `writing` nobody else takes it."""
        return self._next

    def refresh(self) -> None:
        """See what others have committed; shards that were lost are started again."""
        self._next = max(self._read_manifest().next_ordinal, *self.shards.all("refresh"))

    def _read_manifest(self) -> Manifest:
        found = Manifest.read(self.path)
        if found is None:
            raise BankCorruptError(f"{self.path} has lost its manifest; restore it from a backup")
        return found

    def close(self) -> None:
        """End the shards' processes; may be called twice."""
        self.shards.close()

    def one_moment(self) -> AbstractContextManager[None]:
        """Each shard's moment is that of a selection's first use; there is none that all share."""
        return nullcontext()

    # -- finding ----------------------------------------------------------------------------------------------------

    def select(
        self, namespace: str, where: Filter | None = None, *, below: bool = False, asof: Asof = PRESENT
    ) -> ShardedSelection:
        """See `MemoryBank.select`; the shards work it out when it is first used, by their own clocks.

        Raises InvalidQueryError.
        """
        check_namespace(namespace)
        if isinstance(where, Mapping):
            compile_filter(where)
        elif where is not None and not callable(where):
            raise InvalidQueryError(f"a filter is a mapping or a function of the metadata, not {type(where).__name__}")
        return ShardedSelection(
            self, ShardQuestion(self.token(), namespace, where, None, None, (), below, *asof[:2]), asof
        )

    def token(self) -> int:
        """A name for a selection, until its `release`."""
        return next(self._tokens)

    def release(self, token: int) -> None:
        """Shards may forget a selection; they are told with the next question."""
        self._over.append(token)

    def find(self, method: str, selection: Selected, *arguments: Any) -> dict[int, Any]:
        """Ask every shard about a selection of this bank, which takes note of those that were missed."""
        assert isinstance(selection, ShardedSelection)
        with self._guard:
            over = tuple(self._over.popleft() for _ in range(len(self._over)))
        answers, missed = self.shards.some(method, selection.asked._replace(forget=over).light(), *arguments)
        selection.note(missed)
        return answers

    def remember(self, shard: int, ordinals: Iterable[int]) -> None:
        """Where documents are: for good, for an ordinal is never given to another one."""
        with self._guard:
            if len(self._places) > PLACES:
                self._places.clear()
            self._places.update(dict.fromkeys(itertools.islice(ordinals, PLACES), shard))

    # -- reading ----------------------------------------------------------------------------------------------------

    def words(self, selection: Any) -> Sequence[WordPart]:
        """Raises ConfigError: words stay where they are; `ClusterSearch.words` asks for scores."""
        raise ConfigError("words of a cluster stay in its shards; open a shard's folder with read_only=True")

    def key_rows(self, ordinals: Sequence[int], group: str) -> list[Tensor]:
        """See `MemoryBank.key_rows`."""
        return [unpack(rows) for rows in self._by_ordinal("key_rows", ordinals, group)]

    def content(self, ordinals: Sequence[int], layer: int) -> list[Tensor]:
        """See `MemoryBank.content`."""
        return [unpack(rows) for rows in self._by_ordinal("content", ordinals, layer)]

    def documents(self, ordinals: Sequence[int]) -> list[StoredDocument]:
        """See `MemoryBank.documents`."""
        return [unflat_document(fields) for fields in self._by_ordinal("documents", ordinals)]

    def dates(self, ordinals: Sequence[int]) -> list[str | None]:
        """See `MemoryBank.dates`."""
        return self._by_ordinal("dates", ordinals)

    def _by_ordinal(self, method: str, ordinals: Sequence[int], *arguments: Any) -> list[Any]:
        """One thing for each document, from the shards that hold them."""
        groups = grouped((shard, ordinal) for ordinal, shard in self._homes(ordinals).items())
        calls = {shard: (group, *arguments) for shard, group in groups.items()}
        answers = self.shards.each(method, calls, self.shards.config.timeout)
        found = {o: thing for shard, group in groups.items() for o, thing in zip(group, answers[shard], strict=True)}
        return [found[ordinal] for ordinal in ordinals]

    def _homes(self, ordinals: Sequence[int]) -> dict[int, int]:
        with self._guard:
            known = {o: self._places[o] for o in ordinals if o in self._places}
        unknown = [o for o in dict.fromkeys(ordinals) if o not in known]
        if unknown:
            for shard, held in enumerate(self.shards.all("held", unknown, seconds=self.shards.config.timeout)):
                self.remember(shard, held)
                known |= dict.fromkeys(held, shard)
        if missing := [o for o in unknown if o not in known]:
            raise BankError(f"document ordinals {missing[:5]} are not in the cluster any more; repeat the query")
        return known

    def lookup(self, ids: Iterable[str], namespace: str) -> dict[str, Known]:
        """See `MemoryBank.lookup`."""
        known: dict[str, Known] = {}
        for shard, found in self._by_id("lookup", ids, namespace).items():
            self.remember(shard, (at.ordinal for at in found.values()))
            known |= found
        return known

    def get(self, ids: Iterable[str], namespace: str) -> dict[str, StoredDocument]:
        """See `MemoryBank.get`."""
        return {i: d for found in self._by_id("get", ids, namespace).values() for i, d in found.items()}

    def _by_id(self, method: str, ids: Iterable[str], namespace: str) -> dict[int, Any]:
        check_namespace(namespace)
        calls = {shard: (method, names, namespace) for shard, names in self.homes(namespace, ids).items()}
        return self.shards.each("pass_on", calls, self.shards.config.timeout)

    def homes(self, namespace: str, ids: Iterable[str]) -> dict[int, list[str]]:
        """Ids by the shard that they belong to, each once."""
        return grouped((home(namespace, name, self.shards.count), name) for name in dict.fromkeys(ids))

    def iter_ids(self, namespace: str) -> Iterator[str]:
        """Live ids in code point order, fetched in pages, each of its own moment."""
        return heapq.merge(*(self._ids_of(shard, namespace) for shard in range(self.shards.count)))

    def _ids_of(self, shard: int, namespace: str) -> Iterator[str]:
        after: str | None = None
        while True:
            page = self.shards.each("ids", {shard: (namespace, after, _PAGE)}, self.shards.config.timeout)[shard]
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1]

    def namespaces(self, inside: str) -> Sequence[str]:
        """See `MemoryBank.namespaces`."""
        return sorted({name for part in self._all("namespaces", inside) for name in part})

    def expired(self, namespace: str, below: bool = False) -> list[tuple[str, str]]:
        """See `MemoryBank.expired`."""
        return [found for part in self._all("expired", namespace, below) for found in part]

    def count(self, namespace: str) -> int:
        """See `MemoryBank.count`."""
        return sum(self._all("count", namespace))

    def stats(self, namespace: str) -> Stats:
        """Sums over the shards; `snapshots` that all of them have."""
        parts: list[Stats] = self._all("stats", namespace)
        sums = ["documents", "tokens", "chunks", "segments", "deleted"]
        sums += ["bytes_keys", "bytes_content", "bytes_words", "bytes_catalog"]
        shared = set.intersection(*(set(part.snapshots) for part in parts))
        return Stats(
            **{name: sum(getattr(part, name) for part in parts) for name in sums},
            namespaces=tuple(sorted({name for part in parts for name in part.namespaces})),
            snapshots=tuple(name for name in parts[0].snapshots if name in shared),
        )

    def verify(self, deep: bool = True, namespace: str | None = None) -> VerifyReport:
        """Every shard checks its own bank on its own machine; problems name the shard."""
        parts: list[VerifyReport] = self._all("verify", deep, namespace)
        return VerifyReport(
            files=sum(part.files for part in parts),
            bytes=sum(part.bytes for part in parts),
            problems=tuple(f"shard {shard}: {p}" for shard, part in enumerate(parts) for p in part.problems),
            documents=tuple(name for part in parts for name in part.documents),
        )

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self.shards.all("pass_on", method, *arguments)

    # -- writing ----------------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the cluster's only writer; re-entrant within a thread. Starts from the newest versions.

        Raises BankLockedError, BankReadOnlyError, and ShardLostError where not every shard is there.
        """
        if self.read_only:
            raise BankReadOnlyError(f"{self.path} was opened for reading; open it without read_only and snapshot")
        with self._lock.hold() as outermost:
            if outermost:
                self.refresh()
            yield

    def made(self) -> None:
        """Say in the manifest that every shard has its bank."""
        with self.writing():
            replace(self._read_manifest(), ready=True).write(self.path)

    def store(self, documents: Sequence[Document], namespace: str) -> list[int]:
        """Encode and commit documents in their shards, side by side; tokens that each took. Durable on return.

        They get the next ordinals, which are reserved before anything is sent. Raises as `writing`, and what shards
        raise; some of the documents may have been stored then, each of them whole.
        """
        with self.writing():
            first = self._next
            reserved = replace(self._read_manifest(), next_ordinal=first + len(documents)).write(self.path)
            self._next = reserved.next_ordinal
            if self._shipped is None:
                self._shipped = self.shards.put(self._load())
            numbered = enumerate(documents, first)
            groups = grouped((home(namespace, item[1].id, self.shards.count), item) for item in numbered)
            calls = {shard: (namespace, items, self._shipped) for shard, items in groups.items()}
            answers = self.shards.each("store", calls)
        tokens: dict[int, int] = {}
        for shard, items in groups.items():
            tokens |= dict(zip((o for o, _ in items), answers[shard], strict=True))
            self.remember(shard, (o for o, _ in items))
        return [tokens[ordinal] for ordinal in sorted(tokens)]

    def delete(self, ids: Iterable[str], namespace: str) -> tuple[list[str], list[str]]:
        """See `MemoryBank.delete`: one transaction a shard, so after an error some may be gone and others not."""
        wanted = list(dict.fromkeys(ids))
        with self.writing():
            live = self.lookup(wanted, namespace)
            self._by_id("delete", live, namespace)
        return [i for i in wanted if i in live], [i for i in wanted if i not in live]

    def snapshot(self, name: str) -> None:
        """Name the present state of all shards, in which nobody writes meanwhile. Raises SnapshotError."""
        with self.writing():
            if name in self.stats("-").snapshots:
                raise SnapshotError(f"{self.path}: a snapshot named {name!r} exists; drop it first")
            self._drop_where_there(name)  # what an attempt that was cut short left
            self._all("snapshot", name)

    def drop_snapshot(self, name: str) -> None:
        """Forget a named state. Raises SnapshotError when no shard has it."""
        with self.writing():
            if not self._drop_where_there(name):
                have = ", ".join(self.stats("-").snapshots) or "none"
                raise SnapshotError(f"{self.path}: no snapshot named {name!r}; there are: {have}")

    def _drop_where_there(self, name: str) -> bool:
        have = [shard for shard, stats in enumerate(self._all("stats", "-")) if name in stats.snapshots]
        self.shards.each("pass_on", dict.fromkeys(have, ("drop_snapshot", name)))
        return bool(have)

    def compact(self) -> None:
        """Every shard frees the space of its deleted documents, side by side."""
        with self.writing():
            self._all("compact")
