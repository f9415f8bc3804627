"""Embeddings on the disk, by content: saved block by block, so that an interrupted run loses one block at most.

A passage is embedded once for all data sets and sizes of a run's cache; one whose text changed has another key.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
_LOG = logging.getLogger("msa_plugin.embedding")
OnBlock = Callable[[int, int], None]  # passages embedded so far, of how many


class Portion(NamedTuple):
    """Vectors [n, W] float32 of some texts, seconds that making them took in all, and tokens of each before any cut."""

    vectors: NDArray[np.float32]
    seconds: float
    tokens: Sequence[int]


class _Row(NamedTuple):
    vector: NDArray[np.float32]
    seconds: float
    tokens: int


Make = Callable[[list[str]], Portion]


class EmbeddingCache:
    """Blocks of embeddings of one model in a folder, each a file of its own with the keys of its passages."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when the first block is saved."""
        self.folder = folder

    def embed(self, keys: Sequence[str], texts: Sequence[str], make: Make, on_block: OnBlock) -> Portion:
        """The vectors of `texts`, which `keys` identify: those on the disk from there, the others made and saved."""
        if not keys:
            return Portion(np.zeros((0, 0), dtype=np.float32), 0.0, ())
        wanted = dict(zip(keys, texts, strict=True))
        rows = dict(self._saved(set(wanted)))
        missing = [key for key in wanted if key not in rows]
        for start in range(0, len(missing), BLOCK):
            on_block(len(wanted) - len(missing) + start, len(wanted))
            block = missing[start : start + BLOCK]
            made = make([wanted[key] for key in block])
            rows.update(self._save(block, made))
        if missing:
            on_block(len(wanted), len(wanted))
        seconds = sum(row.seconds for row in rows.values())
        return Portion(np.stack([rows[key].vector for key in keys]), seconds, [rows[key].tokens for key in keys])

    def _saved(self, wanted: set[str]) -> Iterator[tuple[str, _Row]]:
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as block:
                    keys = block["keys"].tolist()
                    if wanted.isdisjoint(keys):
                        continue
                    vectors, seconds, tokens = (block[n] for n in ("vectors", "seconds", "tokens"))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                _LOG.warning("%s cannot be read (%s); what it held is embedded again", path.name, error)
                continue
            for place, key in enumerate(keys):
                if key in wanted:
                    yield key, _Row(vectors[place], float(seconds[place]), int(tokens[place]))

    def _save(self, keys: Sequence[str], made: Portion) -> dict[str, _Row]:
        """Write a block as a whole or not at all. The time of a block is shared evenly by its passages."""
        vectors = np.ascontiguousarray(made.vectors, dtype=np.float32)
        share = made.seconds / len(keys)
        arrays: dict[str, Any] = {
            "keys": np.array(keys),
            "vectors": vectors,
            "seconds": np.full(len(keys), share),
            "tokens": np.array(made.tokens, dtype=np.int64),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}.npz"
        draft = path.with_suffix(f".{os.getpid()}.part")  # another run may save the same block
        with draft.open("wb") as file:
            np.savez(file, **arrays)
        draft.replace(path)
        return {k: _Row(v, share, int(n)) for k, v, n in zip(keys, vectors, made.tokens, strict=True)}
