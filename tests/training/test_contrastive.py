"""Contrastive training: it scores as a memory does, learns what it is told, and ends as an adapter that opens."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_groups import WORDS, corpus

from facade import PER_LAYER, opened
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.lora import Lora
from msa_plugin.data.datasets import Dataset
from msa_plugin.errors import ConfigError
from msa_plugin.training import contrastive
from msa_plugin.training.contrastive import Contrastive, ContrastiveConfig, contrastive_objective
from msa_plugin.training.data import corpus_of
from msa_plugin.training.groups import Group, GroupConfig, Pool
from msa_plugin.training.settings import TrainConfig
from msa_plugin.training.teacher import mean_of, teach, turned
from msa_plugin.training.trainer import Trainer
from msa_plugin.types import Document
from tiny import tiny_adapter, tiny_backbone, tiny_lora, with_lora

GROUPS = GroupConfig(passages=8, seeds=2, steps=20, follow_ups=0.5, held_out=0.2)
SETTINGS = {"rank": 4, "groups": GROUPS, "document_tokens": 64, "teacher": 0.0}


@pytest.fixture(scope="module")
def pool():
    return Pool.of([corpus()])


@pytest.fixture
def backbone():
    return tiny_backbone()


def objective(backbone, pool, start=None, **settings):
    start = start or tiny_adapter(backbone, token_weighted=True, document_mix=0.5, joint=True)
    return Contrastive(backbone, start, pool, ContrastiveConfig(**{**SETTINGS, **settings}), seed=1)


def test_scores_are_those_of_a_memory(tmp_path, backbone, pool):
    start = tiny_adapter(backbone, token_weighted=True, document_mix=0.5, joint=True)
    made = objective(backbone, pool, with_lora(start, tiny_lora(backbone.model, layers=(0, 1))))
    group = next(g for g in map(made.groups.training, range(20)) if not g.asks[0].found)
    scores = made.score(group, random.Random(0)).scores
    with opened(tmp_path, backbone, made.adapter({}), keys_dtype="float32") as memory:
        memory.add([Document(str(p), pool.texts[p]) for p in group.passages])
        hits = memory.retrieve(pool.questions[group.asks[0].question], k=len(group.passages))
    found = {int(hit.id): hit.score for hit in hits}
    assert [found[p] for p in group.passages] == pytest.approx(scores[0].tolist(), abs=1e-4)


def test_a_later_step_asks_with_a_piece_of_what_was_found(backbone, pool):
    made = objective(backbone, pool)
    later = next(a for a in pool.asks if a.found)
    rows, owners = made._queries([later], random.Random(0))
    assert len(owners.step) == 2 and owners.follow == [1, 2]
    texts = [backbone.detokenize(row) for row in rows]
    assert texts[0] == pool.questions[later.question]
    assert all(t.startswith(texts[0] + "\n") and t.split("\n", 1)[1] in pool.texts[later.found[0]] for t in texts[1:])
    vectors = torch.nn.functional.normalize(torch.randn(3, 24), dim=1)
    asked = made._asked(vectors, owners)
    assert torch.allclose(asked[0], torch.nn.functional.normalize(vectors[0] + vectors[1], dim=0))


def test_gradients_reach_all_that_trains(backbone, pool):
    made = objective(backbone, pool)
    made.losses(0).total.backward()
    names = set(made.parameters)
    assert {"token_weights", "router.0.q_weight", "router.2.k_weight", "lora.1.mlp.down_proj.up"} <= names
    for name, value in made.parameters.items():
        # An update's `down` half has none before its `up` half has moved from zero.
        assert value.grad is not None and (bool(value.grad.any()) or name.endswith(".down"))
    assert all(weight.grad is None for weight in backbone.model.parameters())
    assert set(objective(backbone, pool, rank=0, train_token_weights=False).parameters) == {
        f"router.{layer}.{side}_weight" for layer in (0, 2) for side in "qk"
    }


@pytest.mark.slow
def test_it_learns_and_what_it_learnt_opens(tmp_path, backbone, pool):
    made = objective(backbone, pool)
    before = [float(made.losses(n).total.detach()) for n in range(100, 106)]
    recall = made.evaluate()["held_out_recall@1"]
    training = TrainConfig(steps=25, lr=5e-3, checkpoint_every=100)
    Trainer(made, training, tmp_path / "out").run()
    after = [float(made.losses(n).total.detach()) for n in range(100, 106)]
    assert sum(after) < 0.7 * sum(before)
    assert made.evaluate()["held_out_recall@1"] >= recall
    adapter = Adapter.load(tmp_path / "out" / "adapter")
    assert adapter.lora is not None and adapter.lora.deepest == 1
    silent = made.start.router.token_weights == 0
    assert bool((adapter.router.token_weights[silent] == 0).all())
    with opened(tmp_path, backbone, adapter) as memory:
        memory.add([Document(str(i), text) for i, text in enumerate(pool.texts)])
        assert len(memory.retrieve(pool.questions[0], k=3)) == 3


def learnt(made, part):
    """Losses of fifteen steps on one group, of which `part` is all there is."""
    optimizer = torch.optim.AdamW(made.parameters.values(), lr=5e-3)
    losses = []
    for _ in range(15):
        loss = made.losses(0)
        assert set(loss.parts) == {part, "asks"}
        losses.append(float(loss.total.detach()))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return losses


def test_a_teacher_is_followed(backbone, pool):
    """Without labels, the order of the teacher is learnt; a passage that a step found already is not part of it."""
    rng = np.random.default_rng(0)
    pool = Pool.of([corpus()])
    unit = [rng.normal(size=(n, 6)).astype(np.float32) for n in (len(pool.texts), len(pool.questions))]
    pool.teacher = tuple(v / np.linalg.norm(v, axis=1, keepdims=True) for v in unit)
    made = objective(backbone, pool, labels=0.0, teacher=1.0, lexical=0.0)
    group = made.groups.training(0)
    wanted = torch.from_numpy(pool.teacher[1][group.asks[0].question] @ pool.teacher[0][list(group.passages)].T)
    followed = wanted[None].clone().requires_grad_()
    assert float(made._losses._divergence(followed, wanted[None]).detach()) == pytest.approx(0, abs=1e-6)
    losses = learnt(made, "teacher")
    assert losses[-1] < 0.7 * losses[0]


def test_passages_without_questions_are_asked_for_by_a_sentence(backbone):
    """A teacher judges those questions; as labels and in evaluation they do not count."""
    documents = tuple(
        Document(f"t{i}", f"{w} is what this text is about. It ends here.", w) for i, w in enumerate(WORDS)
    )
    pool = Pool.of([corpus(), corpus_of(Dataset("unasked", documents, ()))])
    made_asks = [ask for ask in pool.asks if ask.made]
    assert [pool.questions[a.question] for a in made_asks] == [f"{w} is what this text is about." for w in WORDS]
    assert [pool.texts[a.wanted[0]] for a in made_asks] == [f"{d.title}\n{d.text}" for d in documents]
    unit = [torch.nn.functional.normalize(torch.rand(len(t), 6), dim=1).numpy() for t in (pool.texts, pool.questions)]
    pool.teacher = (unit[0], unit[1])
    made = objective(backbone, pool, teacher=1.0, words=1.0)
    assert not any(ask.made for group in made._held for ask in group.asks)
    group = next(g for g in map(made.groups.training, range(30)) if any(a.made for a in g.asks))
    scored = made.score(group, random.Random(0))
    parts = made._losses.of(group, scored)
    asked = [i for i, ask in enumerate(group.asks) if not ask.made]
    fewer = Group(group.passages, tuple(group.asks[i] for i in asked), group.positives[asked], group.absent[asked])
    alone = made._losses.of(fewer, replace(scored, scores=scored.scores[asked]))
    assert float(parts["labels"].detach()) == pytest.approx(float(alone["labels"].detach()))
    assert float(parts["teacher"].detach()) != pytest.approx(float(alone["teacher"].detach()))


def test_words_beside_the_router_count_where_labels_are_learnt(backbone, pool):
    """A label that words give away teaches the router nothing more, as in a memory that counts them."""
    group = objective(backbone, pool).groups.training(0)
    losses = {}
    for words in (0.0, 1.0):
        made = objective(backbone, pool, words=words)
        losses[words] = float(made._losses.of(group, made.score(group, random.Random(0)))["labels"].detach())
    assert losses[1.0] < losses[0.0]


def test_a_groups_documents_are_as_alike_as_the_teacher_says(backbone, pool):
    pool = Pool.of([corpus()])
    unit = [torch.nn.functional.normalize(torch.randn(len(t), 6), dim=1).numpy() for t in (pool.texts, pool.questions)]
    pool.teacher = (unit[0], unit[1])
    made = objective(backbone, pool, labels=0.0, teacher=0.0, similar=1.0)
    taught = torch.from_numpy(unit[0][:5])
    assert float(made._losses._among(taught.clone(), taught)) == pytest.approx(0, abs=1e-6)
    losses = learnt(made, "similar")
    assert losses[-1] < 0.8 * losses[0]


def test_a_teachers_vectors_are_learnt_themselves(backbone):
    """Text by text, and by questions alone too: nothing beside a text says what its vector should be."""
    pool = Pool.of([corpus()])
    unit = [torch.nn.functional.normalize(torch.randn(len(t), 6), dim=1).numpy() for t in (pool.texts, pool.questions)]
    pool.teacher = (unit[0], unit[1])
    made = objective(backbone, pool, labels=0.0, teacher=0.0, vectors=1.0)
    passages, questions = made.vectors(pool.texts, pool.questions)
    group = made.groups.training(0)
    scored = made.score(group, random.Random(0))
    assert torch.allclose(scored.documents, passages[list(group.passages)], atol=1e-5)
    asked = list(dict.fromkeys(ask.question for ask in group.asks))
    assert torch.allclose(scored.questions, questions[asked], atol=1e-5)
    losses = learnt(made, "vectors")
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_is_turned_to_where_training_begins():
    """Its cosines stay what they are; what is the teacher's own space in other directions is found again."""
    rng = np.random.default_rng(0)
    taught = tuple(rng.normal(size=(n, 6)).astype(np.float32) for n in (40, 30))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    samples = [range(20), range(20)]
    begun = tuple(torch.from_numpy(v[:20] @ turn) for v in taught)
    found = turned(taught, samples, begun)
    assert all(f == pytest.approx(v @ turn, abs=1e-4) for f, v in zip(found, taught, strict=True))
    elsewhere = tuple(torch.randn(20, 9) for _ in range(2))
    wider = turned(taught, samples, elsewhere)
    assert wider[0].shape == (40, 9)
    assert wider[1] @ wider[0].T == pytest.approx(taught[1] @ taught[0].T, abs=1e-3)
    near = sum(float((w[:20] * e.numpy()).sum()) for w, e in zip(wider, elsewhere, strict=True))
    turns = (np.linalg.qr(rng.normal(size=(9, 9)))[0] for _ in range(20))
    others = [sum(((w @ t)[:20] * e.numpy()).sum() for w, e in zip(wider, elsewhere, strict=True)) for t in turns]
    assert near > max(others)


