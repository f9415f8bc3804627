"""Fitting relevance: the regression by its definition, what it learns from, and data that teaches nothing."""

import numpy as np
import pytest

from msa_plugin.config import RelevanceConfig
from msa_plugin.errors import TrainingError
from msa_plugin.retrieval.relevance import Signal, relevance
from msa_plugin.training.relevance import RelevanceCase, RelevancePlan, best, fit, logistic


def test_the_regression_finds_what_made_the_labels():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(20_000, 2)) * [1.0, 0.1] + [3.0, -1.0]
    labels = (generator.random(20_000) < 1 / (1 + np.exp(-(features @ [1.5, 8.0] + 3.0)))).astype(float)
    slopes, bias = logistic(features, labels, ridge=1e-6)
    assert slopes == pytest.approx([1.5, 8.0], rel=0.1) and bias == pytest.approx(3.0, abs=0.5)


def test_no_signal_counts_against():
    generator = np.random.default_rng(1)
    features = generator.normal(size=(2_000, 2))
    labels = (generator.random(2_000) < 1 / (1 + np.exp(-(features @ [2.0, -2.0])))).astype(float)
    slopes, _ = logistic(features, labels, ridge=1.0)
    assert slopes[0] > 0.5 and slopes[1] == 0.0
    slopes, bias = logistic(-np.ones((100, 1)) * labels[:100, None], labels[:100], ridge=1.0)
    assert slopes[0] == 0.0 and 1 / (1 + np.exp(-bias)) == pytest.approx(labels[:100].mean(), abs=1e-3)


def asked(generator, answerable):
    """Eight documents, of which the first has a better key and more words where it answers."""
    signals, answers = [], []
    for place in range(8):
        right = answerable and place == 0
        key = generator.normal(0.6 if right else 0.3, 0.1)
        words = generator.normal(0.6 if right else 0.3, 0.1)
        signals.append(Signal(key, 0.2, words, 0.2))
        answers.append(right)
    return RelevanceCase(answerable, tuple(signals), tuple(answers))


def test_it_tells_what_is_there_from_what_is_not():
    generator = np.random.default_rng(2)
    rows = [asked(generator, n % 2 == 0) for n in range(400)]
    config = fit(rows, RelevancePlan(silent=0.05))
    assert isinstance(config, RelevanceConfig) and config.unrelated == pytest.approx(0.2)
    there = [best(r, config) for r in rows if r.answerable]
    away = [best(r, config) for r in rows if not r.answerable]
    assert np.mean(there) > 0.7 > 0.4 > np.mean(away)
    assert np.mean(np.array(there) < config.least) <= 0.06
    # A probability: of the documents that it gives about .5, about half answer.
    pairs = [(relevance(s, config), right) for r in rows for s, right in zip(r.signals, r.answers, strict=True)]
    near = [right for value, right in pairs if 0.3 < value < 0.7]
    assert 0.25 < np.mean(near) < 0.75
    assert config.keys.words == 0.0 and config.words.words > 0


def test_what_nobody_knows_teaches_nothing():
    generator = np.random.default_rng(3)
    rows = [asked(generator, n % 2 == 0) for n in range(60)]
    blurred = [r._replace(signals=(*r.signals, Signal(0.9, 0.2, 0.9, 0.2)), answers=(*r.answers, None)) for r in rows]
    one, other = (fit(some, RelevancePlan(silent=0.0)) for some in (rows, blurred))
    assert one.words == other.words and one.keys == other.keys


def test_data_that_teach_nothing_are_refused():
    generator = np.random.default_rng(4)
    with pytest.raises(TrainingError, match="none does"):
        fit([asked(generator, False) for _ in range(5)], RelevancePlan())
    with pytest.raises(TrainingError, match="at least 8"):
        fit([RelevanceCase(True, (Signal(0.5, None),), (True,))], RelevancePlan())
