"""FAISS, for whoever needs it: the one place that imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from msa_plugin.errors import optional_module


def load_faiss() -> Any:
    """The module. Raises MissingExtraError naming the extra."""
    return optional_module("faiss", 'this needs FAISS: pip install "msa-plugin[faiss]"')


@contextmanager
def faiss_threads() -> Iterator[Any]:
    """The module, using as many threads as torch while inside."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)
