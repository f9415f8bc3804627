"""Tiny banks for the tests: deterministic latents, and a picture of a bank's whole state to compare with."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import torch

from msa_plugin.bank.bank import MemoryBank
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
        for keys, offsets, ordinals, allowed, *_ in bank.key_blocks(group, selection):
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


def segment_folders(folder):
    root = Path(folder) / "segments"
    return sorted(p.name for p in root.iterdir()) if root.exists() else []


def run_child(code, *args, **options):
    """Run Python code in a process of its own, which can import this module."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def start_child(code, *args):
    """Start Python code in a process of its own, talking over pipes."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
