"""The coarse pass: what it keeps of a key, what it finds, and what it says when it misses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.quantize import stored_keys
from msa_plugin.config import RoutingConfig
from msa_plugin.errors import ConfigError
from msa_plugin.retrieval import coarse
from msa_plugin.retrieval.coarse import CoarseIndex
from msa_plugin.retrieval.prefilter import GROUP, Prefilter
from msa_plugin.types import Document, EncodedDocument, Fingerprint

MADE_WITH = Fingerprint("b", "t", "a", "r", "none", "keys float16", "x", 128)
CONFIG = RoutingConfig(layers=(0, 1), heads=1, kv_heads=1, head_dim=8, pooling=8, selection="shared")


def falling(rows, seed=0):
    """Vectors of two layers whose leading numbers vary most."""
    spread = torch.tensor([4.0, 3.0, 2.0, 1.5, 0.4, 0.3, 0.2, 0.1]).repeat(2)
    return F.normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)) * spread, dim=1)


@pytest.fixture(params=[torch.float16, torch.int8], ids=str)
def bank(tmp_path, request):
    with MemoryBank.open(tmp_path / "bank", MADE_WITH) as opened:
        keys = [stored_keys({GROUP: part}, request.param) for part in falling(1200).split(3)]
        opened.commit([EncodedDocument(Document(f"d{n}", "t"), 9, k, {}) for n, k in enumerate(keys)], "default")
        yield opened


@pytest.mark.parametrize("panel", [7, 1 << 14])
@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
def test_the_best_chunks_by_the_stored_numbers(monkeypatch, panel, tokens):
    monkeypatch.setattr(coarse, "_PANEL", panel)
    keys, asked = falling(100), falling(tokens, seed=3)
    index = CoarseIndex.build("4", 16, 2, iter([keys[:40].numpy(), keys[40:].numpy()]))
    assert index.ntotal == 100 and index.bytes == 100 * (8 + 4)
    columns = [0, 1, 2, 3, 8, 9, 10, 11]
    wanted = asked[:, columns] @ keys[:, columns].T
    scores, chunks = index.search(asked.numpy(), 10)
    assert scores.shape == chunks.shape == (tokens, 10) and (np.diff(scores) <= 0).all()
    near = wanted.gather(1, torch.from_numpy(chunks))
    assert torch.allclose(near, torch.from_numpy(scores), atol=0.02), "off by the rounding to eight bits"
    assert bool((near >= wanted.topk(10).values[:, -1:] - 0.04).all()), "nothing clearly better was left out"
    everything = index.search(asked.numpy(), 100)[1]
    assert (np.sort(everything, 1) == np.arange(100)).all()


def test_recall_grows_with_what_is_read(bank):
    selection, queries = bank.select("default"), falling(30, seed=5)[:, None].reshape(30, 1, 16)
    mask = torch.ones(30, 1, dtype=torch.bool)
    recall = {
        numbers: Prefilter.build(selection, CONFIG, f"coarse:{numbers}@candidates=8").recall_against_exact(
            queries, mask, selection, 8
        )
        for numbers in ("1", "4", "all")
    }
    assert recall["1"] < recall["4"] < recall["all"] <= 1.0
    assert recall["all"] > 0.95


def test_saved_and_read_again_and_damage_is_built_anew(bank, tmp_path, caplog):
    selection = bank.select("default")
    queries, mask = falling(4, seed=6)[:, None], torch.ones(4, 1, dtype=torch.bool)
    first = Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "coarse:4")
    [path] = tmp_path.glob("prefilter-*")
    again = Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "coarse:4@candidates=128")
    for one, other in zip(
        first.search(queries, mask, selection, 5), again.search(queries, mask, selection, 5), strict=True
    ):
        assert torch.equal(one.ordinals, other.ordinals) and torch.equal(one.scores, other.scores)
    Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "coarse:5")
    assert len(list(tmp_path.glob("prefilter-*"))) == 2
    path.write_bytes(path.read_bytes()[:100])
    assert Prefilter.open(tmp_path, MADE_WITH, selection, CONFIG, "coarse:4").index.ntotal == 1200
    assert "building it again" in caplog.text


def test_more_numbers_than_there_are(bank):
    with pytest.raises(ConfigError, match="has 8"):
        Prefilter.build(bank.select("default"), CONFIG, "coarse:9")


def test_needs_no_faiss(bank, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "faiss", None)
    selection = bank.select("default")
    found = Prefilter.build(selection, CONFIG, "coarse:all")
    assert found.bytes == 1200 * (16 + 4) + 1200 * 8
    [best] = found.search(falling(1)[:, None], torch.ones(1, 1, dtype=torch.bool), selection, 3)
    assert best.ordinals.shape == (1, 3)


@pytest.mark.parametrize("width", [48, 50, 64])
@pytest.mark.parametrize("chunks", [1, 9, 10, 133])
def test_an_index_read_from_the_disk_scores_as_the_one_that_was_saved(tmp_path, width, chunks):
    """Where its tensors begin in the file depends on how many there are; torch's product needs them aligned."""
    draw = np.random.default_rng(chunks)
    keys, asked = (draw.standard_normal((n, width)).astype(np.float32) for n in (chunks, 2))
    built = CoarseIndex.build("all", width, 2, [keys])
    built.save(tmp_path / "index")
    again = CoarseIndex.read(tmp_path / "index", "all", width, 2)
    for rows in (1, 2):
        scores, found = again.search(asked[:rows], chunks)
        assert np.array_equal(found, built.search(asked[:rows], chunks)[1])
        exact = np.take_along_axis(asked[:rows] @ keys.T, found, 1)
        np.testing.assert_allclose(scores, exact, atol=0.03 * width**0.5)  # numbers of the order of one
