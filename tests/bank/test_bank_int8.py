"""int8 routing keys in a bank: scales beside them through commits, compactions, damage and repair."""

from dataclasses import replace

import pytest
import torch
from bank_builder import NS, encoded, flip_tensor, open_bank

from msa_plugin.bank.quantize import is_scale, quantized, scale_name, stored_keys
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankCorruptError, InvalidDocumentError


def small(name, **options):
    item = encoded(name, **options)
    return replace(item, keys=stored_keys(item.keys, torch.int8))


def numbers(item):
    return {
        group: item.keys[group].float() * item.keys[scale_name(group)] for group in item.keys if not is_scale(group)
    }


def kept(bank, ids):
    return {i: torch.cat(bank.key_rows([bank.lookup([i], NS)[i].ordinal], "3")) for i in ids}


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 3e4])
def test_every_number_is_off_by_at_most_half_a_step(size):
    keys = size * torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    stored, scales = quantized(keys)
    assert stored.dtype == torch.int8 and scales.shape == (50, 1) and bool((scales > 0).all())
    assert bool(((stored.float() * scales - keys).abs() <= scales * 0.5001).all())
    assert bool((stored.abs().amax(1) == 127).all()), "the whole range is used"


def test_zeros_and_numbers_too_small_to_scale_become_zeros():
    stored, scales = quantized(torch.tensor([[0.0, 0.0], [1e-45, 0.0]]))
    assert stored.tolist() == [[0, 0], [0, 0]] and scales.tolist() == [[1.0], [1.0]]


def test_keys_and_scales_come_back_as_they_were_through_compaction(bank, folder):
    items = {name: small(name, chunks=1 + n) for n, name in enumerate("abc")}
    for item in items.values():
        bank.commit([item], NS)
    bank.commit([encoded("half")], NS)  # of another signature: it gets a segment of its own
    bank.delete(["b"], NS)
    bank.compact()
    assert len(bank.segments()) == 2
    found = kept(bank, "ac")
    for name in "ac":
        assert torch.equal(found[name], numbers(items[name])["3"])
        latents = bank.latents(bank.lookup([name], NS)[name].ordinal)
        assert latents.keys.keys() == items[name].keys.keys()
        assert all(torch.equal(latents.keys[group], items[name].keys[group]) for group in latents.keys)
    blocks = [block for block in bank.select(NS).key_blocks("3") if block.keys.dtype == torch.int8]
    [block] = blocks
    assert block.scales.shape == block.keys.shape[:1] and block.scales.dtype == torch.float32
    assert verify_bank(folder).ok
    with pytest.raises(Exception, match=r"there are \['3', '5'\]"):
        next(bank.select(NS).key_blocks("7"))


@pytest.mark.parametrize("part", ["key.3", "key.3.scale"])
def test_damage_to_keys_or_scales_is_found_and_repaired(folder, part):
    with open_bank(folder) as bank:
        bank.commit([small("a"), small("b")], NS)
        [segment] = bank.segments()
        path = folder / "segments" / segment.record.uuid / "keys.safetensors"
    flip_tensor(path, part)
    assert verify_bank(folder).documents == ("a",)
    with open_bank(folder) as bank, pytest.raises(BankCorruptError, match="altered"):
        bank.key_rows([1], "3")
    assert repair_bank(folder).salvaged == ("a",)
    with open_bank(folder) as bank:
        assert torch.equal(kept(bank, "b")["b"], numbers(small("b"))["3"])


INT8 = torch.ones(2, 8, dtype=torch.int8)
SCALES = torch.ones(2, 1)


@pytest.mark.parametrize(
    "keys",
    [
        {"3": INT8},
        {"3": INT8, "3.scale": SCALES.half()},
        {"3": INT8, "3.scale": torch.ones(2, 2)},
        {"3": INT8, "3.scale": torch.zeros(2, 1)},
        {"3": torch.ones(2, 8), "3.scale": SCALES},
    ],
)
def test_int8_keys_without_fitting_scales_are_refused(bank, keys):
    with pytest.raises(InvalidDocumentError, match="scales"):
        bank.commit([replace(encoded("a"), keys=keys)], NS)


@pytest.mark.parametrize("scales", [torch.ones(1, 1), torch.full((2, 1), torch.nan)])
def test_scales_of_other_chunks_or_that_are_no_numbers_are_refused(bank, scales):
    with pytest.raises(InvalidDocumentError):
        bank.commit([replace(encoded("a"), keys={"3": INT8, "3.scale": scales})], NS)
