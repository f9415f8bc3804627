"""Typed settings, validated at the door: frozen, composed, and free of any family or framework knowledge."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from msa_plugin.dates import days_of
from msa_plugin.errors import ConfigError, InvalidQueryError

HeadReduce = Literal["mean", "max"]
QueryReduce = Literal["max", "mean", "last", "pooled"]
ChunkReduce = Literal["max", "mean"]
Selection = Literal["per_layer", "shared"]
RouterSource = Literal["projection", "attention"]
ReadingMode = Literal["text", "latent", "kv"]
Layers = Annotated[tuple[int, ...], Field(min_length=1)]
# Sizes that files state: far beyond any model, and small enough that nothing overflows before it is refused.
Size = Annotated[int, Field(gt=0, le=1 << 20)]
# A place on the disk, resolved once: it stays what it was when the working directory changes.
Place = Annotated[Path, AfterValidator(Path.resolve)]


def _days(value: Any) -> float | None:
    try:
        return days_of(value)
    except InvalidQueryError as error:
        raise ValueError(str(error)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the one of `known` that is nearly `name`, for the end of a message; empty for none."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def problems(error: ValidationError, known: Iterable[str] = (), shown: Callable[[str], str] = str) -> str:
    """What is wrong with which field; `known` are the fields there are, `shown` says what the user calls one."""
    return "; ".join(
        _problem((*map(shown, map(str, e["loc"][:1])), *e["loc"][1:]), e["type"], e["msg"], e["input"], list(known))
        for e in error.errors()
    )


def _problem(place: tuple[int | str, ...], kind: str, message: str, given: object, known: list[str]) -> str:
    name = ".".join(map(str, place)) or "settings"
    if kind == "extra_forbidden":
        return f"there is no setting {name!r}{nearest(name, known)}"
    if kind == "literal_error":
        return f"{name}: {message.removeprefix('Input should be ')}, not {given!r}{_nearest_word(message, given)}"
    return f"{name}: {message}"


def _nearest_word(message: str, given: object) -> str:
    return nearest(given, re.findall("'([^']*)'", message)) if isinstance(given, str) else ""


class Settings(BaseModel):
    """Base of all settings: frozen, finite, no unknown fields, and `ConfigError` instead of pydantic's own error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, /, **data: object) -> None:
        """Validate `data`; raises ConfigError naming each wrong field."""
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(f"{type(self).__name__}: {problems(error, type(self).model_fields)}") from error


class RoutingConfig(Settings):
    """How routing keys and queries are made and compared (paper section 3, equation 2).

    `layers` score; `pooling` is P, in tokens per chunk. `selection` says whether each layer picks its own documents
    (the reference) or one ranking is made from the scores summed over `layers`. `source` is `projection` for learned
    or calibrated projections, `attention` for the backbone's own Q and K (reference: `decouple_router` false).
    `scale` multiplies every score; `token_weighted` pools tokens with the adapter's weights instead of evenly.
    `joint` adds the layers' projections up before normalising: one short vector a chunk, which sees all layers.
    `document_mix` times the mean of a chunk's whole document (window) is added to the chunk's mean, so that a chunk
    knows what it is part of.
    """

    layers: Layers
    heads: Size
    kv_heads: Size
    head_dim: Size
    pooling: Size
    source: RouterSource = "projection"
    selection: Selection = "per_layer"
    head_reduce: HeadReduce = "mean"
    query_reduce: QueryReduce = "max"
    chunk_reduce: ChunkReduce = "max"
    normalize: bool = True
    scale: float = Field(default=1.0, gt=0)
    token_weighted: bool = False
    joint: bool = False
    document_mix: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> RoutingConfig:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise ValueError("layers must be ascending, distinct and not negative")
        if self.selection == "shared" and self.source == "attention":
            raise ValueError("a shared selection needs source='projection'")
        if self.selection == "shared" and self.head_reduce != "mean":
            raise ValueError("a shared selection is one matrix product and needs head_reduce='mean'")
        if (self.token_weighted or self.document_mix) and (self.selection, self.source) != ("shared", "projection"):
            raise ValueError("token_weighted and document_mix need selection='shared' and source='projection'")
        if self.joint and (self.selection, self.heads) != ("shared", 1):
            raise ValueError("joint needs selection='shared' and a single head")
        return self

    def check_shared(self, what: str) -> None:
        """Raises ConfigError where layers select for themselves, so that there is no one ranking for `what`."""
        if self.selection != "shared":
            raise ConfigError(
                f"{what} is for adapters with one ranking for all layers; this one's layers each have theirs"
            )

    @property
    def key_width(self) -> int:
        """Numbers in one layer's routing key: kv_heads * head_dim."""
        return self.kv_heads * self.head_dim

    @property
    def score_bounds(self) -> tuple[float, float]:
        """The lowest and the highest score that routing keys can give a document."""
        if not self.normalize:
            return -math.inf, math.inf
        summed = len(self.layers) if self.selection == "shared" and not self.joint else 1
        return -summed * self.scale, summed * self.scale

    @property
    def key_groups(self) -> dict[str, int]:
        """Name and width of each routing-key matrix that the bank stores.

        A shared selection has a single matrix, the layers' keys side by side (or, if `joint`, added up); otherwise
        each layer has its own.
        """
        if self.selection == "shared":
            return {"shared": self.key_width * (1 if self.joint else len(self.layers))}
        return {str(layer): self.key_width for layer in self.layers}


