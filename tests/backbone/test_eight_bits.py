"""Weights in eight bits: what they multiply to, for whom they are made, and where they cannot be had."""

import logging

import pytest
import torch
from torch.nn import functional as F

from facade import TOPICS, opened, topics
from msa_plugin.backbone import eight_bits as module
from msa_plugin.backbone.attention import ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.eight_bits import EightBits, eight_bits, multiplies
from msa_plugin.config import MemoryConfig
from msa_plugin.engine.setup import decoding_weights
from msa_plugin.errors import ConfigError
from tiny import FAMILIES, tiny_backbone, tiny_lora, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 9, 17, 40, 3, 8, 21, 30, 11, 6]])


@pytest.fixture
def products(monkeypatch):
    """Rows of every product with int8 weights from now on."""
    multiplies()  # its own is not counted
    seen, product = [], module._product
    monkeypatch.setattr(module, "_product", lambda x, *given: seen.append(len(x)) or product(x, *given))
    return seen


@pytest.fixture
def asked_anew():
    """`multiplies` looks again, in the test and after it."""
    multiplies.cache_clear()
    yield
    multiplies.cache_clear()


def after(backbone, weights=None, lora=None, rows=1, step=1):
    """Logits of the next `step` tokens after a prefill of all but these."""
    ids = IDS.expand(rows, -1)
    state, positions = ForwardState(keep_cache=True, lora=lora), torch.arange(ids.shape[1]).expand(rows, -1)
    real = torch.ones_like(ids, dtype=torch.bool)
    backbone.run(state, ids[:, :-step], real[:, :-step], positions[:, :-step])
    state.eight_bits = weights
    return backbone.run(state, ids[:, -step:], real[:, -step:], positions[:, -step:])[:, -1]


def test_a_weight_is_as_near_as_eight_bits_allow():
    weight = torch.randn(7, 33) * torch.logspace(-12, 3, 7)[:, None]
    weight[3] = 0
    before = weight.clone()
    found, scales = eight_bits(weight)
    assert (found.dtype, scales.dtype) == (torch.int8, torch.bfloat16) and torch.equal(weight, before)
    assert found[3].eq(0).all() and found.abs().max() in (126, 127)
    error = (found * scales.float()[:, None] - weight).abs().amax(1)
    assert (error <= 0.5001 * scales.float()).all()
    assert (scales.float()[[0, 1, 2, 4, 5, 6]] <= 1.02 / 127 * weight.abs().amax(1)[[0, 1, 2, 4, 5, 6]]).all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("updated", [False, True], ids=["stock", "lora"])
def test_a_token_is_decoded_as_with_the_model_s_own_weights(family, updated, products):
    backbone = tiny_backbone(family)
    lora = tiny_lora(backbone.model).fitted(backbone.model) if updated else None
    exact, without = after(backbone, lora=lora), after(backbone)
    assert not products
    found = after(backbone, EightBits(), lora)
    assert products
    assert F.cosine_similarity(found, exact) > 0.998
    if updated:
        assert F.cosine_similarity(found, exact) > F.cosine_similarity(found, without)
    assert torch.equal(after(backbone, lora=lora), exact)  # the model has its own weights again


def test_more_tokens_than_pay_are_left_to_the_model_s_own_weights(products):
    backbone, weights = tiny_backbone(), EightBits()
    few = weights.few
    after(backbone, weights, rows=few)
    after(backbone, weights, rows=few // 4, step=4)
    assert set(products) == {few, few // 4}  # of the last token alone logits are made
    del products[:]
    after(backbone, weights, rows=few + 1)
    after(backbone, weights, rows=few // 2, step=3)
    assert not products


def test_layers_without_an_update_are_made_once():
    backbone, weights = tiny_backbone(), EightBits()
    lora = tiny_lora(backbone.model).fitted(backbone.model)
    after(backbone, weights)
    stock = len(weights._made)
    after(backbone, weights, lora)
    after(backbone, weights, lora)
    assert len(weights._made) == stock + len(lora.updates)


def test_bfloat16_on_a_cpu_decodes_in_eight_bits_unless_told_otherwise(asked_anew):
    half = Backbone(tiny_model().bfloat16(), tiny_tokenizer())
    assert isinstance(decoding_weights(half, MemoryConfig()), EightBits)
    assert decoding_weights(half, MemoryConfig(decoding="full")) is None
    assert decoding_weights(tiny_backbone(), MemoryConfig()) is None
    assert isinstance(decoding_weights(tiny_backbone(), MemoryConfig(decoding="int8")), EightBits)


@pytest.mark.parametrize("fault", ["gone", "refused", "another"])
def test_without_the_product_nothing_changes(fault, monkeypatch, asked_anew, caplog):
    if fault == "gone":
        monkeypatch.delattr(torch, "_weight_int8pack_mm")
    elif fault == "refused":
        monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda x, w: x)
    else:
        monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda x, w, s: x.new_zeros(len(x), len(w)))
    half = Backbone(tiny_model().bfloat16(), tiny_tokenizer())
    with caplog.at_level(logging.INFO, logger=module.__name__):
        assert decoding_weights(half, MemoryConfig()) is None
        assert decoding_weights(half, MemoryConfig()) is None
    assert len(caplog.records) == 1
    with pytest.raises(ConfigError, match="int8"):
        decoding_weights(half, MemoryConfig(decoding="int8"))


@pytest.mark.parametrize("settings", [{"reading": "text"}, {"reading": "kv"}, {"instruction": None}], ids=str)
def test_answers_are_written_in_eight_bits(tmp_path, backbone, products, settings):
    questions = [f"the {topic}" for topic in TOPICS]
    with opened(tmp_path, backbone, decoding="int8", **settings) as memory:
        memory.add(topics())
        memory.retrieve(questions[0])
        assert not products
        alone = [memory.ask(q, max_new_tokens=4) for q in questions[:3]]
        assert set(products) == {1}
        del products[:]
        together = memory.ask(questions[:3], max_new_tokens=4)
        assert set(products) == {3}
        assert [a.text for a in together] == [a.text for a in alone]
        assert "".join(memory.stream(questions[0], max_new_tokens=4)) == alone[0].text
        del products[:]
        memory.ask([*questions, questions[0]], max_new_tokens=4)
        assert not products
