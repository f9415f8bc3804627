"""Encoding speed: `memory.add` over the stock model's forward on the same batches, in one run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.case import REPEATS, ModelCase, Row, Words, medians, option
from msa_plugin.bench.workspaces import scratch_memory
from msa_plugin.data import sample_documents
from msa_plugin.encoding.encoder import Encoder, pad_right, plan_batches
from msa_plugin.prompts import document_text
from msa_plugin.types import Document


class Encode(ModelCase):
    """The stock model runs without its language-model head, on the very batches that `add` makes.

    Example: msa bench encode
    """

    columns: ClassVar = {
        "mode": "{mode}",
        "memory.add tokens/s": "{add_tokens_per_s:,.0f}",
        "stock forward tokens/s": "{stock_tokens_per_s:,.0f}",
        "ratio (>= 0.9 wanted)": "{ratio:.2f}",
    }
    tokens: int = option(20_000, "About how many tokens to encode in each repetition.", ge=1)
    modes: Words = option("text,latent,kv", "Reading modes, separated by commas.")
    repeats: int = option(3, REPEATS, ge=1)

    def about(self) -> str:
        """What runs."""
        return "encoding in every reading mode, and running the stock model on the same batches ..."

    def measure(self, backbone: Backbone, adapter: Adapter | Path | None) -> Iterator[Row]:
        """One row per reading mode: tokens/s of `add`, tokens/s of the stock model, and their ratio (medians)."""
        documents = _documents(backbone, self.tokens)
        for mode in self.modes or ():
            yield {"mode": mode, **medians(_once(backbone, adapter, mode, documents) for _ in range(self.repeats))}


def _once(backbone: Backbone, adapter: Adapter | Path | None, mode: str, documents: list[Document]) -> dict[str, float]:
    seconds, count, windows = _add(backbone, adapter, mode, documents)
    added, stock = count / seconds, count / _stock(backbone, *windows)
    return {"tokens": count, "ratio": added / stock, "add_tokens_per_s": added, "stock_tokens_per_s": stock}


def _documents(backbone: Backbone, tokens: int) -> list[Document]:
    """The sample corpus, said again under new ids until there are enough tokens; one and two texts a document."""
    sample = sample_documents()
    lengths = [len(ids) for ids in backbone.tokenize_batch([document_text(d.title, d.text) for d in sample])]
    documents: list[Document] = []
    total = 0
    while total < tokens:
        index = len(documents) % len(sample)
        one, other = sample[index], sample[(index * 7 + 3) % len(sample)]
        double = len(documents) % 2 == 1
        text = f"{one.text}\n{other.text}" if double else one.text
        documents.append(Document(str(len(documents)), text, one.title))
        total += lengths[index] + (lengths[(index * 7 + 3) % len(sample)] if double else 0)
    return documents


def _add(
    backbone: Backbone, adapter: Any, mode: str, documents: list[Document]
) -> tuple[float, int, tuple[list[list[int]], int]]:
    with scratch_memory(backbone, adapter, reading=mode) as memory:
        encoder: Encoder = memory.engine.encoder
        texts = [document_text(d.title, d.text) for d in documents]
        windows = [w for ids in backbone.tokenize_batch(texts) for w in encoder.windows(ids)]
        began = time.perf_counter()
        memory.add(documents, on_progress=lambda _: None)
        seconds = time.perf_counter() - began
        return seconds, sum(map(len, windows)), (windows, encoder.batch_tokens)


@torch.inference_mode()
def _stock(backbone: Backbone, windows: list[list[int]], budget: int) -> float:
    began = time.perf_counter()
    for batch in plan_batches([len(w) for w in windows], budget):
        ids, mask = pad_right([windows[i] for i in batch], backbone.device)
        backbone.model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
