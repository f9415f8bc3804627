"""Plain-torch twin of decode attention over chosen ranges of a chunk store: gathers them first.

Shape legend: B rows, H heads, KV key/value heads, D head dim, S stored chunks, R ranges, L own tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attend_gathered(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    ranges: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_mask: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention [B, H, D] of one token a row, as `msa_kernels.attend_ranges` says."""
    out = torch.zeros_like(queries)
    for row, spans in enumerate(ranges.tolist()):
        index = torch.tensor([i for start, stop in spans for i in range(start, stop)], dtype=torch.int64)
        index = index.to(keys.device)
        own = slice(None) if own_mask is None else own_mask[row]
        k = torch.cat([keys[index].transpose(0, 1).to(queries.dtype), own_keys[row][:, own]], 1).float()
        v = torch.cat([values[index].transpose(0, 1).to(queries.dtype), own_values[row][:, own]], 1).float()
        if k.shape[1]:
            grouped = queries[row].float().view(k.shape[0], -1, queries.shape[2])
            weights = (grouped @ k.transpose(1, 2) * scale).softmax(-1)
            out[row] = (weights @ v).flatten(0, 1).to(queries.dtype)
    return out
