"""Nested corpora, and banks of any size from passages that were encoded once."""

from __future__ import annotations

import itertools

import pytest
import torch
from growth_toys import corpus, distractors

from facade import count_runs
from msa_plugin.bank.quantize import scale_name, stored_keys
from msa_plugin.bench.growth import NOISE, Banks, noisy, noisy_keys, plan
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document
from tiny import tiny_adapter

CONFIG = MemoryConfig(dtype="float32", instruction="Be brief.", segment_documents=16)


def letters(documents):
    return [len(d.text) for d in documents]


def planned(sizes=(700, 1500, 2500), **settings):
    settings = {"questions": 8, **settings}
    return plan(corpus(), distractors(), sizes, letters, **settings)


@pytest.fixture
def banks(tmp_path, backbone):
    return Banks(tmp_path / "cache", backbone, tiny_adapter(backbone), CONFIG)


def test_each_size_contains_the_smaller_one_and_is_reached():
    grown = planned()
    sets = [grown.dataset(step).documents for step in grown.steps]
    for smaller, larger in itertools.pairwise(sets):
        assert larger[: len(smaller)] == smaller
    for step, documents in zip(grown.steps, sets, strict=True):
        assert step.size <= step.tokens == sum(letters(documents))
        assert step.tokens - len(documents[-1].text) < step.size  # and not by one passage more than needed


def test_gold_passages_come_first_then_the_corpus_then_distractors():
    grown = planned()
    gold = {i for q in grown.questions for i in q.positives}
    names = [d.id for d in grown.documents]
    assert set(names[: len(gold)]) == gold
    assert set(names[: len(corpus().documents)]) == {d.id for d in corpus().documents}
    assert names[len(corpus().documents) :] == [d.id for d in distractors()][: len(names) - len(corpus().documents)]


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    assert planned(seed=1) == planned(seed=1)
    assert planned(seed=1).documents != planned(seed=2).documents


def test_fewer_questions_where_their_passages_do_not_fit_the_smallest_size():
    grown = planned(sizes=(300, 900))
    assert 0 < len(grown.questions) < 8
    needed = {i for q in grown.questions for i in q.positives}
    assert needed <= {d.id for d in grown.dataset(grown.steps[0]).documents}
    assert any("do not fit 300 tokens" in note for note in grown.notes)
    with pytest.raises(ConfigError, match="start with more"):
        planned(sizes=(20,))


def test_sizes_that_cannot_be_reached_are_left_out_or_synthetic():
    total = sum(letters([*corpus().documents, *distractors()]))
    grown = planned(sizes=(1000, 10 * total))
    assert [s.size for s in grown.steps] == [1000]
    assert any(f"together hold {total:,}" in note for note in grown.notes)
    step = planned(sizes=(1000, 10 * total), synthetic=True).steps[-1]
    assert (step.tokens, step.documents) == (total, len(corpus().documents) + 40)
    assert step.synthetic == pytest.approx(9 * step.documents, abs=1)


def test_distractors_that_repeat_the_corpus_are_left_out():
    again = Document("again", corpus().documents[0].text.upper().replace(" ", "  "))
    grown = plan(corpus(), [again, *distractors()], (700, 2000), letters, questions=8)
    assert "again" not in {d.id for d in grown.documents}
    assert any(note.startswith("1 distractors") for note in grown.notes)


@pytest.mark.parametrize(("sizes", "questions"), [((), 8), ((0, 5), 8), ((900,), 0)])
def test_bad_sizes_and_questions(sizes, questions):
    with pytest.raises(ConfigError, match="at least"):
        planned(sizes=sizes, questions=questions)


def test_distractors_with_ids_of_the_corpus_are_refused():
    with pytest.raises(ConfigError, match="'violin'"):
        plan(corpus(), [Document("violin", "something else")], (2500,), letters, questions=8)


def test_a_bank_of_a_size_equals_one_built_from_scratch(banks, backbone, tmp_path):
    grown = plan(corpus(), distractors(), (700, 2500), banks.tokens, questions=8)
    banks.encode(grown.documents)
    asked = [q.text for q in grown.questions]
    for step in grown.steps:
        documents = grown.dataset(step).documents
        scratch = tmp_path / f"scratch-{step.size}"
        with (
            banks.open(documents) as copied,
            LatentMemory.open(scratch, model=backbone, adapter=tiny_adapter(backbone), config=CONFIG) as built,
        ):
            built.add(documents)
            assert list(copied.ids()) == list(built.ids())
            assert copied.get(list(copied.ids())) == built.get(list(built.ids()))
            assert copied.stats().tokens == built.stats().tokens == step.tokens
            assert copied.stats().segments == built.stats().segments
            for mine, theirs in zip(copied.retrieve(asked, k=10), built.retrieve(asked, k=10), strict=True):
                assert [h.id for h in mine] == [h.id for h in theirs]
                assert [h.score for h in mine] == pytest.approx([h.score for h in theirs], abs=1e-3)


def test_passages_are_encoded_once(banks, monkeypatch):
    grown = planned()
    banks.encode(grown.documents)
    seen = count_runs(monkeypatch)
    banks.encode(grown.documents)
    other = Dataset("other", tuple(Document(f"other-{d.id}", d.text, d.title) for d in grown.documents), ())
    banks.encode(other.documents)
    for step in grown.steps:
        banks.open(grown.dataset(step).documents).close()
    banks.open(other.documents).close()
    assert seen == []


def test_an_interrupted_copy_goes_on(banks, monkeypatch):
    grown = planned()
    banks.encode(grown.documents)
    whole, copies = banks._copies, []

    def stops(source, documents):
        for number, item in enumerate(whole(source, documents)):
            if number == 20:
                raise KeyboardInterrupt
            copies.append(item)
            yield item

    monkeypatch.setattr(banks, "_copies", stops)
    with pytest.raises(KeyboardInterrupt):
        banks.open(grown.documents)
    monkeypatch.setattr(banks, "_copies", whole)
    with banks.open(grown.documents) as memory:
        assert sorted(memory.ids()) == sorted(d.id for d in grown.documents)
    assert len(copies) == 20


def test_synthetic_passages_come_on_top(banks):
    grown = planned(sizes=(700,))
    documents = grown.documents
    banks.encode(documents)
    with banks.open(documents, synthetic=30, like=grown.fillers) as memory:
        assert memory.stats().documents == len(documents) + 30
        assert sum(i.startswith("synthetic-") for i in memory.ids()) == 30
    with banks.open(documents) as memory:
        assert memory.stats().documents == len(documents)


def test_noise_keeps_the_length_and_most_of_the_direction():
    keys = torch.nn.functional.normalize(torch.randn(200, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    changed = noisy(keys, torch.Generator().manual_seed(1))
    assert torch.allclose(changed.norm(dim=1), torch.ones(200), atol=1e-4)
    cosines = torch.nn.functional.cosine_similarity(keys, changed)
    assert float(cosines.mean()) == pytest.approx((1 + NOISE**2) ** -0.5, abs=0.02)


def test_noise_on_int8_keys_is_noise_on_what_they_stand_for():
    keys = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    expected = noisy(keys, torch.Generator().manual_seed(1))
    stored = noisy_keys(stored_keys({"g": keys}, torch.int8), torch.Generator().manual_seed(1))
    assert stored["g"].dtype == torch.int8
    assert set(stored) == {"g", scale_name("g")}
    torch.testing.assert_close(
        stored["g"] * stored[scale_name("g")], expected, atol=2 / 127 * float(keys.abs().max()), rtol=0
    )
    assert set(noisy_keys({"g": keys.half()}, torch.Generator().manual_seed(1))) == {"g"}
