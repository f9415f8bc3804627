"""What the rounds of written ids cost when prefills go on from each other, over prefills of the whole transcript.

    python tools/bench/time_rounds.py --model CHECKPOINT --rounds 4 --per-round 2

It needs a model that writes document ids, such as a checkpoint in the reference's format.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from bench_shell import Row, main, scratch_memory

from msa_plugin import prompts
from msa_plugin.answering.generative.generative import IdAnswerer
from msa_plugin.answering.generative.prompt_codec import Transcript
from msa_plugin.answering.per_layer import RoutedPass
from msa_plugin.answering.resume import Earlier, in_common, kept_rows
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory


def measure(
    backbone: Backbone, adapter: Any, *, rounds: int = 4, per_round: int = 2, repeats: int = 3
) -> Iterator[Row]:
    """One row a round, of a question for which every round fetches documents of the sample corpus.

    `layer_tokens` is the share of (layer, token) pairs that are computed, `time` the prefill's time over the whole
    one's (medians). Raises ConfigError for an adapter that does not write ids.
    """
    with scratch_memory(backbone, adapter, reading="latent") as memory:
        loop = memory.engine.answerer
        if not isinstance(loop, IdAnswerer):
            raise ConfigError(
                f"the adapter {memory.engine.adapter.config.name} does not write ids: use a checkpoint in the "
                "reference's format, --model FOLDER"
            )
        memory.add(sample_documents(), on_progress=lambda _: None)
        runs = [_rounds(memory, loop, rounds, per_round) for _ in range(repeats)]
    for number, one in enumerate(zip(*runs, strict=True), start=1):
        yield {"round": number, **one[0], "time": median(row["time"] for row in one)}


def _rounds(memory: LatentMemory, loop: IdAnswerer, rounds: int, per_round: int) -> list[dict[str, Any]]:
    transcript = Transcript(loop.codec, sample_questions()[0].question)
    texts = [prompts.document_text(d.title, d.text) for d in sample_documents()]
    selection = memory.engine.bank.select(memory.namespace, None)
    layers, top_k = loop.layers, loop.layers.top_k
    earlier: Earlier | None = None
    found = []
    for number in range(rounds):
        row = transcript.row()
        began = time.perf_counter()
        whole = layers.run([row], loop.codec.head, top_k, selection, answering=True)
        between = time.perf_counter()
        resumed = layers.resume([row], loop.codec.head, top_k, selection, [earlier])
        seconds = time.perf_counter() - between
        found.append(_row(loop, row.ids, earlier, whole, resumed) | {"time": seconds / (between - began)})
        if resumed.hidden is not None:
            earlier = Earlier(kept_rows([row.ids], resumed.hidden)[0], resumed.state, 0)
        first = number * per_round % len(texts)
        transcript.add({n: texts[n] for n in range(first, min(first + per_round, len(texts)))})
    return found


def _row(
    loop: IdAnswerer, ids: list[int], earlier: Earlier | None, whole: RoutedPass, resumed: RoutedPass
) -> dict[str, Any]:
    assert whole.logits is not None and resumed.logits is not None
    depth, all_layers = loop.layers.depth, loop.backbone.spec.layers
    common = in_common(ids, earlier)
    return {
        "tokens": len(ids),
        "new_tokens": len(ids) - common,
        "lower_layers": depth,
        "layers": all_layers,
        "layer_tokens": 1 - common * depth / (len(ids) * all_layers),
        "difference": float(torch.dist(whole.logits, resumed.logits, float("inf"))),
    }


if __name__ == "__main__":
    main(measure)
