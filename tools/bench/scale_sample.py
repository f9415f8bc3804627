"""Banks of any size whose routing keys have real statistics: encodings of a sample of texts, drawn again with noise.

A synthetic document takes the chunks of one real document, with replacement, and adds to each a random vector of
`growth.NOISE` times its length: neighbours stay as near to each other, and questions as far from them, as in the
sample. What that leaves out: every document has as many chunks, and there are only as many subjects as real documents.
Shape legend: C chunks, W routing-key width, Q questions, T tokens, n documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_shell import scratch_memory
from torch import Tensor

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.quantize import stored_keys
from msa_plugin.bench.growth import noisy
from msa_plugin.config import RoutingConfig
from msa_plugin.data.datasets import Dataset
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval.ranking import shared_queries
from msa_plugin.types import Document, EncodedDocument, Fingerprint

CHUNKS_PER_DOCUMENT = 32
_PORTION = 1 << 16  # chunks of one commit: 48 MiB of float16 keys of width 384


class KeySample(NamedTuple):
    """Real routing keys [C, W] float32 with `offsets` int64 [n + 1], questions [Q, H, T, D] and their votes [Q, T]."""

    keys: Tensor
    offsets: Tensor
    questions: Tensor
    votes: Tensor
    texts: tuple[str, ...]


class BankShape(NamedTuple):
    """What is searched: a routing configuration, its sample, and the one key group that is measured.

    `searches` is how many such searches a question takes: one for a shared selection, else one for each router layer.
    """

    name: str
    config: RoutingConfig
    sample: KeySample
    searches: int

    @property
    def group(self) -> str:
        """Name of the measured key group."""
        return next(iter(self.config.key_groups))


def encoded_sample(backbone: Backbone, adapter: Adapter, dataset: Dataset, passages: int, questions: int) -> KeySample:
    """Encode the first `passages` documents and `questions` questions. Raises ConfigError for a per-layer adapter."""
    if adapter.config.routing.selection != "shared":
        raise ConfigError("scale-routing takes its keys from an adapter with one shared selection; choose another one")
    texts = tuple(question.text for question in dataset.questions[:questions])
    sampled = dataset.documents[:passages]
    with scratch_memory(backbone, adapter, sampled, reading="text", keys_dtype="float32") as memory:
        engine = memory.engine
        blocks = list(engine.bank.select("default").key_blocks("shared"))
        keys = torch.cat([block.keys for block in blocks]).clone()
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), *(block.offsets.diff() for block in blocks)])
        prefix, longest = engine.encoder.prefix, engine.encoder.layout.text
        rows = [prefix + ids[:longest] for ids in backbone.tokenize_batch(list(texts))]
        asked = shared_queries(backbone, engine.router, rows, engine.batch_tokens, engine.lora)
    return KeySample(keys, offsets.cumsum(0), asked.queries.cpu(), asked.votes.cpu(), texts)


def reference_shape(sample: KeySample, tokens: int = 16, layers: int = 18) -> BankShape:
    """MSA-4B's shape (8 KV heads of 128, P 64), one of its router layers, without its weights.

    The sample's keys and questions turned into 1,024 numbers by a random map with orthonormal rows; a question's
    `tokens` are its vector with noise. Times mean something here, rankings do not.
    """
    config = RoutingConfig(layers=tuple(range(layers)), heads=32, kv_heads=8, head_dim=128, pooling=64)
    generator = torch.Generator().manual_seed(0)
    width = sample.keys.shape[1]
    turn = torch.linalg.qr(torch.randn(1024, width, generator=generator)).Q.T
    vectors = sample.questions.flatten(1)[:, :width]
    asked = torch.stack([noisy(vectors @ turn, generator) for _ in range(tokens)], 1)
    votes = torch.ones(asked.shape[:2], dtype=torch.bool)
    turned = sample._replace(keys=sample.keys @ turn, questions=asked, votes=votes)
    return BankShape("msa-4b layer", config, turned, layers)


def build(
    path: Path, made_with: Fingerprint, shape: BankShape, tokens: int | None, dtype: torch.dtype, seed: int
) -> int:
    """Write a bank of about `tokens` tokens (whole documents), or (None) of the sample as it is; returns its chunks.

    Equal arguments but for `dtype` give the same numbers in another precision. Memory: one commit's keys.
    """
    portions = _sampled(shape, dtype) if tokens is None else _drawn(shape, tokens, dtype, seed)
    with MemoryBank.open(path, made_with) as bank, bank.writing():
        for portion in portions:
            bank.commit(portion, "default")
        return bank.stats("default").chunks


def encoded(
    documents: Sequence[Document], tokens: Sequence[int], group: str, keys: Tensor, sizes: Sequence[int], dtype: Any
) -> list[EncodedDocument]:
    """Documents of so many tokens each with their share, so many rows of `sizes`, of `keys` [C, W], kept in `dtype`."""
    kept = stored_keys({group: keys}, dtype)
    split = {name: tensor.split_with_sizes(list(sizes)) for name, tensor in kept.items()}
    return [
        EncodedDocument(document, count, {name: parts[at] for name, parts in split.items()}, {})
        for at, (document, count) in enumerate(zip(documents, tokens, strict=True))
    ]


def _sampled(shape: BankShape, dtype: torch.dtype) -> Iterator[list[EncodedDocument]]:
    sizes = shape.sample.offsets.diff().tolist()
    documents = [Document(f"real-{n}", f"real document {n}") for n in range(len(sizes))]
    tokens = [size * shape.config.pooling for size in sizes]
    yield encoded(documents, tokens, shape.group, shape.sample.keys, sizes, dtype)


def _drawn(shape: BankShape, tokens: int, dtype: torch.dtype, seed: int) -> Iterator[list[EncodedDocument]]:
    documents = max(1, tokens // (shape.config.pooling * CHUNKS_PER_DOCUMENT))
    generator = torch.Generator().manual_seed(seed)
    sizes = shape.sample.offsets.diff()
    together = max(1, _PORTION // CHUNKS_PER_DOCUMENT)
    for first in range(0, documents, together):
        count = min(together, documents - first)
        source = torch.randint(len(sizes), (count, 1), generator=generator)
        within = (torch.rand(count, CHUNKS_PER_DOCUMENT, generator=generator) * sizes[source]).long()
        rows = (shape.sample.offsets[source] + within).flatten()
        made = [Document(f"synthetic-{n}", f"synthetic document {n}") for n in range(first, first + count)]
        lengths = [CHUNKS_PER_DOCUMENT * shape.config.pooling] * count
        keys = noisy(shape.sample.keys[rows], generator)
        yield encoded(made, lengths, shape.group, keys, [CHUNKS_PER_DOCUMENT] * count, dtype)
