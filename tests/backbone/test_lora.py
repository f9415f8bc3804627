"""Low-rank updates: what they add, that they vanish, and what does not fit."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from msa_plugin.backbone.attention import ActivationRecorder, ForwardState
from msa_plugin.backbone.batching import joined
from msa_plugin.backbone.families import decoder_layers
from msa_plugin.backbone.lora import TARGETS, Lora, Update
from msa_plugin.errors import AdapterError
from tiny import merged, tiny_backbone, tiny_lora, tiny_model


def logits(model, ids):
    with torch.inference_mode():
        return model(ids).logits


@pytest.fixture
def model():
    return tiny_model()


IDS = torch.tensor([[5, 6, 7, 8]])


def test_a_fresh_update_changes_nothing(model):
    before = logits(model, IDS)
    lora = Lora.fresh(model, [0, 1], 2)
    assert {module for _, module in lora.updates} == set(TARGETS)
    with lora.added(model):
        assert torch.equal(logits(model, IDS), before)


def test_it_is_the_sum_of_weight_and_product(model):
    lora = tiny_lora(model)
    with lora.added(model):
        hooked = logits(model, IDS)
    before = logits(model, IDS)
    assert not torch.allclose(hooked, before)
    with torch.no_grad():
        for (layer, module), update in lora.updates.items():
            linear = decoder_layers(model)[layer].get_submodule(module)
            linear.weight += update.up @ update.down
    torch.testing.assert_close(logits(model, IDS), hooked, atol=1e-4, rtol=1e-4)


def test_only_the_update_learns(model):
    for weight in model.parameters():
        weight.requires_grad_(False)
    lora = tiny_lora(model)
    for update in lora.updates.values():
        update.down.requires_grad_()
        update.up.requires_grad_()
    with lora.added(model):
        model(IDS).logits.sum().backward()
    assert all(bool(u.down.grad.abs().sum()) and bool(u.up.grad.abs().sum()) for u in lora.updates.values())


# Passes that run with an update


def step(backbone, state, ids, start=0):
    """Logits [B, V] behind one more forward of `state`."""
    positions = torch.arange(start, start + ids.shape[1]).expand_as(ids)
    return backbone.run(state, ids, torch.ones_like(ids, dtype=torch.bool), positions)[:, -1]


def untouched(model):
    return not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_pass_keeps_its_update_from_prefill_to_decoding(family, fitted):
    backbone = tiny_backbone(family)
    lora = tiny_lora(backbone.model)
    other = merged(backbone, lora)
    lora = lora.fitted(backbone.model) if fitted else lora
    ids, following = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), torch.tensor([[13]])
    with_update, taken_up = ForwardState(keep_cache=True, lora=lora), ForwardState(keep_cache=True)
    torch.testing.assert_close(step(backbone, with_update, ids), step(other, taken_up, ids), atol=1e-4, rtol=1e-4)
    alone, beside = joined([(with_update, [1])]), joined([(taken_up, [1])])
    found, expected = step(backbone, alone, following, 4), step(other, beside, following, 4)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, step(backbone, beside, following, 4), atol=1e-2)


def test_passes_with_different_updates_do_not_join(model):
    backbone = tiny_backbone()
    states = [ForwardState(keep_cache=True, lora=lora) for lora in (None, tiny_lora(backbone.model))]
    for state in states:
        step(backbone, state, IDS)
    with pytest.raises(ValueError, match="too many values"):
        joined([(state, [0]) for state in states])


class Stops(ActivationRecorder):
    """Fails in the middle of a forward, or says that it has seen enough."""

    def __init__(self, fails):
        self.fails = fails

    def on_kv(self, layer, keys, values):
        if self.fails and layer == 1:
            raise MemoryError

    def done_at(self, layer):
        return layer == 1


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("fails", [True, False])
def test_a_forward_that_ends_early_leaves_the_stock_model(fails, fitted):
    backbone = tiny_backbone()
    lora = tiny_lora(backbone.model)
    lora = lora.fitted(backbone.model) if fitted else lora
    before = step(backbone, ForwardState(), IDS)
    try:
        assert step_none(backbone, ForwardState(recorder=Stops(fails), lora=lora)) is None
    except MemoryError:
        assert fails
    assert untouched(backbone.model)
    assert torch.equal(step(backbone, ForwardState(), IDS), before)


def step_none(backbone, state):
    return backbone.run(state, IDS, torch.ones_like(IDS, dtype=torch.bool), torch.arange(4)[None])


def test_an_update_that_does_not_fit_leaves_nothing_behind(model):
    fits, no_layer = tiny_lora(model, layers=(0,)), Update(torch.zeros(2, 48), torch.zeros(64, 2))
    half = Lora({**fits.updates, (99, "mlp.up_proj"): no_layer})
    with pytest.raises(AdapterError, match="99"), half.added(model):
        raise AssertionError
    assert untouched(model)


def test_threads_with_and_without_do_not_see_each_other():
    backbone = tiny_backbone()
    kinds = [None, tiny_lora(backbone.model).fitted(backbone.model)]
    alone = [step(backbone, ForwardState(lora=lora), IDS) for lora in kinds]

    def same(index):
        seen = [step(backbone, ForwardState(lora=kinds[index]), IDS) for _ in range(30)]
        return all(torch.equal(logits, alone[index]) for logits in seen)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, (0, 1, 0, 1))) and not torch.allclose(*alone)


def test_a_fitted_copy_has_no_gradients_and_may_serve_a_pass_that_has_them(model):
    lora = tiny_lora(model.bfloat16())
    for update in lora.updates.values():
        update.down.requires_grad_()
    fitted = lora.fitted(model)
    assert not any(u.down.requires_grad for u in fitted.updates.values())
    linear = decoder_layers(model)[0].get_submodule("mlp.up_proj")
    x = torch.ones(1, linear.in_features, dtype=torch.bfloat16)
    with torch.inference_mode(), fitted.added(model):
        linear(x)
    x.requires_grad_()
    with fitted.added(model):
        linear(x).sum().backward()
    assert x.grad is not None


def test_it_describes_itself(model):
    lora = tiny_lora(model, layers=(2, 0), rank=3)
    told = lora.described(answers=True)
    assert (told.layers, told.rank, told.answers) == ((0, 2), 3, True)


def test_a_fitted_copy_leaves_the_weights(model):
    backbone = tiny_backbone()
    lora, weights = tiny_lora(backbone.model).fitted(backbone.model), backbone.weights_hash()
    with lora.added(backbone.model):
        assert backbone.weights_hash() == weights


def test_a_merged_weight_is_summed_in_float32_and_rounded_once(model):
    lora = tiny_lora(model)
    exact = {
        where: decoder_layers(model)[where[0]].get_submodule(where[1]).weight.detach().bfloat16().float()
        + update.up @ update.down
        for where, update in lora.updates.items()
    }
    with lora.fitted(model.bfloat16()).added(model):
        for (layer, name), weight in exact.items():
            linear = decoder_layers(model)[layer].get_submodule(name)
            x = torch.randn(3, weight.shape[1]).bfloat16()
            expected = torch.nn.functional.linear(x, weight.bfloat16())
            torch.testing.assert_close(linear(x), expected, rtol=2**-7, atol=1e-3)


def test_what_replaced_a_layer_s_forward_before_is_put_back(model):
    lora = tiny_lora(model).fitted(model)
    linear = decoder_layers(model)[0].get_submodule("mlp.up_proj")
    linear.forward = doubled = lambda x: 2 * torch.nn.functional.linear(x, linear.weight)
    with lora.added(model):
        assert linear.forward is not doubled
    assert linear.forward is doubled
