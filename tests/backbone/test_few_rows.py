"""A few rows on a CPU in bfloat16: the same numbers as the stock order gives, and the stock layers afterwards."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from msa_plugin.backbone.attention import Pass
from msa_plugin.backbone.few_rows import FEW, product
from tiny import tiny_backbone


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product(rows, biased, dtype):
    draw = torch.Generator().manual_seed(rows)
    weight, bias = torch.randn(48, 32, generator=draw).to(dtype), torch.randn(48, generator=draw).to(dtype)
    x = torch.randn(1, rows, 32, generator=draw).to(dtype)
    with torch.inference_mode():
        found = product(x, weight, bias if biased else None)
    exact = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    assert found.shape == (1, rows, 48) and found.dtype == dtype
    tolerance = 2**-7 if dtype is torch.bfloat16 else 1e-6
    assert (found.double() - exact).abs().max() <= tolerance * exact.abs().max()


def test_gradients_go_the_stock_way():
    weight = torch.randn(6, 4, dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(1, 4, dtype=torch.bfloat16)
    product(x, weight).sum().backward()
    assert torch.equal(weight.grad, x.expand(6, 4))


def test_a_model_answers_alike_and_is_stock_again():
    backbone = tiny_backbone()
    backbone.model.to(torch.bfloat16)
    ids = torch.tensor([[5, 9, 12]])
    positions, mask = torch.arange(3)[None], torch.ones(1, 3, dtype=torch.bool)
    with torch.inference_mode():
        stock = backbone.model(ids).logits[:, -1:].float()
    found = backbone.run(Pass(), ids, mask, positions).float()
    assert (found - stock).abs().max() <= 0.02 * stock.abs().max()
    assert not any("forward" in vars(module) for module in backbone.model.modules())
