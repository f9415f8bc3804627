"""Repairs and migrations that are killed at each of their points: repeated, they end where an undisturbed one does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from bank_builder import NS, counted_from_texts, open_bank, picture, words_of
from operations import damage, fresh, make_seed
from places import TESTS

from msa_plugin.bank import faults
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.catalog import read_fingerprint
from msa_plugin.bank.migrate import migrate_bank
from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankError

REPAIR = tuple(point for point in faults.POINTS if point.startswith("repair."))
MIGRATE = tuple(point for point in faults.POINTS if point.startswith("migrate."))
APART = (*REPAIR, *MIGRATE, "segment.words-named")  # what no change of a bank passes
GOLDEN = [TESTS / "golden_banks" / old / "bank" for old in ("v1", "v2")]


def kills_of_repairs(root: Path) -> dict[str, object]:
    """Figures. Raises AssertionError where a killed repair cost anything that an undisturbed one does not."""
    damaged = make_seed(root / "damaged")
    damage(damaged)
    folder = fresh(damaged, root / "bank")
    repair_bank(folder)
    expected = _holds(folder)
    for point in REPAIR:
        fresh(damaged, folder)
        assert _killed(repair_bank, folder, point), f"{point} was not passed"
        with contextlib.suppress(BankError):  # somebody may try to go on without a repair
            open_bank(folder).close()
        repair_bank(folder)
        assert verify_bank(folder).ok and _holds(folder) == expected, f"after {point}"
    return {"kills": len(REPAIR), "at": REPAIR}


def kills_of_migrations(root: Path) -> dict[str, object]:
    """Figures. Raises AssertionError where a killed migration cost anything, or left what cannot be migrated."""
    folder = root / "bank"
    points = (*MIGRATE, "segment.file-written", "transaction.ready", "transaction.committed")
    for golden, written in zip(GOLDEN, ("segment.durable", "segment.words-named"), strict=True):
        expected = _documents(fresh(golden, folder))
        for point in (*points, written):
            fresh(golden, folder)
            assert _killed(migrate_bank, folder, point), f"{point} was not passed"
            assert _documents(folder) == expected and verify_bank(folder).ok, f"before going on after {point}"
            migrate_bank(folder)
            assert _documents(folder) == expected and verify_bank(folder).ok, f"after {point}"
            assert migrate_bank(folder, dry_run=True)[2:] == (0, 0, 0), f"not done after {point}"
    return {"kills": len(GOLDEN) * (len(points) + 1), "at": points}


def _documents(folder: Path) -> object:
    """Everything of every namespace."""
    with MemoryBank.open(folder, read_fingerprint(folder), read_only=True) as bank:
        found = {}
        for space in bank.stats(NS).namespaces:
            for name, stored in bank.get(bank.iter_ids(space), space).items():
                latents = bank.latents(stored.ordinal)
                tensors = {key: t.tolist() for key, t in (latents.keys | latents.content).items()}
                found[space, name] = (stored, tensors)
            assert words_of(bank, space) == counted_from_texts(bank, space)
        return found, [tuple(snapshot)[:2] for snapshot in bank.snapshots()]


def _holds(folder: Path) -> object:
    """What readers see, and the documents whose texts were saved."""
    with open_bank(folder) as bank:
        seen = [(picture(bank, space), words_of(bank, space)) for space in (NS, "other")]
        assert [words for _, words in seen] == [counted_from_texts(bank, space) for space in (NS, "other")]
    lines = [line for file in (folder / "salvage").glob("*.jsonl") for line in file.read_text("utf-8").splitlines()]
    return seen, {json.loads(line)["id"] for line in lines}


def _killed(work: Callable[[Path], object], folder: Path, point: str) -> bool:
    if (child := os.fork()) == 0:
        try:
            with faults.injected(lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == point else None):
                work(folder)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])
