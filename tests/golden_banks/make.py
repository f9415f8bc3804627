"""Write the golden bank and adapter of the present format: `python tests/golden_banks/make.py tests/golden_banks/vN`.

Run once for each released format version, with the code of that release, and never again: see README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bank"))
from bank_builder import FINGERPRINT, encoded, picture

from msa_plugin.backbone.adapter import Adapter, AdapterConfig
from msa_plugin.backbone.router import Router, RouterLayer
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.config import Abilities, ContentConfig, RoutingConfig

NAMESPACES = ("default", "tenant/ü")
SNAPSHOTS = (None, "early")


def write_bank(folder: Path) -> None:
    """Several segments, content and none, deletions, updates, two namespaces, a snapshot, a compaction."""
    with MemoryBank.open(folder, FINGERPRINT) as bank:
        bank.commit([encoded(f"d{n}", lang="en", n=n) for n in range(4)], "default")
        bank.commit([encoded("täg", title="Titel\n", deep={"list": [1, None, "x"]})], "tenant/ü")
        bank.snapshot("early")
        bank.delete(["d1"], "default")
        bank.commit([encoded("d2", "an updated text", lang="de")], "default")
        bank.compact()
        bank.commit([encoded("late", "\u2028 later \U0001f600", chunks=3, content=False)], "tenant/ü")
        bank.commit([encoded("d5"), encoded("d6", chunks=1)], "default")
        bank.delete(["d5"], "default")


def seen(folder: Path) -> dict[str, object]:
    """Everything readable in the bank: for each moment and namespace, its documents by id."""
    found: dict[str, object] = {}
    for snapshot in SNAPSHOTS:
        with MemoryBank.open(folder, FINGERPRINT, read_only=True, snapshot=snapshot) as bank:
            for namespace in NAMESPACES:
                found[f"{snapshot or 'newest'} {namespace}"] = picture(bank, namespace)
    return json.loads(json.dumps(found))


def adapter() -> Adapter:
    """A tiny adapter with every part that the format has."""
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(8, 6, generator=generator) for _ in range(4)]
    routing = RoutingConfig(
        layers=(0, 2), heads=1, kv_heads=1, head_dim=8, pooling=4, selection="shared", query_reduce="pooled"
    )
    layers = {
        0: RouterLayer(*weights[:2], None, None),
        2: RouterLayer(*weights[2:], weights[0][:, 0], weights[1][:, 0]),
    }
    config = AdapterConfig(
        name="golden",
        backbone="b",
        tokenizer="t",
        hidden=6,
        routing=routing,
        reading=ContentConfig(layers=(2, 3), pooling=4),
        abilities=Abilities(route=True),
        prefix="<bos>",
        provenance={"note": "golden"},
    )
    return Adapter(config, Router(routing, layers, None))


def main() -> None:
    """Write bank, adapter and what they hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True)
    write_bank(folder / "bank")
    expected = {"bank": seen(folder / "bank"), "adapter_hash": adapter().hash()}
    adapter().save(folder / "adapter")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("writer.lock", "writer.pid", "catalog.sqlite-wal", "catalog.sqlite-shm"):  # no data in them
        (folder / "bank" / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
