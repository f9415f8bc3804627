"""A segment: one immutable folder of latents, written once, checksummed, and read through memory maps.

`keys.safetensors` holds `ordinals` int64 [n] (ascending), `key_offsets` int64 [n + 1], `key_sums` int64 [n] and, per
key group, `key.<group>` [C, W] and, where that is int8, `key.<group>.scale` float32 [C, 1]. `content.safetensors`,
present only where content is kept, holds `content_offsets` int64 [n + 1], `content_sums` int64 [n] and, per layer,
`content.<layer>` [C', 2, KV, D]. Rows of one document are adjacent (chunk-major), so that reading a document is one
contiguous read per tensor. The sums are each document's CRC-32 over its rows of all tensors, in order of their names;
rows are compared with them when they are first read.
Segments of format 1 have no sums. Nothing here knows about versions, namespaces or filters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa_plugin.bank.disk import fsync_folder, make_folder
from msa_plugin.bank.faults import reached
from msa_plugin.bank.quantize import is_scale, scale_name
from msa_plugin.bank.rows import Rows, memory_of
from msa_plugin.errors import BankCorruptError

KEYS_FILE, CONTENT_FILE = "keys.safetensors", "content.safetensors"
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}(\.tmp)?")
_STRUCTURE = ("header", "ordinals", "key_offsets", "key_sums", "content_offsets", "content_sums")
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Latents(NamedTuple):
    """One document's tensors: `keys` per group [C, W], `content` per layer [C', 2, KV, D] (empty: none kept).

    Beside int8 keys stand their scales, float32 [C, 1], under the name that `quantize.scale_name` gives.
    """

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
    """Size in bytes and SHA-256 (hex) of a file, as the catalog remembers them.

    `structure` is the CRC-32 of what says where things are: the header, ordinals, offsets and sums. It is checked
    before anything is served, at a cost that does not depend on how many latents there are.
    """

    bytes: int
    sha256: str
    structure: int


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

    `ordinals` ascend; `latents` have one signature. Tensors are streamed to disk one document at a time. The folder is
    named after what is in it, which no other segment holds, for ordinals are never reused: equal calls make equal
    banks. Raises OSError; what it leaves behind then is an orphan, to be swept.
    """
    temporary = root / f"{ordinals[0]:032x}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(root)
    temporary.mkdir()
    reached("segment.folder-made")
    keys = _write_file(temporary / KEYS_FILE, _key_tensors(ordinals, latents))
    content = _write_file(temporary / CONTENT_FILE, _content_tensors(latents)) if latents[0].content else None
    fsync_folder(temporary)
    reached("segment.folder-durable")
    name = hashlib.sha256((keys.sha256 + (content.sha256 if content else "")).encode()).hexdigest()[:32]
    final = root / name
    shutil.rmtree(final, ignore_errors=True)  # an orphan that could not be swept
    os.replace(temporary, final)  # noqa: PTH105 - tests replace it to cut the power here
    reached("segment.named")
    fsync_folder(root)
    reached("segment.durable")
    chunks = sum(item.chunks for item in latents)
    return SegmentRecord(name, namespace, ordinals[0], ordinals[-1], len(ordinals), chunks, keys, content)


def _key_tensors(ordinals: Sequence[int], latents: Sequence[Latents]) -> dict[str, list[Tensor]]:
    tensors = {
        "ordinals": [torch.tensor(ordinals)],
        "key_offsets": [_offsets(item.chunks for item in latents)],
        "key_sums": [torch.tensor([_sum(item.keys[name] for name in sorted(item.keys)) for item in latents])],
    }
    return tensors | {f"key.{group}": [item.keys[group] for item in latents] for group in latents[0].keys}


def _content_tensors(latents: Sequence[Latents]) -> dict[str, list[Tensor]]:
    lengths = (next(iter(item.content.values())).shape[0] for item in latents)
    tensors = {
        "content_offsets": [_offsets(lengths)],
        "content_sums": [torch.tensor([_sum(item.content[n] for n in sorted(item.content)) for item in latents])],
    }
    return tensors | {f"content.{layer}": [item.content[layer] for item in latents] for layer in latents[0].content}


def _offsets(lengths: Iterator[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)])


def _sum(tensors: Iterable[Tensor]) -> int:
    total = 0
    for tensor in tensors:
        total = zlib.crc32(memory_of(tensor), total) if tensor.numel() else total
    return total


