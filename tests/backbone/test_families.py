"""The surgery on every family: invisible when off, exact when on."""

import pytest
import torch

from msa_plugin.attention_context import LayerContext
from msa_plugin.backbone.attention import NAME, ActivationRecorder, CausalRows, ForwardState
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.families import shift_keys
from msa_plugin.encoding.encoder import Encoder, pad_left, pad_right
from msa_plugin.errors import UnsupportedBackboneError
from msa_plugin.retrieval.assembly import encode_head
from tiny import FAMILIES, tiny_adapter, tiny_backbone, tiny_model

TOLERANCE = 2e-4


def _positions(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def any_backbone(request):
    return tiny_backbone(request.param)


@torch.no_grad()
def test_logits_are_the_stock_ones_before_during_and_after(any_backbone):
    model = any_backbone.model
    ids = torch.randint(3, 250, (1, 20), generator=torch.Generator().manual_seed(1))
    before, implementation = model(ids).logits, model.config._attn_implementation
    mask = torch.ones_like(ids).bool()
    ours = any_backbone.run(ForwardState(), ids, mask, _positions(mask), logits="all")
    assert (ours - before).abs().max() < TOLERANCE
    assert model.config._attn_implementation == implementation != NAME
    assert torch.equal(model(ids).logits, before)
    assert not any(m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_an_error_inside_leaves_the_stock_model(any_backbone):
    class Breaks(ForwardState):
        def see_attention(self, *args):
            raise RuntimeError("inside")

    ids = torch.tensor([[5, 6, 7]])
    before = any_backbone.model(ids).logits
    with pytest.raises(RuntimeError, match="inside"):
        any_backbone.run(Breaks(), ids, torch.ones_like(ids).bool(), torch.arange(3)[None])
    assert torch.equal(any_backbone.model(ids).logits, before)


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_a_padded_batch_equals_single_rows(any_backbone, pad):
    rows = [list(range(10, 27)), [40, 41, 42], [60]]
    ids, mask = pad(rows, torch.device("cpu"))
    together = any_backbone.run(ForwardState(), ids, mask, _positions(mask), logits="all")
    for index, row in enumerate(rows):
        one = torch.tensor([row])
        real, places = torch.ones_like(one).bool(), torch.arange(len(row))[None]
        alone = any_backbone.run(ForwardState(), one, real, places, logits="all")
        assert (together[index][mask[index]] - alone[0]).abs().max() < TOLERANCE


def test_right_padded_rows_need_no_mask(any_backbone):
    rows = [list(range(10, 27)), [40, 41, 42]]
    ids, mask = pad_right(rows, torch.device("cpu"))
    fast = any_backbone.run(CausalRows(), ids, mask, _positions(mask), logits="all")
    slow = any_backbone.run(ForwardState(), ids, mask, _positions(mask), logits="all")
    assert (fast[mask] - slow[mask]).abs().max() < TOLERANCE


def test_decoding_step_by_step_equals_one_prefill(any_backbone):
    ids = torch.tensor([list(range(20, 40))])
    mask = torch.ones_like(ids).bool()
    whole = any_backbone.run(ForwardState(), ids, mask, torch.arange(20)[None], logits="all")
    state = ForwardState(keep_cache=True)
    parts = [any_backbone.run(state, ids[:, :9], mask[:, :9], torch.arange(9)[None], logits="all")]
    for at in range(9, 20):
        position = torch.tensor([[at]])
        parts.append(any_backbone.run(state, ids[:, at : at + 1], mask[:, at : at + 1], position, logits="all"))
    assert (torch.cat(parts, dim=1) - whole).abs().max() < TOLERANCE


class Prefix:
    """A memory that holds unpooled K and V of a text, at its own positions."""

    def __init__(self, head):
        self.head = head

    def select(self, layer, queries):
        raise AssertionError("nothing routes here")

    def context(self, layer):
        return LayerContext(self.head.keys[layer][None], self.head.values[layer][None], None)


@pytest.mark.parametrize("family", [f for f in sorted(FAMILIES) if FAMILIES[f][1].get("sliding_window") is None])
def test_unpooled_memory_equals_plain_attention_over_the_same_text(family):
    backbone = tiny_backbone(family)
    text, rest = list(range(10, 22)), list(range(50, 58))
    ids = torch.tensor([text + rest])
    mask = torch.ones_like(ids).bool()
    dense = backbone.run(ForwardState(), ids, mask, torch.arange(20)[None], logits="all")[:, 12:]
    source = Prefix(encode_head(backbone, text))
    row = torch.tensor([rest])
    remembered = backbone.run(
        ForwardState(source=source), row, torch.ones_like(row).bool(), torch.arange(12, 20)[None], logits="all"
    )
    assert (dense - remembered).abs().max() < TOLERANCE


@pytest.mark.parametrize("by", [1, 37, -5])
def test_shifted_keys_are_those_of_a_text_further_on(any_backbone, by):
    class Keys(ActivationRecorder):
        def __init__(self):
            self.keys = {}

        def on_kv(self, layer, keys, values):
            self.keys[layer] = keys

    def keys_from(start):
        recorder, ids = Keys(), torch.arange(10, 22)[None]
        positions = torch.arange(start, start + 12)[None]
        any_backbone.run(CausalRows(recorder=recorder), ids, torch.ones_like(ids).bool(), positions, logits="none")
        return recorder.keys

    here, there = keys_from(8), keys_from(8 + by)
    for layer, keys in here.items():
        assert (shift_keys(any_backbone.model, layer, keys, by) - there[layer]).abs().max() < TOLERANCE


def test_encoding_stops_at_the_deepest_layer_needed(any_backbone):
    ran = []
    layers = any_backbone.model.model.layers
    handles = [layer.mlp.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(layers)]
    try:
        adapter = tiny_adapter(any_backbone)
        Encoder(any_backbone, adapter.router, None).encode_windows([[5, 6, 7]])
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(set(ran)) == [0, 1]


def test_a_family_outside_the_table_is_refused():
    model = tiny_model()
    model.config.model_type = "bloom"
    with pytest.raises(UnsupportedBackboneError, match="bloom"):
        Backbone(model, None)
