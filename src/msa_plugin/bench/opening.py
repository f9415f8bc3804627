"""Opening a large bank: time, resident memory, and the first questions on it. The bank's keys are random."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bench.case import Case, Row, option
from msa_plugin.bench.peak import resident_bytes
from msa_plugin.bench.units import size
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import Document, EncodedDocument, Fingerprint

CHUNKS_PER_DOCUMENT = 8
_PORTION = 4096


class Opening(Case):
    """A bank of float16 keys is written, opened, and asked one question twice.

    Example: msa bench open --chunks 100000
    """

    across = True
    single = True
    columns: ClassVar = {
        "chunks": "{chunks:,}",
        "documents": "{documents:,}",
        "bytes a number": "{key_bytes_per_number:.4f}",
        "keys": "{key_bytes:bytes}",
        "opened in": "{open_s:seconds}",
        "more resident": "{open_rss:bytes}",
        "first question": "{first_route_s:seconds}",
        "next": "{route_s:seconds}",
    }
    chunks: int = option(1_000_000, "Chunks in the synthetic bank.", ge=1)
    width: int = option(512, "Numbers in a routing key.", ge=1)
    seed: int = option(0, "Which random keys.")

    def about(self) -> str:
        """What runs."""
        return f"writing a synthetic bank of {self.chunks} chunks ({size(self.chunks * self.width * 2)} of keys) ..."

    def rows(self) -> Iterator[Row]:
        """One row."""
        yield _opened(self.chunks, self.width, self.seed)


def _opened(chunks: int, width: int, seed: int) -> Row:
    made_with = Fingerprint("synthetic", "none", "random", f"width {width}", "none", "keys float16", "none", 2048)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank"
        _write(path, made_with, chunks, width, seed)
        before = resident_bytes()
        began = time.perf_counter()
        bank = MemoryBank.open(path, made_with, read_only=True)
        selection = bank.select("default", None)
        opened = time.perf_counter() - began
        grown = resident_bytes() - before
        first, again = _route(bank, selection, width), _route(bank, selection, width)
        stats = bank.stats("default")
        bank.close()
    return {
        "chunks": stats.chunks,
        "documents": stats.documents,
        "open_s": opened,
        "open_rss": grown,
        "key_bytes": stats.bytes_keys,
        "key_bytes_per_number": stats.bytes_keys / (stats.chunks * width),
        "first_route_s": first,
        "route_s": again,
    }


def _write(path: Path, made_with: Fingerprint, chunks: int, width: int, seed: int) -> None:
    with MemoryBank.open(path, made_with) as bank, bank.writing():
        for documents in _portions(chunks, width, seed):
            bank.commit(documents, "default")


def _portions(chunks: int, width: int, seed: int) -> Iterator[list[EncodedDocument]]:
    generator = torch.Generator().manual_seed(seed)
    total = -(-chunks // CHUNKS_PER_DOCUMENT)
    for start in range(0, total, _PORTION):
        ids = range(start, min(start + _PORTION, total))
        sizes = [min(CHUNKS_PER_DOCUMENT, chunks - i * CHUNKS_PER_DOCUMENT) for i in ids]
        keys = torch.randn(sum(sizes), width, generator=generator)
        unit = torch.nn.functional.normalize(keys, dim=1).half().split_with_sizes(sizes)
        yield [
            EncodedDocument(Document(str(i), f"synthetic {i}"), len(k) * 32, {"shared": k}, {})
            for i, k in zip(ids, unit, strict=True)
        ]


def _route(bank: MemoryBank, selection: Any, width: int) -> float:
    config = RoutingConfig(layers=(0,), heads=1, kv_heads=1, head_dim=width, pooling=32, selection="shared")
    query = torch.nn.functional.normalize(torch.randn(1, 1, 1, width), dim=-1)
    began = time.perf_counter()
    route(query, torch.ones(1, 1, dtype=torch.bool), bank.key_blocks("shared", selection), 10, config)
    return time.perf_counter() - began
