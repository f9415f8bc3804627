"""Places where a reader may write nothing while a writer elsewhere may: the truth, or an error that says so."""

import sqlite3
import sys

import pytest
from bank_builder import NS, encoded, open_bank, picture, start_child

from msa_plugin.bank import schema
from msa_plugin.errors import BankError, BankLockedError

READER = """
import os, sys
from bank_builder import *
from msa_plugin.errors import BankError
if os.geteuid() == 0:  # root writes everywhere
    os.setgid(65534); os.setuid(65534)
with open_bank(sys.argv[1], read_only=True) as bank:
    counts = lambda: (  # of living documents, each in another way
        len(picture(bank)), bank.count(NS), bank.select(NS, {"n": {"$gte": 0}}).documents, len(list(bank.iter_ids(NS)))
    )
    can = {"counts": counts, "refresh": lambda: bank.refresh(), "sound": lambda: bank.verify().ok}
    print("open", flush=True)
    for line in sys.stdin:
        try:
            print(can[line.strip()](), flush=True)
        except BankError as error:
            print(type(error).__name__, error, flush=True)
"""


def documents(first, last):
    return [encoded(f"d{n}", f"{n} " + "words " * 50, chunks=1, n=n) for n in range(first, last)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_reader_that_can_write_nothing_beside_a_writer_elsewhere(folder, tmp_path):
    with open_bank(folder) as bank:
        bank.commit(documents(0, 20), NS)
    for place in (tmp_path, *tmp_path.parents):  # where root's child is another user, it must reach the folder
        if place.name.startswith(("pytest-", "popen-", "test_")):
            place.chmod(0o755)
    folder.chmod(0o555)
    child = start_child(READER, folder)

    def ask(question):
        child.stdin.write(question + "\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    try:
        assert child.stdout.readline() == "open\n" and ask("counts") == str((20, 20, 20, 20))
        folder.chmod(0o755)  # for a writer who is not root
        with open_bank(folder) as writer:
            writer.delete([f"d{n}" for n in range(10)], NS)
            assert ask("counts") == str((10, 10, 10, 10)), "a writer is at work"
            writer.commit(documents(20, 50), NS)
            writer.compact()
            assert ask("counts") == str((40, 40, 40, 40))
        assert ask("counts") == str((40, 40, 40, 40)), "at rest again"
        with open_bank(folder) as writer:
            writer.delete(["d49"], NS)
        assert ask("refresh") == "None" and ask("counts") == str((39, 39, 39, 39)), "what lay there was replaced"
        assert ask("sound") == "True"
    finally:
        folder.chmod(0o755)
        child.communicate()


@pytest.fixture
def no_files(monkeypatch):
    """SQLite can make no file beside the catalog, as on a read-only mount; what is there already, it can use."""
    connect = schema.connect

    def on_a_read_only_mount(path, *, writable, immutable=False):
        if not writable and not immutable and not path.with_name(path.name + "-shm").exists():
            raise sqlite3.OperationalError("unable to open database file")
        return connect(path, writable=writable, immutable=immutable)

    monkeypatch.setattr("msa_plugin.bank.resting.connect", on_a_read_only_mount)


def test_read_only_media(folder, no_files):
    with open_bank(folder) as bank:
        bank.commit(documents(0, 3), NS)
        bank.snapshot("s")
    for options in ({}, {"follow": False}, {"snapshot": "s"}):
        with open_bank(folder, read_only=True, **options) as reader:
            assert set(picture(reader)) == {"d0", "d1", "d2"} and reader.verify().ok
            reader.refresh()
            assert reader._views.shown.catalog.connection._rest is not None
    assert not (folder / "catalog.sqlite-shm").exists()


def test_what_was_read_while_somebody_wrote_is_not_served(folder, no_files):
    """Without locks, several reads are of one moment only if nothing was changed between the first and the last."""
    with open_bank(folder) as bank:
        bank.commit(documents(0, 20), NS)
    with open_bank(folder, read_only=True) as reader, open_bank(folder, read_only=True, follow=False) as staying:
        selection = reader.select(NS)
        with pytest.raises(BankLockedError, match="changed from elsewhere"), reader.one_moment():
            assert reader.count(NS) == 20
            with open_bank(folder) as writer:
                writer.delete(["d0"], NS)
            reader.get(["d5"], NS)
        assert reader.count(NS) == 19, "the next call sees what is there"
        assert len(reader.documents(selection.ordinals().tolist())) == 20, "deleted, not compacted: its rows are there"
        with pytest.raises(BankLockedError):
            staying.count(NS)
        staying.refresh()
        assert staying.count(NS) == 19
        with open_bank(folder) as writer:
            writer.compact()
        with pytest.raises(BankError, match="repeat the query"):
            reader.documents(selection.ordinals().tolist())


def test_a_log_that_cannot_be_read_there_is_called_by_its_name(folder, no_files):
    with open_bank(folder) as bank:
        bank.commit(documents(0, 3), NS)
        copy = folder.with_name("copy")
        copy.mkdir()
        for name in ("catalog.sqlite", "catalog.sqlite-wal"):
            (copy / name).write_bytes((folder / name).read_bytes())
        (copy / "segments").symlink_to(folder / "segments")
    with pytest.raises(BankLockedError, match="log that SQLite cannot read here"):
        open_bank(copy, read_only=True)
