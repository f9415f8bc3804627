"""The catalog's seal: both of its checksums tell every change, and seals that have one of them are read."""

import json
import random

import pytest

from msa_plugin.bank import seal as module
from msa_plugin.bank.seal import _checked, _with_sum, broken, seal

SIZES = (4096, 3 * 4096, (256 << 10) + 4096 + 8, 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kept", [("crc32", "folds"), ("crc32",), ("folds",)])
def test_a_changed_byte_is_told(tmp_path, monkeypatch, size, kept):
    monkeypatch.setattr(module, "_LARGE", 0)
    catalog = tmp_path / "catalog.sqlite"
    draw = random.Random(size)
    data = bytearray(draw.randbytes(size))
    catalog.write_bytes(data)
    seal(catalog)
    text = tmp_path / "catalog.seal"
    known = json.loads(_checked(text.read_text()))
    text.write_text(_with_sum(json.dumps({"bytes": known["bytes"], **{name: known[name] for name in kept}})))
    assert broken(catalog) == []
    for _ in range(20):
        changed = bytearray(data)
        changed[at := draw.randrange(size)] ^= 1 << draw.randrange(8)
        catalog.write_bytes(changed)
        [problem] = broken(catalog)
        first = at // (256 << 10) * (256 << 10)
        assert f"bytes {first} to {min(first + (256 << 10), size) - 1} differ" in problem


@pytest.mark.parametrize("large", [0, 1 << 20])
def test_pages_in_each_others_place_are_told(tmp_path, monkeypatch, large):
    monkeypatch.setattr(module, "_LARGE", large)
    catalog = tmp_path / "catalog.sqlite"
    one, two = random.Random(0).randbytes(4096), random.Random(1).randbytes(4096)
    catalog.write_bytes(one + two)
    seal(catalog)
    catalog.write_bytes(two + one)
    assert len(broken(catalog)) == 1
