"""Content in eight bits: stored as float8, read as numbers, through commits, compactions and verification."""

from dataclasses import replace

import torch
from bank_builder import NS, encoded, open_bank

from msa_plugin.bank.quantize import read_content, stored_content
from msa_plugin.bank.verify import verify_bank

FLOAT8 = torch.float8_e4m3fn


def test_every_number_is_near_and_large_ones_are_cut():
    numbers = torch.randn(4, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    read = read_content(stored_content(numbers, FLOAT8))
    assert read.dtype == torch.bfloat16
    assert bool(((read.float() - numbers).abs() <= numbers.abs() / 16 + 2**-10).all())
    far = torch.tensor([1e4, -1e4, 448.0, torch.inf])
    assert read_content(stored_content(far, FLOAT8)).tolist() == [448.0, -448.0, 448.0, 448.0]


def test_other_types_are_left_as_they_are():
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        tensor = torch.ones(1, dtype=dtype)
        assert read_content(tensor) is tensor and stored_content(tensor, None) is tensor


def test_content_comes_back_as_it_was_through_compaction(bank, folder):
    item = encoded("a")
    kept = {layer: stored_content(numbers, FLOAT8) for layer, numbers in item.content.items()}
    bank.commit([replace(item, content=kept)], NS)
    bank.commit([encoded("wide")], NS)  # of another signature: it stays apart
    bank.compact()
    [ordinal] = [bank.lookup(["a"], NS)["a"].ordinal]
    [found] = bank.content([ordinal], 3)
    assert torch.equal(found, kept[3].to(torch.bfloat16))
    raw = bank.latents(ordinal).content[3]
    assert raw.dtype == FLOAT8 and torch.equal(raw.view(torch.uint8), kept[3].view(torch.uint8))
    assert verify_bank(folder).ok
    with open_bank(folder, read_only=True) as again:
        assert torch.equal(again.content([ordinal], 3)[0], found)
