"""A FAISS index of chunk keys, as the prefilter uses one; it says in our words what FAISS refuses.

Where FAISS was built for GPUs and sees one, searches run on a copy there, if this kind of index can live there; the one
in host memory is what is built, saved and searched otherwise. This is the one place that imports FAISS.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from msa_plugin.errors import ConfigError, optional_module

_DEFAULTS = {"nprobe": 16.0, "efSearch": 128.0}
_DEEPEST = 2048  # neighbours of a vector that FAISS finds on a GPU
_SCRATCH = 256 << 20  # bytes of a card for searches; FAISS would take a sixth of it from the model
logger = logging.getLogger(__name__)


def load_faiss() -> Any:
    """The module. Raises MissingExtraError naming the extra."""
    return optional_module("faiss", 'this needs FAISS: pip install "msa-plugin[faiss]"')


@contextlib.contextmanager
def faiss_threads() -> Iterator[Any]:
    """The module, using as many threads as torch while inside."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield faiss
    finally:
        faiss.omp_set_num_threads(before)


class FaissIndex:
    """Nearest chunks by inner product; whether none is missed depends on the factory."""

    suffix = ".faiss"

    def __init__(self, index: Any, factory: str, parameters: Mapping[str, float]) -> None:
        """Raises ConfigError for search parameters that the index does not have."""
        self.index = index
        for name, value in {**_DEFAULTS, **parameters}.items():
            refused = _refused(index, name, value)
            if refused and name in parameters:  # a default may be another kind of index's
                raise ConfigError(f"{factory} has no search parameter {name}={value:g}: {refused}")
        # The second is never named again: a card's memory lives as long as what manages it.
        self._card: Any | None
        self._resources: Any | None
        self._card, self._resources = _on_card(index, factory, {**_DEFAULTS, **parameters}) or (None, None)
        self._lock = threading.Lock()  # a card's scratch memory serves one search at a time

    @classmethod
    def build(
        cls,
        factory: str,
        parameters: Mapping[str, float],
        width: int,
        sample: Callable[[], NDArray[np.float32]],
        panels: Iterable[NDArray[np.float32]],
    ) -> FaissIndex:
        """Train on `sample()` if the factory needs it, add the panels [c, width]. Raises ConfigError."""
        faiss = load_faiss()
        try:
            index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(sample())
            for keys in panels:
                index.add(keys)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"FAISS cannot build {factory!r} over these keys: {_reason(error)}") from error
        return cls(index, factory, parameters)

    @classmethod
    def read(cls, path: Path, factory: str, parameters: Mapping[str, float], width: int) -> FaissIndex | None:
        """What `save` wrote; None where it cannot be read or is of another width."""
        try:
            index = load_faiss().read_index(str(path))
        except RuntimeError as error:
            logger.warning("%s cannot be read (%s); building it again", path, _reason(error))
            return None
        return cls(index, factory, parameters) if index.d == width else None

    def save(self, path: Path) -> None:
        """Write it to a file."""
        load_faiss().write_index(self.index, str(path))

    @property
    def ntotal(self) -> int:
        """Chunks in the index."""
        return int(self.index.ntotal)

    @property
    def bytes(self) -> int:
        """Memory of the index."""
        return int(load_faiss().serialize_index(self.index).nbytes)

    def search(self, vectors: NDArray[np.float32], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and chunk numbers [t, depth] of each vector's best, as FAISS returns them: -1 where it found fewer."""
        if self._card is not None and depth <= _DEEPEST:
            with self._lock:
                scores, chunks = self._card.search(vectors, depth)
            return scores, chunks
        with faiss_threads():
            scores, chunks = self.index.search(vectors, depth)
        return scores, chunks


def _on_card(index: Any, factory: str, parameters: Mapping[str, float]) -> tuple[Any, Any] | None:
    """A copy of `index` on the first GPU, and what manages its memory.

    None without a GPU, and for kinds that FAISS keeps in host memory (HNSW).
    """
    faiss = load_faiss()
    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_SCRATCH)
    try:
        copy = faiss.index_cpu_to_gpu(resources, 0, index)
    except (RuntimeError, AssertionError) as error:
        logger.info("%s is searched on the CPU: %s", factory, _reason(error))
        return None
    for name, value in parameters.items():
        with contextlib.suppress(RuntimeError):  # the index in host memory has taken or refused it already
            faiss.GpuParameterSpace().set_index_parameter(copy, name, value)
    return copy, resources


def _refused(index: Any, name: str, value: float) -> str:
    """Set a search parameter; why FAISS refused, or nothing."""
    try:
        load_faiss().ParameterSpace().set_index_parameter(index, name, value)
    except RuntimeError as error:
        return _reason(error)
    return ""


def _reason(error: BaseException) -> str:
    """FAISS's own words without the C++ frame in front of them."""
    return (str(error) or type(error).__name__).splitlines()[-1].removeprefix("Error: ")
