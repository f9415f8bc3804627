"""How an `MSAIndex` is found again: its entry in LlamaIndex's registries, and the file that `persist` writes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS

from msa_plugin.errors import BankFormatError, BankNotFoundError, ConfigError
from msa_plugin.memory import LatentMemory

TYPE = "msa"
FILE = "msa_index.json"
_FORMAT = 1


@dataclass
class MSAIndexStruct(IndexDict):
    """Says that an index is an `MSAIndex`. An `IndexDict` says "vector_store", and would be loaded as one."""

    @classmethod
    def get_type(cls) -> str:  # type: ignore[override]
        """The type under which index stores save it; IndexStructType is an enum that cannot be added to."""
        return TYPE


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[TYPE] = MSAIndexStruct  # type: ignore[index]


@dataclass(frozen=True)
class Origin:
    """Where an index's memory is and how it was opened; `model` and `adapter` only where they were given as names."""

    bank: str
    namespace: str
    settings: dict[str, Any]
    model: str | None = None
    adapter: str | None = None

    def open_settings(self) -> dict[str, Any]:
        """Arguments of `LatentMemory.open` besides the path."""
        names = {"model": self.model, "adapter": self.adapter}
        return {"namespace": self.namespace, **self.settings, **{k: v for k, v in names.items() if v is not None}}


def open_memory(
    memory: LatentMemory | None, path: str | Path | None, settings: dict[str, Any]
) -> tuple[LatentMemory, Origin]:
    """The memory given, or the one opened at `path`. Raises ConfigError unless it is exactly one of them."""
    if (memory is None) == (path is None):
        raise ConfigError("give an MSAIndex either memory=LatentMemory.open(...) or path= to a folder for one")
    if memory is not None and settings:
        raise ConfigError(f"{sorted(settings)} are settings of LatentMemory.open; this memory is open already")
    opened = memory if memory is not None else LatentMemory.open(path or "", **settings)
    named = {key: str(settings[key]) for key in ("model", "adapter") if isinstance(settings.get(key), (str, Path))}
    chosen = opened.config.model_dump(mode="json", exclude_defaults=True)
    return opened, Origin(str(opened.path.resolve()), opened.namespace, chosen, **named)


def write(folder: Path, origin: Origin, index_id: str) -> None:
    """Write `FILE`, the bank's place relative to it, so that both can be moved together."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": _FORMAT,
        "index_id": index_id,
        "bank": os.path.relpath(origin.bank, folder),
        "namespace": origin.namespace,
        "settings": origin.settings,
        "model": origin.model,
        "adapter": origin.adapter,
    }
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.replace(folder / FILE)


def read(folder: Path) -> tuple[Origin, str]:
    """What `write` wrote, and the index's id. Raises BankNotFoundError and BankFormatError."""
    file = folder / FILE
    if not file.is_file():
        raise BankNotFoundError(f"{folder} holds no {FILE}: MSAIndex.persist() writes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise BankFormatError(f"{file} was written in another format; persist the index again")
        index_id = str(content.pop("index_id"))
        origin = Origin(**{**content, "bank": str((folder / content["bank"]).resolve())})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise error if isinstance(error, BankFormatError) else BankFormatError(f"{file} is damaged: {error}") from error
    return origin, index_id


def check_namespace(origin: Origin, namespace: str) -> None:
    """Raises ConfigError when an index is loaded into another namespace than it was persisted from."""
    if namespace != origin.namespace:
        raise ConfigError(f"the index was persisted from namespace {origin.namespace!r}, not {namespace!r}")
