"""From a data set to a workspace: its corpus in a bank of its own, encoded once for all runs that share a cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench.base import OnStep, Workspace
from msa_plugin.bench.growth import Banks
from msa_plugin.data.datasets import Dataset
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Document


@contextmanager
def scratch_memory(
    backbone: Backbone, adapter: Adapter | Path | None, documents: Iterable[Document] = (), **settings: Any
) -> Iterator[LatentMemory]:
    """A memory in a temporary folder, with these documents."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LatentMemory.open(Path(folder) / "bank", model=backbone, adapter=adapter, **settings) as memory,
    ):
        if given := list(documents):
            memory.add(given, on_progress=lambda _: None)
        yield memory


@contextmanager
def open_workspace(
    dataset: Dataset,
    banks: Banks,
    generation: Mapping[str, Any],
    on_step: OnStep,
    ready: Callable[[LatentMemory], None],
) -> Iterator[Workspace]:
    """The workspace of `dataset`, its caches beside `banks`. `ready` is called once with the memory, when it is filled.

    The corpus is encoded when a system asks for the memory, and goes on where an earlier run stopped.
    """
    with banks.unfilled(dataset.documents) as memory:
        workspace: Workspace

        def fill() -> float:
            banks.encode(dataset.documents, lambda _, done, total: on_step(f"encoding {dataset.name}", done, total))
            banks.build(dataset.documents)
            memory.refresh()
            ready(memory)
            return banks.seconds(workspace.tokens)

        workspace = Workspace(dataset, memory, banks.folder.parent.parent, dict(generation), on_step, fill)
        yield workspace
