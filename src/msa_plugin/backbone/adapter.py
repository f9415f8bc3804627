"""An adapter on disk: `adapter.json` (what it is, what it can do) and `adapter.safetensors` (its weights)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from msa_plugin.backbone.cache import refused
from msa_plugin.backbone.lora import Lora
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.config import (
    Abilities,
    BesideConfig,
    ContentConfig,
    LoraConfig,
    RelevanceConfig,
    RoutingConfig,
    Settings,
    Size,
)
from msa_plugin.errors import AdapterError, ConfigError, DiskError

# Format 2 is format 1 with LoRA, format 3 one of them with a reader. Each is written only where it is needed, so that
# earlier packages read what they can.
PLAIN_FORMAT, LORA_FORMAT, READER_FORMAT = 1, 2, 3
_CONFIG, _WEIGHTS, _READER, _TOKENS = "adapter.json", "adapter.safetensors", "reader.safetensors", "token_weights"
_PARTS = ("q_weight", "k_weight", "q_bias", "k_bias")


class AdapterConfig(Settings):
    """What an adapter is: routing, what it reads, what it was trained for, and where it came from.

    `backbone` and `tokenizer` are hashes it was made for. `prefix` is a special token put before every document and
    question (None: nothing). `reading` says which layers attend to memory and how it is pooled. `top_k` documents are
    selected, and a question over latents starts at the template head's length plus `top_k` (golden spec section 2).
    `numbered` adapters encode a document between markers and its number, as the reference does (golden spec 3.1), and
    `id_width` is how many digits the numbers had that it was trained on (None: any number will do).
    `lora` (None: the backbone is left as it is) describes the updates that lie beside the router. `reader` (None: the
    stock model answers) describes those that answers are made with; nothing that a bank keeps depends on them, unless
    it keeps K and V for them to read.
    `beside` is what counts beside routing keys where a memory's settings do not say: what it was measured best with.
    `relevance` says what a hit's signals mean (`retrieval.relevance`); None: nothing was fitted, and hits have none.
    `provenance` and `measured` are for people.
    """

    name: str
    backbone: str
    tokenizer: str
    hidden: Size
    routing: RoutingConfig
    reading: ContentConfig
    abilities: Abilities = Abilities()
    top_k: Size = 16
    prefix: str | None = None
    numbered: bool = False
    id_width: int | None = Field(default=None, gt=0, le=18)
    lora: LoraConfig | None = None
    reader: LoraConfig | None = None
    beside: BesideConfig = BesideConfig()
    relevance: RelevanceConfig | None = None
    format_version: int = PLAIN_FORMAT
    provenance: Mapping[str, Any] = Field(default_factory=dict)
    measured: Mapping[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _readable(self) -> AdapterConfig:
        if self.routing.selection == "per_layer" and not set(self.reading.layers) <= set(self.routing.layers):
            raise ValueError("with selection='per_layer' every reading layer must be a routing layer")
        if self.numbered and self.prefix is not None:
            raise ValueError("a numbered document starts with a marker already; prefix must be null")
        if self.abilities.emit_ids and self.id_width and not self.numbered:
            raise ValueError("id_width is the width of the numbers documents are encoded with; it needs numbered")
        if self.routing.selection == "per_layer" and self.beside != BesideConfig():
            raise ValueError("words and names count beside one ranking for all layers; beside needs selection='shared'")
        if self.routing.selection == "per_layer" and self.relevance is not None:
            raise ValueError("relevance is fitted to one ranking for all layers; it needs selection='shared'")
        for notes in (self.provenance, self.measured):
            json.dumps(dict(notes), default=str, allow_nan=False)  # a ValueError for what no JSON can hold
        return self


@dataclass(frozen=True)
class Adapter:
    """An adapter's configuration, its router, its updates of the backbone and its reader, if it has them."""

    config: AdapterConfig
    router: Router
    lora: Lora | None = None
    reader: Lora | None = None

    def __post_init__(self) -> None:
        """Describes both LoRAs where the config does not. Raises AdapterError for a config that describes others."""
        lora = _described(self.config.name, "LoRA", self.lora, self.config.lora)
        reader = _described(self.config.name, "reader", self.reader, self.config.reader)
        if self.config.abilities.answer != (reader is not None):
            raise AdapterError(f"adapter {self.config.name}: the ability 'answer' and a reader go together")
        if self.config.abilities.read_kv and reader is None:
            raise AdapterError(f"adapter {self.config.name}: the ability 'read_kv' takes a reader")
        version = READER_FORMAT if reader is not None else LORA_FORMAT if lora is not None else PLAIN_FORMAT
        told = {"lora": lora, "reader": reader, "format_version": version}
        object.__setattr__(self, "config", self.config.model_copy(update=told))

    @property
    def answers_with_lora(self) -> bool:
        """Whether what has been found is read with the updates too."""
        return self.config.lora is not None and self.config.lora.answers

    def save(self, folder: Path) -> None:
        """Write both files into `folder`, weights first, so that a folder with a config is complete.

        Raises DiskError.
        """
        try:
            self._write(folder)
        except OSError as error:
            raise refused(error, folder) from error
        except SafetensorError as error:  # what it makes of a full disk
            raise DiskError(f"{folder / _WEIGHTS}: {error}; check its permissions and the free space") from error

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), str(folder / _WEIGHTS))
        absent: dict[str, Any] = {} if self.lora is not None else {"lora": True}  # earlier packages refuse new fields
        if self.config.beside == BesideConfig():
            absent["beside"] = True
        elif not self.config.beside.mentions:
            absent["beside"] = {"mentions"}
        if self.config.relevance is None:
            absent["relevance"] = True
        if self.reader is None:
            absent |= {"reader": True, "abilities": {"answer", "read_kv"}}
            (folder / _READER).unlink(missing_ok=True)
        else:  # in half the space: what is rounded off is far below what one step of training changes
            halves = {name: t.detach().to(torch.float16) for name, t in self.reader.tensors().items()}
            save_file(halves, str(folder / _READER))
        text = json.dumps(self.config.model_dump(mode="json", exclude=absent), indent=1, sort_keys=True)
        (folder / _CONFIG).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Adapter:
        """Read an adapter. Raises AdapterError naming the file or field that is wrong."""
        try:
            raw = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            _check_version(folder / _CONFIG, raw)
            tensors = load_file(str(folder / _WEIGHTS))
            read = load_file(str(folder / _READER)) if raw.get("reader") is not None else {}
        except AdapterError:
            raise
        except (OSError, ValueError, RecursionError, SafetensorError) as error:
            raise AdapterError(f"cannot read an adapter from {folder}: {error}") from error
        try:
            config = AdapterConfig(**raw)
        except ConfigError as error:
            raise AdapterError(f"{folder / _CONFIG}: {error}") from error
        _check_numbers(_WEIGHTS, tensors)
        _check_numbers(_READER, read)
        lora, reader = Lora.named(tensors), Lora.named(read)
        if lora is not None and config.lora is None:
            raise AdapterError(f"{folder / _WEIGHTS} holds a LoRA that {_CONFIG} does not describe in its field 'lora'")
        return cls(config, Router(config.routing, _layers(tensors, config), tensors.get(_TOKENS)), lora, reader)

    def reader_hash(self) -> str:
        """SHA-256 of the reader, on which the K and V depend that are stored for it; "" without one."""
        return "" if self.reader is None else _digest(hashlib.sha256(), self.reader.tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {
            f"router.{index}.{part}": value.contiguous()
            for index, layer in self.router.layers.items()
            for part, value in vars(layer).items()
            if value is not None
        }
        if self.router.token_weights is not None:
            tensors[_TOKENS] = self.router.token_weights.contiguous()
        if self.lora is not None:
            tensors |= {name: tensor.detach() for name, tensor in self.lora.tensors().items()}
        return tensors

    def hash(self) -> str:
        """SHA-256 of all that latents depend on: routing, reading, prefix, numbering, weights; not name and reader."""
        digest = hashlib.sha256()
        c = self.config
        latents: list[Any] = [c.routing.model_dump(), c.reading.model_dump(), c.prefix]
        latents += ["numbered", c.id_width] if c.numbered else []  # as before for all others, whose banks stay valid
        digest.update(json.dumps(latents, sort_keys=True).encode())
        return _digest(digest, self._tensors())


def _digest(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> str:
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def _check_version(path: Path, raw: object) -> None:
    """Raises AdapterError for another format; before weights are looked for, which may lie elsewhere in it."""
    fields = raw if isinstance(raw, dict) else {}
    found = fields.get("format_version")
    if found not in (PLAIN_FORMAT, LORA_FORMAT, READER_FORMAT):
        raise AdapterError(
            f"{path}: format_version {found!r}; this package reads {PLAIN_FORMAT} to {READER_FORMAT}; "
            "use the package version that wrote it, or a newer one"
        )
    for own, field, what in ((READER_FORMAT, "reader", "a reader"), (LORA_FORMAT, "lora", "a LoRA")):
        if (found == own) != (fields.get(field) is not None):
            raise AdapterError(
                f"{path}: format_version {found} and the field {field!r} do not go together: format {own} is the one "
                f"with {what}"
            )
        if found == own:
            return  # a LoRA may lie beside a reader


def _described(name: str, what: str, lora: Lora | None, stated: LoraConfig | None) -> LoraConfig | None:
    """What a configuration says of `lora`. Raises AdapterError where it says something else."""
    if lora is None:
        if stated is not None:
            raise AdapterError(f"adapter {name} says it has a {what}, and its weights hold none")
        return None
    found = lora.described(answers=stated is not None and stated.answers)
    if stated is not None and stated != found:
        raise AdapterError(
            f"adapter {name} says its {what} has rank {stated.rank} on layers {list(stated.layers)}; "
            f"its weights have rank {found.rank} on {list(found.layers)}"
        )
    return found


def _check_numbers(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises AdapterError for weights that would make every score NaN, or fail far from here."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise AdapterError(f"{file}: {name} is {tensor.dtype}; weights are float32, float16 or bfloat16")
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"{file}: {name} holds NaN or infinite numbers; make the adapter again")


def _layers(tensors: Mapping[str, Tensor], config: AdapterConfig) -> dict[int, RouterLayer]:
    if config.routing.source == "attention":
        return {}
    layers = {}
    for index in config.routing.layers:
        parts = {part: tensors.get(f"router.{index}.{part}") for part in _PARTS}
        q, k = parts["q_weight"], parts["k_weight"]
        if q is None or k is None:
            raise AdapterError(f"{_WEIGHTS} lacks router.{index}.q_weight or router.{index}.k_weight")
        if q.ndim != 2 or k.ndim != 2 or q.shape[1] != config.hidden or k.shape[1] != config.hidden:
            raise AdapterError(f"router.{index}: projections must have {config.hidden} columns")
        for weight, bias in ((q, parts["q_bias"]), (k, parts["k_bias"])):
            if bias is not None and bias.shape != weight.shape[:1]:
                raise AdapterError(
                    f"router.{index}: a bias has shape {tuple(bias.shape)}, its projection {weight.shape}"
                )
        layers[index] = RouterLayer(q, k, parts["q_bias"], parts["k_bias"])
    return layers
