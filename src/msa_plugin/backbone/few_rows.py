"""A few rows times a large bfloat16 matrix on a CPU, which is what writing an answer is made of.

torch gives `x @ W.T` to a kernel that lays W out anew at every call, which for a few rows takes longer than the
product. With W on the left it is read as it lies (docs/experiments/storage-and-speed.md has the figures).
Shapes: [R, inner] rows, [outer, inner] weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msa_plugin.backbone.lower import standing_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FEW = 8  # rows; with more of them the usual order gains on it


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight, bias)`, up to the order in which numbers are added up."""
    rows = x.numel() // x.shape[-1]
    if not 0 < rows <= FEW or x.dtype != weight.dtype or not _gains(weight) or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    flat = x.reshape(rows, -1)
    # One row alone would go to a slower kernel: it is multiplied twice.
    found = torch.mm(weight, (flat if rows > 1 else flat.repeat(2, 1)).T)[:, :rows].T.reshape(*x.shape[:-1], -1)
    return found if bias is None else found + bias


class FewRows:
    """A model's linear layers, to be computed by `product` within a forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Nothing is changed yet."""
        linears = [m for m in model.modules() if type(m) is nn.Linear and _gains(m.weight)]
        head = model.get_output_embeddings()
        self._all, self._head = linears, [m for m in linears if m is head]

    @contextmanager
    def installed(self, rows: int) -> Iterator[None]:
        """For a forward of `rows` tokens; the head may see fewer of them, and chooses by itself."""
        with ExitStack() as undo:
            for linear in self._all if rows <= FEW else self._head:
                undo.enter_context(standing_in(linear, partial(_forward, linear)))
            yield


def _forward(linear: nn.Linear, x: Tensor) -> Tensor:
    return product(x, linear.weight, linear.bias)


def _gains(weight: Tensor) -> bool:
    return weight.dtype is torch.bfloat16 and weight.device.type == "cpu"
