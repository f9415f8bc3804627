"""Relevance, fitted: from questions whose answer a memory holds, and the same questions with the answer taken away.

Every question is asked three ways: of the whole memory, of a small one, and of each of the two without its gold
documents and without any other that holds an accepted answer. A document that answers is a yes, one that does not is a
no; what nobody labelled, though it holds the answer's words, is left out. Statistics of words follow what is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.config import RelevanceConfig, RelevanceWeights, Settings
from msa_plugin.data.datasets import dataset_hash, load_dataset
from msa_plugin.errors import TrainingError
from msa_plugin.measuring.absence import AbsenceSample, Room, auc
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.relevance import BESIDE, Signal, relevance
from msa_plugin.training.data import named_sets

Numbers = NDArray[np.float64]
OnStep = Callable[[str, int, int], None]  # what is being done, done so far, of how many
_STEPS = 60  # of Newton's method, which takes about ten


class RelevancePlan(Settings):
    """What is fitted on: `questions` of each data set at most, over `passages` of it; and how.

    `small` is how many documents the small memory has. `ridge` keeps weights small. `silent` is the share of the
    answerable questions that may be taken for ones whose answer is not there, where nothing else is asked.
    """

    questions: int = Field(default=200, gt=0)
    passages: int = Field(default=2000, gt=0)
    small: int = Field(default=60, ge=BESIDE)
    ridge: float = Field(default=3.0, gt=0)
    silent: float = Field(default=0.02, ge=0.0, lt=0.5)
    seed: int = 0


class RelevanceCase(NamedTuple):
    """One question asked of one selection: signals of what was found, and which of it answers (None: nobody knows)."""

    answerable: bool
    signals: tuple[Signal, ...]
    answers: tuple[bool | None, ...]


def ask(room: Room, plan: RelevancePlan, on_step: OnStep) -> Iterator[RelevanceCase]:
    """Every question, asked of the whole sample and of a few documents, with and without what answers it."""
    engine, sample = room.memory.engine, room.sample
    generator = random.Random(plan.seed)
    for number, question in enumerate(sample.dataset.questions):
        on_step(f"relevance on {sample.dataset.name}", number, len(sample.dataset.questions))
        gold, holding = set(question.positives), sample.holding(question)
        others = sorted(room.ordinals.keys() - holding)
        few = generator.sample(others, min(len(others), plan.small))
        for kept, answerable in ((room.ordinals, True), (others, False), ({*few, *gold}, True), (few, False)):
            selection = room.with_only(kept)
            if selection.documents:
                [row] = engine.rank([question.text], BESIDE, selection).rows
                lexical = engine.retriever.signals.lexical
                words = None if lexical is None else engine.search.words([question.text], selection)
                [signals] = engine.relevance.signals([question.text], [row], lexical, words)
                found = [room.names[r.ordinal] for r in row]
                answers = [name in gold or (None if name in holding else False) for name in found]
                yield RelevanceCase(answerable, tuple(signals), tuple(answers))


def fit_adapter(
    backbone: Backbone,
    adapter: Adapter,
    data: Path,
    sets: Sequence[str] | None,
    plan: RelevancePlan,
    folder: Path,
    on_step: OnStep,
) -> tuple[Adapter, dict[str, dict[str, float]]]:
    """The adapter with relevance fitted on data sets of `data`, encoded into banks in `folder`; and what it reaches.

    Raises IngestError for what cannot be read, TrainingError where nothing can be told apart, and ConfigError for an
    adapter whose layers select for themselves.
    """
    adapter.config.routing.check_shared("relevance")
    paths = named_sets(data, sets)
    asked: dict[str, list[RelevanceCase]] = {}
    hashes = {}
    for name in sets or sorted(paths):
        dataset = load_dataset(paths[name])
        hashes[name] = dataset_hash(dataset)
        sample = AbsenceSample.of(dataset, plan.questions, plan.passages, plan.seed)
        with LatentMemory.open(folder / name, model=backbone, adapter=adapter) as memory:
            asked[name] = list(ask(Room(memory, sample), plan, on_step))
    config = fit([one for some in asked.values() for one in some], plan)
    measured = {name: _reached(some, config) for name, some in asked.items()}
    notes = {"plan": plan.model_dump(mode="json"), "data": hashes, "command": "msa relevance", "reached": measured}
    provenance = {**adapter.config.provenance, "relevance": notes}
    update = {"relevance": config, "provenance": provenance}
    return replace(adapter, config=adapter.config.model_copy(update=update)), measured


def _reached(asked: Sequence[RelevanceCase], config: RelevanceConfig) -> dict[str, float]:
    """On the questions that it was fitted on."""
    found = {way: [best(a, config) for a in asked if a.answerable is way] for way in (True, False)}
    return {"asked": len(asked), "auc": round(auc(found[True], found[False]), 4)}


def fit(asked: Sequence[RelevanceCase], plan: RelevancePlan) -> RelevanceConfig:
    """The regression with words and the one without. Raises TrainingError where there is nothing to tell apart."""
    beside = [a.signals[0].key_beside for a in asked if a.signals and a.signals[0].key_beside is not None]
    if not beside:
        raise TrainingError(f"relevance is fitted on memories of at least {BESIDE} documents")
    unrelated = float(np.mean([value for value in beside if value is not None]))
    alone = [a._replace(signals=tuple(s._replace(words=None) for s in a.signals)) for a in asked]
    worded = [a for a in asked if a.signals and a.signals[0].words is not None]
    keys = _fitted(alone, unrelated, plan, count=2)
    words = _fitted(worded, unrelated, plan, count=4) if worded else keys
    config = RelevanceConfig(words=words, keys=keys, unrelated=unrelated)
    least = [
        np.quantile([best(a, config) for a in some if a.answerable], plan.silent) for some in (alone, worded or alone)
    ]
    return config.model_copy(update={"least": float(min(least))})


def best(asked: RelevanceCase, config: RelevanceConfig) -> float:
    """The relevance of the best that a question found; 0 where it found nothing."""
    return max((relevance(signal, config) for signal in asked.signals), default=0.0)


def _fitted(asked: Sequence[RelevanceCase], unrelated: float, plan: RelevancePlan, count: int) -> RelevanceWeights:
    pairs = [
        (signal.features(unrelated)[:count], right)
        for one in asked
        for signal, right in zip(one.signals, one.answers, strict=True)
        if right is not None
    ]
    found = np.array([features for features, _ in pairs], dtype=np.float64).reshape(-1, count)
    labels = np.array([float(right) for _, right in pairs])
    if len(set(labels.tolist())) < 2:
        raise TrainingError("every document found answers its question, or none does; fit on other data")
    slopes, bias = logistic(found, labels, plan.ridge)
    names = ("key", "key_lead", "words", "words_lead")[:count]
    return RelevanceWeights(bias=bias, **dict(zip(names, slopes.tolist(), strict=True)))


def logistic(features: Numbers, labels: Numbers, ridge: float) -> tuple[Numbers, float]:
    """Weights and bias of a logistic regression by Newton's method, none of the weights negative.

    `features` [n, f], `labels` [n] of 0 and 1. A feature that would count against is left out, and the rest fitted
    again, so that more of any signal never means less relevance.
    """
    used = list(range(features.shape[1]))
    while used:
        slopes, bias = _newton(features[:, used], labels, ridge)
        if (slopes >= 0).all():
            break
        del used[int(slopes.argmin())]
    weights = np.zeros(features.shape[1])
    if used:
        weights[used] = slopes
    else:
        _, bias = _newton(np.zeros((len(labels), 1)), labels, ridge)
    return weights, bias


def _newton(features: Numbers, labels: Numbers, ridge: float) -> tuple[Numbers, float]:
    mean, spread = features.mean(0), features.std(0) + 1e-9
    scaled = np.hstack([(features - mean) / spread, np.ones((len(features), 1))])
    pull = np.diag([*[ridge] * features.shape[1], 1e-6])
    weights = np.zeros(scaled.shape[1])
    for _ in range(_STEPS):
        likely = 1 / (1 + np.exp(-np.clip(scaled @ weights, -30, 30)))
        gradient = scaled.T @ (likely - labels) + pull @ weights
        curvature = (scaled * (likely * (1 - likely))[:, None]).T @ scaled + pull
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    slopes = weights[:-1] / spread
    return slopes, float(weights[-1] - slopes @ mean)
