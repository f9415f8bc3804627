"""Whether an adapter that claims `emit_ids` writes the right document's number, among few documents and among many.

    python tools/bench/written_ids.py --data DATA/dev/musique --adapter ADAPTER --documents 16,100

For every size a memory of its own holds what the questions need and other passages of the data set; each question is
asked once, one number may be written, and it is right if it is that of a gold passage. `wrote` is the share of
questions for which one was written, `routed` the share for which routing let the model read a gold passage at all,
`chance` what a number drawn at random would get.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from bench_shell import Row, main, scratch_memory

from msa_plugin.answering.generative.generative import IdAnswerer
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.command import sizes
from msa_plugin.bench.sampling import in_order
from msa_plugin.data.datasets import Dataset, Question, load_dataset
from msa_plugin.errors import AdapterError, ConfigError
from msa_plugin.measuring.metrics import bootstrap
from msa_plugin.types import Document


def measure(
    backbone: Backbone, adapter: Any, *, data: Any, documents: Any = "16,100,1000", questions: int = 50, seed: int = 0
) -> Iterator[Row]:
    """A row for each size in documents. `data` is the folder of a data set, or one that is loaded.

    Raises AdapterError for an adapter that does not write ids, ConfigError for sizes that the data set cannot fill.
    """
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    for size in sizes(documents):
        yield _measure(backbone, adapter, *memory_of(dataset, size, questions, seed))


def memory_of(dataset: Dataset, size: int, questions: int, seed: int) -> tuple[list[Question], list[Document]]:
    """Up to `questions` questions of which all that they need fits, and `size` documents in random order.

    Raises ConfigError when the data set has fewer passages, or no question that needs so few.
    """
    if not 1 <= size <= len(dataset.documents):
        raise ConfigError(
            f"{dataset.name} has {len(dataset.documents)} passages; no memory of {size} can be made of it"
        )
    held = {d.id: d for d in dataset.documents}
    asked: list[Question] = []
    needed: dict[str, None] = {}
    for question in in_order(dataset.questions, seed):
        wants = [i for i in question.positives if i in held]
        if wants and len(asked) < questions and len(needed.keys() | set(wants)) <= size:
            asked.append(question)
            needed |= dict.fromkeys(wants)
    if not asked:
        raise ConfigError(f"{dataset.name} has no question whose passages fit among {size}")
    draw = random.Random(seed)
    others = draw.sample([i for i in held if i not in needed], size - len(needed))
    documents = [held[i] for i in [*needed, *others]]
    draw.shuffle(documents)
    return asked, documents


def _measure(
    backbone: Backbone, adapter: Any, asked: Sequence[Question], documents: Sequence[Document]
) -> dict[str, Any]:
    wrote, right, routed, chance = [], [], [], []
    with scratch_memory(backbone, adapter, reading="latent") as memory:
        if not isinstance(memory.engine.answerer, IdAnswerer):
            raise AdapterError(
                f"adapter {memory.engine.adapter.config.name} does not write document ids (ability emit_ids); "
                "train one by a packed recipe whose settings claim it (abilities)"
            )
        memory.add(list(documents), on_progress=lambda _: None)
        for question in asked:
            answer = memory.ask(question.text, generated_rounds=1, ids_per_round=1, max_new_tokens=1)
            named = answer.trace.rounds[0].selected if answer.trace.rounds else ()
            gold = question.positives.keys() & {d.id for d in documents}
            wrote.append(float(bool(named)))
            right.append(float(any(i in gold for i in named)))
            found = {h.id for h in memory.retrieve(question.text, k=memory.engine.top_k)}
            routed.append(float(bool(gold & found)))
            chance.append(len(gold) / len(documents))
    low, high = bootstrap(right)
    return {
        "documents": len(documents),
        "questions": len(asked),
        "accuracy": mean(right),
        "accuracy_95": [low, high],
        "wrote": mean(wrote),
        "routed": mean(routed),
        "chance": mean(chance),
    }


if __name__ == "__main__":
    main(measure)
