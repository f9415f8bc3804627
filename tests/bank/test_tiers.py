"""Routing keys on the compute device: moved once, forgotten with their segment. The meta device stands in for a GPU."""

from __future__ import annotations

import gc

import torch

from msa_plugin.bank.tiers import KeyTier
from msa_plugin.types import KeyBlock


def _block(allowed: torch.Tensor | None = None) -> KeyBlock:
    return KeyBlock(torch.randn(6, 4), torch.tensor([0, 2, 6]), torch.tensor([3, 9]), allowed)


def test_on_the_cpu_the_maps_are_the_tier() -> None:
    block = _block()
    [same] = KeyTier(torch.device("cpu")).blocks([block])
    assert same is block


def test_keys_are_moved_once() -> None:
    tier, block = KeyTier(torch.device("meta")), _block()
    [first] = tier.blocks([block])
    [again] = tier.blocks([block])
    assert first.keys.device.type == "meta"
    assert again.keys is first.keys
    assert first.offsets is block.offsets


def test_keys_of_a_segment_that_is_gone_are_forgotten() -> None:
    tier, block = KeyTier(torch.device("meta")), _block()
    list(tier.blocks([block]))
    assert len(tier._resident) == 1
    del block
    gc.collect()
    assert len(tier._resident) == 0


def test_a_block_without_allowed_documents_stays_where_it_is() -> None:
    block = _block(torch.tensor([False, False]))
    [same] = KeyTier(torch.device("meta")).blocks([block])
    assert same.keys is block.keys
