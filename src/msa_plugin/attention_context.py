"""What a layer attends to besides its rows, and the one protocol that keeps attention and bank apart.

Shape legend: B rows, T tokens, R ranges, S slots or stored chunks, H heads, KV key/value heads, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from msa_kernels import Backend


class ChunkPages(NamedTuple):
    """Stored chunks that rows attend to through an index: `content` [S, 2, KV, D] has each of them once.

    `ranges` int64 [B, R, 2], beside it: chunks [start, stop) of each row's documents, empty ones to fill up. `longest`
    is the most chunks of any row. `kernels` says what reads them (`msa_kernels.attend_ranges`).
    """

    content: Tensor
    ranges: Tensor
    longest: int
    kernels: Backend = "auto"


class LayerContext(NamedTuple):
    """What a layer attends to besides the row: K and V [B, KV, S, D], and which slots are real [B, S] (None: all).

    With `pages` it attends to their chunks too, of which no copy is made for a row; `mask` then has the slots of the
    longest row's chunks before the others, and is not None.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    pages: ChunkPages | None = None


class MemorySource(Protocol):
    """What the attention function asks of memory; `retrieval.assembly` implements it over the bank."""

    def select(self, layer: int, queries: Tensor) -> None:
        """Route `queries` [B, H, T, D] at a router layer, and remember the documents for `context(layer)`."""

    def context(self, layer: int) -> LayerContext | None:
        """K and V that `layer` attends to before its own row, or None."""
