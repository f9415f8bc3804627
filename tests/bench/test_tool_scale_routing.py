"""Routing at scale, small: real searches over small synthetic banks, with what must be equal between backends."""

from __future__ import annotations

import sys

import pytest
import torch
from scale_routing import measure
from scale_sample import CHUNKS_PER_DOCUMENT, BankShape, build, encoded_sample, reference_shape

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bench.command import sizes
from msa_plugin.data.datasets import sample_dataset
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.measuring.peak import tensor_bytes
from msa_plugin.types import Fingerprint
from tiny import tiny_adapter, tiny_backbone

TOKENS = 8 * CHUNKS_PER_DOCUMENT * 20  # twenty documents of the tiny adapter's chunks of 8 tokens


@pytest.fixture(scope="module")
def tiny():
    backbone = tiny_backbone()
    return backbone, tiny_adapter(backbone)


@pytest.fixture(scope="module")
def sample(tiny):
    return encoded_sample(*tiny, sample_dataset(), passages=6, questions=4)


def test_every_backend_is_measured_and_exact_ones_agree(tiny, tmp_path):
    backends = "torch;int8;heads;flat;coarse:all"
    rows = list(measure(*tiny, tokens=(TOKENS,), backends=backends, questions=4, passages=6, folder=tmp_path))
    drawn = [row for row in rows if "noise" in row["keys_from"]]
    default = {row["backend"]: row for row in drawn if row["shape"] == "default"}
    real = {row["backend"]: row for row in rows if row not in drawn}
    assert set(real) == set(default) and real["coarse:all"]["recall@10"] == 1.0, "six documents are all candidates"
    assert set(default) == {"build float16", "build int8", "torch", "int8", "heads", "flat", "coarse:all", "facade"}
    assert all(row["chunks"] == 640 and row["seconds"] > 0 for row in default.values())
    assert default["facade"]["ask_s"] > 0
    width = default["torch"]["width"]
    assert default["torch"]["bytes_needed"] == default["torch"]["bytes_read"] == 640 * width * 2
    assert default["int8"]["bytes_needed"] == 640 * (width + 4)
    assert {default[name]["recall@10"] for name in ("torch", "heads", "flat")} == {1.0}
    assert default["int8"]["recall@10"] >= 0.8
    assert (
        default["flat"]["bytes_read"] == 2 * default["torch"]["bytes_read"] and default["heads"]["workspace_bytes"] > 0
    )
    assert default["coarse:all"]["recall@10"] == 1.0, "128 candidates are all there are"
    reference = {row["backend"]: row for row in rows if row["shape"] == "msa-4b layer"}
    assert set(reference) == {"build float16", "build int8", "torch", "int8", "heads", "flat"}, (
        "no shared selection, no prefilter"
    )
    assert reference["heads"]["recall@10"] == 1.0
    assert reference["torch"]["width"] == 1024 and reference["torch"]["searches"] == 18
    assert not list(tmp_path.iterdir()), "banks do not pile up"


def test_both_precisions_hold_the_same_keys(sample, tiny, tmp_path):
    shape = BankShape("default", tiny[1].config.routing, sample, 1)
    made, keys = Fingerprint("b", "t", "a", "r", "none", "k", "x", 128), {}
    for dtype in (torch.float32, torch.int8):
        path = tmp_path / str(dtype)
        assert build(path, made, shape, TOKENS, dtype, seed=3) == 640
        with MemoryBank.open(path, made) as bank:
            stats = bank.stats("default")
            assert (stats.documents, stats.chunks, stats.tokens) == (20, 640, TOKENS)
            keys[dtype] = torch.cat(bank.key_rows(bank.select("default").ordinals().tolist(), shape.group))
    assert torch.allclose(keys[torch.float32], keys[torch.int8], atol=float(keys[torch.float32].abs().max()) / 127)
    length = sample.keys.norm(dim=1)[:1]
    assert torch.allclose(keys[torch.float32].norm(dim=1), length.expand(640), atol=1e-5), "as long as real keys"
    assert keys[torch.float32].unique(dim=0).shape[0] == 640, "noise makes every chunk another"


def test_synthetic_documents_stay_near_the_real_one_they_come_from(sample, tiny, tmp_path):
    shape, made = BankShape("default", tiny[1].config.routing, sample, 1), Fingerprint(*"btarnkx", 128)
    build(tmp_path, made, shape, TOKENS, torch.float32, seed=4)
    with MemoryBank.open(tmp_path, made) as bank:
        for rows in bank.key_rows([1, 7, 20], shape.group):
            nearest = (rows @ sample.keys.T).argmax(1)
            owner = torch.searchsorted(sample.offsets, nearest, right=True)
            assert int(owner.mode().values) == int(owner.float().median()), "most chunks agree on where they come from"
            assert (owner == owner.mode().values).float().mean() > 0.5


def test_the_reference_shape_keeps_products(sample):
    shape = reference_shape(sample, tokens=3)
    assert shape.sample.keys.shape[1] == 1024 and shape.sample.questions.shape[1:] == (3, 1024)
    assert torch.allclose(shape.sample.keys @ shape.sample.keys.T, sample.keys @ sample.keys.T, atol=1e-4)


@pytest.mark.parametrize("backend", ["gpu", "coarse:x", "triton"])
def test_what_cannot_be_measured(tiny, backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA" if backend == "triton" else backend):
        list(measure(*tiny, backends=backend))


def test_without_faiss_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"msa-plugin\[faiss\]"):
        list(measure(*tiny, tokens=(TOKENS,), backends="flat", questions=1, passages=2, reference=False))


def test_tensors_that_are_alive_together_are_counted():
    given = torch.zeros(1000)

    def call():
        for _ in range(5):
            first = given + 1  # 4000 bytes
            second = first.double()  # 8000 more
            second.view(10, 100)[:5].add_(1)
            del first, second

    assert tensor_bytes(call) == 12000


def test_sizes_are_read_as_people_write_them():
    assert sizes("1e5, 2000000") == (100_000, 2_000_000)
    assert sizes("16K, 1m,300,1.5K") == (300, 1536, 16384, 1 << 20)
    for wrong in ("many", "", "0", "16KB", "-1", "16K,,1M"):
        with pytest.raises(ConfigError, match="not a size"):
            sizes(wrong)


def test_a_per_layer_adapter_is_refused(tiny):
    from facade import PER_LAYER

    with pytest.raises(ConfigError, match="shared selection"):
        encoded_sample(tiny[0], tiny_adapter(tiny[0], **PER_LAYER), sample_dataset(), 2, 2)
