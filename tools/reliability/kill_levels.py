"""The two levels at which changes are made and killed: the bank with synthetic latents, and the facade that encodes."""

from __future__ import annotations

import functools
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from bank_builder import counted_from_texts, encoded, open_bank, segment_folders, words_of
from kill_model import IDS, SPACES, Model, Op, text_of

from msa_plugin.bank import compaction
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.memory import LatentMemory
from tiny import tiny_adapter, tiny_backbone


class BankLevel:
    """Documents of one to three chunks, in three namespaces; many small segments are merged after every few commits."""

    spaces: tuple[str, ...] = SPACES
    kinds: tuple[str, ...] = ("add", "add-long", "delete", "compact", "snapshot", "drop")

    def prepare(self) -> None:
        """In the process that makes changes."""
        compaction.TAIL_SEGMENTS = 5

    def open(self, folder: Path, snapshot: str | None = None) -> AbstractContextManager[Any]:
        return open_bank(folder, snapshot=snapshot)

    def apply(self, bank: MemoryBank, op: Op) -> None:
        match op:
            case {"op": "add", "space": space, "items": items}:
                bank.commit([_encoded(name, version, tuple(meta.items())) for name, version, meta in items], space)
            case {"op": "delete", "space": space, "ids": ids}:
                bank.delete(ids, space)
            case {"op": "compact", "segment_bytes": size}:
                bank.compact(size)
            case {"op": "snapshot", "name": name}:
                bank.snapshot(name)
            case {"op": "drop", "name": name}:
                bank.drop_snapshot(name)

    def holds(self, bank: MemoryBank, spaces: dict[str, Any]) -> bool:
        """Whether documents, metadata, texts, words, keys and content are exactly those of the model."""
        return all(self._space_holds(bank, space, spaces[space]) for space in SPACES)

    def _space_holds(self, bank: MemoryBank, space: str, expected: dict[str, Any]) -> bool:
        stored = bank.get(IDS, space)
        if list(bank.iter_ids(space)) != sorted(expected) or bank.count(space) != len(expected):
            return False
        if {i: (d.text, d.metadata) for i, d in stored.items()} != {
            i: (text_of(i, version), meta) for i, (version, meta) in expected.items()
        }:
            return False
        selected = bank.select(space).ordinals().tolist()
        return (
            words_of(bank, space) == counted_from_texts(bank, space)
            and sorted(d.ordinal for d in stored.values()) == selected
            and all(
                self._latents_hold(bank, stored[i].ordinal, _encoded(i, version, tuple(meta.items())))
                for i, (version, meta) in expected.items()
            )
        )

    def _latents_hold(self, bank: MemoryBank, ordinal: int, expected: Any) -> bool:
        found = bank.latents(ordinal)
        return all(found.keys[group].equal(rows) for group, rows in expected.keys.items()) and all(
            found.content[layer].equal(rows) for layer, rows in expected.content.items()
        )

    def names(self, bank: MemoryBank) -> set[str]:
        return {snapshot.name for snapshot in bank.snapshots()}

    def tidy(self, bank: MemoryBank) -> bool:
        """Whether no segment folder is left that nobody names."""
        return len(segment_folders(bank.path)) == bank.stats(SPACES[0]).segments


class FacadeLevel(BankLevel):
    """The same through `LatentMemory` and a tiny random model, which encodes in the process that is killed."""

    spaces = SPACES[:1]
    kinds = ("add", "delete", "compact", "snapshot", "drop")

    def __init__(self, scratch: Path) -> None:
        """`scratch` is a folder for what texts are encoded as, undisturbed."""
        torch.set_num_threads(1)  # processes are forked: no threads may be running
        self._backbone = tiny_backbone()
        self._adapter = tiny_adapter(self._backbone)
        self._scratch = scratch
        self._vectors: dict[tuple[str, int], Any] = {}

    def open(self, folder: Path, snapshot: str | None = None) -> AbstractContextManager[Any]:
        return LatentMemory.open(
            folder, model=self._backbone, adapter=self._adapter, snapshot=snapshot, namespace=SPACES[0]
        )

    def apply(self, memory: LatentMemory, op: Op) -> None:
        if op["op"] == "add":
            documents = [{"id": i, "text": text_of(i, version), "metadata": meta} for i, version, meta in op["items"]]
            if len(documents) == 1 and memory.get(documents[0]["id"]):
                memory.update(documents[0])
            else:
                memory.add(documents)
        elif op["op"] == "delete":
            memory.delete(op["ids"])
        elif op["op"] == "compact":
            memory.compact()
        else:
            super().apply(memory, op)

    def holds(self, memory: LatentMemory, spaces: dict[str, Any]) -> bool:
        expected = spaces[SPACES[0]]
        found = {d.id: (d.text, dict(d.metadata)) for d in memory.get(list(IDS))}
        vectors = memory.routing_keys(list(IDS))
        return (
            found == {i: (text_of(i, version), meta) for i, (version, meta) in expected.items()}
            and sorted(memory.ids()) == sorted(expected)
            and all(abs(vectors[i] - self._vector(i, v)).max() < 1e-3 for i, (v, _) in expected.items())
        )

    def _vector(self, name: str, version: int) -> Any:
        if (name, version) not in self._vectors:
            shutil.rmtree(self._scratch, ignore_errors=True)
            with self.open(self._scratch) as memory:
                memory.add({"id": name, "text": text_of(name, version)})
                self._vectors[name, version] = memory.routing_keys([name])[name]
        return self._vectors[name, version]

    def names(self, memory: LatentMemory) -> set[str]:
        return set(memory.stats().snapshots)

    def tidy(self, memory: LatentMemory) -> bool:
        return super().tidy(memory._bank)


@functools.lru_cache(maxsize=512)
def _encoded(name: str, version: int, metadata: tuple[tuple[str, Any], ...]) -> Any:
    return encoded(name, text_of(name, version), chunks=1 + version % 3, **dict(metadata))


def matching(level: BankLevel, folder: Path, models: list[Model]) -> Model | None:
    """The one of `models` that the bank in `folder` holds, snapshots and all; opening it is part of the trial."""
    with level.open(folder) as handle:
        assert level.tidy(handle), "folders that nobody names"
        for model in models:
            if level.names(handle) == set(model.snapshots) and level.holds(handle, model.spaces):
                break
        else:
            return None
    for name, spaces in model.snapshots.items():
        with level.open(folder, name) as reader:
            assert level.holds(reader, spaces), f"snapshot {name} is not what was named"
    return model
