"""A coarse pass over all chunks: int8 copies of their keys, or of the leading numbers of each layer's.

A closed-form or principal-axes adapter orders a key's numbers by variance, so the leading ones rank almost as all do;
how almost is measured by the caller. Reads N + 4 bytes a chunk and layer instead of 2 * width.
Shape legend: C chunks, t vectors of a question, N numbers kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msa_plugin.bank.quantize import quantized
from msa_plugin.errors import ConfigError

EVERYTHING = "all"
_PANEL = 1 << 14
# Up to so many vectors torch's int8 product, which turns integers into numbers in registers, beats converted panels.
_FEW = 2
_LANES = 16  # bytes; with AVX-512 that product crashes, or is wrong, where rows begin elsewhere (torch 2.13)
logger = logging.getLogger(__name__)


class CoarseIndex:
    """Best chunks by the product of the leading numbers; reads all of them, in panels of at most `_PANEL`."""

    suffix = ".safetensors"

    def __init__(self, panels: list[tuple[Tensor, Tensor]], columns: Tensor) -> None:
        """`panels`: int8 [c, N] and scales float32 [c]; `columns` int64 [N], the places of these numbers in a key."""
        self._panels, self._columns = panels, columns
        self.ntotal = sum(len(keys) for keys, _ in panels)

    @classmethod
    def build(cls, numbers: str, width: int, parts: int, panels: Iterable[NDArray[np.float32]]) -> CoarseIndex:
        """Keep `numbers` (a text: a whole number, or `EVERYTHING`) of each of the `parts` layers of keys [c, width].

        Raises ConfigError for more than there are.
        """
        columns, kept = _columns(numbers, width, parts), []
        for keys in panels:
            for part in torch.split(torch.from_numpy(keys), _PANEL):
                stored, scales = quantized(part[:, columns])
                kept.append((stored, scales[:, 0].contiguous()))
        return cls(kept, columns)

    @classmethod
    def read(cls, path: Path, numbers: str, width: int, parts: int) -> CoarseIndex | None:
        """What `save` wrote, memory-mapped where products can take it; None for what cannot be read or is not that."""
        columns = _columns(numbers, width, parts)
        try:
            tensors = load_file(path)
            panels = [(_placed(tensors[f"{n}.keys"]), tensors[f"{n}.scales"]) for n in range(len(tensors) // 2)]
        except (SafetensorError, OSError, KeyError) as error:
            logger.warning("%s cannot be read (%s); building it again", path, error)
            return None
        fits = all(k.dtype == torch.int8 and k.shape == (len(s), len(columns)) for k, s in panels)
        return cls(panels, columns) if fits else None

    def save(self, path: Path) -> None:
        """Write it to a file."""
        named = {f"{n}.keys": keys for n, (keys, _) in enumerate(self._panels)}
        save_file(named | {f"{n}.scales": scales for n, (_, scales) in enumerate(self._panels)}, path)

    @property
    def bytes(self) -> int:
        """Memory of the index, all of which a search reads."""
        return sum(keys.nbytes + scales.nbytes for keys, scales in self._panels)

    def search(self, vectors: NDArray[np.float32], depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and chunk numbers [t, depth] of each vector's best chunks, best first; depth is at most `ntotal`."""
        question = torch.from_numpy(vectors)[:, self._columns]
        scores = torch.empty((len(question), 0))
        chunks = torch.empty((len(question), 0), dtype=torch.int64)
        start = 0
        for keys, scales in self._panels:
            found = _products(question, keys, scales)
            if scores.shape[1] == depth:  # nothing below every vector's last one can enter
                kept = (found > scores[:, -1:]).any(0).nonzero()[:, 0]
            else:
                kept = torch.arange(found.shape[1])
            if len(kept):
                scores = torch.cat((scores, found[:, kept]), 1)
                chunks = torch.cat((chunks, (kept + start).expand(len(question), -1)), 1)
                scores, order = scores.topk(min(depth, scores.shape[1]))
                chunks = chunks.gather(1, order)
            start += len(keys)
        return scores.numpy(), chunks.numpy()


def _columns(numbers: str, width: int, parts: int) -> Tensor:
    each = width // parts
    wanted = each if numbers == EVERYTHING else int(numbers)
    if wanted > each:
        raise ConfigError(f"coarse:{numbers} keeps {wanted} numbers of each layer's key, which has {each}")
    return torch.cat([torch.arange(start, start + wanted) for start in range(0, width, each)])


def _placed(keys: Tensor) -> Tensor:
    return keys if keys.data_ptr() % _LANES == 0 else keys.clone()


def _products(question: Tensor, keys: Tensor, scales: Tensor) -> Tensor:
    """Scores float32 [t, c]: for few vectors rounded to bfloat16, which is enough to name candidates."""
    if len(question) <= _FEW and keys.shape[1] % _LANES == 0:
        low = torch.bfloat16
        return torch._weight_int8pack_mm(question.to(low), keys, scales.to(low)).float()
    return (question @ keys.float().T) * scales
