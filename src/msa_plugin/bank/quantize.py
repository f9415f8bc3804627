"""Numbers in eight bits: routing keys as int8 with a scale for each chunk; content as float8, or as int8.

A number x is stored as round(x / s) with s = max|x| / 127 over those that share the scale, so it is off by at most
s / 2. A routing key's score is the product with the stored integers times s: nothing has to be turned back first.
Content K has a scale for each channel of a document, since a few channels are far larger than the others in every
token; content V has one for each row and head (KIVI, arXiv 2402.02750, section 3).
Shape legend: C chunks, C' content rows, W routing-key width, KV key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LARGEST = 127
_SUFFIX = ".scale"
_KEY_SCALE, _VALUE_SCALE = ".key_scale", ".value_scale"


def scale_name(group: str) -> str:
    """What the scales of the int8 keys of `group` are called beside them."""
    return group + _SUFFIX


def is_scale(name: str) -> bool:
    """Whether `name` is one that `scale_name` gives."""
    return name.endswith(_SUFFIX)


def quantized(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Keys [C, W], finite, as int8 [C, W] and positive scales float32 [C, 1]; a key of zeros gets scale 1."""
    numbers = keys.float()
    scales = _scales(numbers, 1)
    return _integers(numbers, scales), scales


def _scales(numbers: Tensor, dim: int) -> Tensor:
    """Positive scales of float32 numbers that share one along `dim`, which is kept with size 1."""
    if not numbers.shape[dim]:
        return torch.ones_like(numbers.sum(dim, keepdim=True))
    scales = numbers.abs().amax(dim, keepdim=True) / _LARGEST
    return torch.where(scales > 0, scales, 1.0)  # also where numbers are so small that their scale is zero


def _integers(numbers: Tensor, scales: Tensor) -> Tensor:
    return (numbers / scales).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)


def content_scale_names(layer: int) -> tuple[str, str]:
    """What the scales of a layer's int8 K and of its V are called."""
    return f"{layer}{_KEY_SCALE}", f"{layer}{_VALUE_SCALE}"


def is_of_document(name: str) -> bool:
    """Whether the content scales called `name` have one row a document, and not one for each of its rows."""
    return name.endswith(_KEY_SCALE)


def quantized_content(content: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """One document's content by layer, [C', 2, KV, D], as int8, and its scales in bfloat16 by name.

    Those of K are [1, KV, D], those of V [C', KV]. Two bytes a scale keep short documents small, and what rounding
    them does stays within half a step: integers are made with the rounded ones.
    """
    stored, scales = {}, {}
    for layer, numbers in content.items():
        keys, values = numbers.float().unbind(1)
        key_scales = _scales(keys, 0).to(torch.bfloat16)
        value_scales = _scales(values, 2).to(torch.bfloat16)
        stored[layer] = torch.stack([_integers(keys, key_scales), _integers(values, value_scales)], dim=1)
        key_name, value_name = content_scale_names(layer)
        scales[key_name], scales[value_name] = key_scales, value_scales[:, :, 0]
    return stored, scales


def content_numbers(stored: Tensor, key_scales: Tensor, value_scales: Tensor) -> Tensor:
    """The float32 numbers that int8 content [C', 2, KV, D] stands for, given scales [KV, D] and [C', KV]."""
    return torch.stack([stored[:, 0] * key_scales.float(), stored[:, 1] * value_scales.float()[:, :, None]], dim=1)


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
