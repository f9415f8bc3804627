"""Tiers: budgets are kept whatever comes, results do not depend on them, and what goes away is let go of."""

import gc

import pytest
import torch

from msa_plugin.bank import tiers as module
from msa_plugin.bank.device_transfer import DeviceTransfer, transfer_to
from msa_plugin.bank.quantize import quantized
from msa_plugin.bank.tiers import Budget, ContentTier, KeyTier
from msa_plugin.config import RoutingConfig
from msa_plugin.retrieval.scorer import KeySearch
from msa_plugin.types import KeyBlock
from transfers import LateTransfer, Store

CONFIG = RoutingConfig(layers=(0,), heads=4, kv_heads=2, head_dim=8, pooling=8)
SEGMENTS, CHUNKS = 6, (3, 1, 0, 9)
KEYS = sum(CHUNKS) * 16 * 2
ONE = KEYS + (len(CHUNKS) + 1) * 8  # on the device offsets lie beside the keys
TRANSFERS = {"cpu": lambda: DeviceTransfer(torch.device("cpu")), "late": LateTransfer}


def _blocks(allowed=None, dtype=torch.float16):
    generator, found = torch.Generator().manual_seed(0), []
    for number in range(SEGMENTS):
        keys = torch.randn(sum(CHUNKS), 16, generator=generator)
        keys, scales = quantized(keys) if dtype == torch.int8 else (keys.to(dtype), None)
        offsets = torch.tensor([0, *CHUNKS]).cumsum(0)
        ordinals = torch.arange(len(CHUNKS)) + number * len(CHUNKS)
        found.append(KeyBlock(keys, offsets, ordinals, allowed, None if scales is None else scales[:, 0]))
    return found


def _tier(transfer="cpu", device=None, host=0):
    return KeyTier(TRANSFERS[transfer]() if isinstance(transfer, str) else transfer, Budget(device), Budget(host))


def _found(tier, blocks, tile_chunks=16384):
    queries = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(1))
    return KeySearch(tier, tile_chunks, 256, "torch").route(queries, torch.ones(2, 3).bool(), blocks, 5, CONFIG)


def _same(one, other):
    assert one.ordinals.tolist() == other.ordinals.tolist()
    assert torch.equal(one.scores, other.scores)


@pytest.mark.slow
@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
@pytest.mark.parametrize("device", [0, ONE - 1, 3 * ONE, None])
@pytest.mark.parametrize("host", [0, 1024])
def test_results_do_not_depend_on_budgets(transfer, dtype, device, host):
    blocks = _blocks(dtype=dtype)
    plain = _found(_tier(), blocks)
    tier = _tier(transfer, device, host)
    for _ in range(3):
        _same(_found(tier, blocks), plain)
        assert device is None or tier.device.used <= device
        assert tier.host.used <= host


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_budgets_are_used_first_come_first_served_and_counted(transfer):
    blocks = _blocks()
    tier = _tier(transfer, 2 * ONE + 5, 2 * 1024)
    kept = tier.transfer.host_bytes(KEYS)
    hosted = 2048 // kept
    for question in (1, 2):
        found = list(tier.blocks(blocks))
        assert (tier.device.used, tier.host.used) == (2 * ONE, hosted * kept)
        assert tier.streamed == question * (SEGMENTS - 2) * KEYS
        assert [b.device_offsets is not None for b in found[:3]] == [True, True, transfer == "late"]
    if transfer == "cpu":
        maps = [b.keys.data_ptr() for b in blocks]
        assert [b.keys.data_ptr() in maps for b in found] == [False] * (2 + hosted) + [True] * (SEGMENTS - 2 - hosted)


def test_on_a_cpu_without_budgets_the_maps_are_used_as_they_are():
    blocks = _blocks()
    assert all(one is other for one, other in zip(_tier().blocks(blocks), blocks, strict=True))


def test_a_device_without_streams_gets_keys_once():
    tier, [block, *_] = _tier(DeviceTransfer(torch.device("meta"))), _blocks()
    [first], [again] = tier.blocks([block]), tier.blocks([block])
    assert first.keys.device.type == "meta" and again.keys is first.keys
    assert first.offsets is block.offsets and first.device_offsets.device.type == "meta"


def test_resident_keys_are_sent_once_and_others_for_every_search():
    tier, blocks = _tier("late", 2 * ONE), _blocks()
    list(tier.blocks(blocks))
    assert tier.transfer.bytes == SEGMENTS * ONE
    list(tier.blocks(blocks))
    assert tier.transfer.bytes == (2 * SEGMENTS - 2) * ONE


def test_one_tile_is_on_its_way_while_another_is_searched():
    tier, blocks = _tier("late", 0), _blocks()
    searched = []
    for block in tier.blocks(blocks, tile_chunks=4):
        searched.append(block)
        tier.transfer.log.append(("search", len(searched) - 1))
    # Each segment is cut before its third document; the long fourth one is left to the search.
    sent = [event for event, _ in tier.transfer.log]
    at = {entry: place for place, entry in enumerate(tier.transfer.log)}
    assert sent.count("send") == sent.count("wait") == SEGMENTS
    assert all(at["send", n] < at["wait", n] for n in range(SEGMENTS))
    for n in range(1, SEGMENTS):
        # Two blocks a segment: the next tile is sent before the long document before it is searched, and not sooner
        # than the tile before that was handed out.
        assert at["search", 2 * n - 2] < at["send", n] < at["search", 2 * n - 1]


