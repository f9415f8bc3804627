"""Plain data that crosses module borders.

Shape legend: B rows, T tokens, H heads, KV key/value heads, D head dim, C chunks, N documents, W routing-key width.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from msa_plugin.dates import ALWAYS as ALWAYS
from msa_plugin.dates import PRESENT as PRESENT
from msa_plugin.dates import UNBOUNDED as UNBOUNDED
from msa_plugin.dates import Asof as Asof
from msa_plugin.dates import Period as Period
from msa_plugin.dates import Validity as Validity
from msa_plugin.dates import When, period_of
from msa_plugin.display import views
from msa_plugin.errors import InvalidDocumentError
from msa_plugin.explanation import ChunkScore as ChunkScore
from msa_plugin.explanation import Explanation as Explanation
from msa_plugin.explanation import NamedBy as NamedBy
from msa_plugin.fingerprint import FORMAT_VERSION as FORMAT_VERSION
from msa_plugin.fingerprint import OLDEST_FORMAT as OLDEST_FORMAT
from msa_plugin.fingerprint import WORDS_FORMAT as WORDS_FORMAT
from msa_plugin.fingerprint import Fingerprint as Fingerprint
from msa_plugin.reports import AddReport as AddReport
from msa_plugin.reports import DeleteReport as DeleteReport
from msa_plugin.reports import OnInvalid as OnInvalid
from msa_plugin.reports import Progress as Progress
from msa_plugin.reports import RepairReport as RepairReport
from msa_plugin.reports import Stats as Stats
from msa_plugin.reports import TierStats as TierStats
from msa_plugin.reports import VerifyReport as VerifyReport

if TYPE_CHECKING:
    from torch import Tensor

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # as JSON writes it, told apart from an escaped backslash and "u0000"
Filter: TypeAlias = Mapping[str, Any] | Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Document:
    """One document: the user's id, its text, an optional title and JSON metadata, and when it is valid.

    It is found from `valid_from` on, and until `valid_until` (which is not included) or until another document of its
    namespace that `replaces` it (an id or several) becomes valid: at its `valid_from`, or when it is stored. Forgetting
    that one undoes it. Dates without a zone are read as UTC, a date as its first moment.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    valid_from: When | None = None
    valid_until: When | None = None
    replaces: str | Sequence[str] = ()

    @property
    def period(self) -> Period:
        """When it is valid and what it replaces. Raises InvalidDocumentError for what is no date and no id."""
        return period_of(self.id, self.valid_from, self.valid_until, self.replaces)

    @property
    def content_hash(self) -> str:
        """SHA-256 of title and text: what encoding depends on."""
        return content_hash(self.title, self.text)

    @classmethod
    def of(cls, item: Document | Mapping[str, Any] | str) -> Document:
        """Normalise a string, a mapping or a Document; a bare string gets an id made from its content.

        Raises InvalidDocumentError for anything that cannot be stored: no text, blank text, ids that are not
        non-empty strings, text that is not valid Unicode, metadata that JSON cannot hold, dates that are none.
        """
        document = cls._coerce(item)
        fields: dict[str, object] = {"id": document.id, "title": document.title, "text": document.text}
        for name, value in fields.items():
            if not isinstance(value, str):
                kind = type(value).__name__
                raise InvalidDocumentError(f"document {document.id!r}: {name} must be a string, not {kind}")
            _check_unicode(document.id, name, value)
        if not document.id:
            raise InvalidDocumentError("a document's id must not be empty; leave it out to get one made from its text")
        if not document.text.strip():
            raise InvalidDocumentError(f"document {document.id!r} has no text; leave it out, or pass on_invalid='skip'")
        _check_metadata(document)
        period = document.period
        return document if period is ALWAYS else replace(document, **period._asdict())

    @classmethod
    def _coerce(cls, item: Document | Mapping[str, Any] | str) -> Document:
        if isinstance(item, Document):
            return item
        if isinstance(item, str):
            return cls(id=_text_id("", item), text=item)
        if not isinstance(item, Mapping):
            raise InvalidDocumentError(f"a document is a string, a mapping or a Document, not {type(item).__name__}")
        unknown = sorted(set(map(str, item)) - {"id", "text", "title", "metadata", *Period._fields})
        if unknown:
            raise InvalidDocumentError(f"unknown document fields {unknown}; put them under 'metadata'")
        if "text" not in item:
            raise InvalidDocumentError(f"document {item.get('id')!r} has no 'text' field")
        given, text, title, metadata = (item.get(name) for name in ("id", "text", "title", "metadata"))
        title, metadata = "" if title is None else title, {} if metadata is None else metadata
        if given is None and isinstance(text, str) and isinstance(title, str):
            given = _text_id(title, text)
        period = {name: item[name] for name in Period._fields if item.get(name) is not None}
        return cls(id=given, text=text, title=title, metadata=metadata, **period)  # type: ignore[arg-type]


