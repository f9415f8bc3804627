"""What storing K and V in eight bits saves and loses: bytes, error of K and V, and what becomes of answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.case import ModelCase, Row, option
from msa_plugin.bench.read import answer_logits, excerpts_of
from msa_plugin.data import sample_documents, sample_questions
from msa_plugin.memory import LatentMemory

DTYPES = ("auto", "int8", "float8_e4m3fn")


class Content(ModelCase):
    """Over the documents that the first sample questions need.

    Example: msa bench content
    """

    columns: ClassVar = {
        "content": "{dtype}",
        "bytes/token": "{bytes_content_per_token:,.0f}",
        "K error mean, max": "{key_error_mean:.5f}, {key_error_max:.5f}",
        "V error mean, max": "{value_error_mean:.5f}, {value_error_max:.5f}",
        "answer NLL": "{answer_nll:.3f}",
        "same choice": "{same:.3f}",
        "logits off by": "{difference:.4f}",
    }
    notes = (
        "Errors are over the mean and the largest number, logits' over their standard deviation; NLL: nats per token",
        "of the expected answer; same choice: the share of its tokens at which the most likely one did not change.",
    )
    pooling: int = option(1, "Tokens that share one K and V.", ge=1)
    questions: int = option(12, "Sample questions to read for.", ge=1)

    def about(self) -> str:
        """What runs."""
        return "building a bank for each way of storing ..."

    def measure(self, backbone: Backbone, adapter: Adapter | Path | None) -> Iterator[Row]:
        """One row a `content_dtype`; what is off is over `auto`, K and V as they are computed."""
        exact: tuple[dict[str, Tensor], list[Tensor]] | None = None
        for dtype in DTYPES:
            numbers, logits, row = _measure(backbone, adapter, dtype, self.pooling, self.questions)
            exact = exact or (numbers, logits)
            yield {"dtype": dtype, **row, **_errors(numbers, exact[0]), **_changes(logits, exact[1])}


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
