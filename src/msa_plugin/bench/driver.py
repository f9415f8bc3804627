"""What every run of systems has in common: its folder, its memories, the systems that take part, and those that fail.

An experiment is a loop over its cases: `with run.workspace(dataset) as workspace`, and for each system that is missing
`with run.prepared(name, workspace) as system`, it asks, and stores what came of it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import Cost, Workspace
from msa_plugin.bench.command import ADAPTER, MODEL, Voice, option
from msa_plugin.bench.growth import BANKS, Banks
from msa_plugin.bench.report import table, write_report
from msa_plugin.bench.result import ResultRow
from msa_plugin.bench.store import NOTE, Results
from msa_plugin.bench.watch import Watch
from msa_plugin.config import MemoryConfig, Place, Settings
from msa_plugin.data.datasets import Dataset, load_dataset, sample_dataset
from msa_plugin.engine.adapters import find_adapter
from msa_plugin.errors import MissingExtraError, MSAError
from msa_plugin.memory import LatentMemory

_LOG = logging.getLogger(__name__)
Create: TypeAlias = Callable[..., Any]  # (name, workspace[, options]) -> system


class RunSettings(Settings):
    """Options of every command that runs systems."""

    out: Place = option(..., "Folder for results and the report; what it holds is not measured again.", "--out", "-o")
    seed: int = option(0, "Seed of what is sampled and made.")
    model: str | None = MODEL
    adapter: Path | None = ADAPTER
    fresh: bool = option(False, "Forget this folder's earlier results of this kind.")
    cache: Place | None = option(None, "Folder for encoded passages and indexes, to share among runs [OUT/cache].")

    @property
    def kept(self) -> Path:
        """Where encoded passages and indexes are kept."""
        return self.cache or self.out / "cache"


def registered(name: str, workspace: Workspace, *options: Any) -> Any:
    """A system that the command line knows by name."""
    from msa_plugin.bench import systems

    return systems.create(name, workspace, *options)


@dataclass
class Run:
    """One run of one part ("retrieval", "qa", "scale", "latency" or "needle").

    `create` makes systems, `cache` is for their indexes, `generation` are options of `LatentMemory.ask`.
    `failed` are the (data set, system) that did not run and are not tried again.
    """

    part: str
    results: Results
    banks: Banks
    cache: Path
    generation: Mapping[str, Any]
    create: Create = registered
    watch: Watch = field(default_factory=Watch)
    failed: set[tuple[str, str]] = field(default_factory=set)

    @contextmanager
    def workspace(self, dataset: Dataset) -> Iterator[Workspace]:
        """A workspace whose corpus is encoded when a system asks for the memory, and goes on where a run stopped."""
        with self.banks.unfilled(dataset.documents) as memory:

            def step(_: str, done: int, total: int) -> None:
                self.watch.step(f"encoding {dataset.name}", done, total)

            def fill() -> float:
                self.banks.encode(dataset.documents, step)
                self.banks.build(dataset.documents)
                memory.refresh()
                self._warm(memory)
                return self.banks.seconds(workspace.tokens)

            workspace = Workspace(dataset, memory, self.cache, dict(self.generation), self.watch.step, fill)
            yield workspace

    def _warm(self, memory: LatentMemory) -> None:
        """What is computed once per memory (the prompt's head, mapped keys) is not charged to whoever comes first."""
        memory.retrieve("Is everything ready?", 1)
        if self.part == "qa":
            memory.ask("Is everything ready?", documents=[], max_new_tokens=1)

    @contextmanager
    def prepared(
        self, name: str, workspace: Workspace, *options: Any, made: Any = None, where: str | None = ""
    ) -> Iterator[Any]:
        """A system (`made` or created) that has indexed the corpus, with its `cost` if it indexes; closed in the end.

        What it has to say is noted, with `where` behind its name; not with None.
        """
        system = self.create(name, workspace, *options) if made is None else made
        try:
            self.watch.say(f"{workspace.dataset.name}: {name}")
            system.cost = system.prepare() if hasattr(system, "prepare") else None
            for said in () if where is None else getattr(system, "notes", ()):
                self.note(workspace.dataset.name, f"{name}{where}: {said}")
            yield system
        finally:
            if hasattr(system, "close"):
                system.close()

    def missing(self, dataset: str, systems: Iterable[str], settings: Mapping[str, Any]) -> list[str]:
        """The systems that have no rows with these settings yet."""
        return [name for name in systems if not self.results.has((self.part, dataset, name, settings))]

    def note(self, dataset: str, said: str) -> None:
        """Something that a reader of the results must know."""
        self.results.note(self.part, dataset, said)

    def why(self, name: str, error: Exception) -> str:
        """Log that something is left out; returns why, with the kind of error where it is not one of ours."""
        ours = isinstance(error, MSAError)
        _LOG.warning("%s is left out: %s", name, error, exc_info=not ours)
        return str(error) if ours else f"{type(error).__name__}: {error}"

    def skip(self, dataset: str, name: str, error: Exception, also: str = "") -> None:
        """Record that a system did not run, and why."""
        self.failed.add((dataset, name))
        self.results.skip(self.part, dataset, name, self.why(f"{name} on {dataset}", error) + also)

    def store(self, rows: Iterable[ResultRow], dataset: str, system: str, documents: int, tokens: int) -> None:
        """Keep rows of one system on one corpus."""
        where: dict[str, Any] = {"dataset": dataset, "system": system, "documents": documents, "tokens": tokens}
        self.results.add(replace(row, **where) for row in rows)

    def datasets(self, paths: Sequence[Path], check: Callable[[Dataset], None] = lambda _: None) -> Iterator[Dataset]:
        """The data sets in these folders (none: the sample corpus); one of several that cannot be used is skipped.

        Raises what loading one raises, or `check`, where it is the only one.
        """

        def load(path: Path) -> Dataset | None:
            try:
                dataset = load_dataset(path)
                check(dataset)
            except MSAError as error:
                if len(paths) == 1:
                    raise
                why = self.why(path.name, error).replace(str(path), path.name)
                self.results.skip(self.part, path.resolve().name, "", why)
                return None
            return dataset

        found = map(load, paths) if paths else (sample_dataset(),)
        return (dataset for dataset in found if dataset is not None)

    def rows(self, *parts: str) -> list[ResultRow]:
        """What the folder holds of this part, and of `parts`."""
        return [row for row in self.results.rows() if row.part in (self.part, *parts)]


@contextmanager
def opened_run(
    settings: RunSettings,
    part: str,
    identity: Callable[[Backbone], Mapping[str, Any]],
    memory: MemoryConfig,
    generation: Mapping[str, Any],
    *,
    create: Create | None = None,
    backbone: Backbone | None = None,
    adapter: Adapter | None = None,
    watch: Watch | None = None,
) -> Iterator[Run]:
    """A run in the folder of `settings`. `identity` is what two runs must share for their rows to stand side by side.

    `create`, `backbone` and `adapter` replace the registry and what is configured. Raises ConfigError for another
    configuration in the same folder, and while another process writes to it.
    """
    with Results(settings.out, seed=settings.seed) as results, watch or Watch(sys.stderr) as shown:
        results.claim()
        backbone = backbone or Backbone.load(settings.model, device=memory.device, dtype=memory.dtype)
        adapter = find_adapter(backbone, adapter or settings.adapter)
        banks = Banks(settings.kept / BANKS, backbone, adapter, memory)
        said = {**identity(backbone), "made_with": asdict(banks.made_with)}
        results.configure(part, said, fresh=settings.fresh)
        yield Run(part, results, banks, settings.kept.resolve(), generation, create or registered, shown)


def index_costs(cost: Cost | None, **settings: Any) -> list[ResultRow]:
    """What indexing took and what is kept, per token; nothing of a system that indexes nothing."""
    if cost is None or not cost.tokens:
        return []
    values = {
        "index_seconds_per_1k_tokens": 1000 * cost.seconds / cost.tokens,
        "disk_bytes_per_token": cost.disk_bytes / cost.tokens,
        "memory_bytes_per_token": cost.memory_bytes / cost.tokens,
    }
    return [ResultRow("cost", "", "", metric, value, n=1, settings=settings) for metric, value in values.items()]


def show(out: Voice, folder: Path, rows: Sequence[ResultRow]) -> None:
    """Say the notes and tables of `rows`, and write the folder's report, where what it needs is installed."""
    for row in rows:
        if row.metric == NOTE:
            out.say(f"note: {row.dataset}: {row.settings['reason']}")
    out.say(table(rows))
    try:
        out.say(f"report: {write_report(folder)}")
    except MissingExtraError as error:
        out.note(f"no report: {error}")