class ContentConfig(Settings):
    """Which layers' K and V the bank keeps and how they are pooled (`pooling` 1: every token)."""

    layers: Layers
    pooling: Size


class BesideConfig(Settings):
    """Weights of what may count beside routing keys: words (BM25) and names; 0: it does not (see `MemoryConfig`)."""

    lexical: float = Field(default=0.0, ge=0.0)
    titles: float = Field(default=0.0, ge=0.0)
    mentions: float = Field(default=0.0, ge=0.0)


class RelevanceWeights(Settings):
    """A logistic regression: `bias` and a weight a signal (`retrieval.relevance`), none of which counts against."""

    bias: float
    key: float = Field(ge=0.0)
    key_lead: float = Field(ge=0.0)
    words: float = Field(default=0.0, ge=0.0)
    words_lead: float = Field(default=0.0, ge=0.0)

    @property
    def slopes(self) -> tuple[float, float, float, float]:
        """The weights, in the order of `Signal.features`."""
        return self.key, self.key_lead, self.words, self.words_lead


class RelevanceConfig(Settings):
    """How a document's signals become its relevance: by `words` and keys, or by `keys` alone where words do not count.

    `unrelated` is the routing key's cosine of the eighth best document of a usual memory; it stands in for those that a
    smaller memory does not have. `least` is the relevance of a question's best document below which the memory is taken
    not to say it.

    A trained reader says that the answer is not there when the logit of that sentence's first token leads by more than
    `absent_bias` and `absent_weight` times the relevance's own logit; from a relevance of .98 on it may not say so.
    """

    words: RelevanceWeights
    keys: RelevanceWeights
    unrelated: float
    least: float = Field(default=0.0, ge=0.0, lt=1.0)
    absent_weight: float = Field(default=0.0, ge=0.0)
    absent_bias: float = 0.0


