"""What storing K and V in eight bits saves and loses: bytes, error of K and V, and what becomes of answers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.read import answer_logits, excerpts_of
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.memory import LatentMemory

DTYPES = ("auto", "int8", "float8_e4m3fn")


def run(
    model: str | Backbone | None, adapter: Any = None, *, pooling: int = 1, questions: int = 12
) -> list[dict[str, Any]]:
    """One row a `content_dtype`, over the documents that the first sample questions need, read by `kv` / `pooling`.

    Errors are of K and V as they are read, over those of `auto`: `mean` the mean error over the mean size, `max` the
    largest over the largest. `answer_nll` is in nats a token of the expected answer; `same` the share of its tokens at
    which the most likely one is the one of `auto`, and `difference` the mean of the logits' differences there over
    their standard deviation.
    """
    backbone = model if isinstance(model, Backbone) else Backbone.load(model)
    rows: list[dict[str, Any]] = []
    exact: tuple[dict[str, Tensor], list[Tensor]] | None = None
    for dtype in DTYPES:
        numbers, logits, row = _measure(backbone, adapter, dtype, pooling, questions)
        exact = exact or (numbers, logits)
        rows.append({"dtype": dtype, **row, **_errors(numbers, exact[0]), **_changes(logits, exact[1])})
    return rows


def _measure(
    backbone: Backbone, adapter: Any, dtype: str, pooling: int, questions: int
) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Any]]:
    """K and V by name, logits [T, V] before each token of each answer, and what is counted."""
    asked = sample_questions()[:questions]
    needed = {name for question in asked for name in question.positive_ids}
    settings: dict[str, Any] = {"reading": "kv", "content_pooling": pooling, "content_dtype": dtype}
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(Path(folder) / "bank", model=backbone, adapter=adapter, **settings) as memory,
    ):
        memory.add([d for d in sample_documents() if d.id in needed], on_progress=lambda _: None)
        stats, bank, reader = memory.stats(), memory.engine.bank, memory.engine.reader
        ordinals = [known.ordinal for known in bank.lookup(sorted(needed), memory.namespace).values()]
        kept = [torch.cat(bank.content(ordinals, layer)).float() for layer in range(backbone.spec.layers)]
        numbers = {name: torch.stack([layer[:, part] for layer in kept]) for part, name in enumerate(("key", "value"))}
        logits, losses = [], []
        for question in asked:
            ids = backbone.tokenize(question.answers[0])
            prefill = reader.prefill([question.question], [excerpts_of(memory, question.positive_ids)])
            logits.append(answer_logits(backbone, prefill, ids))
            losses.append(
                float(torch.nn.functional.cross_entropy(logits[-1], torch.tensor(ids, device=logits[-1].device)))
            )
    row = {"bytes_content_per_token": stats.bytes_content / stats.tokens, "answer_nll": sum(losses) / len(losses)}
    return numbers, logits, row


def _errors(numbers: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for name, wanted in exact.items():
        off = (numbers[name] - wanted).abs()
        found[f"{name}_error_mean"] = float(off.mean() / wanted.abs().mean())
        found[f"{name}_error_max"] = float(off.max() / wanted.abs().max())
    return found


def _changes(logits: Sequence[Tensor], exact: Sequence[Tensor]) -> dict[str, float]:
    ours, wanted = torch.cat([*logits]), torch.cat([*exact])
    return {
        "same": float((ours.argmax(1) == wanted.argmax(1)).float().mean()),
        "difference": float((ours - wanted).abs().mean() / wanted.std()),
    }
