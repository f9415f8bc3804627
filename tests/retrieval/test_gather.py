"""Content is sent for ahead of its use, as far as the selection allows, and no answer depends on how it comes."""

import pytest
import torch

from facade import PER_LAYER, opened, topics
from msa_plugin.bank import tiers
from msa_plugin.bank.device_transfer import DeviceTransfer
from msa_plugin.bank.tiers import Budget, ContentTier
from msa_plugin.retrieval.gather import Gather
from tiny import tiny_adapter, tiny_backbone
from transfers import LateTransfer, Store

QUESTION = "Which text is on the glacier?"
MODES = {
    "shared latents": ({"reading": "latent"}, {}),
    "all layers unpooled": ({"reading": "kv"}, {}),
    "each layer its own": ({"reading": "latent"}, PER_LAYER),
}


def _gather(transfer, selected):
    return Gather(ContentTier(Store(), transfer, Budget(0)), (5, 2, 3), selected)


def _read(gather, layer, ordinals):
    found = gather.take(layer, ordinals)
    assert {o: rows.shape[0] for o, rows in found.items()} == {o: o for o in ordinals}
    assert all((rows == 10 * layer + o).all() for o, rows in found.items())


@pytest.mark.parametrize("chosen", [[1, 4], [3]])
def test_a_shared_selection_is_one_layer_ahead(chosen):
    transfer = LateTransfer()
    gather = _gather(transfer, chosen)
    assert transfer.log == [("send", 0)]  # before the forward begins
    for layer in (2, 3, 5):
        _read(gather, layer, chosen)
    assert transfer.log == [("send", 0), ("wait", 0), ("send", 1), ("wait", 1), ("send", 2), ("wait", 2)]


def test_a_layers_own_selection_is_sent_for_once_it_is_known():
    transfer = LateTransfer()
    gather = _gather(transfer, None)
    for number, (layer, chosen) in enumerate(((2, [1, 4]), (3, [2]), (5, [1, 2, 3]))):
        gather.send(layer, chosen)
        assert transfer.log[-1] == ("send", number)
        _read(gather, layer, chosen)
        assert transfer.log[-1] == ("wait", number)


def test_what_was_not_sent_for_is_fetched_when_it_is_asked_for():
    transfer = LateTransfer()
    gather = _gather(transfer, None)
    _read(gather, 3, [2, 3])
    gather.send(5, [1])
    _read(gather, 5, [4])
    assert gather.take(2, []) == {}


def test_on_a_cpu_nothing_is_sent_or_copied():
    store = ContentTier(Store(), DeviceTransfer(torch.device("cpu")), Budget(0))
    gather = Gather(store, (2, 3), [1, 2])
    assert store.gathered == 0
    _read(gather, 2, [1, 2])
    assert store.gathered == 3 * 32


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_answers_do_not_depend_on_the_way(tmp_path, monkeypatch, mode):
    settings, routing = MODES[mode]
    backbone = tiny_backbone()
    adapter = tiny_adapter(backbone, read_latent=True, **routing)
    with opened(tmp_path, backbone, adapter, **settings) as memory:
        memory.add(topics(5))
        plain = memory.ask([QUESTION, "violin"], max_new_tokens=6)
    monkeypatch.setattr(tiers, "transfer_to", lambda device: LateTransfer())
    for budgets in ({"device_bytes": 0}, {"device_bytes": 2000, "host_bytes": 5000}, {}):
        with opened(tmp_path, backbone, adapter, tiers=budgets, **settings) as memory:
            answers = [memory.ask([QUESTION, "violin"], max_new_tokens=6) for _ in range(2)]
            stats = memory.stats().tiers
            assert stats.device_budget is None or stats.device_keys <= stats.device_budget
            assert stats.host_keys + stats.host_content <= stats.host_budget
            assert stats.content_gathered > 0
        for found in answers:
            assert [a.text for a in found] == [a.text for a in plain]
            assert [a.sources for a in found] == [a.sources for a in plain]
