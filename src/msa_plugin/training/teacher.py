"""A sentence-embedding teacher: unit vectors of passages and questions, embedded once and kept on the disk."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from msa_plugin.backbone.cpu import trains_faster_in_bfloat16
from msa_plugin.embedding.cache import EmbeddingCache, OnBlock, Portion
from msa_plugin.embedding.e5 import E5, E5Embedder
from msa_plugin.embedding.sentence import Embedder, SentenceEmbedder
from msa_plugin.training.groups import Vectors

Taught = tuple[Vectors, Vectors]  # of passages [P, W] and of questions [M, W]
MINILM = "minilm"  # all-MiniLM-L6-v2, which is the default


def load_teacher(model: str, device: str) -> Embedder:
    """`minilm`, `mpnet`, `e5-small`, or a sentence-transformers model by folder or hub id.

    Sentence-transformers run in bfloat16 where the processor multiplies it faster: a mean of several teachers' cosines
    does not tell the difference. Raises MissingExtraError without what a model needs, ConfigError where it cannot be
    loaded.
    """
    if model == E5:
        return E5Embedder()
    fast = torch.device(device).type == "cpu" and trains_faster_in_bfloat16()
    return SentenceEmbedder(None if model == MINILM else model, device, "bfloat16" if fast else None)


def teach(
    teacher: Embedder, passages: Sequence[str], questions: Sequence[str], cache: Path, on_block: OnBlock
) -> Taught:
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


def mean_of(taught: Sequence[Taught]) -> Taught:
    """Vectors whose products are the means of several teachers' cosines: theirs, side by side."""
    if len(taught) == 1:
        return taught[0]
    passages, questions = (np.concatenate(each, axis=1) / np.sqrt(len(each)) for each in zip(*taught, strict=True))
    return passages, questions


def turned(taught: Taught, samples: Sequence[Sequence[int]], begun: tuple[Tensor, Tensor]) -> Taught:
    """The teacher's vectors with D numbers [P, D], [M, D], lying as near to `begun` as a rotation can bring them.

    `begun` holds vectors [N, D] of the sampled passages and of the sampled questions. What is kept of the teacher are
    the D directions in which most of these vectors lie, so that their cosines stay what they are as nearly as D numbers
    allow; the rotation is the orthogonal Procrustes solution (Schoenemann 1966). A teacher of fewer numbers than D is
    filled up with zeros.
    """
    sampled = np.concatenate([vectors[list(chosen)] for vectors, chosen in zip(taught, samples, strict=True)])
    near = torch.cat(begun).float().cpu().numpy()
    width = near.shape[1]
    main = np.linalg.svd(sampled, full_matrices=False)[2][:width]
    if len(main) < width:
        main = np.concatenate([main, np.zeros((width - len(main), main.shape[1]), main.dtype)])
    left, _, right = np.linalg.svd((sampled @ main.T).T @ near)
    turn = main.T @ left @ right
    passages, questions = (np.ascontiguousarray(vectors @ turn, dtype=np.float32) for vectors in taught)
    return passages, questions
