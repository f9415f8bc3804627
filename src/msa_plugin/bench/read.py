"""What each reading mode costs and gives: bytes per token, time to first token, what becomes of answers."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from msa_plugin import prompts
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.metrics import exact_match, f1
from msa_plugin.config import GenerationConfig
from msa_plugin.data import SampleQuestion, sample_documents, sample_questions
from msa_plugin.engine.generate import TextStream, decode
from msa_plugin.engine.reading import Excerpt, Prefill, Reader
from msa_plugin.memory import LatentMemory

# Untrained backbones read only what is hardly pooled, so the latent mode is shown at several poolings.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("text", {"reading": "text"}),
    ("kv", {"reading": "kv"}),
    ("kv / 4", {"reading": "kv", "content_pooling": 4}),
    ("latent / 1", {"reading": "latent", "content_pooling": 1}),
    ("latent / 2", {"reading": "latent", "content_pooling": 2}),
    ("latent / 4", {"reading": "latent", "content_pooling": 4}),
    ("latent / 8", {"reading": "latent", "content_pooling": 8}),
    ("latent / 64", {"reading": "latent", "content_pooling": 64}),
)
_REPLY = GenerationConfig(max_new_tokens=24)  # the sample's answers are a few words


def run(model: str | Backbone | None, adapter: Any = None, *, repeats: int = 3) -> list[dict[str, Any]]:
    """One row per mode and pooling, over the sample questions with their needed documents read."""
    backbone = model if isinstance(model, Backbone) else Backbone.load(model)
    rows = [_measure(backbone, adapter, name, settings, repeats) for name, settings in VARIANTS]
    base = rows[0]["first_token_s"]
    closed = _closed_book(backbone, adapter, repeats)
    return [row | {"first_token_over_text": row["first_token_s"] / base} for row in [*rows, closed]]


def _measure(backbone: Backbone, adapter: Any, name: str, settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(Path(folder) / "bank", model=backbone, adapter=adapter, **settings) as memory,
    ):
        memory.add(sample_documents(), on_progress=lambda _: None)
        stats = memory.stats()
        chosen = [excerpts_of(memory, question) for question in sample_questions()]
        row = _row(name, memory.engine.reader, chosen, repeats)
    return row | {
        "bytes_per_token": (stats.bytes_keys + stats.bytes_content) / stats.tokens,
        "bytes_keys_per_token": stats.bytes_keys / stats.tokens,
        "bytes_content_per_token": stats.bytes_content / stats.tokens,
    }


def _closed_book(backbone: Backbone, adapter: Any, repeats: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(Path(folder) / "bank", model=backbone, adapter=adapter, reading="text") as memory,
    ):
        row = _row("closed book", memory.engine.reader, [[] for _ in sample_questions()], repeats)
    return row | {"bytes_per_token": 0.0, "bytes_keys_per_token": 0.0, "bytes_content_per_token": 0.0}


def _row(name: str, reader: Reader, chosen: list[list[Excerpt]], repeats: int) -> dict[str, Any]:
    seconds, likelihoods, exact, overlaps = [], [], [], []
    for question, excerpts in zip(sample_questions(), chosen, strict=True):
        timed = []
        for _ in range(repeats):
            began = time.perf_counter()
            prefill = reader.prefill([question.question], [excerpts])
            timed.append(time.perf_counter() - began)
        seconds.append(median(timed))
        likelihoods.append(answer_nll(reader.backbone, prefill, question.answers[0]))
        said = _reply(reader, question, excerpts)
        exact.append(exact_match(said, question.answers))
        overlaps.append(f1(said, question.answers))
    scores = {"answer_nll": mean(likelihoods), "exact_match": mean(exact), "f1": mean(overlaps)}
    return {"mode": name, "first_token_s": mean(seconds), **scores}


def _reply(reader: Reader, question: SampleQuestion, excerpts: list[Excerpt]) -> str:
    """What the model answers, greedily."""
    prefill = reader.prefill([question.question], [excerpts])
    stream = TextStream(reader.backbone, _REPLY.stop)
    for _ in decode(reader.backbone, prefill.state, prefill.logits, prefill.positions, [stream], _REPLY):
        pass
    return stream.text


def excerpts_of(memory: LatentMemory, question: SampleQuestion) -> list[Excerpt]:
    """The documents that a sample question needs, whole."""
    engine = memory.engine
    known = engine.bank.lookup(question.positive_ids, memory.namespace)
    documents = memory.get(question.positive_ids)
    texts = [prompts.document_text(d.title, d.text) for d in documents]
    tokens = engine.backbone.tokenize_batch(texts)
    return [
        Excerpt(known[d.id].ordinal, text, 0, len(ids)) for d, text, ids in zip(documents, texts, tokens, strict=True)
    ]


def answer_nll(backbone: Backbone, prefill: Prefill, answer: str) -> float:
    """Mean negative log-likelihood, in nats per token, of `answer` after a prefill of one row; uses up the prefill."""
    ids = backbone.tokenize(answer)
    before = answer_logits(backbone, prefill, ids)
    return float(torch.nn.functional.cross_entropy(before, torch.tensor(ids, device=before.device)))


def answer_logits(backbone: Backbone, prefill: Prefill, ids: list[int]) -> Tensor:
    """Logits [T, V], float32, before each token of the answer `ids` to a prefill of one row; uses up the prefill."""
    row = torch.tensor([ids], device=backbone.device)
    positions = prefill.positions[:, None] + torch.arange(len(ids), device=backbone.device)
    logits = backbone.run(prefill.state, row, torch.ones_like(row, dtype=torch.bool), positions, logits="all")
    assert logits is not None
    return torch.cat([prefill.logits[:, None], logits[:, :-1]], dim=1)[0].float()
