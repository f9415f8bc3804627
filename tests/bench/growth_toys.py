"""A toy corpus with questions, and distractors, for the benchmarks in which the memory grows."""

from __future__ import annotations

from facade import TOPICS, about
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.types import Document

WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grain", "hazel", "indigo", "jade", "kelp", "lotus")


def corpus():
    """Eight gold passages of some 70 tokens, a question on each, and twelve other passages."""
    gold = [Document(t, about(t), t[:3]) for t in TOPICS]
    others = [Document(w, f"{w} {w} and more {w}, told at length for the sake of {w}", "") for w in WORDS]
    mixed = [d for pair in zip(gold, others, strict=False) for d in pair] + others[len(gold) :]
    questions = [Question(f"q-{t}", f"{t} {t}", (t,), {t: 1}, 1) for t in TOPICS]
    return Dataset("toy", tuple(mixed), tuple(questions))


def distractors(count=40):
    """Passages of some 60 tokens about nothing."""
    return [Document(f"x{n}", f"passage {n} of the distractors says {n * 7919} and {n * 104729}") for n in range(count)]
