"""Content in int8: scales of K a channel and of V a row, through commits, compactions, snapshots, damage and repair."""

from dataclasses import replace

import pytest
import torch
from bank_builder import NS, encoded, flip_tensor, open_bank

from msa_plugin.bank.quantize import content_numbers, content_scale_names, quantized_content
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankCorruptError, InvalidDocumentError


def small(name, **options):
    item = encoded(name, **options)
    content, scales = quantized_content(item.content)
    return replace(item, content=content, content_scales=scales)


def numbers(item, layer=3):
    keys, values = (item.content_scales[name] for name in content_scale_names(layer))
    return content_numbers(item.content[layer], keys[0], values)


def ordinal(bank, name):
    return bank.lookup([name], NS)[name].ordinal


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 3e4])
def test_every_number_is_off_by_at_most_half_a_step(rows, size):
    content = size * torch.randn(rows, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    content[:, 0, :, 5] *= 100  # a channel of K as far from the others as models have them
    stored, scales = quantized_content({7: content})
    keys, values = scales["7.key_scale"], scales["7.value_scale"]
    assert stored[7].dtype == torch.int8 and keys.shape == (1, 3, 8) and values.shape == (rows, 3)
    assert keys.dtype == values.dtype == torch.bfloat16
    off = (content_numbers(stored[7], keys[0], values) - content).abs()
    assert bool((off[:, 0] <= keys.float() * 0.501).all()) and bool(
        (off[:, 1] <= values.float()[..., None] * 0.501).all()
    )
    assert bool((stored[7][:, 0].abs().amax(0) >= 126).all()) and bool((stored[7][:, 1].abs().amax(2) >= 126).all())


def test_zeros_and_nothing_at_all():
    for content in (torch.zeros(2, 2, 1, 4), torch.zeros(0, 2, 1, 4), torch.full((1, 2, 1, 4), 1e-45)):
        stored, scales = quantized_content({0: content})
        keys, values = (scales[name] for name in content_scale_names(0))
        assert bool((keys == 1).all()) and bool((values == 1).all()) and values.shape == (len(content), 1)
        assert torch.equal(content_numbers(stored[0], keys[0], values), torch.zeros_like(content))


def test_content_comes_back_as_it_was_through_compaction_and_in_a_snapshot(bank, folder):
    items = {name: small(name, chunks=1 + n) for n, name in enumerate("abc")}
    for item in items.values():
        bank.commit([item], NS)
    bank.commit([encoded("wide")], NS)  # of another signature: it gets a segment of its own
    bank.snapshot("before")
    bank.delete(["b"], NS)
    bank.compact()
    for name in "ac":
        [found] = bank.content([ordinal(bank, name)], 3)
        assert found.dtype == torch.float32 and torch.equal(found, numbers(items[name]))
        kept = bank.latents(ordinal(bank, name))
        for ours, theirs in ((kept.content, items[name].content), (kept.content_scales, items[name].content_scales)):
            assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    [wide] = bank.content([ordinal(bank, "wide")], 3)
    assert torch.equal(wide, encoded("wide").content[3])
    assert verify_bank(folder).ok
    with open_bank(folder, snapshot="before") as old:
        assert torch.equal(old.content([ordinal(old, "b")], 5)[0], numbers(items["b"], 5))
    kept = bank.latents(ordinal(bank, "a"))
    bank.commit([replace(kept, document=replace(kept.document, title="new"))], NS)
    assert torch.equal(bank.content([ordinal(bank, "a")], 3)[0], numbers(items["a"]))


@pytest.mark.parametrize("part", ["content.3", "content.5.key_scale", "content.3.value_scale"])
def test_damage_to_numbers_or_scales_is_found_and_repaired(folder, part):
    with open_bank(folder) as bank:
        bank.commit([small("a"), small("b")], NS)
        [segment] = bank.segments()
        path = folder / "segments" / segment.record.uuid / "content.safetensors"
    flip_tensor(path, part, byte=-1)  # of the last document
    assert verify_bank(folder).documents == ("b",)
    with open_bank(folder) as bank:
        assert torch.equal(bank.content([1], 3)[0], numbers(small("a")))
        with pytest.raises(BankCorruptError, match="altered"):
            bank.content([2], 3)
    assert repair_bank(folder).salvaged == ("b",)
    with open_bank(folder) as bank:
        assert torch.equal(bank.content([ordinal(bank, "a")], 5)[0], numbers(small("a"), 5))


def without(name):
    return lambda scales: {n: t for n, t in scales.items() if n != name}


@pytest.mark.parametrize(
    "change",
    [
        without("3.key_scale"),
        without("5.value_scale"),
        lambda scales: {**scales, "3.key_scale": scales["3.key_scale"].float()},
        lambda scales: {**scales, "3.key_scale": scales["3.key_scale"].repeat(2, 1, 1)},
        lambda scales: {**scales, "3.value_scale": scales["3.value_scale"][1:]},
        lambda scales: {**scales, "3.value_scale": scales["3.value_scale"] * 0},
        lambda scales: {**scales, "3.value_scale": scales["3.value_scale"] * torch.nan},
        lambda scales: {**scales, "7.value_scale": scales["3.value_scale"]},
    ],
)
def test_int8_content_without_fitting_scales_is_refused(bank, change):
    item = small("a")
    with pytest.raises(InvalidDocumentError, match="scales"):
        bank.commit([replace(item, content_scales=change(item.content_scales))], NS)
    with pytest.raises(InvalidDocumentError, match="scales"):
        bank.commit([replace(encoded("a"), content_scales=item.content_scales)], NS)


def test_content_that_is_no_number_is_refused(bank):
    item = encoded("a")
    content, scales = quantized_content({layer: kept * torch.inf for layer, kept in item.content.items()})
    with pytest.raises(InvalidDocumentError, match="NaN or infinity"):
        bank.commit([replace(item, content=content, content_scales=scales)], NS)