def _write_file(path: Path, tensors: Mapping[str, Sequence[Tensor]]) -> FileRecord:
    """Write a safetensors file whose tensors are concatenations along dimension 0 of the given parts.

    The format is a JSON header and the bytes; writing it here streams documents straight from their source (a memory
    map, when compacting), hashes on the way, and surfaces a full disk as the OSError that it is.
    """
    # int64 first: every tensor then starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: -tensors[name][0].element_size())
    digest, structure, written = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for name, block in _blocks(order, tensors):
            digest.update(block)
            structure = zlib.crc32(block, structure) if name in _STRUCTURE else structure
            written += file.write(block)
            if name == "header":
                reached("segment.file-begun")
        file.flush()
        reached("segment.file-written")
        os.fsync(file.fileno())
    reached("segment.file-durable")
    return FileRecord(written, digest.hexdigest(), structure)


def _blocks(order: Sequence[str], tensors: Mapping[str, Sequence[Tensor]]) -> Iterator[tuple[str, memoryview | bytes]]:
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        parts = tensors[name]
        start, end = end, end + sum(part.numel() * part.element_size() for part in parts)
        shape = [sum(part.shape[0] for part in parts), *parts[0].shape[1:]]
        header[name] = {"dtype": DTYPES[parts[0].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield "header", len(text).to_bytes(8, "little") + text
    for name in order:
        for part in tensors[name]:
            if part.numel():
                yield name, memory_of(part)


class Segment:
    """An open segment. Its tensors are memory maps: opening reads the headers only, whatever the size."""

    def __init__(self, record: SegmentRecord, root: Path) -> None:
        """Map the files of `record`.

        Raises FileNotFoundError for a file that is gone, and BankCorruptError for one whose size, header or shapes
        contradict the catalog. Sizes are checked before mapping: touching a page past the end would kill the process.
        """
        self.record = record
        self._folder = root / record.uuid
        self._headers: list[int] = []  # CRC-32 of each file's header
        tensors: dict[str, Tensor] = {}
        for path, known in record.files(root):
            header, found = _map(path, known.bytes)
            self._headers.append(header)
            tensors.update(found)
        self._stored = {name[4:]: t for name, t in tensors.items() if name.startswith("key.")}
        self.keys = {name: t for name, t in self._stored.items() if not is_scale(name)}
        self.scales = {group: self._scales(group) for group, t in self.keys.items() if t.dtype == torch.int8}
        self.content = {int(name[8:]): t for name, t in tensors.items() if re.fullmatch(r"content\.\d+", name)}
        try:
            self.ordinals, self.key_offsets = tensors["ordinals"], tensors["key_offsets"]
            self.content_offsets = tensors["content_offsets"] if record.content else torch.empty(0)
        except KeyError as error:
            raise self._damaged(f"it has no tensor {error}") from error
        self.key_sums, self.content_sums = tensors.get("key_sums"), tensors.get("content_sums")
        for sums in (self.key_sums, self.content_sums):
            if sums is not None and (sums.shape, sums.dtype) != ((record.documents,), torch.int64):
                raise self._damaged("its sums are not one for each document")
        self._checked = False

    def check(self) -> None:
        """Check once, reading 32 bytes per document, that header, ordinals, offsets and sums are what was written.

        Raises BankCorruptError. Call it before any read, so that damage cannot return another document's rows.
        """
        if self._checked:
            return
        keys = (self.ordinals, self.key_offsets, self.key_sums)
        if _structure(self._headers[0], keys) != self.record.keys.structure:
            raise self._damaged(f"the header, ordinals, offsets or sums of {KEYS_FILE} were altered")
        content = self.record.content
        if content and _structure(self._headers[1], (self.content_offsets, self.content_sums)) != content.structure:
            raise self._damaged(f"the header, offsets or sums of {CONTENT_FILE} were altered")
        self._checked = True

    def check_keys(self, allowed: Tensor | None = None) -> None:
        """Check once that the routing keys of the `allowed` documents (bool [n]; None: all) are what was written.

        Raises BankCorruptError. Reads the keys that were not checked before; call `check` first.
        """
        self._check_rows(self._key_rows, None if allowed is None else allowed.nonzero()[:, 0])

    def key_rows(self, position: int, group: str) -> Tensor:
        """Routing keys [C, W] of the document at `position`; call `check` first. Raises BankCorruptError."""
        return self._rows_of(self.keys[group], position)

    def key_numbers(self, position: int, group: str) -> Tensor:
        """As `key_rows`, int8 keys as the float32 numbers that they stand for."""
        keys = self.key_rows(position, group)
        return keys * self._rows_of(self.scales[group], position)[:, None] if group in self.scales else keys

    def gathered(self, positions: Sequence[int], group: str) -> tuple[Tensor, Tensor | None, Tensor]:
        """Keys [C, W], scales [C] and chunk counts [n] of the documents at `positions`, side by side; as `key_rows`."""
        at = torch.tensor(positions, dtype=torch.int64)
        self._check_rows(self._key_rows, at)
        starts, ends = self.key_offsets[at], self.key_offsets[at + 1]
        spans = [slice(*span) for span in zip(starts.tolist(), ends.tolist(), strict=True)]
        scales = self.scales.get(group)
        keys = torch.cat([self.keys[group][span] for span in spans])
        return keys, None if scales is None else torch.cat([scales[span] for span in spans]), ends - starts

    def _rows_of(self, keys: Tensor, position: int) -> Tensor:
        self._check_rows(self._key_rows, torch.tensor([position]))
        return keys[int(self.key_offsets[position]) : int(self.key_offsets[position + 1])]

    def _scales(self, group: str) -> Tensor:
        found = self._stored.get(scale_name(group))
        if found is None or (found.shape, found.dtype) != ((len(self.keys[group]), 1), torch.float32):
            raise self._damaged(f"its int8 keys {group!r:.80} have no scales that fit")
        return found[:, 0]

    def content_rows(self, position: int, layer: int) -> Tensor:
        """Content [C', 2, KV, D] of the document at `position`; call `check` first. Raises BankCorruptError."""
        self._check_rows(self._content_rows, torch.tensor([position]))
        return self.content[layer][int(self.content_offsets[position]) : int(self.content_offsets[position + 1])]

    def latents(self, position: int) -> Latents:
        """Everything kept of the document at `position`, as slices of the memory maps; see `key_rows`."""
        keys = {name: self._rows_of(stored, position) for name, stored in self._stored.items()}
        return Latents(keys, {layer: self.content_rows(position, layer) for layer in self.content})

    def altered(self) -> list[int]:
        """Positions of the documents whose rows are not what was written; reads everything. Call `check` first."""
        return sorted({*self._key_rows.altered(), *self._content_rows.altered()})

    @cached_property
    def _key_rows(self) -> Rows:
        return Rows([self._stored[name] for name in sorted(self._stored)], self.key_offsets, self.key_sums)

    @cached_property
    def _content_rows(self) -> Rows:
        return Rows([self.content[layer] for layer in sorted(self.content)], self.content_offsets, self.content_sums)

    def _check_rows(self, rows: Rows, positions: Tensor | None) -> None:
        if bad := rows.altered(positions):
            ordinals = [int(self.ordinals[position]) for position in bad[:5]]
            raise self._damaged(f"the latents of document ordinals {ordinals} were altered")

    @cached_property
    def latent_bytes(self) -> int:
        """Bytes of all its latents."""
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (*self._stored.values(), *self.content.values())
        )

    def document_bytes(self, position: int) -> int:
        """Bytes of the latents of the document at `position`."""
        keys, content = self.latents(position)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*keys.values(), *content.values()))

    @property
    def has_sums(self) -> bool:
        """Whether its rows can be checked; those of format 1 cannot."""
        return self.key_sums is not None

    @property
    def signature(self) -> tuple[tuple[object, ...], ...]:
        """See `Latents.signature`."""
        return Latents(self._stored, self.content).signature

    def _damaged(self, why: str) -> BankCorruptError:
        return BankCorruptError(
            f"{self._folder}: {why}; run `msa bank verify`, then restore it from a backup or run `msa bank repair`"
        )


def _structure(header: int, tensors: Iterable[Tensor | None]) -> int:
    for tensor in tensors:
        header = header if tensor is None else zlib.crc32(memory_of(tensor), header)
    return header


def _map(path: Path, size: int) -> tuple[int, dict[str, Tensor]]:
    """CRC-32 of a file's header, and its tensors as memory maps."""
    found = path.stat().st_size
    if found != size:
        raise BankCorruptError(
            f"{path} has {found} bytes, the catalog says {size}; run `msa bank verify`, then restore it from a backup"
        )
    try:
        with path.open("rb") as raw, safe_open(str(path), framework="pt") as file:
            length = raw.read(8)
            header = zlib.crc32(raw.read(int.from_bytes(length, "little")), zlib.crc32(length))
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
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
