"""Power cuts and refusing disks: whatever the step, the bank is as before or as after, and stays usable.

Every system call that commits, compactions and deletions depend on (fsync, rename, each SQL statement) is counted; a
child process is then killed at each count in turn, and each is made to fail in turn.
"""

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
import sys
from pathlib import Path

import pytest
import torch
from bank_builder import NS, encoded, open_bank, picture, segment_folders
from operations import commit, compact, delete, fresh, make_seed, outcome, snapshot, state

from msa_plugin.errors import BankError, BankReadOnlyError, BankWriteError
from msa_plugin.types import Document, EncodedDocument

OPERATIONS = {"commit": commit, "delete": delete, "compact": compact, "snapshot": snapshot}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    return make_seed(tmp_path_factory.mktemp("seed") / "bank")


class Tripwire:
    """Calls `act` when the n-th counted step is reached."""

    def __init__(self, at, act):
        self.at, self.act, self.count, self.names = at, act, 0, []

    def step(self, name):
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            self.act(name)

    @contextlib.contextmanager
    def armed(self, monkeypatch):
        wire, fsync, replace, connect = self, os.fsync, os.replace, sqlite3.connect

        class Connection(sqlite3.Connection):
            def execute(self, sql, *args):
                wire.step(" ".join(sql.split()[:2]))
                return super().execute(sql, *args)

            def executemany(self, sql, *args):
                wire.step(" ".join(sql.split()[:2]))
                return super().executemany(sql, *args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda fd: (wire.step("fsync"), fsync(fd))[1])
            patch.setattr(os, "replace", lambda a, b: (wire.step("replace"), replace(a, b))[1])
            patch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=Connection, **k))
            yield


def steps(operation, seed, folder, monkeypatch):
    """Names of the steps that the operation takes, from opening to closing."""
    fresh(seed, folder)
    wire = Tripwire(0, None)
    with wire.armed(monkeypatch), open_bank(folder) as bank:
        operation(bank)
    return wire.names


def test_files_are_durable_before_the_catalog_names_them(seed, folder, monkeypatch):
    names = steps(commit, seed, folder, monkeypatch)
    begin = names.index("BEGIN IMMEDIATE")
    written = [name for name in names[:begin] if name in ("fsync", "replace")]
    unsealed = ["fsync"]
    files = ["fsync"] * 4 + ["replace", "fsync"]  # three files and their folder, the rename, the folder above
    assert written == files + unsealed
    assert "COMMIT" in names[begin:]


@pytest.mark.skipif(sys.platform != "linux", reason="reads names of descriptors")
def test_every_new_name_is_durable(tmp_path, monkeypatch):
    """A folder's name lies in the folder above it: without a sync of that, a power cut takes the folder away."""
    synced, fsync = [], os.fsync
    name = lambda fd: str(Path(f"/proc/self/fd/{fd}").readlink())  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(name(fd)), fsync(fd))[1])
    folder = tmp_path / "new" / "bank"
    with open_bank(folder) as bank:
        bank.commit([encoded("a")], NS)
    root = folder / "segments"
    named = synced.index(str(root))  # for the segment's folder was renamed within it
    assert {str(p) for p in (tmp_path, tmp_path / "new", folder)} <= set(synced[:named])
    assert synced[:named].count(str(folder)) >= 2, "for the catalog, and again for the folder of segments"


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_any_step_leaves_old_or_new(name, seed, folder, monkeypatch):
    operation = OPERATIONS[name]
    before, after = outcome(operation, seed, folder)
    seen, total = set(), len(steps(operation, seed, folder, monkeypatch))
    every = 1 if name in ("commit", "compact") else 3  # the others change rows of the catalog alone
    for at in range(1, total + 1, every):
        acknowledged = killed_at(at, operation, fresh(seed, folder), monkeypatch)
        with open_bank(folder) as bank:
            found = state(bank)
            assert found in (before, after), f"a mix after step {at}"
            assert found == after or not acknowledged, f"an acknowledged {name} was lost at step {at}"
            assert len(segment_folders(folder)) == bank.stats(NS).segments, f"orphans after step {at}"
            assert bank.verify().ok
            bank.commit([encoded("later")], NS)
            assert set(picture(bank)) == {*found[0], "later"}
        seen.add(found == after)
    assert seen == ({True, False} if before != after else {True}), "the kills cover both sides of the commit"


