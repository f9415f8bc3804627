"""Questions whose answer a memory holds, and the same with the answer taken away.

A question is absent in two ways: its gold documents are taken out, as data sets name them (`gold`), or every document
that holds an accepted answer is (`answer`), for other passages often say the same. Nothing is deleted: what is taken
out is not admitted, so that statistics follow as if it had never been there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from msa_plugin import prompts
from msa_plugin.bank.handle import Selected
from msa_plugin.data.datasets import Dataset, Question
from msa_plugin.errors import IngestError
from msa_plugin.measuring.metrics import normalised
from msa_plugin.memory import LatentMemory

_JUDGEMENTS = frozenset(("yes", "no", "supports", "refutes"))  # answers that are no words of a text


@dataclass(frozen=True)
class AbsenceSample:
    """Some questions of a data set, and passages that hold their answers among others of the same articles."""

    dataset: Dataset

    @classmethod
    def of(cls, dataset: Dataset, questions: int, passages: int, seed: int = 0) -> AbsenceSample:
        """At most so many of both, gold passages always. Raises IngestError where no question names one."""
        generator = random.Random(seed)
        asked = [q for q in dataset.questions if q.positives]
        if not asked:
            raise IngestError(f"{dataset.name} names no passage that answers a question")
        chosen = generator.sample(asked, min(questions, len(asked)))
        gold = {name for q in chosen for name in q.positives}
        articles = {d.title for d in dataset.documents if d.id in gold and d.title}
        others = [d for d in dataset.documents if d.id not in gold]
        generator.shuffle(others)
        others.sort(key=lambda d: d.title not in articles)  # the hard ones first
        kept = gold | {d.id for d in others[: max(0, passages - len(gold))]}
        documents = tuple(d for d in dataset.documents if d.id in kept)
        return cls(Dataset(dataset.name, documents, tuple(chosen), dataset.notes))

    @cached_property
    def _texts(self) -> dict[str, str]:
        return {d.id: f" {normalised(prompts.document_text(d.title, d.text))} " for d in self.dataset.documents}

    def holding(self, question: Question) -> set[str]:
        """Ids of the documents that hold an accepted answer, word for word, and of the gold ones."""
        answers = [f" {words} " for words in map(normalised, question.answers) if words and words not in _JUDGEMENTS]
        said = {name for name, text in self._texts.items() if any(answer in text for answer in answers)}
        return said | set(question.positives)


class Room:
    """A memory that holds a sample (and maybe more), and selections of the sample by id."""

    def __init__(self, memory: LatentMemory, sample: AbsenceSample) -> None:
        """Encodes what of the sample the memory does not hold yet."""
        held = set(memory.ids())
        if missing := [d for d in sample.dataset.documents if d.id not in held]:
            memory.add(missing)
        self.memory, self.sample = memory, sample
        known = memory.engine.bank.lookup([d.id for d in sample.dataset.documents], memory.namespace)
        self.ordinals = {name: at.ordinal for name, at in known.items()}
        self.names = {ordinal: name for name, ordinal in self.ordinals.items()}
        self._all = memory.engine.bank.select(memory.namespace)

    def with_only(self, ids: Iterable[str]) -> Selected:
        """These of the sample's documents."""
        return self._all.only(self.ordinals[name] for name in ids)

    def without(self, ids: Iterable[str]) -> Selected:
        """The sample but for these."""
        return self.with_only(self.ordinals.keys() - set(ids))

    def ways(self, question: Question) -> Iterator[tuple[str, Selected]]:
        """The question's `answerable`, `gold` and `answer` selection; an empty one is left out."""
        taken = {"answerable": set[str](), "gold": set(question.positives), "answer": self.sample.holding(question)}
        for way, ids in taken.items():
            selection = self.without(ids)
            if selection.documents:
                yield way, selection


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The chance that one of `higher` is above one of `lower`; ties count half."""
    above, below = np.asarray(higher), np.sort(np.asarray(lower))
    left, right = np.searchsorted(below, above, "left"), np.searchsorted(below, above, "right")
    return float((left + right).mean() / 2 / len(below)) if len(below) and len(above) else float("nan")
