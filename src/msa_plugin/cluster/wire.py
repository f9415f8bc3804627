"""Tensors as they travel between processes: numpy arrays, which Ray moves without copying or interpreting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

_AS_INTEGERS = {torch.bfloat16: torch.int16}  # numpy knows no bfloat16


class Packed(NamedTuple):
    """A tensor's numbers, and the dtype that they had."""

    numbers: NDArray[Any]
    dtype: str


def pack(tensor: Tensor) -> Packed:
    """A tensor for the journey."""
    here = tensor.detach().cpu().contiguous()
    stored = _AS_INTEGERS.get(here.dtype)
    numbers = here if stored is None else here.view(stored)
    return Packed(numbers.numpy(), str(tensor.dtype).removeprefix("torch."))


def unpack(packed: Packed) -> Tensor:
    """The tensor again, in memory of its own: what Ray hands out cannot be written to."""
    dtype = getattr(torch, packed.dtype)
    tensor = torch.from_numpy(packed.numbers.copy())
    return tensor.view(dtype) if dtype in _AS_INTEGERS else tensor


def pack_all(tensors: Sequence[Tensor]) -> list[Packed]:
    """Several."""
    return [pack(tensor) for tensor in tensors]