def killed_at(at, operation, folder, monkeypatch):
    """Run the operation in a child that dies by SIGKILL at a step; whether it had acknowledged."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with Tripwire(at, lambda name: os.kill(os.getpid(), signal.SIGKILL)).armed(monkeypatch):
                bank = open_bank(folder)
                operation(bank)
                os.write(writing, b"done")
                bank.close()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = pipe.read() == b"done"
    os.waitpid(child, 0)
    return acknowledged


@pytest.mark.slow
@needs_fork
def test_killed_while_creating(folder, monkeypatch):
    wire = Tripwire(0, None)
    with wire.armed(monkeypatch):
        open_bank(folder).close()
    for at in range(1, wire.count + 1):
        shutil.rmtree(folder)
        killed_at(at, picture, folder, monkeypatch)
        with open_bank(folder) as bank:
            assert picture(bank) == {} and bank.verify().ok
            bank.commit([encoded("a")], NS)
        assert not list(folder.glob("catalog.new*"))


@pytest.mark.slow
@needs_fork
def test_a_log_cut_short_at_any_length_is_old_or_new(seed, folder, monkeypatch):
    """As a power cut leaves it when the last pages had not reached the disk."""
    before, after = outcome(commit, seed, folder)
    names = steps(commit, seed, folder, monkeypatch)
    last = len(names) - 1 - names[::-1].index("COMMIT") + 2  # the step after COMMIT
    killed_at(last, commit, fresh(seed, folder), monkeypatch)
    log = (folder / "catalog.sqlite-wal").read_bytes()
    assert len(log) > 4096
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    seen = []
    for length in range(0, len(log) + 1, 1031):
        fresh(whole, folder)
        (folder / "catalog.sqlite-shm").unlink()
        (folder / "catalog.sqlite-wal").write_bytes(log[:length])
        with open_bank(folder) as bank:
            found = state(bank)
            assert found in (before, after) and bank.verify().ok
        seen.append(found == after)
    assert seen == sorted(seen) and not seen[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code"), [(name, errno.ENOSPC) for name in OPERATIONS] + [("commit", errno.EIO), ("compact", errno.EROFS)]
)
def test_a_disk_that_refuses_at_any_step(name, code, seed, folder, monkeypatch):
    operation = OPERATIONS[name]
    before, after = outcome(operation, seed, folder)
    with open_bank(fresh(seed, folder)) as bank:  # opened before: only the operation meets the fault
        wire = Tripwire(0, None)
        with wire.armed(monkeypatch):
            operation(bank)
        count = wire.count  # before closing takes steps of its own
    messages = {errno.ENOSPC: "database or disk is full", errno.EIO: "disk I/O error"}

    def refuse(step):
        if step in ("fsync", "replace"):
            raise OSError(code, os.strerror(code))
        raise sqlite3.OperationalError(messages.get(code, "attempt to write a readonly database"))

    refused = 0
    for at in range(1, count + 1):
        with open_bank(fresh(seed, folder)) as bank, Tripwire(at, refuse).armed(monkeypatch):
            try:
                operation(bank)
                assert state(bank) == after, "acknowledged, so it happened"
            except BankError as error:
                refused += 1
                expected = BankReadOnlyError if code == errno.EROFS else BankWriteError
                assert isinstance(error, expected), error
            bank.refresh()
            found = state(bank)
            assert found in (before, after), f"a mix after step {at}"
            assert not [f for f in segment_folders(folder) if f.endswith(".tmp")]
            if found == before:
                operation(bank)  # the handle is still usable, and now the disk is well
                assert state(bank) == after
            assert len(segment_folders(folder)) == bank.stats(NS).segments and bank.verify().ok
    assert refused > count // 4


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX resource limits")
@pytest.mark.parametrize("what", ["latents", "text"])
def test_a_real_refusal_by_the_kernel(what, bank, folder):
    bank.commit([encoded("a")], NS)
    before = picture(bank)
    wide = torch.randn(64, 4096) if what == "latents" else torch.randn(1, 4)
    text = "x" * (4 << 20) if what == "text" else "x"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, limits[1]))
    try:
        with pytest.raises(BankWriteError, match="everything acknowledged before is intact"):
            bank.commit([EncodedDocument(Document("big", text), 1, {"3": wide, "5": wide}, {})], NS)
        assert picture(bank) == before and len(segment_folders(folder)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    bank.commit([encoded("b")], NS)
    assert set(picture(bank)) == {"a", "b"} and bank.verify().ok
