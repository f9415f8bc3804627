"""What indexing takes, and how much memory one system alone needs at most."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import Workspace
from msa_plugin.bench.driver import Create, Run
from msa_plugin.bench.growth import Banks
from msa_plugin.bench.systems import Options
from msa_plugin.bench.timed_system import TimedSystem
from msa_plugin.bench.workspaces import scratch_memory
from msa_plugin.config import MemoryConfig
from msa_plugin.data.datasets import Dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.measuring.peak import peak_bytes, reset_peak

_ASKED = 3  # questions that the process whose peak is measured answers


@dataclass
class Indexing:
    """Seconds of each repetition by system, and why others did not take part."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    skipped: dict[str, str] = field(default_factory=dict)


def indexing_seconds(names: Sequence[str], sample: Dataset, run: Run, repeats: int) -> Indexing:
    """Index `sample` from nothing, the systems in turns, `repeats` times after one that does not count."""
    found = Indexing()
    for repeat in range(repeats + 1):
        for name in names:
            if name in found.skipped:
                continue
            run.watch.step(f"indexing with {name}", repeat, repeats + 1)
            try:
                seconds = _index(name, sample, run)
            except Exception as error:
                found.skipped[name] = run.why(f"indexing with {name}", error)
                found.seconds.pop(name, None)
                continue
            if repeat:
                found.seconds[name].append(seconds)
    return found


def _index(name: str, sample: Dataset, run: Run) -> float:
    """Seconds to index the sample in an empty folder."""
    banks = run.banks
    with (
        tempfile.TemporaryDirectory() as cache,
        scratch_memory(banks.backbone, banks.adapter, config=banks.config) as memory,
    ):
        if name.startswith("msa"):
            return memory.add(list(sample.documents), on_progress=lambda progress: None).seconds
        with run.prepared(name, Workspace(sample, memory, Path(cache)), where=None) as system:
            return 0.0 if system.cost is None else float(system.cost.seconds)


@dataclass(frozen=True)
class TextSource:
    """What another process loads the backbone and its adapter from, and the settings of the memory."""

    model: str | None
    adapter: Path | None
    config: MemoryConfig


@dataclass(frozen=True)
class Alone:
    """A system in a process of its own, which answers a few questions and does nothing else.

    The bank must have been encoded and built. `create` must be a function of a module.
    """

    source: TextSource
    banks: Path
    cache: Path
    dataset: Dataset
    name: str
    create: Create
    hops: int
    per_round: int

    def ask(self) -> int:
        """Load, prepare and ask; the most bytes that were resident after loading."""
        config = self.source.config
        backbone = Backbone.load(self.source.model, device=config.device, dtype=config.dtype)
        banks = Banks(self.banks, backbone, find_adapter(backbone, self.source.adapter), config)
        reset_peak()
        with banks.open(self.dataset.documents) as memory:
            workspace = Workspace(self.dataset, memory, self.cache, {"max_new_tokens": 8})
            system = self.create(self.name, workspace, Options(rounds=self.hops, per_round=self.per_round))
            system.prepare()
            timed = TimedSystem(self.name, system, workspace, self.hops, self.per_round)
            for question in self.dataset.questions[:_ASKED]:
                timed.ask(question.text)
            system.close()
        return peak_bytes()


def peak_of(alone: Alone) -> int:
    """Most bytes resident in that process: the backbone and libraries are part of it.

    What loading the backbone took for a moment is not, where the operating system can forget it.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(alone.ask).result()
