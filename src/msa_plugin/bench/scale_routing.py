"""Routing from 10^5 to 10^8 tokens: time, bytes, bandwidth and memory of each backend, beside each other in one run.

Each size is a bank on disk, in float16 and in int8, opened and memory-mapped as any other; keys come from
`scale_sample`. Everything is measured; nothing is extrapolated. Bytes are counted from shapes, not by the hardware.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msa_kernels import chunk_owners, collapse_heads, route_topk
from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.view import Selection
from msa_plugin.bench import peak
from msa_plugin.bench.base import Dataset
from msa_plugin.bench.route import copy_bandwidth
from msa_plugin.bench.scale_sample import BankShape, KeySample, build, encoded_sample, reference_shape, store_sample
from msa_plugin.config import MemoryConfig
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.setup import fingerprint
from msa_plugin.errors import ConfigError
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.prefilter import Prefilter, PrefilterSpec, recall_against_exact
from msa_plugin.retrieval.scorer import route
from msa_plugin.types import Fingerprint

EXACT = {"torch": "float16", "int8": "int8", "triton": "float16", "triton-int8": "int8"}
DEPTH = 10
_ANSWER = 16  # tokens of the facade's answer, at most
COPY_BYTES = 1 << 28


@dataclass(frozen=True)
class SearchPlan:
    """What to measure. `backends`: of `EXACT`, or a prefilter such as `coarse:128` (over the float16 bank).

    `reference` adds one router layer of MSA-4B's shape, searched exactly. `keep` leaves the banks where they are.
    `cpu_clock` counts the process's own seconds, for machines that others use too; one thread, no device.
    """

    tokens: tuple[int, ...] = (10**5, 10**6, 10**7)
    backends: tuple[str, ...] = ("torch", "int8", "coarse:128")
    questions: int = 20
    passages: int = 300
    reference: bool = True
    keep: bool = False
    cpu_clock: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers below 1 and backends that do not exist."""
        if not self.tokens or min((*self.tokens, self.questions, self.passages)) < 1:
            raise ConfigError("tokens, questions and passages must be at least 1")
        if self.cpu_clock and torch.get_num_threads() > 1:
            raise ConfigError("seconds of several threads add up: count them with one, OMP_NUM_THREADS=1")
        for backend in self.backends:
            if backend not in EXACT:
                PrefilterSpec.parse(backend)
            elif backend.startswith("triton") and (self.cpu_clock or not torch.cuda.is_available()):
                raise ConfigError(
                    f"{backend} needs a CUDA device, which torch does not see, and its own clock; leave it out"
                )

    def now(self) -> float:
        """Seconds on the plan's clock."""
        return time.process_time() if self.cpu_clock else time.perf_counter()


class SearchOutcome(NamedTuple):
    """What a backend gave: per question its documents, and seconds; `bytes` it reads for one question."""

    rankings: list[list[int]]
    seconds: list[float]
    bytes: int


def sizes(text: str) -> tuple[int, ...]:
    """Read "1e5,1000000". Raises ConfigError."""
    try:
        found = tuple(int(float(part)) for part in text.split(","))
    except (ValueError, OverflowError):
        raise ConfigError(
            f"sizes are whole numbers with commas between, such as 1000 or 1e5,1e6; not {text!r}"
        ) from None
    return found


def run(
    model: str | Backbone | None, adapter: Path | Adapter | None, dataset: Dataset, folder: Path, plan: SearchPlan
) -> Iterator[dict[str, Any]]:
    """Measure every shape, size and backend; yields one row each, for JSON, as it is measured.

    `folder` holds the banks of one size at a time. Raises ConfigError, and MissingExtraError where an index needs
    FAISS.
    """
    backbone = model if isinstance(model, Backbone) else Backbone.load(model)
    chosen = find_adapter(backbone, adapter)
    sample = encoded_sample(backbone, chosen, dataset, plan.passages, plan.questions)
    copy = _copy_bandwidth(plan) if plan.cpu_clock else copy_bandwidth(COPY_BYTES)
    shapes = [BankShape("default", chosen.config.routing, sample, 1)]
    for shape in [*shapes, reference_shape(sample)] if plan.reference else shapes:
        # The sample as it is says what a backend loses on real keys; the reference's shape has none.
        for tokens in (*((None,) if shape.searches == 1 else ()), *plan.tokens):
            place = folder / f"{shape.name.replace(' ', '-')}-{tokens}"
            try:
                for row in _size(shape, tokens, place, backbone, chosen, plan):
                    yield _head(shape, sample, tokens, dataset, copy, plan) | _ratios(row, copy) | row
            finally:
                if not plan.keep:
                    shutil.rmtree(place, ignore_errors=True)


