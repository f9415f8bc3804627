"""What runs in a shard's process: an ordinary bank, exact search over its keys, and a backbone once it is needed.

Nothing in here knows of Ray or of other shards. Tensors come and go as `serialization.Sent`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.terms import tokenizer
from msa_plugin.bank.tiers import Tiers
from msa_plugin.bank.view import Selection
from msa_plugin.bank.words import WordPart
from msa_plugin.cluster.serialization import Sent, flat_document, flat_row, pack, pack_all, unflat, unpack
from msa_plugin.cluster.shipping import Shipped
from msa_plugin.config import MemoryConfig, RoutingConfig
from msa_plugin.engine.engine import Engine
from msa_plugin.engine.setup import fingerprint
from msa_plugin.errors import BankError, ClusterError, FingerprintMismatchError
from msa_plugin.retrieval.mentions import holders
from msa_plugin.retrieval.names import TextNames
from msa_plugin.retrieval.postings import Counts, QuestionPostings
from msa_plugin.retrieval.prefilter import Prefilter
from msa_plugin.retrieval.ranking import SharedQueries
from msa_plugin.retrieval.scorer import KeySearch
from msa_plugin.retrieval.search import BankSearch
from msa_plugin.types import Asof, Document, EncodedDocument, Filter, Fingerprint

# What is asked of a shard's bank as it stands.
PASSED_ON = (
    *("lookup", "get", "stats", "verify", "compact", "snapshot", "drop_snapshot", "count", "delete", "namespaces"),
    "expired",
)


@dataclass(frozen=True)
class ShardSpec:
    """What a shard needs to start. `create` makes its bank where there is none; `threads` are for products."""

    path: Path
    fingerprint: Fingerprint
    routing: RoutingConfig
    config: MemoryConfig
    create: bool
    read_only: bool
    snapshot: str | None
    device: str
    threads: int


class ShardQuestion(NamedTuple):
    """A selection of the driver's. The shard keeps its own under `token` until it is told to `forget` it.

    `only` narrows what `parent` selected, so that both are of one moment.
    """

    token: int
    namespace: str
    where: Filter | None
    only: frozenset[int] | None
    parent: int | None
    forget: Sequence[int]
    below: bool = False
    at: str | None = None
    history: bool = False

    def light(self) -> Sequence[Any]:
        """Its fields, as a list where that spares pickling them; a filter may hold what only pickling keeps."""
        return self if self.where or self.only is not None else [*self._replace(forget=list(self.forget))]


class Shard:
    """One shard. Methods may be called from several threads at once; `asked` are the fields of an `ShardQuestion`."""

    bank: MemoryBank

    def __init__(self, spec: ShardSpec) -> None:
        """Nothing happens before `open`."""
        self._spec = spec
        self._engine: Engine | None = None
        self._opened = False
        self._selections: dict[int, Selection] = {}
        self._prefilters: dict[tuple[int, str], Prefilter | None] = {}
        self._indexing = threading.Lock()

    def open(self) -> int:
        """Open the bank; returns the number that its next document would get. Raises as `MemoryBank.open`."""
        spec = self._spec
        torch.set_num_threads(spec.threads)
        self.bank = MemoryBank.open(
            spec.path,
            spec.fingerprint,
            create=spec.create,
            read_only=spec.read_only,
            snapshot=spec.snapshot,
            lock_timeout=spec.config.lock_timeout,
            follow=spec.config.follow,
        )
        tiers = Tiers(self.bank, spec.config.tiers, torch.device(spec.device))
        self._search = BankSearch(self.bank, spec.routing, KeySearch.of(tiers.keys, spec.config))
        self._opened = True
        return self.bank.next_ordinal

    def close(self) -> None:
        """Close the bank, if it was opened, so that its catalog is sealed."""
        if self._opened:
            self.bank.close()

    # -- finding ----------------------------------------------------------------------------------------------------

    def ranked(
        self, asked: Sequence[Any], question: list[Any], k: int, behind: Sequence[Any] | None = None
    ) -> list[Any]:
        """The best `k` of each row by a shared selection, each a `serialization.flat_row`; see `Search.ranked`.

        `question` is `SharedQueries`, flat; `behind` the arguments of `index`, for candidates of a prefilter.
        """
        shared = SharedQueries(*(part.to(self._spec.device) for part in unflat(question)))
        prefilter = None if behind is None else self._prefilter(*behind)
        return [flat_row(row) for row in self._search.ranked(shared, k, self._selected(asked), prefilter)]

    def word_counts(self, asked: Sequence[Any], texts: list[str], split_by: str) -> list[list[Any]]:
        """Of each text, a `Counts` as a list: documents of the selection here, their words, and who has the text's."""
        parts = self._words(asked, split_by)
        return [list(QuestionPostings(text).over(parts).counts) for text in texts]

    def word_scores(
        self, asked: Sequence[Any], texts: list[str], split_by: str, sums: list[Any]
    ) -> list[tuple[Sent, Sent]]:
        """Of each text, ordinals and scores of the documents here that have a word of it, by the `sums` of all shards.

        Twelve bytes a document travel.
        """
        parts = self._words(asked, split_by)
        found = [
            QuestionPostings(text).over(parts).words(Counts(*over)) for text, over in zip(texts, sums, strict=True)
        ]
        return [(pack(torch.from_numpy(words.ordinals)), pack(torch.from_numpy(words.scores))) for words in found]

    def names(self, asked: Sequence[Any], texts: list[str], any_case: bool, split_by: str) -> list[list[Any]]:
        """Of each text, runs of words that name documents here: first word, length, ordinals; see `TextNames.runs`."""
        parts = self._words(asked, split_by)
        rows = [TextNames(text, any_case=any_case).runs(parts) for text in texts]
        return [[[at, size, ordinals] for (at, size), ordinals in runs.items()] for runs in rows]

    def holders(self, asked: Sequence[Any], wanted: list[list[str]], most: int, split_by: str) -> list[list[int]]:
        """Ordinals of documents here that have all words of each name; see `mentions.holders`."""
        parts = self._words(asked, split_by)
        return [row[: most + 1] for row in holders([tuple(words) for words in wanted], parts, most)]

    def _words(self, asked: Sequence[Any], split_by: str) -> list[WordPart]:
        """Raises ClusterError where this process would split texts otherwise than the one that asks."""
        if split_by != tokenizer():
            raise ClusterError(
                f"this shard's machine splits texts into words as {tokenizer()}, the asking one as {split_by}; "
                "install the same versions of bm25s and PyStemmer on both"
            )
        return self.bank.words(self._selected(asked))

    def index(self, asked: Sequence[Any], spec: str, folder: str) -> list[int]:
        """Make a prefilter ready over a selection, saved in this shard's part of `folder`; its documents and bytes."""
        made = self._prefilter(asked, spec, folder)
        return [0, 0] if made is None else [made.documents, made.bytes]

    def _prefilter(self, asked: Sequence[Any], spec: str, folder: str) -> Prefilter | None:
        """None where the selection has nothing here: whatever comes later is scored exactly."""
        selection, key = self._selected(asked), (ShardQuestion(*asked).token, spec)
        with self._indexing:
            if key not in self._prefilters:
                here, made_with = Path(folder) / self._spec.path.name, self._spec.fingerprint
                self._prefilters[key] = (
                    Prefilter.open(here, made_with, selection, self._spec.routing, spec)
                    if selection.documents
                    else None
                )
            return self._prefilters[key]

    def route(self, asked: Sequence[Any], layer: int, queries: Sent, votes: Sent, k: int) -> tuple[Sent, ...]:
        """Ordinals and scores of the best `k` of each row at one layer; see `Search.route`."""
        where = self._spec.device
        found = self._search.route(layer, unpack(queries).to(where), unpack(votes).to(where), k, self._selected(asked))
        return tuple(pack_all(found))

    def count(self, asked: Sequence[Any]) -> int:
        """Documents of a selection."""
        return self._selected(asked).documents

    def ordinals(self, asked: Sequence[Any]) -> Sent:
        """Their ordinals, ascending."""
        return pack(self._selected(asked).ordinals())

    def _selected(self, fields: Sequence[Any]) -> Selection:
        asked = ShardQuestion(*fields)
        for token in asked.forget:
            self._selections.pop(token, None)
            for key in [key for key in list(self._prefilters) if key[0] == token]:
                self._prefilters.pop(key, None)
        kept = self._selections.get(asked.token)
        if kept is None:
            kept = self._selections.get(asked.parent or 0)
            if kept is None:
                asof = Asof(asked.at, asked.history)
                kept = self.bank.select(asked.namespace, asked.where, below=asked.below, asof=asof)
            kept = kept if asked.only is None else kept.only(asked.only)
            self._selections[asked.token] = kept
        return kept

    # -- reading ----------------------------------------------------------------------------------------------------

    def key_rows(self, ordinals: Sequence[int], group: str) -> list[Sent]:
        """See `MemoryBank.key_rows`."""
        return pack_all(self.bank.key_rows(ordinals, group))

    def content(self, ordinals: Sequence[int], layer: int) -> list[Sent]:
        """See `MemoryBank.content`."""
        return pack_all(self.bank.content(ordinals, layer))

    def documents(self, ordinals: Sequence[int]) -> list[list[Any]]:
        """See `MemoryBank.documents`; each a `serialization.flat_document`."""
        return [flat_document(document) for document in self.bank.documents(ordinals)]

    def dates(self, ordinals: Sequence[int]) -> list[str | None]:
        """See `MemoryBank.dates`."""
        return self.bank.dates(ordinals)

    def held(self, ordinals: Sequence[int]) -> list[int]:
        """Those of `ordinals` that are here."""
        return [ordinal for ordinal in ordinals if self._holds(ordinal)]

    def _holds(self, ordinal: int) -> bool:
        try:
            return bool(self.bank.documents([ordinal]))
        except BankError:
            return False

    def ids(self, namespace: str, after: str | None, size: int) -> list[str]:
        """The next `size` live ids beyond `after`, in code point order."""
        return list(islice(self.bank.iter_ids(namespace, after), size))

    def pass_on(self, method: str, *arguments: Any) -> Any:
        """What the bank answers."""
        assert method in PASSED_ON, method
        return getattr(self.bank, method)(*arguments)

    def version(self) -> int:
        """See `MemoryBank.version`."""
        return self.bank.version

    def refresh(self) -> int:
        """See what others have committed; returns the number that the next document would get here."""
        self.bank.refresh()
        return self.bank.next_ordinal

    # -- writing ----------------------------------------------------------------------------------------------------

    def store(self, namespace: str, items: Sequence[tuple[int, Document]], load: Callable[[], Shipped]) -> list[int]:
        """Encode and commit documents under the ordinals given, ascending; tokens that each took.

        `load` brings backbone and adapter, when the first document is to be encoded. What is there under its very
        ordinal was stored by a call whose answer was lost, and costs nothing. Documents of which only the metadata are
        new keep their latents.
        """
        with self.bank.writing():
            known = self.bank.lookup([d.id for _, d in items], namespace)
            done = {o for o, d in items if d.id in known and known[d.id].ordinal == o}
            again = [(o, d, known[d.id]) for o, d in items if d.id in known]
            same = {o: live.ordinal for o, d, live in again if live.content_hash == d.content_hash}
            if self._spec.fingerprint.template == "numbered":  # latents hold the ordinal: another one needs others
                same = {}
            encoded = self._encoded([(o, d) for o, d in items if o not in done and o not in same], load)
            tokens, portion = [], _Portion(self.bank, namespace, self._spec.config.segment_bytes)
            for ordinal, document in items:
                if ordinal in done:
                    tokens.append(0)
                elif ordinal in same:
                    portion.take(ordinal, replace(self.bank.latents(same[ordinal]), document=document))
                    tokens.append(0)
                else:
                    portion.take(ordinal, item := next(encoded))
                    tokens.append(item.tokens)
            portion.commit()
        return tokens

    def _encoded(self, items: Sequence[tuple[int, Document]], load: Callable[[], Shipped]) -> Iterator[EncodedDocument]:
        if not items:
            return iter(())
        if self._engine is None:
            self._engine = self._loaded(load())
        return self._engine.encoder.encode((d for _, d in items), [o for o, _ in items])

    def _loaded(self, shipped: Shipped) -> Engine:
        backbone, adapter = shipped.unpack(self._spec.config)
        found = fingerprint(backbone, adapter, self._spec.config)
        if found != self._spec.fingerprint:
            raise FingerprintMismatchError(
                f"{self._spec.path}: the model that this shard's machine has under that name is another one: "
                f"{'; '.join(self._spec.fingerprint.differences(found))}"
            )
        return Engine(backbone, adapter, self.bank, self._spec.config)


class _Portion:
    """Documents on their way to a commit, in a bounded number of bytes."""

    def __init__(self, bank: MemoryBank, namespace: str, most: int) -> None:
        self.bank, self.namespace, self.most = bank, namespace, most
        self.items: list[tuple[int, EncodedDocument]] = []
        self.bytes = 0

    def take(self, ordinal: int, document: EncodedDocument) -> None:
        self.items.append((ordinal, document))
        self.bytes += document.bytes
        if self.bytes >= self.most:
            self.commit()

    def commit(self) -> None:
        if self.items:
            self.bank.commit([item for _, item in self.items], self.namespace, [ordinal for ordinal, _ in self.items])
        self.items, self.bytes = [], 0
