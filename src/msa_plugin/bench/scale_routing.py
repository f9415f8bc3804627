"""Routing from 10^5 to 10^8 tokens: time, bytes, bandwidth and memory of each backend, beside each other in one run.

Each size is a bank on disk, in float16 and in int8, opened and memory-mapped as any other; keys come from
`scale_sample`. Everything is measured; nothing is extrapolated. Bytes are counted from shapes, not by the hardware.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, model_validator

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bench.case import ClockedCase, Row, Sizes, option
from msa_plugin.bench.routing_backends import DEPTH, EXACT, searching
from msa_plugin.bench.scale_sample import BankShape, KeySample, build, encoded_sample, reference_shape
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset, load_dataset, sample_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.engine.setup import fingerprint
from msa_plugin.measuring import peak
from msa_plugin.memory import LatentMemory
from msa_plugin.retrieval.prefilter import PrefilterSpec, recall_against_exact
from msa_plugin.types import Fingerprint

_ANSWER = 16  # tokens of the facade's answer, at most
COPY_BYTES = 1 << 28


def _backends(given: Any) -> Any:
    return tuple(part.strip() for part in given.split(";") if part.strip()) if isinstance(given, str) else given


class ScaleRouting(ClockedCase):
    """A bank of 1e8 tokens takes 2.4 GB of float16 keys and 1.2 GB of int8 ones (MSA-4B's layer: 3.2 and 1.6 GB).

    Rows go to stderr as JSON lines while the run lasts; with --json, to stdout at the end.

    Example: msa bench scale-routing --tokens 1e5,1e6 --backends "torch;int8;coarse:128;faiss:HNSW32"
    """

    streams = True
    columns: ClassVar = {
        "shape": "{shape}",
        "keys": "{keys}",
        "tokens": "{tokens:,}",
        "backend": "{backend:.22}",
        "time": "{seconds:seconds}",
        "GB/s": "{read_gb_s:.3f}",
        "of copy": "{bandwidth_share:.3f}",
        "read/needed": "{read_over_needed:.3f}",
        f"recall@{DEPTH}": f"{{recall@{DEPTH}:.3f}}",
        "workspace": "{workspace_bytes:bytes}",
        "peak": "{peak_bytes:bytes}",
        "own": "{own_bytes:bytes}",
    }
    tokens: Sizes = option("1e5,1e6,1e7", "Sizes of the memory in tokens, separated by commas.")
    backends: Annotated[tuple[str, ...], BeforeValidator(_backends)] = option(
        "torch;int8;coarse:128;coarse:all",
        "torch, int8, triton, triton-int8, prefilters, and to compare with: heads (the formula written per head) and "
        "flat (FAISS IndexFlatIP); by semicolons, over the float16 bank where no name says int8.",
    )
    data: Path | None = option(None, "Folder of a data set whose passages and questions are sampled [the sample's].")
    passages: int = option(300, "Passages to encode as a sample.", ge=1)
    questions: int = option(20, "Questions to ask.", ge=1)
    reference: bool = option(True, "Also one router layer of MSA-4B's shape, searched exactly.")
    folder: Path | None = option(None, "Where banks are written, of one size at a time [a temporary folder].")
    seed: int = option(0, "Which synthetic keys.")

    @model_validator(mode="after")
    def _there(self) -> ScaleRouting:
        for backend in self.backends:
            if backend not in EXACT:
                PrefilterSpec.parse(backend)
            elif backend.startswith("triton") and (self.cpu_clock or not torch.cuda.is_available()):
                raise ValueError(
                    f"{backend} needs a CUDA device, which torch does not see, and its own clock; leave it out"
                )
        return self

    def measure(self, backbone: Backbone, adapter: Adapter | Path | None) -> Iterator[Row]:
        """Every shape, size and backend. Raises MissingExtraError where an index needs FAISS."""
        dataset = sample_dataset() if self.data is None else load_dataset(self.data)
        chosen = find_adapter(backbone, adapter)
        sample = encoded_sample(backbone, chosen, dataset, self.passages, self.questions)
        copy = copy_bandwidth(COPY_BYTES, self.now)
        shapes = [BankShape("default", chosen.config.routing, sample, 1)]
        for shape in [*shapes, reference_shape(sample)] if self.reference else shapes:
            # The sample as it is says what a backend loses on real keys; the reference's shape has none.
            for tokens in (*((None,) if shape.searches == 1 else ()), *self.tokens):
                with tempfile.TemporaryDirectory(dir=self.folder) as place:
                    for row in _size(shape, tokens, Path(place), backbone, chosen, self):
                        yield _head(shape, sample, tokens, dataset, copy, self) | _ratios(row, copy) | row


def _head(
    shape: BankShape, sample: KeySample, tokens: int | None, dataset: Dataset, copy: float, plan: ScaleRouting
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
    shape: BankShape, tokens: int | None, place: Path, backbone: Backbone, adapter: Adapter, plan: ScaleRouting
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
    shape: BankShape, bank: MemoryBank, backend: str, place: Path, plan: ScaleRouting
) -> tuple[dict[str, Any], list[list[int]]]:
    selection = bank.select("default")
    began = plan.now()
    blocks = list(bank.key_blocks(shape.group, selection))  # each document's checksum is compared here, once
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


def _facade(sample: KeySample, path: Path, backbone: Backbone, adapter: Adapter, plan: ScaleRouting) -> dict[str, Any]:
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