def _copy_bandwidth(plan: SearchPlan) -> float:
    """As `route.copy_bandwidth`, by the plan's clock."""
    source, times = torch.ones(COPY_BYTES, dtype=torch.uint8), []
    target = source.clone()
    for _ in range(5):
        began = plan.now()
        target.copy_(source)
        times.append(plan.now() - began)
    return 2 * COPY_BYTES / median(times)


def _head(
    shape: BankShape, sample: KeySample, tokens: int | None, dataset: Dataset, copy: float, plan: SearchPlan
) -> dict[str, Any]:
    real = f"{len(sample.offsets) - 1} documents of {dataset.name}"
    return {
        "shape": shape.name,
        "width": next(iter(shape.config.key_groups.values())),
        "searches": shape.searches,
        "question_tokens": int(shape.sample.votes.sum(1).float().mean()),
        "tokens": int(sample.offsets[-1]) * shape.config.pooling if tokens is None else tokens,
        "keys_from": real if tokens is None else f"{real}, resampled with noise",
        "threads": torch.get_num_threads(),
        "clock": "cpu" if plan.cpu_clock else "wall",
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
    shape: BankShape, tokens: int | None, place: Path, backbone: Backbone, adapter: Adapter, plan: SearchPlan
) -> Iterator[dict[str, Any]]:
    """Rows of one size (None: the sample as it is): build the banks, search them with each backend, ask the facade."""
    wanted = {EXACT.get(backend, "float16") for backend in plan.backends} | {"float16"}
    made = {dtype: _made_with(shape, backbone, adapter, dtype) for dtype in wanted}
    for dtype, made_with in made.items():
        began = plan.now()
        kind = getattr(torch, dtype)
        if tokens is None:
            chunks = store_sample(place / dtype, made_with, shape, kind)
        else:
            chunks = build(place / dtype, made_with, shape, tokens, kind, plan.seed)
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
    shape: BankShape, bank: MemoryBank, backend: str, place: Path, plan: SearchPlan
) -> tuple[dict[str, Any], list[list[int]]]:
    selection = bank.select("default")
    began = plan.now()
    blocks = list(bank.key_blocks(shape.group, selection))  # each document's checksum is compared here, once
    keys = sum(block.keys.nbytes + (0 if block.scales is None else block.scales.nbytes) for block in blocks)
    checked, began = plan.now() - began, plan.now()
    if backend not in EXACT:
        search = _prefiltered(shape, selection, backend, place, bank)
    elif backend.startswith("triton"):
        search = _triton(shape, selection)
    else:
        search = partial(_exactly, shape, selection)
    prepared = plan.now() - began
    peak.reset_peak()
    found = _timed(shape.sample, search, keys, plan)
    row = {
        "backend": backend,
        "seconds": median(found.seconds),
        "seconds_most": max(found.seconds),
        "questions": len(found.seconds),
        "check_s": checked,
        "prepare_s": prepared,
        "bytes_read": found.bytes,
        "bytes_needed": keys,
        "bank_bytes": bank.stats("default").bytes_total,
        "peak_bytes": peak.peak_bytes(),
        "own_bytes": own_bytes(),
    }
    return row, found.rankings


Search = Callable[[Tensor, Tensor], tuple[list[int], int | None]]  # one question -> documents, bytes read if not all


