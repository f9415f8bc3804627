"""Low-rank updates: what they add, that they vanish, and what does not fit."""

import pytest
import torch

from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.lora import TARGETS, Lora, Update
from msa_plugin.errors import AdapterError
from tiny import tiny_model


def logits(model, ids):
    with torch.inference_mode():
        return model(ids).logits


@pytest.fixture
def model():
    return tiny_model()


IDS = torch.tensor([[5, 6, 7, 8]])


def trained(model, layers=(0, 1), rank=3):
    """An update that changes something."""
    lora = Lora.fresh(model, layers, rank, generator=torch.Generator().manual_seed(0))
    for update in lora.updates.values():
        update.up.normal_(generator=torch.Generator().manual_seed(1))
    return lora


def test_a_fresh_update_changes_nothing(model):
    before = logits(model, IDS)
    lora = Lora.fresh(model, [0, 1], 2)
    assert {module for _, module in lora.updates} == set(TARGETS)
    with lora.added(model):
        assert torch.equal(logits(model, IDS), before)


def test_it_is_the_sum_of_weight_and_product(model):
    lora = trained(model)
    with lora.added(model):
        hooked = logits(model, IDS)
    before = logits(model, IDS)
    assert not torch.allclose(hooked, before)
    with torch.no_grad():
        for (layer, module), update in lora.updates.items():
            linear = decoder_layers(model)[layer].get_submodule(module)
            linear.weight += update.up @ update.down
    torch.testing.assert_close(logits(model, IDS), hooked, atol=1e-4, rtol=1e-4)


def test_the_stock_model_is_back_afterwards(model):
    before = logits(model, IDS)
    with pytest.raises(RuntimeError), trained(model).added(model):
        raise RuntimeError
    assert torch.equal(logits(model, IDS), before)


def test_only_the_update_learns(model):
    for weight in model.parameters():
        weight.requires_grad_(False)
    lora = trained(model)
    for update in lora.updates.values():
        update.down.requires_grad_()
        update.up.requires_grad_()
    with lora.added(model):
        model(IDS).logits.sum().backward()
    assert all(bool(u.down.grad.abs().sum()) and bool(u.up.grad.abs().sum()) for u in lora.updates.values())


def test_names_go_both_ways(model):
    lora = trained(model)
    again = Lora.named({**lora.tensors(), "router.0.q_weight": torch.zeros(1)})
    assert again.updates.keys() == lora.updates.keys()
    assert all(torch.equal(again.updates[k].up, u.up) for k, u in lora.updates.items())
    assert Lora.named({"router.0.q_weight": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora.0.self_attn.q_proj.down": torch.zeros(2, 4)}, "lacks its up half"),
        ({"lora.x.self_attn.q_proj.down": torch.zeros(2, 4)}, "no name of a LoRA tensor"),
        ({"lora.0.lm_head.down": torch.zeros(2, 4), "lora.0.lm_head.up": torch.zeros(4, 2)}, "is none of"),
        (
            {"lora.0.mlp.up_proj.down": torch.zeros(2, 4), "lora.0.mlp.up_proj.up": torch.zeros(4, 3)},
            r"are not \[r, inner\]",
        ),
    ],
)
def test_bad_tensors(tensors, message):
    with pytest.raises(AdapterError, match=message):
        Lora.named(tensors)


def test_what_fits_another_backbone_is_refused(model):
    wrong = Lora({(0, "mlp.up_proj"): Update(torch.zeros(2, 5), torch.zeros(7, 2))})
    with pytest.raises(AdapterError, match="trained for another model"):
        wrong.check(model)
    deep = Lora({(99, "mlp.up_proj"): Update(torch.zeros(2, 5), torch.zeros(7, 2))})
    with pytest.raises(AdapterError, match="layers"):
        deep.check(model)
    trained(model).check(model)