def test_several_teachers_are_a_mean_of_cosines():
    rng = np.random.default_rng(0)
    taught = [tuple(rng.normal(size=(n, width)).astype(np.float32) for n in (4, 3)) for width in (5, 7)]
    passages, questions = mean_of(taught)
    assert questions @ passages.T == pytest.approx(sum(q @ p.T for p, q in taught) / 2, abs=1e-5)
    assert mean_of(taught[:1]) is taught[0]


def test_what_it_refuses(backbone, pool):
    with pytest.raises(ConfigError, match="one ranking"):
        per_layer = tiny_adapter(backbone, **PER_LAYER)
        objective(backbone, pool, per_layer)
    with pytest.raises(ConfigError, match="changes nothing"):
        objective(backbone, pool, layers=(0, 2))


class Letters:
    """A teacher that counts letters, and its own calls."""

    key = "letters"

    def __init__(self):
        self.calls = 0

    def documents(self, given):
        self.calls += 1
        rows = [[text.lower().count(c) + 0.1 for c in "aeiou"] for text in given]
        return np.array(rows, dtype=np.float32) / np.linalg.norm(rows, axis=1, keepdims=True).astype(np.float32)

    queries = documents

    def lengths(self, given):
        return [len(t.split()) for t in given]


def test_a_teacher_is_asked_once(tmp_path):
    teacher, silent = Letters(), lambda done, total: None
    passages, questions = teach(teacher, ["a text", "e text"], ["a text"], tmp_path, silent)
    assert teacher.calls == 2 and passages.shape == (2, 5) and questions.shape == (1, 5)
    again = teach(teacher, ["e text", "a text"], ["a text"], tmp_path, silent)
    assert teacher.calls == 2
    assert np.array_equal(again[0], passages[::-1]) and np.array_equal(again[1], questions)


def test_from_text_alone(tmp_path, backbone, monkeypatch):
    """Without an adapter the router is calibrated on the training text, the same each time."""
    monkeypatch.setattr(contrastive, "load_teacher", lambda model, device: Letters())
    monkeypatch.setenv("MSA_CACHE", str(tmp_path))
    settings = {**SETTINGS, "teacher": 1.0, "calibration": {"layers": (0, 2), "dims": 16, "pooling": 8, "passages": 16}}
    made = [contrastive_objective(backbone, ContrastiveConfig(**settings), [corpus()], 3) for _ in range(2)]
    assert made[0].start.hash() == made[1].start.hash() and made[0].pool.teacher is not None
    light = contrastive.brief(ContrastiveConfig(**settings))
    assert contrastive_objective(backbone, light, [corpus()], 3).pool.teacher is None
    assert isinstance(made[0].lora, Lora) and {"labels", "teacher"} < set(made[0].losses(0).parts)
