"""Scores and rankings of one tenant, to the last bit, whatever another stores, deletes and compacts beside it."""

import pytest

import reference_checkpoint as reference
from facade import PER_LAYER, TOPICS, about, opened
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.segment import Segment
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter

KINDS = {
    "shared, text": ({}, {"reading": "text"}),
    "words and names beside": ({}, {"lexical": 0.7, "titles": 0.4, "mentions": 0.4}),
    "shared, kv": ({}, {"reading": "kv"}),
    "shared, latent": ({"read_latent": True}, {}),
    "shared by tokens": ({"query_reduce": "max"}, {"reading": "text"}),
    "shared, mean of chunks": ({"chunk_reduce": "mean", "query_reduce": "mean"}, {"reading": "text"}),
    "per layer, text": (PER_LAYER, {"reading": "text"}),
    "per layer, latent": ({**PER_LAYER, "read_latent": True}, {}),
    "per layer, maximum over heads": ({**PER_LAYER, "head_reduce": "max"}, {"reading": "text"}),
}
QUESTIONS = ["the violin", about("glacier")]
MINE = [{"id": f"{t}-{n}", "text": f"{about(t)} {n}" * (n % 3 + 1)} for n, t in enumerate(TOPICS)]


def others(count, start=0):
    return [{"id": f"o{n}", "text": f"{about(TOPICS[n % 8])} {n}"} for n in range(start, start + count)]


def view(memory):
    """Everything numeric that a tenant can see, exactly; ordinals are the bank's and left out."""
    hits = [[(h.id, h.score, h.layer_scores) for h in row] for row in memory.retrieve(QUESTIONS, 50)]
    answers = memory.ask(QUESTIONS, max_new_tokens=3, max_rounds=2, per_round=1, temperature=1.5, seed=3)
    read = [(a.text, [(s.id, s.score, s.text, s.round) for s in a.sources]) for a in answers]
    few = [(h.id, h.score) for h in memory.retrieve(QUESTIONS[0], 3)]
    keys = {name: vector.tolist() for name, vector in memory.routing_keys([d["id"] for d in MINE]).items()}
    return hits, read, few, keys


@pytest.mark.parametrize(("routing", "settings"), KINDS.values(), ids=KINDS)
def test_another_tenant_changes_no_bit(tmp_path, backbone, routing, settings):
    adapter = tiny_adapter(backbone, **routing)
    with opened(tmp_path / "alone", backbone, adapter, namespace="a", **settings) as a:
        for at in range(0, len(MINE), 4):
            a.add(MINE[at : at + 4])
        expected = view(a)
    with (
        opened(tmp_path / "beside", backbone, adapter, namespace="a", **settings) as a,
        opened(tmp_path / "beside", backbone, adapter, namespace="b", **settings) as b,
    ):
        for at in range(0, len(MINE), 4):
            b.add(others(5, start=at * 10))
            a.add(MINE[at : at + 4])
        leaving = [f"o{n}" for n in range(3)]
        for change in (a.refresh, lambda: b.delete(leaving), b.compact, lambda: b.add(others(9))):
            change()
            a.refresh()
            assert view(a) == expected


def test_a_tenant_maps_and_checks_only_what_it_needs(tmp_path, backbone, monkeypatch):
    """The keys that are compared with their checksums before a question are its own tenant's."""
    with opened(tmp_path, backbone, namespace="a") as a, opened(tmp_path, backbone, namespace="b") as b:
        a.add(MINE)
        b.add(others(20))
        checked = []
        check = Segment.check
        monkeypatch.setattr(Segment, "check", lambda self: checked.append(self.record.namespace) or check(self))
        a.refresh()
        a.retrieve(QUESTIONS[0], 3)
        assert set(checked) == {"a"}


def test_numbered_documents_score_by_their_number_which_is_the_banks(tmp_path_factory):
    """The one exception, which docs/reliability.md names: a reference checkpoint writes each document's number into it.

    Numbers are the bank's ordinals, so they depend on how much was stored before. At equal numbers, bits are equal.
    """
    folder = tmp_path_factory.mktemp("reference")
    backbone = Backbone.load(str(reference.write(folder / "tiny")), device="cpu", dtype="float32")
    settings = {"dtype": "float32", "keys_dtype": "float32", "device": "cpu"}
    seen = {}
    for before, after in ((0, 0), (0, 6), (6, 0)):
        path = folder / f"{before}-{after}"
        with (
            LatentMemory.open(path, model=backbone, namespace="a", **settings) as a,
            LatentMemory.open(path, model=backbone, namespace="b", **settings) as b,
        ):
            b.add(others(before))
            a.add(MINE)
            b.add(others(after, start=100))
            a.refresh()
            seen[before, after] = [(h.id, h.score) for h in a.retrieve(QUESTIONS[0], 50)]
    assert seen[0, 6] == seen[0, 0] != seen[6, 0]
