"""The prefilter's FAISS index on a GPU: chosen where FAISS has one, and never necessary. The card here is made up.

It stands for the three names of a FAISS that was built for GPUs; what a real one returns was not seen.
"""

import weakref

import numpy as np
import pytest

from msa_plugin.retrieval import faiss_index
from msa_plugin.retrieval.faiss_index import FaissIndex

faiss = pytest.importorskip("faiss", reason="needs the faiss extra")


class Card:
    """FAISS with GPUs: copies of indexes that count their searches; HNSW has no place there."""

    def __init__(self, cards=1):
        self.cards, self.searches, self.set = cards, [], {}

    def __getattr__(self, name):
        return getattr(faiss, name)

    def StandardGpuResources(self):
        return Resources()

    def get_num_gpus(self):
        return self.cards

    def index_cpu_to_gpu(self, resources, number, index):
        assert resources.bytes and number == 0
        if isinstance(index, faiss.IndexHNSW):
            raise RuntimeError("Error: This index type is not implemented on GPU.")
        return Copy(self, faiss.clone_index(index), weakref.ref(resources))

    def GpuParameterSpace(self):
        return self

    def set_index_parameter(self, copy, name, value):
        if name == "efSearch":
            raise RuntimeError("Error: no such parameter")
        self.set[name] = value


class Resources:
    bytes = None

    def setTempMemory(self, count):
        self.bytes = count


class Copy:
    def __init__(self, card, index, resources):
        self.card, self.index, self.resources = card, index, resources

    def search(self, vectors, depth):
        assert self.resources() is not None  # else FAISS crashes
        self.card.searches.append(depth)
        return self.index.search(vectors, depth)


def built(monkeypatch, card, factory="Flat", parameters=None):
    draw = np.random.default_rng(0)
    keys = draw.standard_normal((3000, 8), dtype=np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    monkeypatch.setattr(faiss_index, "load_faiss", lambda: card)
    return FaissIndex.build(factory, parameters or {}, 8, lambda: keys, [keys[:1000], keys[1000:]]), keys[:5]


@pytest.mark.parametrize("cards", [0, 1])
def test_a_search_runs_on_the_card_if_there_is_one(monkeypatch, tmp_path, cards):
    card = Card(cards)
    index, asked = built(monkeypatch, card)
    scores, chunks = index.search(asked, 7)
    assert card.searches == [7] * cards
    want = faiss.IndexFlatIP(8)
    want.add(np.stack([index.index.reconstruct(n) for n in range(index.ntotal)]))
    assert (chunks == want.search(asked, 7)[1]).all() and chunks[:, 0].tolist() == [0, 1, 2, 3, 4]
    index.save(tmp_path / "saved")
    again = FaissIndex.read(tmp_path / "saved", "Flat", {}, 8)
    assert (again.search(asked, 7)[0] == scores).all() and card.searches == [7, 7][: 2 * cards]


def test_more_neighbours_than_a_card_finds_are_found_on_the_cpu(monkeypatch):
    card = Card()
    index, asked = built(monkeypatch, card)
    assert index.search(asked, 2500)[1].shape == (5, 2500) and card.searches == []


def test_search_parameters_reach_the_card(monkeypatch):
    card = Card()
    index, asked = built(monkeypatch, card, "IVF16,Flat", {"nprobe": 3})
    index.search(asked, 2)
    assert card.set["nprobe"] == 3 and card.searches == [2]


def test_kinds_that_cannot_live_there_stay(monkeypatch, caplog):
    card = Card()
    caplog.set_level("INFO", logger="msa_plugin")
    index, asked = built(monkeypatch, card, "HNSW16")
    assert index.search(asked, 2)[1][:, 0].tolist() == [0, 1, 2, 3, 4] and card.searches == []
    assert "HNSW16 is searched on the CPU: This index type is not implemented on GPU." in caplog.text
