"""Training to read latents: its rows are what a memory in latent mode computes, and what it learnt opens."""

import random

import pytest
import torch
from chains import answering, moved
from reading_modes import answer_logits

from facade import PER_LAYER
from msa_plugin.answering.reading import Excerpt
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.errors import ConfigError, TrainingError
from msa_plugin.memory import LatentMemory
from msa_plugin.prompts import document_text
from msa_plugin.training.data import Corpus
from msa_plugin.training.reading_objective import ReadingConfig, ReadingObjective
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.trainer import Trainer
from msa_plugin.types import Document
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

SETTINGS = {"poolings": (2, 4), "rank": 3, "rows": 2, "documents": 3, "document_tokens": 96, "held_out": 1}
ROUTER = {"layers": (0, 1), "token_weighted": True, "document_mix": 0.5, "joint": True}


@pytest.fixture
def backbone():
    return tiny_backbone()


def objective(backbone, data, start=None, **settings):
    start = start or with_lora(tiny_adapter(backbone, **ROUTER), tiny_lora(backbone.model, layers=(0,)))
    return ReadingObjective(backbone, ReadingConfig(**{**SETTINGS, **settings}), [data], seed=1, adapter=start)


@pytest.mark.parametrize("pooling", [1, 2, 4])
def test_rows_are_what_a_memory_in_latent_mode_computes(tmp_path, backbone, data, pooling):
    made = moved(objective(backbone, data))
    steps = [s for s in data.steps if s.answer][:2]
    rows = [made.row(data, step, random.Random(1), repeats=False) for step in steps]
    with torch.no_grad():
        logits = made.logits(rows, pooling)[0].split([len(row.said) for row in rows])
    with LatentMemory.open(
        tmp_path / "bank", model=backbone, adapter=made.adapter({}), content_pooling=pooling
    ) as memory:
        assert memory.engine.mode == "latent"
        memory.add(data.documents.values())
        known = memory.engine.bank.lookup(list(data.documents), memory.namespace)
        texts = {name: document_text(d.title, d.text) for name, d in data.documents.items()}
        for step, row, found in zip(steps, rows, logits, strict=True):
            excerpts = [Excerpt(known[n].ordinal, texts[n], 0, len(backbone.tokenize(texts[n]))) for n in row.names]
            prefill = memory.engine.reader.prefill([step.question], [excerpts])
            assert torch.allclose(found, answer_logits(backbone, prefill, row.said), atol=2e-4)


def test_a_row_holds_what_the_answer_needs_and_says_it(backbone, data):
    made = objective(backbone, data)
    step = answering(data)
    counts = set()
    for seed in range(8):
        row = made.row(data, step, random.Random(seed), repeats=False)
        assert set(step.found) <= set(row.names) and len(step.found) == 2
        assert row.windows == [made._window(data, name) for name in row.names]
        assert backbone.detokenize(row.said[:-1]) == step.answer and row.said[-1] in backbone.end_ids
        counts.add(len(row.names))
    assert counts == {2, 3}


def test_a_repeated_document_is_said_whole(backbone, data):
    row = objective(backbone, data, documents=1).row(data, answering(data), random.Random(3), repeats=True)
    assert row.said[:-1] in [window[1:] for window in row.windows]  # without the prefix


def test_gradients_reach_what_reads_and_nothing_that_routes(backbone, data):
    made = moved(objective(backbone, data))
    made.losses(0).total.backward()
    assert {name.split(".")[1] for name in made.parameters} == {"1", "2", "3"}
    assert all(value.grad is not None and bool(value.grad.any()) for value in made.parameters.values())
    assert all(weight.grad is None for weight in backbone.model.parameters())
    below = made.start.lora.updates[0, "mlp.up_proj"]
    assert torch.equal(made.lora.updates[0, "mlp.up_proj"].up, below.up) and not below.up.requires_grad


@pytest.mark.slow
def test_what_it_learns_opens_and_routes_as_before(tmp_path, backbone, data):
    made = objective(backbone, data, repeat=0.0)
    assert set(made.evaluate()) == {"answer_nll/2", "answer_nll/4"}
    before = [float(made.losses(n).total.detach()) for n in range(6)]
    Trainer(made, TrainConfig(steps=30, lr=1e-2, checkpoint_every=100), tmp_path / "out").run()
    after = [float(made.losses(n).total.detach()) for n in range(6)]
    assert sum(after) < 0.8 * sum(before)
    adapter = Adapter.load(tmp_path / "out" / "adapter")
    assert adapter.config.abilities.read_latent and adapter.answers_with_lora
    assert adapter.config.reading.pooling == 2 and adapter.config.reading.layers == (2, 3)
    found = []
    for name, given in (("before", made.start), ("after", adapter)):
        with LatentMemory.open(tmp_path / name, model=backbone, adapter=given, keys_dtype="float32") as memory:
            memory.add([Document(i, d.text, d.title) for i, d in data.documents.items()])
            found.append({h.id: h.score for h in memory.retrieve("Where was Cy born?", k=5)})
            assert memory.ask("Where was Cy born?", max_new_tokens=1).sources
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_what_it_refuses(backbone, data):
    start = tiny_adapter(backbone, **ROUTER)
    with pytest.raises(ConfigError, match="no layer 9"):
        objective(backbone, data, layers=(2, 9))
    with pytest.raises(ConfigError, match="reads already"):
        objective(backbone, data, with_lora(start, tiny_lora(backbone.model, layers=(0, 1))))
    with pytest.raises(ConfigError, match="one ranking"):
        per_layer = tiny_adapter(backbone, **PER_LAYER)
        objective(backbone, data, per_layer)
    with pytest.raises(ConfigError, match="different sizes"):
        ReadingConfig(poolings=(2, 2))
    with pytest.raises(TrainingError, match="no question with an answer"):
        objective(backbone, Corpus("bare", data.documents, tuple(s for s in data.steps if not s.answer)))
    step = answering(data)
    few = Corpus("few", {k: v for k, v in data.documents.items() if k != step.found[0]}, data.steps)
    with pytest.raises(TrainingError, match="which its corpus lacks"):
        objective(backbone, data).row(few, step, random.Random(0), repeats=False)
