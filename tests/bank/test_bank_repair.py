"""Repair: what is sound stays, texts are saved, losses are named, and afterwards the bank verifies and goes on."""

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from bank_builder import NS, encoded, flip, open_bank, picture

from msa_plugin.bank.repair import repair_bank
from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankCorruptError, BankError, BankLockedError, BankNotFoundError

MANY = 40


@pytest.fixture
def built(folder):
    with open_bank(folder) as bank:
        bank.commit([encoded("a", lang="en"), encoded("b")], NS)
        bank.commit([encoded("c", title="Täg\n")], "other/tenant")
        bank.commit([encoded(f"d{n}") for n in range(5)], NS)
        bank.delete(["b"], NS)
    return folder


def seen(folder, namespace=NS):
    with open_bank(folder, read_only=True) as bank:
        return picture(bank, namespace)


def segments(folder):
    with open_bank(folder, read_only=True) as bank:
        return [folder / "segments" / s.record.uuid for s in bank.segments()]


def a_row(path):
    """Position of a byte of the first document's first row: behind header, ordinals, offsets and sums."""
    header = path.read_bytes()[8:]
    names = json.loads(header[: header.index(b"}}") + 2])
    starts = [tensor["data_offsets"][0] for name, tensor in names.items() if "." in name]
    return 8 + int.from_bytes(path.read_bytes()[:8], "little") + min(starts)


def salvaged(report):
    with_names = {}
    for file in report.files:
        with Path(file).open(encoding="utf-8") as stream:
            with_names[file] = [json.loads(line) for line in stream]
    return with_names


def test_a_sound_bank_is_left_alone(built):
    before = {p: p.read_bytes() for p in built.rglob("*.safetensors")}
    report = repair_bank(built)
    assert report == type(report)() and report.complete
    assert {p: p.read_bytes() for p in built.rglob("*.safetensors")} == before
    assert not (built / "salvage").exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "folder"])
def test_latents_that_are_damaged_cost_only_their_documents_and_their_texts_are_saved(built, damage):
    expected = seen(built)
    path = segments(built)[0] / "keys.safetensors"
    if damage == "flipped":
        flip(path, a_row(path))
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "missing":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
    report = repair_bank(built)
    assert report.problems and report.salvaged == ("a",) and report.complete
    del expected["a"]
    assert seen(built) == expected and verify_bank(built).ok
    [(file, records)] = salvaged(report).items()
    assert records == [{"id": "a", "title": "", "text": "text of a", "metadata": {"lang": "en"}}]
    assert file.endswith("000-default.jsonl")


def test_a_bank_that_this_process_has_open_is_not_repaired(built):
    with open_bank(built, read_only=True) as bank:
        keys = built / "segments" / bank.segments()[0].record.uuid / "keys.safetensors"
        flip(keys, a_row(keys))
        with pytest.raises(BankLockedError, match="close it"):
            repair_bank(built)
    assert repair_bank(built).problems


def test_every_namespace_gets_its_own_file_and_older_ones_stay(built):
    for path in (folder / "content.safetensors" for folder in segments(built)[:2]):
        flip(path, a_row(path))
    first = repair_bank(built)
    assert sorted(first.salvaged) == ["a", "c"] and len(first.files) == 2
    assert [r["title"] for r in salvaged(first)[first.files[1]]] == ["Täg\n"]
    flip(segments(built)[0] / "keys.safetensors", -1)
    second = repair_bank(built)
    assert second.salvaged == ("d4",) and not set(first.files) & set(second.files)
    assert set(seen(built)) == {"d0", "d1", "d2", "d3"} and seen(built, "other/tenant") == {}
    with open_bank(built) as bank:  # and it goes on, with ordinals that were never used before
        assert min(bank.commit([encoded("new")], NS)) > 8


def test_a_text_that_fails_its_checksum_is_lost_and_its_neighbours_are_not(built):
    expected = seen(built)
    with sqlite3.connect(built / "catalog.sqlite") as db:
        db.execute("UPDATE texts SET text = 'forged' WHERE ordinal = 5")
    report = repair_bank(built)
    assert report.lost == ("d1",) and not report.complete and report.salvaged == ()
    del expected["d1"]
    assert seen(built) == expected and verify_bank(built).ok


def test_rows_that_vanished_leave_the_rest(built):
    expected = seen(built)
    with sqlite3.connect(built / "catalog.sqlite") as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM documents WHERE id = 'd2'")
    assert not verify_bank(built).ok
    repair_bank(built)
    del expected["d2"]
    assert seen(built) == expected and verify_bank(built).ok


@pytest.mark.slow
@pytest.mark.parametrize("seed", (0, 3, 4, 7, 9))
def test_a_torn_catalog_keeps_every_row_that_can_be_read(folder, seed):
    rng = random.Random(seed)
    with open_bank(folder) as bank:
        for start in range(0, MANY, 10):
            bank.commit([encoded(f"d{n}", text=f"{n} " * 400) for n in range(start, start + 10)], NS)
        bank.compact()
    expected = seen(folder)
    path = folder / "catalog.sqlite"
    size = path.stat().st_size
    assert size > 60_000
    page = rng.randrange(2, size // 4096)  # page 1 holds the schema
    data = bytearray(path.read_bytes())
    data[page * 4096 : page * 4096 + 4096] = rng.randbytes(4096)
    path.write_bytes(data)
    before = verify_bank(folder)
    try:
        report = repair_bank(folder)
    except BankCorruptError as error:
        assert "backup" in str(error)  # the small tables were hit: nothing to go by
        return
    assert before.ok == (report.problems == ())
    assert verify_bank(folder).ok
    left = seen(folder)
    assert all(left[name] == expected[name] for name in left)
    accounted = set(left) | set(report.salvaged) | set(report.lost)
    assert len(expected) - len(accounted) <= report.unreadable + 10, "rows went missing without a word"
    assert report.problems == () or (folder / "catalog.sqlite.damaged").exists() or not before.ok


def test_no_bank_and_no_catalog(tmp_path, built):
    with pytest.raises(BankNotFoundError):
        repair_bank(tmp_path / "absent")
    (built / "catalog.sqlite").write_bytes(b"not a database at all" * 400)
    with pytest.raises(BankError, match="backup"):
        repair_bank(built)
