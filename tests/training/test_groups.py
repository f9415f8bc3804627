"""Groups of hard passages: who asks, what is right, what is held out, and the same group for the same number."""

import random
from itertools import pairwise

import numpy as np
import pytest

from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import TrainingError
from msa_plugin.training.data import corpus_of
from msa_plugin.training.groups import GroupConfig, Groups, Pool
from msa_plugin.types import Document

WORDS = ("glacier", "violin", "saffron", "meteor", "harbour", "compiler", "lighthouse", "beekeeping")


def corpus(name="toy", topics=WORDS):
    """For each topic two passages, a question on the first, and one on both."""
    documents = [Document(f"{w}{i}", f"{w} number {i} of the {w} texts", w.title()) for w in topics for i in (0, 1)]
    asked = [Question(f"{w}-one", f"Which {w} is the first?", ("x",), {f"{w}0": 1}) for w in topics]
    asked += [Question(f"{w}-two", f"Which {w} is next?", ("x",), {f"{w}0": 1, f"{w}1": 1}, 2) for w in topics]
    return corpus_of(Dataset(name, tuple(documents), tuple(asked)))


SMALL = GroupConfig(passages=6, seeds=2, steps=20, held_out=0.25)


def test_a_pool_numbers_passages_and_steps():
    pool = Pool.of([corpus(), corpus("again", WORDS[:2])])
    assert len(pool.texts) == 20 and len(pool.questions) == 16  # the same questions, other passages
    assert {len(a.found) for a in pool.asks} == {0, 1}
    for ask in pool.asks:
        topic = pool.questions[ask.question].split()[1]
        assert all(pool.texts[p].lower().startswith(topic) for p in (*ask.found, *ask.wanted))
        assert all((p >= 16) == (ask.corpus == 1) for p in (*ask.found, *ask.wanted))


def test_a_pool_without_gold_is_refused():
    with pytest.raises(TrainingError, match="gold"):
        Pool.of([corpus_of(Dataset("none", (Document("a", "text"),), ()))])


def test_negatives_are_near_and_never_right():
    pool = Pool.of([corpus()])
    ask = next(a for a in pool.asks if not a.found and len(a.wanted) == 1)
    near = pool.negatives(ask, 5, random.Random(0))
    assert len(set(near)) == 5 and not {*near} & {*ask.wanted}
    partner = ask.wanted[0] + 1  # the other passage of the topic, by chance in a third of all fives
    assert sum(partner in pool.negatives(ask, 5, random.Random(n)) for n in range(100)) > 70
    rng = np.random.default_rng(0)
    pool.teacher = (rng.normal(size=(16, 4)).astype(np.float32), rng.normal(size=(16, 4)).astype(np.float32))
    assert pool.negatives(ask, 5, random.Random(0)) != near
    assert len(pool.negatives(ask, 500, random.Random(0))) == 15  # all there are


def test_a_group_says_what_is_right_and_what_was_found():
    pool = Pool.of([corpus()])
    groups = Groups(pool, SMALL, seed=1)
    for number in range(20):
        group = groups.training(number)
        assert len(group.passages) == len(set(group.passages)) <= 6
        assert group.positives.shape == group.absent.shape == (len(group.asks), len(group.passages))
        assert len({id(a) for a in group.asks}) == len(group.asks) > 2  # more ask than the two that were drawn
        for ask, right, absent in zip(group.asks, group.positives, group.absent, strict=True):
            assert {p for p, r in zip(group.passages, right, strict=True) if r} == {*group.passages} & {*ask.wanted}
            assert {p for p, r in zip(group.passages, absent, strict=True) if r} == {*group.passages} & {*ask.found}
            assert right.any()


def test_groups_repeat_by_number():
    def made():
        return [Groups(Pool.of([corpus()]), SMALL, seed=1).training(n) for n in range(6)]

    for one, two in zip(made(), made(), strict=True):
        assert one.passages == two.passages and one.asks == two.asks
    assert all(a.passages != b.passages for a, b in pairwise(made()))


def test_what_is_held_out_never_trains():
    pool = Pool.of([corpus()])
    groups = Groups(pool, SMALL, seed=1)
    trained = {a.question for n in range(60) for a in groups.training(n).asks}
    tested = {a.question for g in groups.evaluation(30) for a in g.asks}
    assert trained and tested and not trained & tested
    assert len(trained) == 12 and len(tested) == 4
    assert not list(Groups(pool, GroupConfig(held_out=0), seed=1).evaluation(3))


def test_sets_share_the_seeds_as_told():
    pool = Pool.of([corpus(), corpus("small", WORDS[:1])])

    def share(evenness):
        groups = Groups(pool, GroupConfig(passages=4, seeds=1, evenness=evenness, held_out=0), seed=3)
        first = [groups.training(n).asks[0].corpus for n in range(200)]
        return sum(first) / len(first)

    assert share(0.0) > 0.35 and share(1.0) < 0.25
