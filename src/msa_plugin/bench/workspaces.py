"""From a data set to a workspace: its corpus in a memory of its own, built once and reopened by later runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.bench import jsonl
from msa_plugin.bench.base import Dataset, OnStep, Workspace
from msa_plugin.bench.datasets import corpus_hash
from msa_plugin.config import MemoryConfig
from msa_plugin.engine.engine import fingerprint
from msa_plugin.memory import LatentMemory
from msa_plugin.types import Progress

ENCODING = "encoding.json"  # in a workspace's cache: {"seconds", "tokens"} that encoding the corpus took in all


def made_with(backbone: Backbone, adapter: Adapter, config: MemoryConfig) -> dict[str, Any]:
    """What names the backbone, the adapter and their settings, without saying where they lie."""
    return asdict(fingerprint(backbone, adapter, config))


@contextmanager
def open_workspace(
    dataset: Dataset,
    cache: Path,
    backbone: Backbone,
    adapter: Adapter,
    config: MemoryConfig,
    generation: Mapping[str, Any],
    on_step: OnStep,
) -> Iterator[Workspace]:
    """The workspace of `dataset`, its bank under `cache`/banks; encoding goes on where an earlier run stopped."""
    made = json.dumps([corpus_hash(dataset.documents), made_with(backbone, adapter, config)], sort_keys=True)
    name = f"{dataset.name}-{hashlib.sha256(made.encode()).hexdigest()[:12]}"
    with LatentMemory.open(cache / "banks" / name, model=backbone, adapter=adapter, config=config) as memory:
        folder = cache / name
        folder.mkdir(parents=True, exist_ok=True)
        _encode(memory, dataset, folder / ENCODING, on_step)
        yield Workspace(dataset, memory, folder, dict(generation), on_step)


def _encode(memory: LatentMemory, dataset: Dataset, account: Path, on_step: OnStep) -> None:
    total = len(dataset.documents)
    if memory.stats().documents == total:
        return

    def show(progress: Progress) -> None:
        on_step(f"encoding {dataset.name}", progress.documents, total)

    report = memory.add(list(dataset.documents), on_progress=show)
    before = json.loads(account.read_text(encoding="utf-8")) if account.exists() else {"seconds": 0.0, "tokens": 0}
    spent = {"seconds": before["seconds"] + report.seconds, "tokens": before["tokens"] + report.tokens}
    jsonl.write_atomic(account, json.dumps(spent))
