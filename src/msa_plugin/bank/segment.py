"""A segment: one immutable folder of latents, written once, checksummed, and read through memory maps.

`keys.safetensors` holds `ordinals` int64 [n] (ascending), `key_offsets` int64 [n + 1] and, per key group,
`key.<group>` [C, W]. `content.safetensors`, present only where content is kept, holds `content_offsets` int64 [n + 1]
and, per layer, `content.<layer>` [C', 2, KV, D]. Rows of one document are adjacent (chunk-major), so that reading a
document is one contiguous read per tensor. Nothing here knows about versions, namespaces or filters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa_plugin.bank.disk import fsync_folder
from msa_plugin.errors import BankCorruptError

KEYS_FILE, CONTENT_FILE = "keys.safetensors", "content.safetensors"
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}(\.tmp)?")
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Latents(NamedTuple):
    """One document's tensors: `keys` per group [C, W], `content` per layer [C', 2, KV, D] (empty: none kept)."""

    keys: Mapping[str, Tensor]
    content: Mapping[int, Tensor]

    @property
    def chunks(self) -> int:
        """Chunks that are routed to."""
        return next(iter(self.keys.values())).shape[0]

    @property
    def signature(self) -> tuple[tuple[object, ...], ...]:
        """Names, row shapes and dtypes; documents share a segment only where these are equal."""
        named = [*self.keys.items(), *self.content.items()]
        return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in named)


class FileRecord(NamedTuple):
    """Size in bytes and SHA-256 (hex) of a file, as the catalog remembers them."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SegmentRecord:
    """What the catalog knows of a segment. `namespace` is None where documents of several namespaces share it."""

    uuid: str
    namespace: str | None
    first_ordinal: int
    last_ordinal: int
    documents: int
    chunks: int
    keys: FileRecord
    content: FileRecord | None
    number: int = 0

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.keys.bytes + (self.content.bytes if self.content else 0)

    def files(self, root: Path) -> list[tuple[Path, FileRecord]]:
        """Each file's path under the `segments` folder `root`, and its record."""
        found = [(root / self.uuid / KEYS_FILE, self.keys)]
        return [*found, (root / self.uuid / CONTENT_FILE, self.content)] if self.content else found


def write_segment(
    root: Path, ordinals: Sequence[int], latents: Sequence[Latents], namespace: str | None
) -> SegmentRecord:
    """Write one segment durably under `root`; it becomes real only when the catalog names it.

    `ordinals` ascend; `latents` have one signature. Tensors are streamed to disk one document at a time. Raises OSError
    and leaves nothing behind then.
    """
    name = uuid.uuid4().hex
    temporary, final = root / f"{name}.tmp", root / name
    try:
        temporary.mkdir(parents=True)
        keys = _write_file(temporary / KEYS_FILE, _key_tensors(ordinals, latents))
        content = None
        if latents[0].content:
            content = _write_file(temporary / CONTENT_FILE, _content_tensors(latents))
        fsync_folder(temporary)
        os.replace(temporary, final)  # noqa: PTH105 - tests replace it to cut the power here
        fsync_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    chunks = sum(item.chunks for item in latents)
    return SegmentRecord(name, namespace, ordinals[0], ordinals[-1], len(ordinals), chunks, keys, content)


def _key_tensors(ordinals: Sequence[int], latents: Sequence[Latents]) -> dict[str, list[Tensor]]:
    tensors = {"ordinals": [torch.tensor(ordinals)], "key_offsets": [_offsets(item.chunks for item in latents)]}
    return tensors | {f"key.{group}": [item.keys[group] for item in latents] for group in latents[0].keys}


def _content_tensors(latents: Sequence[Latents]) -> dict[str, list[Tensor]]:
    lengths = (next(iter(item.content.values())).shape[0] for item in latents)
    tensors = {"content_offsets": [_offsets(lengths)]}
    return tensors | {f"content.{layer}": [item.content[layer] for item in latents] for layer in latents[0].content}


def _offsets(lengths: Iterator[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)])


