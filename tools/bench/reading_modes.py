"""What each reading mode costs and gives: bytes per token, time to first token, what becomes of answers.

    python tools/bench/reading_modes.py --data DATA/dev/squad --questions 100 --modes "text,latent/2,closed book"

Times are over those of the first mode; `same` is the share of tokens of which the likeliest is the first mode's;
`answer_nll` is in nats per token of the expected answer. Bytes are routing keys and content; the catalog with the texts
comes on top. A backbone that was not trained for it cannot read pooled latents. Every question is asked over exactly
the documents that it needs, so that nothing depends on what is found.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch
from bench_shell import Row, main, scratch_memory, words
from torch import Tensor
from torch.nn.functional import cross_entropy

from msa_plugin import prompts
from msa_plugin.answering.decoding import TextStream, decode
from msa_plugin.answering.reading import Excerpt, Prefill, Reader
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.sampling import in_order
from msa_plugin.config import GenerationConfig
from msa_plugin.data.datasets import Dataset, Question, load_dataset, sample_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import ConfigError
from msa_plugin.measuring.metrics import exact_match, f1
from msa_plugin.memory import LatentMemory

# Untrained backbones read only what is hardly pooled, so the latent mode is shown at several poolings.
MODES: dict[str, dict[str, Any]] = {
    "text": {"reading": "text"},
    "kv": {"reading": "kv"},
    "kv/4": {"reading": "kv", "content_pooling": 4},
    "kv/int8": {"reading": "kv", "content_dtype": "int8"},
    "kv/float8": {"reading": "kv", "content_dtype": "float8_e4m3fn"},
    **{f"latent/{p}": {"reading": "latent", "content_pooling": p} for p in (1, 2, 4, 8, 64)},
    "closed book": {"reading": "text"},
}
STOCK = " (stock model)"
_REPLY = GenerationConfig(max_new_tokens=24)  # the answers that are counted are a few words


def modes_for(adapter: Adapter, wanted: Sequence[str] | None = None) -> list[str]:
    """The modes to measure, all or those wanted; by the stock model too where an adapter's LoRA answers.

    Raises ConfigError for a mode that there is not.
    """
    every = [*MODES, *(name + STOCK for name in ("text", "closed book") if adapter.answers_with_lora)]
    if unknown := [name for name in wanted or () if name not in every]:
        raise ConfigError(f"there is no mode {unknown[0]!r} here; there are {', '.join(every)}")
    return [name for name in every if wanted is None or name in wanted]


def measure(
    backbone: Backbone,
    adapter: Any,
    *,
    data: Any = None,
    questions: int = sys.maxsize,
    modes: Any = None,
    repeats: int = 3,
    seed: int = 0,
) -> Iterator[Row]:
    """One row a mode, over questions of a data set (a folder, or one that is loaded; None: the sample corpus).

    Raises ConfigError for a mode that there is not, and for a data set without a question that has an answer and the
    documents that it needs.
    """
    found = find_adapter(backbone, adapter)
    names = modes_for(found, modes and words(modes))
    dataset = data if isinstance(data, Dataset) else sample_dataset() if data is None else load_dataset(data)
    asked = [q for q in in_order(dataset.questions, seed) if q.answers and q.positives][:questions]
    if not asked:
        raise ConfigError(f"{dataset.name} has no question with an answer and the documents that it needs")
    plain = replace(found, config=found.config.model_copy(update={"lora": None, "format_version": 1}), lora=None)
    base: tuple[float, Tensor] | None = None
    for name in names:
        bare = name.removesuffix(STOCK)
        chosen = found if bare == name else plain
        row, likeliest = _measure(backbone, chosen, name, MODES[bare], dataset, asked, repeats)
        seconds, first = base = base or (row["first_token_s"], likeliest)
        same = float((likeliest == first).float().mean())
        yield row | {"same": same, "first_token_over_text": row["first_token_s"] / seconds}


def _measure(
    backbone: Backbone,
    adapter: Adapter,
    name: str,
    settings: dict[str, Any],
    dataset: Dataset,
    asked: Sequence[Question],
    repeats: int,
) -> tuple[dict[str, Any], Tensor]:
    """The figures of a mode, and the likeliest token [T] before each token of all expected answers."""
    closed = name.startswith("closed book")
    needed = set[str]() if closed else {id for question in asked for id in question.positives}
    with scratch_memory(backbone, adapter, [d for d in dataset.documents if d.id in needed], **settings) as memory:
        chosen = [[] if closed else excerpts_of(memory, tuple(question.positives)) for question in asked]
        scores, likeliest = _scores(memory.engine.reader, asked, chosen, repeats)
        stats = memory.stats()
    keys, content = (held / max(1, stats.tokens) for held in (stats.bytes_keys, stats.bytes_content))
    held = {"bytes_per_token": keys + content, "bytes_keys_per_token": keys, "bytes_content_per_token": content}
    return {"mode": name, **scores, **held}, likeliest


def _scores(
    reader: Reader, asked: Sequence[Question], chosen: Sequence[list[Excerpt]], repeats: int
) -> tuple[dict[str, Any], Tensor]:
    seconds, likelihoods, likeliest, exact, overlaps = [], [], [], [], []
    for question, excerpts in zip(asked, chosen, strict=True):
        timed = []
        for _ in range(repeats):
            began = time.perf_counter()
            prefill = reader.prefill([question.text], [excerpts])
            timed.append(time.perf_counter() - began)
        seconds.append(median(timed))
        ids = reader.backbone.tokenize(question.answers[0])
        logits = answer_logits(reader.backbone, prefill, ids)
        likeliest.append(logits.argmax(1).cpu())
        likelihoods.append(float(cross_entropy(logits, torch.tensor(ids, device=logits.device))))
        said = _reply(reader, question, excerpts)
        exact.append(exact_match(said, question.answers))
        overlaps.append(f1(said, question.answers))
    scores = {"answer_nll": mean(likelihoods), "exact_match": mean(exact), "f1": mean(overlaps)}
    return {"questions": len(asked), "first_token_s": mean(seconds), **scores}, torch.cat(likeliest)


def _reply(reader: Reader, question: Question, excerpts: list[Excerpt]) -> str:
    """What the model answers, greedily."""
    prefill = reader.prefill([question.text], [excerpts])
    stream = TextStream(reader.backbone, _REPLY.stop)
    for _ in decode(reader.backbone, prefill.state, prefill.logits, prefill.positions, [stream], _REPLY):
        pass
    return stream.text


def excerpts_of(memory: LatentMemory, ids: Sequence[str]) -> list[Excerpt]:
    """Documents of the memory by id, whole, for its reader."""
    engine = memory.engine
    known = engine.bank.lookup(ids, memory.namespace)
    documents = memory.get(list(ids))
    texts = [prompts.document_text(d.title, d.text) for d in documents]
    tokens = engine.backbone.tokenize_batch(texts)
    return [
        Excerpt(known[d.id].ordinal, text, 0, len(row)) for d, text, row in zip(documents, texts, tokens, strict=True)
    ]


def answer_nll(backbone: Backbone, prefill: Prefill, answer: str) -> float:
    """Mean negative log-likelihood, in nats per token, of `answer` after a prefill of one row; uses up the prefill."""
    ids = backbone.tokenize(answer)
    before = answer_logits(backbone, prefill, ids)
    return float(cross_entropy(before, torch.tensor(ids, device=before.device)))


def answer_logits(backbone: Backbone, prefill: Prefill, ids: list[int]) -> Tensor:
    """Logits [T, V], float32, before each token of the answer `ids` to a prefill of one row; uses up the prefill."""
    row = torch.tensor([ids], device=backbone.device)
    positions = prefill.positions[:, None] + torch.arange(len(ids), device=backbone.device)
    logits = backbone.run(prefill.state, row, torch.ones_like(row, dtype=torch.bool), positions, logits="all")
    assert logits is not None
    return torch.cat([prefill.logits[:, None], logits[:, :-1]], dim=1)[0].float()


if __name__ == "__main__":
    main(measure)
