"""Weights in eight bits beside a model's own, for forwards of a few rows on a CPU, as decoding has them.

One row times a matrix takes as long as reading the matrix does: int8 halves that. Activations are bfloat16, and each
row of a weight has a scale. Shapes: N tokens; a linear layer maps `inner` numbers to `outer`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.lower import standing_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST = 127
_ROUNDED_UP = 1 + 2**-7  # a scale is never too small after it was rounded to bfloat16
_LEAST = 2.0**-100  # of a scale, for rows of nothing but zeros
_logger = logging.getLogger(__name__)


class EightBits:
    """A model's linear layers in int8, each made at its first use; with a LoRA those of the updated layers too.

    What no update touches is shared between the two kinds. About one byte a weight.
    """

    few: ClassVar[int] = 8  # tokens of one forward up to which this is no slower

    def __init__(self) -> None:
        """Nothing is made yet."""
        self._made: dict[tuple[nn.Linear, Lora | None], tuple[Tensor, Tensor]] = {}
        self._ready: dict[Lora | None, list[tuple[nn.Module, Callable[[Tensor], Tensor]]]] = {}

    @contextmanager
    def added(self, model: PreTrainedModel, lora: Lora | None) -> Iterator[None]:
        """`model` computes with eight bits inside, with the updates of `lora`, and as before afterwards."""
        if lora not in self._ready:
            with torch.inference_mode(False), torch.no_grad():  # it outlives the forward that needs it first
                self._ready[lora] = list(self._forwards(model, lora))
        with ExitStack() as undo:
            for linear, forward in self._ready[lora]:
                undo.enter_context(standing_in(linear, forward))
            yield

    def _forwards(
        self, model: PreTrainedModel, lora: Lora | None
    ) -> Iterator[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
        updated = {} if lora is None else lora.whole(model)
        for linear in model.modules():
            if type(linear) is not nn.Linear:
                continue
            kind = lora if linear in updated else None
            if (linear, kind) not in self._made:
                self._made[linear, kind] = eight_bits(updated.get(linear, linear.weight))
            yield linear, _multiplying(*self._made[linear, kind], linear.bias)


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [outer, inner] in int8, and a scale [outer] in bfloat16 for each row."""
    exact = weight.detach().float()
    scales = (exact.abs().amax(1) * (_ROUNDED_UP / _LARGEST)).clamp_(min=_LEAST).bfloat16()
    return (exact * scales.float().reciprocal()[:, None]).round_().to(torch.int8), scales


@cache
def multiplies() -> bool:
    """Whether this PyTorch multiplies by int8 weights on a CPU, rightly: its function for that is a private one."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(rows, 96, generator=generator).bfloat16() for rows in (160, 3))
    try:
        found = _product(x, *eight_bits(weight))
        expected = F.linear(x.float(), weight.float()).bfloat16()
        right = found.shape == expected.shape and torch.allclose(found, expected, rtol=0.02, atol=0.5)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        _logger.info("answers are written with the model's own weights: PyTorch has no int8 product here (%s)", error)
        return False
    if not right:
        _logger.info("answers are written with the model's own weights: PyTorch's int8 product is another one here")
    return right


def _product(x: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    found: Tensor = torch._weight_int8pack_mm(x, weight, scales)
    return found


def _multiplying(weight: Tensor, scales: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        found = _product(x.reshape(-1, x.shape[-1]).bfloat16(), weight, scales).to(x.dtype)
        found = found.view(*x.shape[:-1], -1)
        return found if bias is None else found + bias

    return forward
