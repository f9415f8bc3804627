"""Routing from 10^5 to 10^8 tokens: time, bytes, bandwidth and memory of each backend, beside each other in one run.

    OMP_NUM_THREADS=1 python tools/bench/scale_routing.py --cpu-clock --tokens 1e5,1e6 --backends "torch;int8;flat"

Backends: torch, int8, triton, triton-int8, prefilters, and to compare with: heads (the formula written per head) and
flat (FAISS IndexFlatIP); by semicolons, over the float16 bank where no name says int8. A bank of 1e8 tokens takes 2.4
GB of float16 keys and 1.2 GB of int8 ones (MSA-4B's layer: 3.2 and 1.6 GB).

Each size is a bank on disk, in float16 and in int8, opened and memory-mapped as any other; keys come from
`scale_sample`. Everything is measured; nothing is extrapolated. Bytes are counted from shapes, not by the hardware.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from bench_shell import Row, clock, main, words
from routing_backends import DEPTH, EXACT, searching
from scale_sample import BankShape, KeySample, build, encoded_sample, reference_shape

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bench.command import sizes
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, load_dataset, sample_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.setup import fingerprint
from msa_plugin.errors import ConfigError
from msa_plugin.measuring import peak
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.prefilter import PrefilterSpec, recall_against_exact
from msa_plugin.types import Fingerprint

_ANSWER = 16  # tokens of the facade's answer, at most
COPY_BYTES = 1 << 28


class RoutingPlan(NamedTuple):
    """What is searched by which backends, and on which clock; banks of one size at a time lie in `folder`."""

    backends: tuple[str, ...]
    now: Callable[[], float]
    clock: str
    folder: str | None
    seed: int


def measure(
    backbone: Backbone,
    adapter: Any,
    *,
    tokens: Any = "1e5,1e6,1e7",
    backends: Any = "torch;int8;coarse:128;coarse:all",
    data: Any = None,
    passages: int = 300,
    questions: int = 20,
    reference: bool = True,
    folder: Any = None,
    seed: int = 0,
    cpu_clock: bool = False,
) -> Iterator[Row]:
    """Every shape, size in tokens and backend; with `reference` also a router layer of MSA-4B's shape.

    Keys are sampled from `passages` of the data set in the folder `data` (None: the sample corpus). Raises
    MissingExtraError where an index needs FAISS, ConfigError for a backend that there is not, or that needs a GPU.
    """
    plan = RoutingPlan(words(backends, ";"), clock(cpu_clock), "cpu" if cpu_clock else "wall", folder, seed)
    for backend in plan.backends:
        if backend not in EXACT:
            PrefilterSpec.parse(backend)
        elif backend.startswith("triton") and (cpu_clock or not torch.cuda.is_available()):
            raise ConfigError(
                f"{backend} needs a CUDA device, which torch does not see, and its own clock; leave it out"
            )
    dataset = sample_dataset() if data is None else load_dataset(data)
    chosen = find_adapter(backbone, adapter)
    sample = encoded_sample(backbone, chosen, dataset, passages, questions)
    copy = copy_bandwidth(COPY_BYTES, plan.now)
    shapes = [BankShape("default", chosen.config.routing, sample, 1)]
    for shape in [*shapes, reference_shape(sample)] if reference else shapes:
        # The sample as it is says what a backend loses on real keys; the reference's shape has none.
        for size in (*((None,) if shape.searches == 1 else ()), *sizes(tokens)):
            with tempfile.TemporaryDirectory(dir=folder) as place:
                for row in _size(shape, size, Path(place), backbone, chosen, plan):
                    yield _head(shape, sample, size, dataset, copy, plan) | _ratios(row, copy) | row


def _head(
    shape: BankShape, sample: KeySample, tokens: int | None, dataset: Dataset, copy: float, plan: RoutingPlan
) -> dict[str, Any]:
    real = f"{len(sample.offsets) - 1} documents of {dataset.name}"
    return {
        "shape": shape.name,
        "width": next(iter(shape.config.key_groups.values())),
        "searches": shape.searches,
        "question_tokens": int(shape.sample.votes.sum(1).float().mean()),
        "tokens": int(sample.offsets[-1]) * shape.config.pooling if tokens is None else tokens,
        "keys": "real" if tokens is None else "drawn",
        "keys_from": real if tokens is None else f"{real}, resampled with noise",
        "threads": torch.get_num_threads(),
        "clock": plan.clock,
        "copy_gb_s": copy / 1e9,
    }


def _ratios(row: dict[str, Any], copy: float) -> dict[str, Any]:
    if "bytes_read" not in row:
        return {}
    rate = row["bytes_read"] / row["seconds"]
    return {
        "read_over_needed": row["bytes_read"] / row["bytes_needed"],
        "read_gb_s": rate / 1e9,
        "bandwidth_share": rate / copy,
    }


def _size(
    shape: BankShape, tokens: int | None, place: Path, backbone: Backbone, adapter: Adapter, plan: RoutingPlan
) -> Iterator[dict[str, Any]]:
    """Rows of one size (None: the sample as it is): build the banks, search them with each backend, ask the facade."""
    wanted = {EXACT.get(backend, "float16") for backend in plan.backends} | {"float16"}
    made = {dtype: _made_with(shape, backbone, adapter, dtype) for dtype in wanted}
    for dtype, made_with in made.items():
        began = plan.now()
        chunks = build(place / dtype, made_with, shape, tokens, getattr(torch, dtype), plan.seed)
        yield {"backend": f"build {dtype}", "chunks": chunks, "seconds": plan.now() - began}
    exact: list[list[int]] | None = None
    for backend in ("torch", *(b for b in plan.backends if b != "torch")):
        if shape.searches > 1 and backend not in EXACT:
            continue  # a prefilter needs one shared selection
        dtype = EXACT.get(backend, "float16")
        with MemoryBank.open(place / dtype, made[dtype], read_only=True) as bank:
            row, rankings = _measured(shape, bank, backend, place, plan)
        exact = rankings if exact is None else exact
        yield row | {"chunks": chunks, f"recall@{DEPTH}": recall_against_exact(exact, rankings)}
    if shape.searches == 1:
        yield {"chunks": chunks} | _facade(shape.sample, place / "float16", backbone, adapter, plan)


def _made_with(shape: BankShape, backbone: Backbone, adapter: Adapter, dtype: str) -> Fingerprint:
    config = MemoryConfig.model_validate({"reading": "text", "keys_dtype": dtype})
    made = fingerprint(backbone, adapter, config)
    return made if shape.searches == 1 else Fingerprint(shape.name, "", "", shape.name, "none", dtype, "", 1)


def _measured(
    shape: BankShape, bank: MemoryBank, backend: str, place: Path, plan: RoutingPlan
) -> tuple[dict[str, Any], list[list[int]]]:
    selection = bank.select("default")
    began = plan.now()
    blocks = list(selection.key_blocks(shape.group))  # each document's checksum is compared here, once
    keys = sum(block.keys.nbytes + (0 if block.scales is None else block.scales.nbytes) for block in blocks)
    checked, began = plan.now() - began, plan.now()
    search = searching(backend, shape, bank, selection, place)
    prepared = plan.now() - began
    peak.reset_peak()
    sample = shape.sample
    questions = [(sample.questions[n : n + 1], sample.votes[n : n + 1]) for n in range(len(sample.questions))]
    search(*questions[0])  # what is made once is nobody's time
    rankings, seconds, read = [], [], keys
    for question in questions:
        began = plan.now()
        documents, some = search(*question)
        seconds.append(plan.now() - began)
        rankings.append(documents)
        read = keys if some is None else some
    row = {
        "backend": backend,
        "seconds": median(seconds),
        "seconds_most": max(seconds),
        "questions": len(seconds),
        "check_s": checked,
        "prepare_s": prepared,
        "bytes_read": read,
        "bytes_needed": keys,
        "bank_bytes": bank.stats("default").bytes_total,
        "workspace_bytes": peak.tensor_bytes(lambda: search(*questions[0])),
        "peak_bytes": peak.peak_bytes(),
        "own_bytes": peak.own_bytes(),
    }
    return row, rankings


def copy_bandwidth(size: int, now: Callable[[], float], repeats: int = 5) -> float:
    """Bytes per second that a memory copy of `size` bytes reads and writes together, median of `repeats`."""
    source = torch.ones(size, dtype=torch.uint8)
    target, times = source.clone(), []
    for _ in range(repeats):
        began = now()
        target.copy_(source)
        times.append(now() - began)
    return 2 * size / median(times)


def _facade(sample: KeySample, path: Path, backbone: Backbone, adapter: Adapter, plan: RoutingPlan) -> dict[str, Any]:
    """Open the bank as a user does, ask it questions, and let it answer one (rounds of routing, reading, decoding)."""
    peak.reset_peak()
    began = plan.now()
    config = MemoryConfig(reading="text", lexical=0.0, titles=0.0, mentions=0.0)
    with LatentMemory.open(path, model=backbone, adapter=adapter, config=config, read_only=True) as memory:
        opened = plan.now() - began
        times = []
        for text in sample.texts[:4]:
            began = plan.now()
            memory.retrieve(text, k=DEPTH)
            times.append(plan.now() - began)
        began = plan.now()
        memory.ask(sample.texts[0], max_new_tokens=_ANSWER)
        answered = plan.now() - began
    row = {"backend": "facade", "open_s": opened, "first_s": times[0], "seconds": median(times[1:] or times)}
    row |= {"ask_s": answered}
    return row | {"questions": len(times), "peak_bytes": peak.peak_bytes(), "own_bytes": peak.own_bytes()}


if __name__ == "__main__":
    main(measure)
