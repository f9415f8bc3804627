"""Texts to unit vectors: what every embedder offers, and models of sentence-transformers."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from msa_plugin.embedding.models import load_embedding_model

_SAMPLES = 4096
Vectors = NDArray[np.float32]


class Embedder(Protocol):
    """Texts to unit vectors [n, W]."""

    @property
    def key(self) -> str:
        """What vectors depend on besides the text, as a file name."""

    @property
    def limit(self) -> int | None:
        """Tokens of a text that are read; None when all are."""

    def documents(self, given: list[str]) -> Vectors:
        """Vectors of passages."""

    def queries(self, given: list[str]) -> Vectors:
        """Vectors of questions."""

    def lengths(self, given: list[str]) -> list[int]:
        """Tokens of each text, before it is cut."""


class SentenceEmbedder:
    """A sentence-transformers model. Only safetensors are read."""

    def __init__(self, model: str | None, device: str, dtype: str | None = None) -> None:
        """`dtype` is a torch one by name (None: the weights'). Raises MissingExtraError, ConfigError for no model."""
        self.model = load_embedding_model(model, device, dtype)
        # The library's 32 passages leave a CPU's caches: all-MiniLM-L6-v2 embedded 1.4 times as many a second by 16.
        self._batch = 16 if self.model.device.type == "cpu" else 32

    @property
    def key(self) -> str:
        """Weights, length and prompts."""
        said = f"{self.model.max_seq_length} {sorted((self.model.prompts or {}).items())}"
        dtype = next(self.model.parameters()).dtype
        said += "" if dtype is torch.float32 else f" {dtype}"
        return f"sentence-{_weights(self.model, said)}"

    @property
    def limit(self) -> int | None:
        """The model's longest sequence, special tokens included."""
        length = self.model.max_seq_length
        return None if length is None or math.isinf(length) else int(length)

    def documents(self, given: list[str]) -> Vectors:
        """With the model's prompt for documents, if it has one."""
        return self._unit(self.model.encode_document, given)

    def queries(self, given: list[str]) -> Vectors:
        """With the model's prompt for queries, if it has one."""
        return self._unit(self.model.encode_query, given)

    def lengths(self, given: list[str]) -> list[int]:
        """By the model's own tokenizer, special tokens included."""
        tokenizer = self.model.tokenizer
        if hasattr(tokenizer, "encode_batch"):  # static embeddings have a bare one
            return [len(encoded.ids) for encoded in tokenizer.encode_batch(given)]
        return [len(ids) for ids in tokenizer(given, truncation=False, verbose=False)["input_ids"]]

    def _unit(self, encode: Any, given: list[str]) -> Vectors:
        vectors: Vectors = encode(
            given, batch_size=self._batch, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors.astype(np.float32, copy=False)


def _weights(model: torch.nn.Module, said: str) -> str:
    """Hex digest of `said` and up to 4096 evenly spaced numbers of every weight."""
    digest = hashlib.sha256(said.encode())
    for name, weight in sorted(model.named_parameters()):
        flat = weight.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _SAMPLES)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]
