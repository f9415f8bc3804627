"""A segment: one immutable folder of latents, written once, checksummed, and read through memory maps.

`keys.safetensors` holds `ordinals` int64 [n] (ascending), `key_offsets` int64 [n + 1], `key_sums` int64 [n] and, per
key group, `key.<group>` [C, W] and, where that is int8, `key.<group>.scale` float32 [C, 1]. `content.safetensors`,
present only where content is kept, holds `content_offsets` int64 [n + 1], `content_sums` int64 [n] and, per layer,
`content.<layer>` [C', 2, KV, D]; where that is int8, also `content.<layer>.key_scale` [n, KV, D] and
`content.<layer>.value_scale` [C', KV], bfloat16. Rows of one document are adjacent (chunk-major), so that reading a
document is one contiguous read per tensor. The sums are each document's CRC-32 over its rows of all tensors, in order
of their names (of content: numbers by layer, then scales of V, then those of K); rows are compared with them when they
are first read.
Segments of format 1 have no sums, and none before format 3 has its words and names beside it (`words.WordTable`).
Nothing here knows about versions, namespaces or filters.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from msa_plugin.bank.quantize import (
    content_numbers,
    content_scale_names,
    is_of_document,
    is_scale,
    read_content,
    scale_name,
)
from msa_plugin.bank.records import CONTENT_FILE, KEYS_FILE, SegmentRecord
from msa_plugin.bank.rows import Rows, fold, memory_of
from msa_plugin.bank.terms import tokenizer
from msa_plugin.bank.words import WordTable, damaged
from msa_plugin.errors import BankCorruptError

_FOLDER_NAME = re.compile(r"[0-9a-f]{32}(\.tmp)?")
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


class StoredLatents(NamedTuple):
    """One document's tensors: `keys` per group [C, W], `content` per layer [C', 2, KV, D] (empty: none kept).

    Beside int8 keys stand their scales, float32 [C, 1], under the name that `quantize.scale_name` gives. int8 content
    has its `scales`, by name (`quantize.quantized_content`).
    """

    keys: Mapping[str, Tensor]
    content: Mapping[int, Tensor]
    scales: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def chunks(self) -> int:
        """Chunks that are routed to."""
        return next(iter(self.keys.values())).shape[0]

    @property
    def signature(self) -> tuple[tuple[object, ...], ...]:
        """Names, row shapes and dtypes; documents share a segment only where these are equal."""
        named = [*self.keys.items(), *self.content.items(), *self.scales.items()]
        return tuple((name, tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in named)

    @property
    def all(self) -> list[Tensor]:
        """Every tensor."""
        return [*self.keys.values(), *self.content.values(), *self.scales.values()]

    @property
    def content_parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the content that have the content's rows, and those that have one a document, in order."""
        names = sorted(self.scales)
        rows = [self.content[layer] for layer in sorted(self.content)]
        rows += [self.scales[name] for name in names if not is_of_document(name)]
        return rows, [self.scales[name] for name in names if is_of_document(name)]


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
        self._content_scales = {n[8:]: t for n, t in tensors.items() if re.fullmatch(r"content\.\d+\.[a-z_]+", n)}
        try:
            self.ordinals, self.key_offsets = tensors["ordinals"], tensors["key_offsets"]
            self.content_offsets = tensors["content_offsets"] if record.content else torch.empty(0)
        except KeyError as error:
            raise self._damaged(f"it has no tensor {error}") from error
        self.key_sums, self.content_sums = tensors.get("key_sums"), tensors.get("content_sums")
        for sums in (self.key_sums, self.content_sums):
            if sums is not None and (sums.shape, sums.dtype) != ((record.documents,), torch.int64):
                raise self._damaged("its sums are not one for each document")
        self._check_content_scales()
        self._checked = False
        self._words = StoredWords(record, root) if record.words else None

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

    @cached_property
    def words(self) -> WordTable | None:
        """Its words and names, where it keeps those of this process's tokeniser.

        Raises BankCorruptError where what says where they are is not what was written.
        """
        if self._words is None or self._words.record.tokenizer != tokenizer():
            return None
        return self._words.checked()

    def check_keys(self, allowed: Tensor | None = None) -> None:
        """Check once that the routing keys of the `allowed` documents (bool [n]; None: all) are what was written.

        Raises BankCorruptError. Reads the keys that were not checked before; call `check` first.
        """
        most = allowed is None or 4 * int(allowed.sum()) > len(allowed)
        if most and self.record.fold is not None and not self._key_rows.checked and self.fold() == self.record.fold:
            self._key_rows.found_sound()
        self._check_rows(self._key_rows, None if allowed is None else allowed.nonzero()[:, 0])

    def fold(self) -> int:
        """Of its routing keys, as they are; see `rows.fold`."""
        return fold(self._stored[name] for name in sorted(self._stored))

    def key_numbers(self, positions: Sequence[int], group: str) -> list[Tensor]:
        """Routing keys [C, W] of each of the documents at `positions`, int8 as the float32 that they stand for.

        Call `check` first. Raises BankCorruptError.
        """
        keys, scales, counts = self.gathered(positions, group)
        numbers = keys if scales is None else keys * scales[:, None]
        return list(torch.split(numbers, counts.tolist()))

    def gathered(self, positions: Sequence[int], group: str) -> tuple[Tensor, Tensor | None, Tensor]:
        """Keys [C, W], scales [C] and chunk counts [n] of the documents at `positions`, side by side.

        See `key_numbers`.
        """
        at = torch.tensor(positions, dtype=torch.int64)
        self._check_rows(self._key_rows, at)
        starts, ends = self.key_offsets[at], self.key_offsets[at + 1]
        spans = [slice(*span) for span in zip(starts.tolist(), ends.tolist(), strict=True)]
        scales = self.scales.get(group)
        keys = torch.cat([self.keys[group][span] for span in spans])
        return keys, None if scales is None else torch.cat([scales[span] for span in spans]), ends - starts

    def _scales(self, group: str) -> Tensor:
        found = self._stored.get(scale_name(group))
        if found is None or (found.shape, found.dtype) != ((len(self.keys[group]), 1), torch.float32):
            raise self._damaged(f"its int8 keys {group!r:.80} have no scales that fit")
        return found[:, 0]

    def content_rows(self, position: int, layer: int) -> Tensor:
        """Content [C', 2, KV, D] of the document at `position`; call `check` first. Raises BankCorruptError."""
        self._check_rows(self._content_rows, torch.tensor([position]))
        return self.content[layer][int(self.content_offsets[position]) : int(self.content_offsets[position + 1])]

    def content_numbers(self, position: int, layer: int) -> Tensor:
        """As `content_rows`, as numbers that can be computed with: int8 as float32, float8 as bfloat16."""
        rows = self.content_rows(position, layer)
        if rows.dtype != torch.int8:
            return read_content(rows)
        of_keys, of_values = (self._scale_rows(position, name) for name in content_scale_names(layer))
        return content_numbers(rows, of_keys[0], of_values)

    def _scale_rows(self, position: int, name: str) -> Tensor:
        scales = self._content_scales[name]
        if is_of_document(name):
            return scales[position : position + 1]
        return scales[int(self.content_offsets[position]) : int(self.content_offsets[position + 1])]

    def _check_content_scales(self) -> None:
        for layer, stored in self.content.items():
            if stored.dtype != torch.int8:
                continue
            _, _, heads, width = stored.shape
            found = [self._content_scales.get(name) for name in content_scale_names(layer)]
            shapes = [(self.record.documents, heads, width), (len(stored), heads)]
            if [None if t is None else (t.shape, t.dtype) for t in found] != [(s, torch.bfloat16) for s in shapes]:
                raise self._damaged(f"its int8 content of layer {layer} has no scales that fit")

    def latents(self, position: int) -> StoredLatents:
        """Everything kept of the document at `position`, as slices of the memory maps; see `key_numbers`."""
        self._check_rows(self._key_rows, torch.tensor([position]))
        rows = slice(int(self.key_offsets[position]), int(self.key_offsets[position + 1]))
        keys = {name: stored[rows] for name, stored in self._stored.items()}
        content = {layer: self.content_rows(position, layer) for layer in self.content}
        return StoredLatents(keys, content, {name: self._scale_rows(position, name) for name in self._content_scales})

    def altered(self) -> list[int]:
        """Positions of the documents whose rows are not what was written; reads everything. Call `check` first."""
        return sorted({*self._key_rows.altered(), *self._content_rows.altered()})

    @cached_property
    def _key_rows(self) -> Rows:
        return Rows([self._stored[name] for name in sorted(self._stored)], self.key_offsets, self.key_sums)

    @cached_property
    def _content_rows(self) -> Rows:
        rows, others = self._all.content_parts
        return Rows(rows, self.content_offsets, self.content_sums, others)

    def _check_rows(self, rows: Rows, positions: Tensor | None) -> None:
        if bad := rows.altered(positions):
            ordinals = [int(self.ordinals[position]) for position in bad[:5]]
            raise self._damaged(f"the latents of document ordinals {ordinals} were altered")

    @cached_property
    def latent_bytes(self) -> int:
        """Bytes of all its latents."""
        return _bytes(self._all.all)

    def document_bytes(self, position: int) -> int:
        """Bytes of the latents of the document at `position`."""
        return _bytes(self.latents(position).all)

    @property
    def has_sums(self) -> bool:
        """Whether its rows can be checked; those of format 1 cannot."""
        return self.key_sums is not None

    @property
    def signature(self) -> tuple[tuple[object, ...], ...]:
        """See `StoredLatents.signature`."""
        return self._all.signature

    @property
    def _all(self) -> StoredLatents:
        """Its tensors, of all documents."""
        return StoredLatents(self._stored, self.content, self._content_scales)

    def _damaged(self, why: str) -> BankCorruptError:
        return BankCorruptError(
            f"{self._folder}: {why}; run `msa bank verify`, then restore it from a backup or run `msa bank repair`"
        )


class StoredWords:
    """The file of words of a segment that has one, mapped."""

    def __init__(self, record: SegmentRecord, root: Path) -> None:
        """Raises as `Segment`."""
        file = record.words_file(root)
        assert file is not None and record.words is not None
        self.record, (path, known) = record.words, file
        self._header, tensors = _map(path, known.bytes)
        self._table = WordTable.read(tensors, record.documents, str(path))

    def checked(self) -> WordTable:
        """What is in it. Raises BankCorruptError where words, lengths or names are not what was written."""
        if self._table.structure(self._header) != self.record.structure or not self._table.consistent:
            raise damaged(self._table.source, "its header, words, lengths or names were altered")
        return self._table


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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


def orphans(root: Path, named: Collection[str]) -> list[Path]:
    """Segment folders under `root` that are not among the `named` ones: leftovers of a writer that died."""
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.name not in named and _FOLDER_NAME.fullmatch(p.name)]