def _write_file(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> FileRecord:
    """Write a safetensors file whose tensors are concatenations along dimension 0 of the given parts.

    The format is a JSON header and the bytes; writing it here streams documents straight from their source (a memory
    map, when compacting), hashes on the way, and surfaces a full disk as the OSError that it is.
    """
    # int64 first: every tensor then starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: -tensors[name][0].element_size())
    digest, written = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in _blocks(order, tensors):
            digest.update(block)
            file.write(block)
            written += len(block)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(written, digest.hexdigest())


def _blocks(order: Sequence[str], tensors: Mapping[str, Sequence[Tensor]]) -> Iterator[memoryview | bytes]:
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        parts = tensors[name]
        start, end = end, end + sum(part.numel() * part.element_size() for part in parts)
        shape = [sum(part.shape[0] for part in parts), *parts[0].shape[1:]]
        header[name] = {"dtype": DTYPES[parts[0].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        for part in tensors[name]:
            if part.numel():
                yield part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


class Segment:
    """An open segment. Its tensors are memory maps: opening reads the headers only, whatever the size."""

    def __init__(self, record: SegmentRecord, root: Path) -> None:
        """Map the files of `record`.

        Raises FileNotFoundError for a file that is gone, and BankCorruptError for one whose size, header or shapes
        contradict the catalog. Sizes are checked before mapping: touching a page past the end would kill the process.
        """
        self.record = record
        self._folder = root / record.uuid
        tensors: dict[str, Tensor] = {}
        for path, known in record.files(root):
            tensors.update(_map(path, known.bytes))
        self.keys = {name[4:]: t for name, t in tensors.items() if name.startswith("key.")}
        self.content = {int(name[8:]): t for name, t in tensors.items() if re.fullmatch(r"content\.\d+", name)}
        try:
            self.ordinals, self.key_offsets = tensors["ordinals"], tensors["key_offsets"]
            self.content_offsets = tensors["content_offsets"] if record.content else None
        except KeyError as error:
            raise self._damaged(f"it has no tensor {error}") from error
        self._checked = False
        self._check_shapes()

    def _check_shapes(self) -> None:
        n = self.record.documents
        rows = [(f"key.{group}", tensor.shape[0], self.record.chunks) for group, tensor in self.keys.items()]
        rows += [("ordinals", self.ordinals.numel(), n), ("key_offsets", self.key_offsets.numel(), n + 1)]
        if self.content_offsets is not None:
            rows.append(("content_offsets", self.content_offsets.numel(), n + 1))
        for name, found, expected in rows:
            if found != expected:
                raise self._damaged(f"{name} has {found} rows, the catalog says {expected}")

    def check(self) -> None:
        """Check once, reading 24 bytes per document, that ordinals ascend and offsets stay within their tensors.

        Raises BankCorruptError. Every read goes through it, so that damaged offsets cannot return another document.
        """
        if self._checked:
            return
        ordinals = self.ordinals
        ends = [self.record.first_ordinal, self.record.last_ordinal]
        if [int(ordinals[0]), int(ordinals[-1])] != ends or not _ascending(ordinals, strictly=True):
            raise self._damaged("its ordinals are not those of the catalog")
        self._check_offsets(self.key_offsets, self.record.chunks, "key_offsets")
        for layer, tensor in self.content.items():
            if self.content_offsets is not None:
                self._check_offsets(self.content_offsets, tensor.shape[0], f"content_offsets (layer {layer})")
        self._checked = True

    def _check_offsets(self, offsets: Tensor, rows: int, name: str) -> None:
        if int(offsets[0]) or int(offsets[-1]) != rows or not _ascending(offsets, strictly=False):
            raise self._damaged(f"{name} are not ascending from 0 to {rows}")

    def key_rows(self, position: int, group: str) -> Tensor:
        """Routing keys [C, W] of the document at `position`."""
        self.check()
        return self.keys[group][int(self.key_offsets[position]) : int(self.key_offsets[position + 1])]

    def content_rows(self, position: int, layer: int) -> Tensor:
        """Content [C', 2, KV, D] of the document at `position`."""
        self.check()
        assert self.content_offsets is not None  # callers look `layer` up in `content` first
        return self.content[layer][int(self.content_offsets[position]) : int(self.content_offsets[position + 1])]

    def latents(self, position: int) -> Latents:
        """Everything kept of the document at `position`, as slices of the memory maps."""
        keys = {group: self.key_rows(position, group) for group in self.keys}
        return Latents(keys, {layer: self.content_rows(position, layer) for layer in self.content})

    def document_bytes(self, position: int) -> int:
        """Bytes of the latents of the document at `position`."""
        keys, content = self.latents(position)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*keys.values(), *content.values()))

    @property
    def signature(self) -> tuple[tuple[object, ...], ...]:
        """See `Latents.signature`."""
        return Latents(self.keys, self.content).signature

    def _damaged(self, why: str) -> BankCorruptError:
        return BankCorruptError(f"{self._folder}: {why}; run `msa bank verify`, then restore it from a backup")


def _ascending(values: Tensor, *, strictly: bool) -> bool:
    steps = values[1:] - values[:-1]
    return bool((steps > 0 if strictly else steps >= 0).all())


def _map(path: Path, size: int) -> dict[str, Tensor]:
    found = path.stat().st_size
    if found != size:
        raise BankCorruptError(
            f"{path} has {found} bytes, the catalog says {size}; run `msa bank verify`, then restore it from a backup"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, RuntimeError, ValueError) as error:
        if not path.exists():  # compacted away between the two calls
            raise FileNotFoundError(str(path)) from error
        raise BankCorruptError(
            f"{path} is not readable as safetensors ({error}); run `msa bank verify`, then restore it from a backup"
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file, read in 1 MiB pieces. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def orphans(root: Path, named: Collection[str]) -> list[Path]:
    """Segment folders under `root` that are not among the `named` ones: leftovers of a writer that died."""
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.name not in named and _FOLDER_NAME.fullmatch(p.name)]
