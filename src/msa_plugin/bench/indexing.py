"""What indexing takes, and how much memory one system alone needs at most."""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import OnStep, Workspace
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.peak import peak_bytes, reset_peak
from msa_plugin.bench.timed_system import Create, TimedSystem
from msa_plugin.bench.timing import reason
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import MSAError
from msa_plugin.memory import LatentMemory

_LOG = logging.getLogger(__name__)
_ASKED = 3  # questions that the process whose peak is measured answers


@dataclass
class Indexing:
    """Seconds of each repetition by system, and why others did not take part."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)


def indexing_seconds(
    names: Sequence[str], sample: Dataset, banks: Banks, create: Create, repeats: int, on_step: OnStep
) -> Indexing:
    """Index `sample` from nothing, the systems in turns, `repeats` times after one that does not count."""
    found = Indexing()
    for repeat in range(repeats + 1):
        for name in names:
            if name in found.skipped:
                continue
            on_step(f"indexing with {name}", repeat, repeats + 1)
            try:
                seconds = _index(name, sample, banks, create)
            except Exception as error:
                _LOG.warning("indexing with %s: %s", name, error, exc_info=not isinstance(error, MSAError))
                found.skipped[name] = reason(error)
                found.seconds.pop(name, None)
                continue
            if repeat:
                found.seconds[name].append(seconds)
    return found


def _index(name: str, sample: Dataset, banks: Banks, create: Create) -> float:
    """Seconds to index the sample in an empty folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(
            Path(folder) / "bank", model=banks.backbone, adapter=banks.adapter, config=banks.config
        ) as memory,
    ):
        if name.startswith("msa"):
            return memory.add(list(sample.documents), on_progress=lambda progress: None).seconds
        system = create(name, Workspace(sample, memory, Path(folder) / "cache"))
        try:
            return float(system.prepare().seconds) if hasattr(system, "prepare") else 0.0
        finally:
            if hasattr(system, "close"):
                system.close()


@dataclass(frozen=True)
class TextSource:
    """What another process loads the backbone and its adapter from, and the settings of the memory."""

    model: str | None
    adapter: Path | None
    config: MemoryConfig


def peak_of(
    source: TextSource,
    banks: Path,
    cache: Path,
    dataset: Dataset,
    name: str,
    create: Create,
    *,
    hops: int,
    per_round: int,
) -> int:
    """Most bytes resident in a process of its own that answers a few questions with this system and nothing else.

    The backbone and libraries are part of it; what loading the backbone took for a moment is not, where the operating
    system can forget it. The bank must have been encoded and built. `create` must be a function of a module.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_peak, source, banks, cache, dataset, name, create, hops, per_round).result()


def _peak(
    source: TextSource,
    folder: Path,
    cache: Path,
    dataset: Dataset,
    name: str,
    create: Create,
    hops: int,
    per_round: int,
) -> int:
    config = source.config
    backbone = Backbone.load(source.model, device=config.device, dtype=config.dtype)
    banks = Banks(folder, backbone, find_adapter(backbone, source.adapter), config)
    reset_peak()
    with banks.open(dataset.documents) as memory:
        workspace = Workspace(dataset, memory, cache, {"max_new_tokens": 8})
        one = TimedSystem(name, workspace, create, hops=hops, per_round=per_round)
        try:
            one.prepare()
            for question in dataset.questions[:_ASKED]:
                one.ask(question.text)
        finally:
            one.close()
    return peak_bytes()
