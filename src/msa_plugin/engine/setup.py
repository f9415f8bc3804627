"""What opening a memory decides: how answers read it, what the bank keeps, and what a bank is bound to."""

from __future__ import annotations

import torch

from msa_kernels import BackendUnavailableError, use_triton
from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.eight_bits import EightBits, multiplies
from msa_plugin.backbone.lora import Lora
from msa_plugin.config import BesideConfig, ContentConfig, MemoryConfig, ReadingMode, RoutingConfig
from msa_plugin.errors import ConfigError, InvalidQueryError
from msa_plugin.retrieval.fused import without_kernel
from msa_plugin.types import Fingerprint


def reading_mode(adapter: Adapter, config: MemoryConfig) -> ReadingMode:
    """How answers read memory: what was asked for, else latents where the adapter was trained for them, else text."""
    if config.reading == "auto":
        return "latent" if adapter.config.abilities.read_latent else "text"
    return config.reading


def trained_reader(adapter: Adapter, config: MemoryConfig) -> Lora | None:
    """Updates that answers are made with; None for the stock model's answers.

    A caller's instruction is for the stock model: the reader knows one task and would ignore it.
    """
    reads = {"text": adapter.config.abilities.answer, "kv": adapter.config.abilities.read_kv, "latent": False}
    if config.reader == "stock" or config.instruction is not None or not reads[reading_mode(adapter, config)]:
        return None
    return adapter.reader


def decoding_weights(backbone: Backbone, config: MemoryConfig) -> EightBits | None:
    """Weights in eight bits that answers are written with; None for the model's own.

    Raises ConfigError where int8 was asked for and cannot be had.
    """
    if config.decoding == "full" or (config.decoding == "auto" and backbone.dtype != torch.bfloat16):
        return None
    if backbone.device.type == "cpu" and multiplies():
        return EightBits()
    if config.decoding == "int8":
        raise ConfigError("decoding='int8' is for a CPU, and a PyTorch that multiplies by int8; leave it at 'auto'")
    return None


def beside_keys(adapter: Adapter, config: MemoryConfig) -> BesideConfig:
    """Weights of words and names: what was asked for, else the adapter's.

    Raises ConfigError for `recency` where layers select for themselves.
    """
    check_recency(config.recency, adapter.config)
    asked = {name: getattr(config, name) for name in BesideConfig.model_fields}
    given = {name: weight for name, weight in asked.items() if weight is not None}
    return adapter.config.beside.model_copy(update=given)


def check_recency(half_life: float | None, adapter: AdapterConfig) -> None:
    """Raises ConfigError where nothing could be added to one ranking."""
    if half_life is not None:
        adapter.routing.check_shared("recency")


def least_relevance(adapter: Adapter, config: MemoryConfig) -> float:
    """The relevance below which the memory does not say it: what was asked for, else the adapter's; 0: never so.

    A caller's instruction may ask for what no document says in so many words, so that there it must be asked for.
    Raises ConfigError where it is asked of an adapter that knows no relevance.
    """
    fitted = adapter.config.relevance
    if config.abstain_below is None:
        return 0.0 if fitted is None or config.instruction is not None else fitted.least
    if config.abstain_below and fitted is None:
        raise ConfigError(
            f"abstain_below={config.abstain_below}: nothing says what relevance is with {adapter.config.name}; fit it "
            "with msa relevance, or leave the setting out"
        )
    return config.abstain_below


def content_config(backbone: Backbone, adapter: Adapter, config: MemoryConfig) -> ContentConfig | None:
    """What K and V the bank keeps for the reading mode; None for text, which needs none."""
    mode = reading_mode(adapter, config)
    if mode == "text":
        return None
    if mode == "kv":
        if adapter.config.numbered:
            raise ConfigError(
                f"reading='kv' reads plain documents, and {adapter.config.name} encodes numbered ones; "
                "choose 'latent' or 'text'"
            )
        return ContentConfig(layers=tuple(range(backbone.spec.layers)), pooling=config.content_pooling or 1)
    reading = adapter.config.reading
    return ContentConfig(layers=reading.layers, pooling=config.content_pooling or reading.pooling)


