"""Opening: what is checked, in which order, and what the messages say; locks; read-only places."""

import json
import os
import sqlite3
import sys
from dataclasses import replace

import pytest
from bank_builder import FINGERPRINT, NS, encoded, open_bank, picture, run_child, segment_folders

from msa_plugin import errors
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.catalog import read_fingerprint
from msa_plugin.bank.lock import WriterLock


def edit_catalog(folder, sql, *values):
    with sqlite3.connect(folder / "catalog.sqlite") as db:
        db.execute(sql, values)
    db.close()


def test_absent_banks(folder):
    for options in ({"create": False}, {"read_only": True}, {"snapshot": "s"}):
        with pytest.raises(errors.BankNotFoundError, match="no memory bank"):
            open_bank(folder, **options)
    with pytest.raises(errors.BankNotFoundError, match="no memory bank"):
        read_fingerprint(folder)
    assert not folder.exists(), "looking must not create anything"
    open_bank(folder / "deep" / "er").close()
    assert read_fingerprint(folder / "deep" / "er") == FINGERPRINT


def test_a_file_is_not_a_bank(tmp_path):
    path = tmp_path / "file"
    path.write_text("hello")
    for options in ({}, {"create": False}, {"read_only": True}):
        with pytest.raises(errors.BankNotFoundError, match="is a file"):
            open_bank(path, **options)
    assert path.read_text() == "hello"


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, b"SQLite format 3\0" + b"x" * 5000])
def test_a_catalog_that_is_not_one(folder, content):
    folder.mkdir()
    (folder / "catalog.sqlite").write_bytes(content)
    for options in ({}, {"read_only": True}):
        with pytest.raises(errors.BankCorruptError, match=r"catalog\.sqlite"):
            open_bank(folder, **options)
    assert (folder / "catalog.sqlite").read_bytes() == content, "nothing of the user's is overwritten"


def test_another_programs_database(folder):
    folder.mkdir()
    edit_catalog(folder, "CREATE TABLE meta2(x)")
    with pytest.raises(errors.BankCorruptError, match="not a memory bank"):
        open_bank(folder)


def test_format_is_checked_before_the_fingerprint(folder):
    open_bank(folder).close()
    edit_catalog(folder, "UPDATE meta SET value = 99 WHERE key = 'format_version'")
    edit_catalog(folder, "UPDATE meta SET value = ? WHERE key = 'fingerprint'", json.dumps({"new": "field"}))
    with pytest.raises(errors.BankFormatError, match=r"version 99, this package reads 3"):
        MemoryBank.open(folder, replace(FINGERPRINT, backbone="other"))
    with pytest.raises(errors.BankFormatError):
        read_fingerprint(folder)


def test_fingerprint_mismatch_names_what_differs(folder):
    open_bank(folder).close()
    with pytest.raises(errors.FingerprintMismatchError) as caught:
        MemoryBank.open(folder, replace(FINGERPRINT, adapter="new adapter", window=64))
    message = str(caught.value)
    assert "adapter: bank has 'a', this memory has 'new adapter'" in message and "window" in message
    assert "tokenizer" not in message