def _timed(sample: KeySample, search: Search, everything: int, plan: SearchPlan) -> SearchOutcome:
    rankings, seconds, read = [], [], everything
    search(sample.questions[:1], sample.votes[:1])
    for row in range(len(sample.questions)):
        one = slice(row, row + 1)
        began = plan.now()
        documents, some = search(sample.questions[one], sample.votes[one])
        seconds.append(plan.now() - began)
        rankings.append(documents)
        read = everything if some is None else some
    return SearchOutcome(rankings, seconds, read)


def _exactly(shape: BankShape, selection: Selection, queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
    found = route(queries, votes, selection.key_blocks(shape.group), DEPTH, shape.config)
    return found.ordinals[0].tolist(), None


def _prefiltered(shape: BankShape, selection: Selection, spec: str, place: Path, bank: MemoryBank) -> Search:
    index = Prefilter.open(place / "index", bank.fingerprint, selection, shape.config, spec)
    mean = selection.documents and sum(len(s.keys[shape.group]) for s, _ in selection.parts) / selection.documents
    width = next(iter(shape.config.key_groups.values()))
    rescored = int(index.spec.candidates * mean * width * 2)
    read = (index.bytes if index.spec.kind == "coarse" else 0) + rescored

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        return index.search(queries, votes, selection, DEPTH)[0].ordinals[0].tolist(), read

    return search


def _triton(shape: BankShape, selection: Selection) -> Search:
    """All keys on the GPU, and the fused kernel."""
    device = torch.device("cuda")
    blocks = list(selection.key_blocks(shape.group))
    keys = torch.cat([block.keys.to(device) for block in blocks])
    scales = (
        None if blocks[0].scales is None else torch.cat([b.scales.to(device) for b in blocks if b.scales is not None])
    )
    lengths = torch.cat([block.offsets.diff() for block in blocks])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).to(device)
    ordinals = torch.cat([block.ordinals for block in blocks])
    owners = chunk_owners(offsets, len(keys))
    kv = shape.config.kv_heads

    def search(queries: Tensor, votes: Tensor) -> tuple[list[int], int | None]:
        left = queries.to(device) if queries.ndim == 3 else collapse_heads(queries.to(device), kv)
        found = route_topk(left[:, None], votes.to(device), keys, offsets, DEPTH, scales=scales, owners=owners)
        return ordinals[found.documents[0].cpu()].tolist(), None

    return search


def _facade(sample: KeySample, path: Path, backbone: Backbone, adapter: Adapter, plan: SearchPlan) -> dict[str, Any]:
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
    return row | {"questions": len(times), "peak_bytes": peak.peak_bytes(), "own_bytes": own_bytes()}


def own_bytes() -> int:
    """Resident bytes that are this process's own, without mapped files; 0 where the system does not tell."""
    return _status("RssAnon")


def resident_bytes() -> int:
    """Resident bytes, mapped files included; 0 where the system does not tell."""
    return _status("VmRSS")


def _status(name: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measured rows as aligned text, for a terminal."""
    heads = ("ms", "GB/s", "of copy", "read/needed", f"recall@{DEPTH}", "peak MiB", "own MiB")
    lines = [f"{'shape':<12} {'keys':<5} {'tokens':>11} {'backend':<22}" + "".join(f" {head:>11}" for head in heads)]
    for row in rows:
        figures = {
            "ms": row["seconds"] * 1e3,
            "GB/s": row.get("read_gb_s"),
            "of copy": row.get("bandwidth_share"),
            "read/needed": row.get("read_over_needed"),
            f"recall@{DEPTH}": row.get(f"recall@{DEPTH}"),
            "peak MiB": row.get("peak_bytes", 0) / 2**20 or None,
            "own MiB": row.get("own_bytes", 0) / 2**20 or None,
        }
        keys = "drawn" if "noise" in row["keys_from"] else "real"
        start = f"{row['shape']:<12} {keys:<5} {row['tokens']:>11,} {row['backend']:<22.22}"
        lines.append(start + "".join(" " * 12 if value is None else f" {value:>11.3f}" for value in figures.values()))
    return "\n".join(line.rstrip() for line in lines)