def batch_tokens(config: MemoryConfig, device: torch.device) -> int:
    """Tokens of one forward that encodes: what was asked for, else what was fastest where it was measured."""
    if config.batch_tokens is not None:
        return config.batch_tokens
    return 1024 if device.type == "cpu" else 16384


WHOLE_DOCUMENTS = 1536  # tokens in the prompt of a model that writes document ids, and reads them in one piece


def context_tokens(config: MemoryConfig, device: torch.device) -> int:
    """Tokens of passages that an answer is read from: what was asked for, else what pays where it was measured."""
    if config.context_tokens is not None:
        return config.context_tokens
    return 512 if device.type == "cpu" else 1536


def documents_read(*, trained: bool) -> int | None:
    """From how many documents an answer is read where nothing says it: two by a `trained` reader, else all (None).

    That of a small backbone takes a third document's words for the answer more often than it finds the answer there
    (docs/experiments/answers.md).
    """
    return 2 if trained else None


def check_kernels(config: MemoryConfig, routing: RoutingConfig, device: torch.device) -> None:
    """Raises ConfigError where Triton's kernels are insisted on and cannot run."""
    if config.kernels != "triton":
        return
    try:
        use_triton("routing", "triton", [torch.empty(0, device=device)], without_kernel(routing))
    except BackendUnavailableError as error:
        raise ConfigError(f"kernels='triton': {error}") from error


def check_window(backbone: Backbone, config: MemoryConfig) -> None:
    """Raises ConfigError for a window longer than the backbone reads."""
    longest = backbone.spec.max_positions
    if config.window > longest:
        raise ConfigError(f"window={config.window} is longer than {backbone.name} reads, {longest} tokens; choose less")


def reads_updated(adapter: Adapter) -> bool:
    """Whether what reads stored K, V runs with the adapter's LoRA; they are stored as that layer computes them then."""
    return adapter.answers_with_lora or adapter.config.routing.selection == "per_layer"


def fingerprint(backbone: Backbone, adapter: Adapter, config: MemoryConfig) -> Fingerprint:
    """What the latents of a bank made with these three depend on."""
    routing, content = adapter.config.routing, content_config(backbone, adapter, config)
    updated = ", with the adapter's LoRA" if adapter.lora is not None and reads_updated(adapter) else ""
    if content is not None and trained_reader(adapter, config) is not None:
        updated = f", for the reader {adapter.reader_hash()[:8]}"
    kept = str(backbone.dtype).removeprefix("torch.") if config.content_dtype == "auto" else config.content_dtype
    return Fingerprint(
        backbone=backbone.weights_hash(),
        tokenizer=backbone.tokenizer_hash(),
        adapter=adapter.hash(),
        routing=f"layers {list(routing.layers)}, pooling {routing.pooling}, {routing.selection}",
        content="none" if content is None else f"layers {list(content.layers)}, pooling {content.pooling}{updated}",
        dtype=f"keys {config.keys_dtype}, content {kept if content else 'none'}",
        template="numbered" if adapter.config.numbered else f"prefix {adapter.config.prefix}",
        window=config.window,
    )


def check_question(text: object, backbone: Backbone, limit: int) -> None:
    """Raises InvalidQueryError for a question that is not text, is blank, or has more than `limit` tokens."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidQueryError("a question must be a string with something in it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidQueryError(f"the question holds invalid Unicode at character {error.start}") from error
    # A token has at least one byte, so only long questions are worth tokenising here.
    if len(text) > limit and len(backbone.tokenize(text)) > limit:
        raise InvalidQueryError(
            f"the question is longer than a window of {limit} tokens; shorten it, or add it as a document"
        )