@pytest.mark.parametrize("value", ["not json", '{"backbone": "b"}', "[]"])
def test_damaged_fingerprint(folder, value):
    open_bank(folder).close()
    edit_catalog(folder, "UPDATE meta SET value = ? WHERE key = 'fingerprint'", value)
    with pytest.raises(errors.BankCorruptError, match="fingerprint"):
        open_bank(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_unwritable_folder(folder, tmp_path):
    with open_bank(folder) as bank:
        bank.commit([encoded("a")], NS)
    for path in (folder, folder / "segments"):
        path.chmod(0o555)
    code = """
import os, sys
from bank_builder import open_bank, picture
from msa_plugin.errors import BankReadOnlyError
if os.geteuid() == 0:  # root ignores permissions
    os.setgid(65534); os.setuid(65534)
try:
    open_bank(sys.argv[1])
except BankReadOnlyError as error:
    print("refused", error)
with open_bank(sys.argv[1], read_only=True) as bank:
    print("read", *picture(bank), bank.verify().ok)
try:
    open_bank(os.path.join(sys.argv[1], "new"))
except BankReadOnlyError as error:
    print("refused", error)
"""
    if os.geteuid() == 0:  # the child's user must reach the folder
        for parent in (tmp_path, *tmp_path.parents):
            if parent.stat().st_mode & 0o055 != 0o055 and parent.name.startswith(("pytest-", "popen-", "test_")):
                parent.chmod(0o755)
    try:
        done = run_child(code, folder)
    finally:
        for path in (folder, folder / "segments"):
            path.chmod(0o755)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["refused", "read", "refused"], done.stdout + done.stderr
    assert "read_only=True" in lines[0] and lines[1] == "read a True"


def test_the_lock_is_exclusive_among_handles_and_reentrant_within_one(folder):
    with open_bank(folder, lock_timeout=0, follow=False) as one, open_bank(folder, lock_timeout=0) as two:
        with one.writing(), one.writing():
            one.commit([encoded("a")], NS)
            with pytest.raises(errors.BankLockedError):
                two.commit([encoded("b")], NS)
        two.commit([encoded("b")], NS)
        assert one.count(NS) == 1, "a handle keeps its moment"
        with one.writing():
            assert one.count(NS) == 2, "a writer starts from the newest version"


def test_the_lock_is_exclusive_among_threads(bank, folder):
    from concurrent.futures import ThreadPoolExecutor

    lock = WriterLock(folder, timeout=0)
    with ThreadPoolExecutor(1) as pool, lock.hold(), pytest.raises(errors.BankLockedError, match="another thread"):
        pool.submit(lock.hold().__enter__).result()


def test_errors_of_the_caller_pass_through_writing(bank):
    with pytest.raises(FileNotFoundError, match="mine"), bank.writing():
        raise FileNotFoundError("mine")
    bank.commit([encoded("a")], NS)


def test_leftovers_are_swept_but_strangers_are_not(bank, folder):
    bank.commit([encoded("a")], NS)
    live = segment_folders(folder)
    root = folder / "segments"
    for name in ("0" * 32, "1" * 32 + ".tmp", "my notes"):
        (root / name).mkdir()
        (root / name / "keys.safetensors").write_bytes(b"x")
    open_bank(folder, read_only=True).close()
    assert len(segment_folders(folder)) == 4, "a reader removes nothing"
    with bank.writing():
        (root / ("2" * 32 + ".tmp")).mkdir()  # as a live writer has it
        open_bank(folder).close()
        assert "2" * 32 + ".tmp" in segment_folders(folder)
    open_bank(folder).close()
    assert segment_folders(folder) == sorted([*live, "my notes"])
    assert set(picture(bank)) == {"a"}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "é", "a" * 65, "a\n"])
def test_snapshot_names(bank, name):
    with pytest.raises(errors.SnapshotError, match="snapshot name"):
        bank.snapshot(name)


def test_snapshot_names_taken_and_unknown(bank, folder):
    bank.snapshot("v1.0_x-y")
    with pytest.raises(errors.SnapshotError, match="exists"):
        bank.snapshot("v1.0_x-y")
    with pytest.raises(errors.SnapshotError, match=r"no snapshot named 'v2'; there are: v1.0_x-y"):
        bank.drop_snapshot("v2")
    with pytest.raises(errors.SnapshotError, match="no snapshot named 'v2'"):
        open_bank(folder, snapshot="v2")
    [snapshot] = bank.snapshots()
    assert snapshot.name == "v1.0_x-y" and snapshot.created.endswith("+00:00")
    bank.drop_snapshot("v1.0_x-y")
    assert bank.snapshots() == []