def test_documents_longer_than_a_tile_are_found_all_the_same():
    blocks = _blocks()
    _same(_found(_tier("late", 0), blocks, tile_chunks=4), _found(_tier(), blocks, tile_chunks=4))


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_what_is_not_allowed_is_neither_sent_nor_counted(transfer):
    allowed = torch.tensor([True, False, False, True])
    blocks = _blocks(allowed)
    for block in blocks:
        block.keys[3] = torch.nan
    tier = _tier(transfer, 0)
    _same(_found(tier, blocks), _found(_tier(), blocks))
    assert tier.streamed == SEGMENTS * 12 * 16 * 2
    if transfer == "late":
        assert not any(tensors[0].isnan().any() for tensors in tier.transfer.sent)


def test_a_block_without_allowed_documents_stays_where_it_is():
    [block, *_] = _blocks(torch.zeros(4).bool())
    tier = _tier("late")
    [same] = tier.blocks([block])
    assert same is block and not tier.transfer.sent and not tier.streamed


@pytest.mark.slow
@pytest.mark.parametrize("budgets", [{"device": 2 * ONE}, {"device": 0, "host": 2 * KEYS}])
def test_room_of_segments_that_are_gone_is_given_to_others(budgets):
    tier, blocks = _tier(**budgets), _blocks()
    budget = tier.device if budgets["device"] else tier.host
    list(tier.blocks(blocks))
    held = budget.used
    assert held
    del blocks[:2]
    gc.collect()
    assert budget.used == 0
    list(tier.blocks(blocks))
    assert budget.used == held


@pytest.mark.slow
def test_keys_move_up_when_there_is_room():
    tier, blocks = _tier("cpu", ONE, KEYS), _blocks()[:2]
    list(tier.blocks(blocks))
    assert (tier.device.used, tier.host.used) == (ONE, KEYS)
    del blocks[0]
    gc.collect()
    list(tier.blocks(blocks))
    gc.collect()
    assert (tier.device.used, tier.host.used) == (ONE, 0)


def test_keys_that_nobody_searches_any_more_give_way(monkeypatch):
    monkeypatch.setattr(module, "IDLE_SEARCHES", 4)
    tier, blocks = _tier("late", ONE), _blocks()[:2]
    list(tier.blocks(blocks))
    for streamed in (2, 3, 4, 5, 5, 5):
        list(tier.blocks(blocks[1:]))
        assert (tier.streamed, tier.device.used) == (streamed * KEYS, ONE)
    list(tier.blocks(blocks))
    assert tier.streamed == 6 * KEYS


def test_a_copy_that_fails_gives_its_room_back():
    tier, [block, *_] = _tier("cpu", ONE), _blocks()

    def full(tensor):
        raise MemoryError

    tier.transfer.kept = full
    with pytest.raises(MemoryError):
        list(tier.blocks([block]))
    assert tier.device.used == 0


EACH = 2 * 4 * 4  # bytes a chunk


def test_content_read_most_recently_is_held():
    store = Store()
    tier = ContentTier(store, DeviceTransfer(torch.device("cpu")), Budget(5 * EACH))
    for ordinals in ([2, 3], [2], [1], [2, 3]):
        rows = tier.content(ordinals, 1)
        assert [row[0, 0, 0, 0].item() for row in rows] == [10 + o for o in ordinals]
        assert tier.held == tier.host.used <= 5 * EACH
    assert [asked for _, asked in store.asked] == [[2, 3], [1], [3]]
    assert tier.gathered == (5 + 2 + 1 + 5) * EACH
    assert tier.content([9], 1)[0].shape[0] == 9  # too large to be held, and displaces nothing that could stay
    tier.content([2, 3], 2)
    assert [layer for layer, _ in store.asked] == [1, 1, 1, 1, 2]


def test_content_gives_way_to_content_alone():
    host = Budget(4 * EACH)
    assert host.take(3 * EACH)  # routing keys
    tier = ContentTier(Store(), DeviceTransfer(torch.device("cpu")), host)
    for ordinal in (1, 2, 1, 3):
        tier.content([ordinal], 0)
    assert (tier.held, host.used) == (EACH, 4 * EACH)
    tier.forget([1])
    assert (tier.held, host.used) == (0, 3 * EACH)


def test_without_a_budget_content_is_handed_on():
    store = Store()
    tier = ContentTier(store, DeviceTransfer(torch.device("cpu")), Budget(0))
    tier.content([1, 2], 0)
    tier.content([1, 2], 0)
    assert len(store.asked) == 2 and tier.held == 0 and tier.gathered == 6 * EACH


def test_the_lane_to_a_cpu_is_plain():
    transfer = transfer_to(torch.device("cpu"))
    tensor = torch.ones(2)
    assert transfer.direct and transfer.send([tensor]).wait()[0] is tensor
