"""Tiny banks for the tests: deterministic latents, and a picture of a bank's whole state to compare with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch

from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.terms import name_of
from msa_plugin.prompts import document_text
from msa_plugin.stems import stems
from msa_plugin.types import Document, EncodedDocument, Fingerprint

FINGERPRINT = Fingerprint(
    backbone="b" * 8, tokenizer="t", adapter="a", routing="r", content="c", dtype="float16", template="x", window=128
)
NS = "default"
GROUPS = {"3": 8, "5": 8}


def encoded(name, text=None, *, chunks=2, content=True, title="", **metadata):
    text = text or f"text of {name}"
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{text}/{chunks}".encode()))
    keys = {group: torch.randn(chunks, width, generator=generator).half() for group, width in GROUPS.items()}
    kept = torch.randn(2 * chunks, 2, 2, 4, generator=generator).to(torch.bfloat16)
    document = Document(name, text, title, metadata)
    return EncodedDocument(document, tokens=7 * chunks, keys=keys, content={3: kept, 5: kept + 1} if content else {})


def open_bank(folder, **options):
    return MemoryBank.open(folder, FINGERPRINT, **options)


def picture(bank, namespace=NS):
    """Everything that a reader can learn about a namespace, by id, in plain values."""
    found = {}
    selection = bank.select(namespace)
    for group in GROUPS:
        for keys, offsets, ordinals, allowed, *_ in selection.key_blocks(group):
            for n, ordinal in enumerate(ordinals.tolist()):
                if allowed is None or allowed[n]:
                    rows = keys[offsets[n] : offsets[n + 1]].tolist()
                    found.setdefault(ordinal, {})[group] = rows
    stored = bank.documents(sorted(found))
    assert sorted(d.id for d in stored) == sorted(bank.iter_ids(namespace))
    assert bank.count(namespace) == len(stored) == selection.documents
    return {
        d.id: (
            *(d.ordinal, d.text, d.title, d.metadata, d.tokens, d.chunks, found[d.ordinal]),
            {layer: t.tolist() for layer, t in bank.latents(d.ordinal).content.items()},
        )
        for d in stored
    }


def words_of(bank, namespace=NS):
    """Every word and name that a namespace's segments keep, as words -> ordinals and counts, and names -> ordinals."""
    found, names = {}, {}
    for part in bank.words(bank.select(namespace)):
        table, counted = part.table, part.allowed is None
        for place in range(len(table.hashes)):
            documents, counts = table.postings(place)
            at = found.setdefault(table._term(place).decode(), [])
            pairs = zip(documents.tolist(), counts.tolist(), strict=True)
            at += [(int(part.ordinals[d]), count) for d, count in pairs if counted or part.allowed[d]]
        for place, document in enumerate(table.name_documents.tolist()):
            if counted or part.allowed[document]:
                names.setdefault(table._name(place), []).append(int(part.ordinals[document]))
    return {word: at for word, at in found.items() if at}, names


def counted_from_texts(bank, namespace=NS):
    """The same from texts."""
    found, names = {}, {}
    for document in bank.documents(bank.select(namespace).ordinals().tolist()):
        for word, count in _counter(document_text(document.title, document.text)).items():
            found.setdefault(word, []).append((document.ordinal, count))
        if name := name_of(document.title):
            names.setdefault(name, []).append(document.ordinal)
    return found, names


@lru_cache(maxsize=256)
def _counter(text):
    return Counter(stems()([text])[0])


def segment_folders(folder):
    root = Path(folder) / "segments"
    return sorted(p.name for p in root.iterdir()) if root.exists() else []


def flip(path, position, mask=1):
    """Change bits of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def flip_tensor(path, name, byte=0):
    """Change a bit of a tensor of a file of safetensors: of its first byte, or of its last one (`byte` -1)."""
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    start, stop = json.loads(data[8 : 8 + header])[name]["data_offsets"]
    flip(path, 8 + header + (start if byte == 0 else stop - 1))


def _child(code, args):
    """A command that runs Python code which can import this module, and its environment."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return {"args": [sys.executable, "-c", code, *map(str, args)], "env": {**os.environ, "PYTHONPATH": path}}


def run_child(code, *args):
    """Run Python code in a process of its own."""
    return subprocess.run(**_child(code, args), capture_output=True, text=True, timeout=300, check=False)


def start_child(code, *args):
    """Start Python code in a process of its own, talking over pipes."""
    return subprocess.Popen(**_child(code, args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
