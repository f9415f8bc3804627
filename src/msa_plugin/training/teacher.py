"""A sentence-embedding teacher: unit vectors of passages and questions, embedded once and kept on the disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from msa_plugin.bench.systems.dense import SentenceEmbedder
from msa_plugin.bench.systems.embeddings import EmbeddingCache, OnBlock, Portion
from msa_plugin.training.groups import Vectors


class Teacher(Protocol):
    """What a teacher must be able to do; `bench.systems.dense.SentenceEmbedder` is one."""

    @property
    def key(self) -> str:
        """What vectors depend on besides the text, as a file name."""

    def documents(self, given: list[str]) -> Vectors:
        """Unit vectors [n, W] of passages."""

    def queries(self, given: list[str]) -> Vectors:
        """Unit vectors [n, W] of questions."""

    def lengths(self, given: list[str]) -> list[int]:
        """Tokens of each text."""


def load_teacher(model: str | None, device: str) -> Teacher:
    """A sentence-transformers model; None is all-MiniLM-L6-v2, from its package where that is installed.

    Raises MissingExtraError without sentence-transformers, ConfigError for a model that cannot be loaded.
    """
    return SentenceEmbedder(model, device)


def teach(
    teacher: Teacher, passages: Sequence[str], questions: Sequence[str], cache: Path, on_block: OnBlock
) -> tuple[Vectors, Vectors]:
    """Vectors of passages [P, W] and of questions [M, W]; what `cache` holds of them is not embedded again."""
    kept = EmbeddingCache(cache / teacher.key)

    def vectors(kind: str, texts: Sequence[str], embed: Callable[[list[str]], Vectors]) -> Vectors:
        def make(given: list[str]) -> Portion:
            began = time.perf_counter()
            made = embed(given)
            return Portion(made, time.perf_counter() - began, teacher.lengths(given))

        keys = [hashlib.sha256(f"{kind}\0{text}".encode()).hexdigest() for text in texts]
        return np.ascontiguousarray(kept.embed(keys, texts, make, on_block).vectors)

    return vectors("passage", passages, teacher.documents), vectors("question", questions, teacher.queries)