def content_hash(title: str, text: str) -> str:
    """SHA-256 (hex) of title and text; lone surrogates are hashed as they stand."""
    return hashlib.sha256(f"{len(title)}:{title}{text}".encode("utf-8", "surrogatepass")).hexdigest()


def _text_id(title: str, text: str) -> str:
    return content_hash(title, text)[:16]


def _check_unicode(document_id: object, name: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidDocumentError(
            f"document {document_id!r}: {name} holds invalid Unicode at character {error.start}; "
            "decode it with errors='replace' first"
        ) from error


def _check_metadata(document: Document) -> None:
    if not isinstance(document.metadata, Mapping) or not all(isinstance(k, str) for k in document.metadata):
        raise InvalidDocumentError(f"document {document.id!r}: metadata must be a mapping with string keys")
    try:
        encoded = json.dumps(dict(document.metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidDocumentError(f"document {document.id!r}: metadata is not JSON ({error})") from error
    if r"\ud" in encoded:  # escapes of surrogates, which are fine in pairs
        _check_unicode(document.id, "metadata", json.dumps(dict(document.metadata), ensure_ascii=False))
    if _NUL.search(encoded):  # SQLite's JSON functions cut strings there: a filter would match what it should not
        raise InvalidDocumentError(f"document {document.id!r}: metadata holds a NUL character; remove it")


@dataclass(frozen=True)
class EncodedDocument:
    """A document's latents on their way into the bank.

    `keys`: per key group, routing keys [C, W]; int8 ones have their scales beside them (`bank.quantize.stored_keys`
    makes both). `content`: per reading layer, pooled K and V [C', 2, KV, D] (empty
    where the bank keeps none); int8 content has `content_scales` (`bank.quantize.quantized_content`). C and C' differ
    where routing and content are pooled differently.
    """

    document: Document
    tokens: int
    keys: Mapping[str, Tensor]
    content: Mapping[int, Tensor]
    content_scales: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of its latents."""
        tensors = (*self.keys.values(), *self.content.values(), *self.content_scales.values())
        return sum(t.numel() * t.element_size() for t in tensors)


class KeyBlock(NamedTuple):
    """A run of whole documents for the scorer.

    `keys` [C, W]; `offsets` int64 [n + 1], chunk range of each document; `ordinals` int64 [n], ascending;
    `allowed` bool [n] or None when every document may be returned. `scales` float32 [C] belong to int8 keys: a key is
    its integers times its scale. `device_offsets`: the offsets once more, beside keys that are not on the CPU, or None.
    """

    keys: Tensor
    offsets: Tensor
    ordinals: Tensor
    allowed: Tensor | None
    scales: Tensor | None = None
    device_offsets: Tensor | None = None


@dataclass(frozen=True)
class Passage:
    """A part of a document that a question may be about: characters [start, end) of the document's text.

    `score` orders the passages of one call; `heading` is the nearest one before it ("" where there is none, and for a
    document short enough to be a single passage).
    """

    text: str
    score: float
    start: int
    end: int
    heading: str = ""


@dataclass(frozen=True)
class Hit:
    """A routed document. `score` is the aggregated routing score; `layer_scores` the same by routing layer.

    `signals` are what the score is the sum of: `keys` (routing), and `words` and `names` where these added to it
    (`MemoryConfig.lexical`, `titles`).
    `relevance` is how likely it holds what was asked for, from 0 to 1, and means the same for every question, where
    scores are relative to a question's best match; None where the adapter was not fitted to say so.
    `passages` are the places in it that fit best, best first. Of `retrieve(by="passage")` a hit is one `passage` (else
    None): `text` and `score` are the passage's, `relevance` its document's, `passages` is that one alone, and an id may
    come several times. `validity` says when it is valid.
    """

    id: str
    score: float
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    layer_scores: Mapping[int, float] = field(default_factory=dict)
    ordinal: int = -1
    namespace: str = ""
    passages: tuple[Passage, ...] = ()
    passage: Passage | None = None
    relevance: float | None = None
    signals: Mapping[str, float] = field(default_factory=dict)
    validity: Validity = UNBOUNDED


class Hits(list[Hit]):
    """What a question found, best first; a notebook shows it with the words and the chunks that scored.

    `seconds` by stage: encode, route, passages; questions of a batch share them. `missed_shards` are those of a cluster
    that were lost, whose documents are not among the hits.
    """

    missed_shards: tuple[int, ...] = ()
    seconds: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        hits: Iterable[Hit] = (),
        question: str = "",
        chunks: Callable[[int], tuple[int, int] | None] | None = None,
    ) -> None:
        """`chunks` says where a document's best chunk is, by ordinal; it is not kept in copies and pickles."""
        super().__init__(hits)
        self.question, self._chunks = question, chunks

    def chunk(self, hit: Hit) -> tuple[int, int] | None:
        """Characters [start, end) of the document's text whose routing key fits best; None once its memory is gone."""
        return None if self._chunks is None else self._chunks(hit.ordinal)

    def __getstate__(self) -> dict[str, Any]:
        """All but what needs the memory."""
        return vars(self) | {"_chunks": None, "seconds": dict(self.seconds)}

    def _repr_html_(self) -> str:
        return views.hits(self)


@dataclass(frozen=True)
class Quote:
    """Words that say what an answer says: characters [start, end) of a document's text; the sentence around them."""

    text: str
    start: int
    end: int
    sentence: str


@dataclass(frozen=True)
class Source:
    """A passage that the answer was read from; `score` and `round` (1-based) are its document's.

    `text` is characters [start, end) of the document's text, without the title and the nearest `heading` that stood
    above it in the prompt. `relevance` is the document's, where it was found by the question itself (`Hit.relevance`);
    `quotes` are the places in the text that say what the answer says.
    """

    id: str
    score: float
    round: int
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    heading: str = ""
    relevance: float | None = None
    quotes: tuple[Quote, ...] = ()
    validity: Validity = UNBOUNDED


@dataclass(frozen=True)
class Round:
    """One round of routing: what was asked (the query as text), what came back, and seconds per stage."""

    query: str
    selected: tuple[str, ...]
    scores: tuple[float, ...]
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Trace:
    """How an answer came about. `seconds` by stage: queue, encode, route, gather, prefill, decode, and other.

    They add up to what the call took until its answer was there, without what a stream's reader did in between: `queue`
    is for questions that came first, `other` for what no stage has, such as cutting documents to fit. Questions of a
    batch share encode and route; the rest is the batch's. `finish` is what ended the text: `stop` (the model, or a stop
    sequence), `length`, or a `repetition`; `abstained` where the memory does not say it.

    `prompt_tokens` were prefilled for this question, `context_tokens` are those of the documents read, `head_tokens`
    those of the frame in front, computed once for all questions. `interleave` is what drove the rounds: `scores`, `ids`
    written by the model, or the `reference`'s own loop; `ended` why there was no further one (`events.RetrievalEnded`);
    `ids` whether the model named documents by their `global` numbers or by ones `local` to the question.
    `beside` are weights of what counted beside routing keys: `words` and `names`, where these did.
    `relevance` is that of the best document that the question found by itself (`Hit.relevance`).
    `missed_shards` are those of a cluster that were lost, so that their documents were left out (`on_lost="partial"`).
    """

    mode: str
    abilities: tuple[str, ...]
    rounds: tuple[Round, ...]
    seconds: Mapping[str, float]
    prompt_tokens: int
    context_tokens: int
    new_tokens: int
    finish: str
    head_tokens: int = 0
    interleave: str = ""
    ended: str = ""
    ids: str = ""
    missed_shards: tuple[int, ...] = ()
    beside: Mapping[str, float] = field(default_factory=dict)
    relevance: float | None = None

    def _repr_html_(self) -> str:
        return views.trace(self)

    @property
    def input_tokens(self) -> int:
        """Tokens that the model had in front of it, read as text or as latents."""
        inside = self.mode in ("text", "chat")  # there the documents are part of the prompt
        return self.head_tokens + self.prompt_tokens + (0 if inside else self.context_tokens)

    @property
    def output_tokens(self) -> int:
        """Tokens that the model wrote."""
        return self.new_tokens


@dataclass(frozen=True)
class Answer:
    """The answer's text, the documents it was read from, and how it came about.

    `abstained`: the memory does not say it; the text is a sentence that says so, and there are no sources.
    `grounded` is whether the answer's words stand in what was read (`Source.quotes` says where); None where that means
    nothing: yes and no, abstentions, chat, and models that write document ids.
    """

    text: str
    sources: tuple[Source, ...]
    trace: Trace
    abstained: bool = False
    grounded: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy."""
        return asdict(self)

    def _repr_html_(self) -> str:
        return views.answer(self)


OnProgress = Callable[[Progress], None]
DocumentLike = Document | Mapping[str, Any] | str
DocumentsLike = DocumentLike | Iterable[DocumentLike]
