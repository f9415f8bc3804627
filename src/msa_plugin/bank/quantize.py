"""Numbers in eight bits: routing keys as int8 with a scale for each chunk, symmetric around zero; content as float8.

A key x [W] is stored as round(x / s) with s = max|x| / 127, so every number is off by at most s / 2. Its score is the
product with the stored integers times s: nothing has to be turned back first.
Shape legend: C chunks, W routing-key width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LARGEST = 127
_SUFFIX = ".scale"


def scale_name(group: str) -> str:
    """What the scales of the int8 keys of `group` are called beside them."""
    return group + _SUFFIX


def is_scale(name: str) -> bool:
    """Whether `name` is one that `scale_name` gives."""
    return name.endswith(_SUFFIX)


def quantized(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [C, W], finite, as int8 [C, W] and positive scales float32 [C, 1]; a key of zeros gets scale 1."""
    numbers = keys.float()
    scales = numbers.abs().amax(1, keepdim=True) / _LARGEST
    scales = torch.where(scales > 0, scales, 1.0)  # also where a key is so small that its scale is zero
    return (numbers / scales).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def stored_content(content: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Content K, V as the bank keeps it: as it is (None), or in an 8-bit floating type, cut to what that can hold."""
    if dtype is None:
        return content
    largest = torch.finfo(dtype).max
    return content.clamp(-largest, largest).to(dtype)  # without the clamp larger numbers would become NaN


def read_content(stored: Tensor) -> Tensor:
    """The same as numbers that can be computed with: 8-bit floating types become bfloat16, which holds all of them."""
    return stored.to(torch.bfloat16) if stored.is_floating_point() and stored.element_size() == 1 else stored


def stored_keys(keys: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Key matrices by group as the bank keeps them in `dtype`: converted, or int8 with their scales beside them."""
    if dtype != torch.int8:
        return {group: numbers.to(dtype) for group, numbers in keys.items()}
    stored = {}
    for group, numbers in keys.items():
        stored[group], stored[scale_name(group)] = quantized(numbers)
    return stored
