"""Banks and adapters of every released format: read as they are, migrated by one command, whole afterwards."""

import json
import shutil
import sqlite3
from pathlib import Path

import flips  # noqa: F401 - finds the modules next to it
import pytest
from bank_builder import FINGERPRINT, encoded
from make import seen

from msa_plugin.backbone.adapter import Adapter
from msa_plugin.bank import migrate
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.migrate import migrate_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import AdapterError, BankCorruptError, BankFormatError
from msa_plugin.types import FORMAT_VERSION

GOLDEN = Path(__file__).parents[1] / "golden_banks"
VERSIONS = sorted(GOLDEN.glob("v*"))
NS = "default"


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def golden(request, tmp_path):
    shutil.copytree(request.param, tmp_path / "copy")
    return tmp_path / "copy"


def expected(golden):
    return json.loads((golden / "expected.json").read_text(encoding="utf-8"))


def test_every_format_has_its_golden_bank():
    assert [path.name for path in VERSIONS] == [f"v{n}" for n in range(1, FORMAT_VERSION + 1)]


def test_a_golden_bank_reads_as_it_did_before_and_after_migration(golden):
    folder = golden / "bank"
    assert verify_bank(folder).ok and seen(folder) == expected(golden)["bank"]
    report = migrate_bank(folder)
    assert report.now == FORMAT_VERSION and (report.segments > 0) == (report.found == 1)
    assert verify_bank(folder).ok and seen(folder) == expected(golden)["bank"]
    assert migrate_bank(folder).segments == 0
    with MemoryBank.open(folder, FINGERPRINT) as bank:
        bank.commit([encoded("new")], NS)
        bank.compact()
        assert "new" in set(bank.iter_ids(NS)) and bank.verify().ok


def test_a_golden_adapter_loads_and_has_the_same_hash(golden):
    assert Adapter.load(golden / "adapter").hash() == expected(golden)["adapter_hash"]


@pytest.fixture
def old(tmp_path):
    shutil.copytree(GOLDEN / "v1", tmp_path / "copy")
    return tmp_path / "copy"


def test_an_older_bank_is_not_written_to_and_a_dry_run_writes_nothing(old):
    folder = old / "bank"
    before = {p: p.read_bytes() for p in folder.rglob("*.safetensors")} | {0: (folder / "catalog.sqlite").read_bytes()}
    with MemoryBank.open(folder, FINGERPRINT) as bank, pytest.raises(BankFormatError, match="msa bank migrate --bank"):
        bank.commit([encoded("new")], NS)
    report = migrate_bank(folder, dry_run=True)
    assert (report.found, report.segments) == (1, 3) and report.bytes == sum(len(v) for k, v in before.items() if k)
    after = {p: p.read_bytes() for p in folder.rglob("*.safetensors")} | {0: (folder / "catalog.sqlite").read_bytes()}
    assert after == before


@pytest.mark.parametrize(("what", "step"), [(migrate.Catalog, "upgrade"), (migrate, "orphans")])
def test_a_migration_that_is_cut_short_leaves_the_old_bank_or_the_new_one(old, what, step, monkeypatch):
    """Cut before the commit, when all segments are written, and after it, before the old ones are removed."""
    folder = old / "bank"

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(what, step, stop)
    with pytest.raises(KeyboardInterrupt):
        migrate_bank(folder)
    monkeypatch.undo()
    assert verify_bank(folder).ok and seen(folder) == expected(old)["bank"]
    migrate_bank(folder)
    MemoryBank.open(folder, FINGERPRINT).close()  # sweeps what lies about
    assert len(list(folder.glob("segments/*"))) == 3 and seen(folder) == expected(old)["bank"]


def test_damage_is_not_migrated(old):
    path = next((old / "bank").rglob("keys.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BankCorruptError, match="msa bank repair"):
        migrate_bank(old / "bank")


def test_newer_formats_are_named_and_refused(old):
    with sqlite3.connect(old / "bank" / "catalog.sqlite") as db:
        db.execute("UPDATE meta SET value = 7 WHERE key = 'format_version'")
    db.close()
    for use in (lambda: MemoryBank.open(old / "bank", FINGERPRINT), lambda: migrate_bank(old / "bank")):
        with pytest.raises(BankFormatError, match=f"version 7, this package reads {FORMAT_VERSION}"):
            use()
    path = old / "adapter" / "adapter.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(AdapterError, match=r"format_version 7; this package reads 1.*newer"):
        Adapter.load(old / "adapter")