class Abilities(Settings):
    """What an adapter was trained to do; the engine uses nothing else unless told to.

    `answer` is a reader of text in the prompt, `read_kv` one that also reads unpooled K, V of all layers.
    """

    route: bool = True
    read_latent: bool = False
    emit_ids: bool = False
    answer: bool = False
    read_kv: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those that the adapter has."""
        return tuple(name for name, has in self.model_dump().items() if has)


class LoraConfig(Settings):
    """Which decoder layers an adapter's LoRA updates, and its rank (the largest, where modules differ).

    Documents are encoded and questions routed with it, always. `answers` says whether what has been found is read with
    it too; if not, answers are the stock model's. Where each layer selects for itself, one forward routes and reads, so
    that latents are read with the update whatever `answers` says.
    """

    layers: Layers
    rank: Size
    answers: bool = False


class GenerationConfig(Settings):
    """Decoding: greedy at temperature 0, otherwise sampling from the `top_p` nucleus; `stop` strings end the answer.

    So does a repetition of `repetition` bytes, which is cut off (0: none does): words that come again right behind
    themselves, twice at least. Lists, tables and code may repeat themselves longer (`answering.repetition`).
    """

    max_new_tokens: int = Field(default=64, gt=0)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: tuple[str, ...] = ()
    repetition: int = Field(default=100, ge=0)

    @model_validator(mode="after")
    def _non_empty_stop(self) -> GenerationConfig:
        if any(not s for s in self.stop):
            raise ValueError("a stop sequence must not be empty")
        return self


class InterleaveConfig(Settings):
    """Score-driven Memory Interleave: how many rounds, and which new documents are worth another one.

    A round keeps at most `per_round` new documents, those whose score is at least `cut` times the best score of the
    first round; it stops when none clears the cut. `max_rounds` bounds the loop. Where a question is one vector, a
    later round's query is the question's vector plus `follow_weight` times that of question and found text.
    An answer is read from the first `reads` documents found, best first in each round, and no round begins once there
    are as many (None: 2 for an adapter's reader, which more would distract, and no limit for other backbones).

    A model that writes document ids asks for its rounds itself: at most `generated_rounds` (a call's `max_rounds`
    bounds these too) of at most `ids_per_round` documents each.
    """

    max_rounds: int = Field(default=2, gt=0, le=16)
    generated_rounds: int = Field(default=6, gt=0, le=64)
    ids_per_round: int = Field(default=16, gt=0)
    per_round: int = Field(default=3, gt=0)
    cut: float = Field(default=0.6, ge=0.0)
    reads: int | None = Field(default=None, gt=0)
    follow_weight: float = Field(default=1.0, ge=0.0)


class TierConfig(Settings):
    """Byte budgets of the tiers above the segments' memory maps; what finds no room stays in the maps.

    `device_bytes` is for routing keys where the backbone computes: None puts all of them on a GPU and makes no copies
    on a CPU. `host_bytes` is for copies in memory (pinned for a GPU) of keys without room on the device, and of the
    content read most recently; 0 makes none.
    """

    device_bytes: int | None = Field(default=None, ge=0, strict=True)
    host_bytes: int = Field(default=0, ge=0, strict=True)


class ClusterConfig(Settings):
    """A bank that is split over Ray actors, the shards; docs/cluster.md says how such a cluster is brought up.

    `shards` None takes as many as the bank has. `address` is Ray's; None joins a cluster that runs here, or starts one.
    `on_lost` says what becomes of a question when a shard's process is gone: `fail` waits until it is back (started
    again from its segments) and asks it once more, or raises; `partial` answers from the others, says so, and starts
    it again meanwhile. It is started at most `restarts` times in a row, and given `start_timeout` seconds each time; a
    shard that has not answered a question after `timeout` seconds counts as lost.
    `device` is where a shard's keys lie and its documents are encoded: `cuda` takes one GPU for each shard, `auto` does
    so where Ray has enough of them. `cpus` are threads of a shard (0: one, and none reserved in Ray's books). With a
    `resource`, shard i runs only where `ray start --resources='{"RESOURCE-i": 1}'` offers it, for folders that are not
    shared.
    """

    shards: int | None = Field(default=None, gt=0, le=4096)
    address: str | None = None
    on_lost: Literal["fail", "partial"] = "fail"
    restarts: int = Field(default=2, ge=0)
    start_timeout: float = Field(default=120.0, gt=0)
    timeout: float = Field(default=60.0, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus: int = Field(default=1, ge=0)
    resource: str | None = None

    @classmethod
    def of(cls, given: ClusterConfig | Mapping[str, Any] | int) -> ClusterConfig:
        """Settings as given, from a mapping of them, or from the number of shards. Raises ConfigError."""
        if isinstance(given, ClusterConfig):
            return given
        if isinstance(given, Mapping):
            return cls(**given)
        if isinstance(given, bool) or not isinstance(given, int):
            raise ConfigError(f"cluster= is a ClusterConfig, a mapping or a number of shards, not {given!r}")
        return cls(shards=given)


class MemoryConfig(Settings):
    """Everything a `LatentMemory` can be told at `open`; every value has a default that suits a laptop.

    `window` (tokens) splits long documents; `batch_tokens` bounds one encoding batch (None: 1,024 on a CPU, whose
    caches hold the states of no more, else 16,384); `segment_bytes` and `segment_documents` bound what is held in
    memory before it is committed, `commit_seconds` how long: a process that is killed loses what it encoded since then,
    and what it has read ahead. `context_tokens` is the budget for passages in the prompt (None: 512 on a CPU, whose
    time to read them is what an answer takes, 1,536 on a GPU). `instruction` replaces the default system message, which
    asks for short answers.
    `reader` is who answers: `auto` the reader that the adapter was trained with, if it has one and there is no
    `instruction`; `stock` the backbone as it is.
    `decoding` is which weights write an answer, token by token, on a CPU: `int8` a copy in eight bits (about a byte a
    weight), `full` the model's own, which read in any case; `auto` is `int8` where the weights are bfloat16.
    `reading` is how answers read memory: `text`, `latent` (pooled K, V) or `kv` (unpooled K, V of all layers); `auto`
    is `latent` where the adapter can read latents, else `text`; `content_pooling` overrides how K, V are pooled.
    `batch_questions` is how many questions of a batch are answered together: more are faster where memory allows.
    `top_k` None takes the adapter's. `device` is `auto`, a device, or `balanced` (layers spread over all GPUs).
    `cosine` says whether a checkpoint in the reference's format routes by cosines; None does what the reference does.
    `keys_dtype` is how routing keys are stored; int8 (a scale for each chunk) halves them at a small loss.
    `content_dtype` is how K, V are stored: as the backbone computes them, or in eight bits: int8 with scales (a channel
    of a document's K, a row of V), or float8 without (less exact; values beyond 448 are cut).
    `lexical` is the weight of a question's words, as a share of the best there are, beside the routing score: BM25, and
    how many of them a document has, rare ones more (`retrieval.postings`; 0: none is computed).
    `titles` is the share of a found document's score that those gain which it names by their titles, fewer of them
    more; a document whose title is in the question gains 1.5 times that share of its own (0: titles are text like any).
    `mentions` is the share of a found document's score that those gain which have a rare name in common with it, fewer
    of them more, whether they have titles or not (0: no such link is followed).
    None of these is what the adapter was measured best with (`AdapterConfig.beside`).
    `recency` is the age in days (or as a timedelta) at which what a document gains by being new has halved (None: that
    it is new does not count). A question may give another (`LatentMemory.retrieve`).
    `abstain_below` is the relevance (0 to 1) of a question's best document below which nothing is read and the answer
    is that the memory does not say (0: never); None is what the adapter was fitted with, and 0 with an `instruction`.
    `lock_timeout` (seconds) is how long a write waits for another writer, `queue_timeout` (None: no bound) how long a
    question does until those asked before it are answered. `follow`: each call sees what other processes have
    committed; False keeps the state of opening until `refresh`, and the catalog's log may grow meanwhile.
    `kernels`: `auto` runs Triton's on a GPU and plain PyTorch elsewhere; `triton` or `torch` insists. `tiers` are byte
    budgets for what is copied out of the memory maps.
    """

    reading: Literal["text", "latent", "kv", "auto"] = "auto"
    reader: Literal["auto", "stock"] = "auto"
    decoding: Literal["auto", "int8", "full"] = "auto"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    keys_dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float16"
    content_dtype: Literal["auto", "int8", "float8_e4m3fn"] = "auto"
    content_pooling: int | None = Field(default=None, gt=0)
    window: int = Field(default=2048, ge=8)
    batch_tokens: int | None = Field(default=None, ge=8)
    batch_questions: int = Field(default=16, gt=0)
    segment_bytes: int = Field(default=64 << 20, gt=0)
    segment_documents: int = Field(default=4096, gt=0)
    commit_seconds: float = Field(default=5.0, gt=0)
    top_k: int | None = Field(default=None, gt=0)
    cosine: bool | None = None
    context_tokens: int | None = Field(default=None, gt=0)
    instruction: str | None = None
    tile_chunks: int = Field(default=16384, gt=0)
    tile_tokens: int = Field(default=256, gt=0)
    kernels: Literal["auto", "torch", "triton"] = "auto"  # `msa_kernels.Backend`, whose package imports torch
    tiers: TierConfig = TierConfig()
    lexical: float | None = Field(default=None, ge=0.0)
    titles: float | None = Field(default=None, ge=0.0)
    mentions: float | None = Field(default=None, ge=0.0)
    recency: Annotated[float | None, BeforeValidator(_days)] = None
    abstain_below: float | None = Field(default=None, ge=0.0, lt=1.0)
    lock_timeout: float = Field(default=10.0, ge=0.0)
    queue_timeout: float | None = Field(default=600.0, ge=0.0)
    follow: bool = True
    generation: GenerationConfig = GenerationConfig()
    interleave: InterleaveConfig = InterleaveConfig()
