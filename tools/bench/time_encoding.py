"""Encoding speed: `memory.add` over the stock model's forward on the same batches, by reading mode.

    python tools/bench/time_encoding.py --tokens 20000 --modes text,latent,kv

The stock model runs without its language-model head, on the very batches that `add` makes. At least .9 is wanted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from bench_shell import Row, main, medians, scratch_memory, words

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.data import sample_documents
from msa_plugin.encoding.encoder import pad_right, plan_batches
from msa_plugin.prompts import document_text
from msa_plugin.types import Document


def measure(
    backbone: Backbone, adapter: Any, *, tokens: int = 20_000, modes: str = "text,latent,kv", repeats: int = 3
) -> Iterator[Row]:
    """One row per reading mode: tokens/s of `add`, tokens/s of the stock model, and their ratio (medians)."""
    documents = made_up(backbone, tokens)
    for mode in words(modes):
        yield {"mode": mode, **medians(once(backbone, adapter, mode, documents) for _ in range(repeats))}


def made_up(backbone: Backbone, tokens: int) -> list[Document]:
    """The sample corpus, said again under new ids until there are enough tokens; one and two texts a document."""
    sample = sample_documents()
    lengths = [len(ids) for ids in backbone.tokenize_batch([document_text(d.title, d.text) for d in sample])]
    documents: list[Document] = []
    total = 0
    while total < tokens:
        first = len(documents) % len(sample)
        second = (first * 7 + 3) % len(sample)
        parts = [first, second] if len(documents) % 2 else [first]
        text = "\n".join(sample[i].text for i in parts)
        documents.append(Document(str(len(documents)), text, sample[first].title))
        total += sum(lengths[i] for i in parts)
    return documents


def once(backbone: Backbone, adapter: Any, mode: str, documents: list[Document]) -> dict[str, float]:
    """Encode, and run the stock model on the same windows in the same batches."""
    with scratch_memory(backbone, adapter, reading=mode) as memory:
        encoder = memory.engine.encoder
        texts = [document_text(d.title, d.text) for d in documents]
        windows = [w for ids in backbone.tokenize_batch(texts) for w in encoder.windows(ids)]
        began = time.perf_counter()
        memory.add(documents, on_progress=lambda _: None)
        seconds = time.perf_counter() - began
        batch_tokens = encoder.batch_tokens
    count = sum(map(len, windows))
    added, stock = count / seconds, count / stock_seconds(backbone, windows, batch_tokens)
    return {"tokens": count, "ratio": added / stock, "add_tokens_per_s": added, "stock_tokens_per_s": stock}


@torch.inference_mode()
def stock_seconds(backbone: Backbone, windows: list[list[int]], batch_tokens: int) -> float:
    """Of the stock model's forward."""
    began = time.perf_counter()
    for batch in plan_batches([len(w) for w in windows], batch_tokens):
        ids, mask = pad_right([windows[i] for i in batch], backbone.device)
        backbone.model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(measure)
