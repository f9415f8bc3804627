"""How often the right document is named: what counts, and what cannot be asked."""

from dataclasses import replace

import pytest
import written_ids as ids
from chains import chains, corpus, packed_backbone

from msa_plugin.config import Abilities
from msa_plugin.errors import AdapterError, ConfigError
from msa_plugin.memory import LatentMemory
from msa_plugin.training.packed_objective import PackedConfig, PackedObjective
from msa_plugin.types import Round
from tiny import tiny_adapter

CONFIG = PackedConfig(
    pooling=2, top_k=6, id_width=2, memory_tokens=200, rows=4, hard=0, rank=8, window=64, lora_layers=(0, 1, 2),
    abilities=Abilities(route=True, read_latent=True, emit_ids=True),
)  # fmt: skip


def test_a_memory_holds_what_its_questions_need():
    dataset = chains(12)
    for size in (4, 11, 24):
        asked, documents = ids.memory_of(dataset, size, 5, seed=3)
        held = {d.id for d in documents}
        assert len(documents) == len(held) == size and 1 <= len(asked) <= 5
        assert all(held >= question.positives.keys() for question in asked)
    assert ids.memory_of(dataset, 11, 5, seed=3) == ids.memory_of(dataset, 11, 5, seed=3)
    with pytest.raises(ConfigError, match="has 24 passages"):
        ids.memory_of(dataset, 25, 5, seed=3)
    with pytest.raises(ConfigError, match="no question whose passages fit"):
        ids.memory_of(dataset, 1, 5, seed=3)


def adapter(backbone):
    return PackedObjective(backbone, CONFIG, [corpus()], 0).adapter({})


def measured(backbone, adapter, dataset):
    return ids.measure(backbone, adapter, data=dataset, documents=(6,), questions=3)


def test_what_is_named_is_what_counts(monkeypatch):
    """A memory that names a gold passage for one question, a wrong one for another, and none for the third."""
    backbone = packed_backbone()
    asked, documents = ids.memory_of(chains(), 6, 3, seed=0)
    wrong = next(d.id for d in documents if d.id not in asked[1].positives)
    named = dict(zip((q.text for q in asked), ([next(iter(asked[0].positives))], [wrong], []), strict=True))
    plain = LatentMemory.ask

    def ask(memory, question, **options):
        answer = plain(memory, question, **options)
        rounds = tuple(Round(question, (one,), (0.0,), {}) for one in named[question])
        return replace(answer, trace=replace(answer.trace, rounds=rounds))

    monkeypatch.setattr(LatentMemory, "ask", ask)
    [row] = measured(backbone, adapter(backbone), chains())
    assert (row["documents"], row["questions"]) == (6, 3)
    assert (row["accuracy"], row["wrote"], row["chance"]) == pytest.approx((1 / 3, 2 / 3, 2 / 6))
    assert row["accuracy_95"][0] <= row["accuracy"] <= row["accuracy_95"][1]


def test_a_model_is_asked_for_one_number():
    """Every question has one round with at most one document, and routing lets it read all of a small memory."""
    backbone = packed_backbone()
    [row] = measured(backbone, adapter(backbone), chains(3))
    assert 0 <= row["accuracy"] <= row["wrote"] <= row["routed"] == 1.0


def test_an_adapter_that_writes_no_ids_is_refused():
    backbone = packed_backbone()
    with pytest.raises(AdapterError, match="emit_ids"):
        next(measured(backbone, tiny_adapter(backbone), chains()))
