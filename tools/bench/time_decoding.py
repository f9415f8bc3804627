"""What int8 weights save while an answer is written, over the model's own, at a prompt like those of `ask`.

    OMP_NUM_THREADS=1 python tools/bench/time_decoding.py --prompt 400 --tokens 10 --rows 1

The two ways take turns, prefill by prefill, and count this process's own seconds, so that other work hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from bench_shell import Row, main, scratch_memory

from msa_plugin import prompts
from msa_plugin.answering.reading import Excerpt, Reader
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data import sample_documents, sample_questions

WAYS = ("full", "int8")


def measure(
    backbone: Backbone, adapter: Any, *, prompt: int = 400, tokens: int = 10, rows: int = 1, repeats: int = 5
) -> Iterator[Row]:
    """One row a way: medians of the seconds of reading and of writing, and their sum, of `rows` questions together.

    `over_full` is the median ratio of sums that were taken one after the other. `prompt` is about how many tokens of
    documents are read. Raises ConfigError where int8 weights cannot be had.
    """
    with scratch_memory(backbone, adapter, reading="text", decoding="int8") as memory:
        reader = memory.engine.reader
        read = list(_excerpts(reader.backbone, prompt))
        asked = [q.question for q in islice(cycle(sample_questions()), rows)]
        for way in WAYS:  # what is made once is not counted
            _answer(reader, way, asked, read, 2)
        timed = [{way: _answer(reader, way, asked, read, tokens) for way in WAYS} for _ in range(repeats)]
    for way in WAYS:
        yield {
            "weights": way,
            "prefill_s": median(turn[way][0] for turn in timed),
            "decode_s": median(turn[way][1] for turn in timed),
            "answer_s": median(sum(turn[way]) for turn in timed),
            "decode_over_full": median(turn[way][1] / turn["full"][1] for turn in timed),
            "over_full": median(sum(turn[way]) / sum(turn["full"]) for turn in timed),
        }


def _excerpts(backbone: Backbone, tokens: int) -> Iterator[Excerpt]:
    """Sample documents, the last one cut, of `tokens` in all."""
    for number, document in enumerate(cycle(sample_documents())):
        ids = backbone.tokenize(prompts.document_text(document.title, document.text))[:tokens]
        yield Excerpt(number, backbone.detokenize(ids), 0, len(ids))
        tokens -= len(ids)
        if tokens <= 0:
            return


def _answer(reader: Reader, way: str, asked: list[str], read: list[Excerpt], tokens: int) -> tuple[float, float]:
    """Seconds of reading and of writing; what is written is what the model would, whether it would end there or not."""
    backbone, began = reader.backbone, time.process_time()
    prefill = reader.prefill(asked, [read] * len(asked))
    if way == "full":
        prefill.state.eight_bits = None
    between, logits = time.process_time(), prefill.logits
    mask = torch.ones(len(asked), 1, dtype=torch.bool)
    for step in range(tokens - 1):  # the prefill has written the first
        ids = logits.argmax(-1, keepdim=True)
        out = backbone.run(prefill.state, ids, mask, (prefill.positions + step)[:, None])
        assert out is not None
        logits = out[:, -1]
    return between - began, time.process_time() - between


if __name__ == "__main__":
    main(measure)
