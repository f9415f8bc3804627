"""How a shard comes by the backbone: by its name where it has one, else by the files that it is saved as.

Files, not objects: they are read by the loaders that read any model, and nothing in them is run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.backbone.backbone import Backbone
from msa_plugin.backbone.loading import bars_on_terminals_only
from msa_plugin.config import MemoryConfig

_Files = dict[str, bytes]


@dataclass(frozen=True)
class Shipped:
    """Backbone and adapter on their way. `model` is what `LatentMemory.open` was given, or the files it became."""

    model: str | _Files | None
    dtype: str
    adapter: _Files

    @classmethod
    def pack(cls, model: str | Backbone | None, adapter: Adapter, config: MemoryConfig) -> Shipped:
        """For the journey."""
        if isinstance(model, Backbone):
            return cls(_saved_backbone(model), str(model.dtype).removeprefix("torch."), _saved_adapter(adapter))
        return cls(model, config.dtype, _saved_adapter(adapter))

    def unpack(self, config: MemoryConfig) -> tuple[Backbone, Adapter]:
        """Load both. Raises what `Backbone.load` raises."""
        with tempfile.TemporaryDirectory() as folder:
            adapter = Adapter.load(_written(Path(folder, "adapter"), self.adapter))
            name = self.model
            if isinstance(name, dict):
                name = str(_written(Path(folder, "model"), name))
            # Weights may stay mapped from the files; their data outlives the names that are removed here.
            return Backbone.load(name, device=config.device, dtype=self.dtype, cosine=config.cosine), adapter


def _saved_backbone(backbone: Backbone) -> _Files:
    with tempfile.TemporaryDirectory() as folder:
        with bars_on_terminals_only():
            backbone.model.save_pretrained(folder)
        if backbone.tokenizer is not None:
            backbone.tokenizer.save_pretrained(folder)
        return _read(Path(folder))


def _saved_adapter(adapter: Adapter) -> _Files:
    with tempfile.TemporaryDirectory() as folder:
        adapter.save(Path(folder))
        return _read(Path(folder))


def _read(folder: Path) -> _Files:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _written(folder: Path, files: _Files) -> Path:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
