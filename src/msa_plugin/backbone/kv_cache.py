"""A layer's K, V during decoding. Layers differ in length (router layers hold memory too), so each has its own."""

from __future__ import annotations

from torch import Tensor


class LayerCache:
    """K and V [B, KV, S, D] that grow by amortised doubling, so that a decode step does not copy the past."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        """Start from the prefill's K and V, which are not modified."""
        self._keys, self._values = keys, values
        self._length = keys.shape[2]

    @property
    def current(self) -> tuple[Tensor, Tensor]:
        """All K and V so far, as views that are valid until the next append."""
        return self._keys[:, :, : self._length], self._values[:, :, : self._length]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add new tokens [B, KV, T, D]; returns `current`."""
        end = self._length + keys.shape[2]
        if end > self._keys.shape[2]:
            self._keys = _grown(self._keys, self._length, end)
            self._values = _grown(self._values, self._length, end)
        self._keys[:, :, self._length : end] = keys
        self._values[:, :, self._length : end] = values
        self._length = end
        return self.current

    def cut(self, tokens: int) -> None:
        """Forget the last `tokens`."""
        self._length -= tokens


def _grown(tensor: Tensor, length: int, needed: int) -> Tensor:
    batch, heads, _, width = tensor.shape
    capacity = max(needed + 64, needed + needed // 4)
    bigger = tensor.new_empty(batch, heads, capacity, width)
    bigger[:, :, :length] = tensor[:, :, :length]
    return bigger
