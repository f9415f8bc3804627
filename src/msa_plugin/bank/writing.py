"""Writes segments: durable before they have a name, streamed from where their tensors lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msa_plugin.bank.disk import fsync_folder, make_folder
from msa_plugin.bank.faults import fault_point
from msa_plugin.bank.records import CONTENT_FILE, KEYS_FILE, FileRecord, SegmentRecord, WordsRecord, words_name
from msa_plugin.bank.rows import fold, memory_of
from msa_plugin.bank.segment import DTYPES, StoredLatents
from msa_plugin.bank.terms import tokenizer
from msa_plugin.bank.words import STRUCTURE, WordTable

# What a file's structure is, see `FileRecord`.
_STRUCTURE = ("header", "ordinals", "key_offsets", "key_sums", "content_offsets", "content_sums", *STRUCTURE)
_DTYPES = DTYPES | {torch.int32: "I32"}


def write_segment(
    root: Path,
    ordinals: Sequence[int],
    latents: Sequence[StoredLatents],
    namespace: str | None,
    words: WordTable | None,
) -> SegmentRecord:
    """Write one segment durably under `root`; it becomes real only when the catalog names it.

    `ordinals` ascend; `latents` have one signature; `words` (None: for formats that keep none) are those of the same
    documents, by this process's tokeniser. Tensors are streamed to disk one document at a time. The folder is
    named after what is in it, which no other segment holds, for ordinals are never reused: equal calls make equal
    banks. Raises OSError; what it leaves behind then is an orphan, to be swept.
    """
    temporary = root / f"{ordinals[0]:032x}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(root)
    temporary.mkdir()
    fault_point("segment.folder-made")
    keys = _write_file(temporary / KEYS_FILE, _key_tensors(ordinals, latents))
    content = _write_file(temporary / CONTENT_FILE, _content_tensors(latents)) if latents[0].content else None
    said = None if words is None else _write_words(temporary / words_name(tokenizer()), words)
    fsync_folder(temporary)
    fault_point("segment.folder-durable")
    files = (keys, content, said)
    name = hashlib.sha256("".join(file.sha256 for file in files if file).encode()).hexdigest()[:32]
    final = root / name
    shutil.rmtree(final, ignore_errors=True)  # an orphan that could not be swept
    os.replace(temporary, final)  # noqa: PTH105 - tests replace it to cut the power here
    fault_point("segment.named")
    fsync_folder(root)
    fault_point("segment.durable")
    chunks = sum(item.chunks for item in latents)
    quick = fold(item.keys[name] for name in sorted(latents[0].keys) for item in latents)
    return SegmentRecord(name, namespace, ordinals[0], ordinals[-1], len(ordinals), chunks, *files, quick)


def write_words(root: Path, record: SegmentRecord, words: WordTable) -> WordsRecord:
    """Write the words of a segment that has none, or another tokeniser's, or damaged ones; as `write_segment`."""
    folder = root / record.uuid
    temporary = folder / "words.tmp"
    written = _write_words(temporary, words)
    os.replace(temporary, folder / words_name(written.tokenizer))  # noqa: PTH105 - as in `write_segment`
    fsync_folder(folder)
    fault_point("segment.words-named")
    return written


def _write_words(path: Path, words: WordTable) -> WordsRecord:
    return WordsRecord(*_write_file(path, {name: [part] for name, part in words.tensors().items()}), tokenizer())


def _key_tensors(ordinals: Sequence[int], latents: Sequence[StoredLatents]) -> dict[str, list[Tensor]]:
    tensors = {
        "ordinals": [torch.tensor(ordinals)],
        "key_offsets": [_offsets(item.chunks for item in latents)],
        "key_sums": [torch.tensor([_sum(item.keys[name] for name in sorted(item.keys)) for item in latents])],
    }
    return tensors | {f"key.{group}": [item.keys[group] for item in latents] for group in latents[0].keys}


def _content_tensors(latents: Sequence[StoredLatents]) -> dict[str, list[Tensor]]:
    lengths = (next(iter(item.content.values())).shape[0] for item in latents)
    tensors = {
        "content_offsets": [_offsets(lengths)],
        "content_sums": [torch.tensor([_sum(chain(*item.content_parts)) for item in latents])],
    }
    scales = {f"content.{name}": [item.scales[name] for item in latents] for name in latents[0].scales}
    kept = {f"content.{layer}": [item.content[layer] for item in latents] for layer in latents[0].content}
    return tensors | kept | scales


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
                fault_point("segment.file-begun")
        file.flush()
        fault_point("segment.file-written")
        os.fsync(file.fileno())
    fault_point("segment.file-durable")
    return FileRecord(written, digest.hexdigest(), structure)


def _blocks(order: Sequence[str], tensors: Mapping[str, Sequence[Tensor]]) -> Iterator[tuple[str, memoryview | bytes]]:
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        parts = tensors[name]
        start, end = end, end + sum(part.numel() * part.element_size() for part in parts)
        shape = [sum(part.shape[0] for part in parts), *parts[0].shape[1:]]
        header[name] = {"dtype": _DTYPES[parts[0].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield "header", len(text).to_bytes(8, "little") + text
    for name in order:
        for part in tensors[name]:
            if part.numel():
                yield name, memory_of(part)
