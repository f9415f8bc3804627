"""One writer and many readers, in threads and in processes: whole operations only, and no lock outlives its process."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from bank_builder import NS, encoded, open_bank, picture, run_child, start_child

from msa_plugin.bank import log as logs
from msa_plugin.bank.log import Log
from msa_plugin.errors import BankError, BankLockedError

HERE = str(Path(__file__).parent)
FOLLOWER = (
    f"import sys; sys.path.insert(0, {HERE!r})\n"
    + """
from test_concurrency import follow
print("open", flush=True)
print(follow(sys.argv[1], lambda: bool(sys.stdin.readline().strip())), flush=True)
"""
)
GROUPS, MEMBERS = 3, 4


def group(number, stamp):
    """Documents of one commit: a reader that sees one of them without the others has seen half a commit."""
    return [encoded(f"{number}-{n}", f"stamp {stamp}", chunks=1, stamp=stamp) for n in range(MEMBERS)]


def stamps(bank):
    """The stamp of each group; fails for a group that is incomplete or of several commits."""
    found = {}
    for d in bank.get([*bank.iter_ids(NS)], NS).values():
        assert d.text == f"stamp {d.metadata['stamp']}"
        found.setdefault(d.id.split("-")[0], []).append(d.metadata["stamp"])
    assert all(len(seen) == MEMBERS and len(set(seen)) == 1 for seen in found.values()), found
    return {number: seen[0] for number, seen in found.items()}


def follow(folder, go_on):
    """Read again and again, at the newest moment and at the first one; how many different moments were seen."""
    first = open_bank(folder, read_only=True, follow=False)
    with first, open_bank(folder, read_only=True) as newest:
        kept, before, moments = picture(first), {}, set()
        while True:
            more = go_on()
            newest.refresh()
            now = stamps(newest)
            assert all(now.get(number, stamp) >= stamp for number, stamp in before.items()), (before, now)
            assert picture(first) == kept, "the first moment has moved"
            before = now
            moments.add(newest.version)
            if not more:
                return len(moments)


def write(bank, rounds, between=lambda: None):
    """Commits, deletions and compactions of whole groups."""
    for stamp in range(1, rounds + 1):
        bank.commit(group(stamp % GROUPS, stamp), NS)
        if stamp % 4 == 0:
            bank.delete([f"{stamp % GROUPS}-{n}" for n in range(MEMBERS)], NS)
        if stamp % 5 == 0:
            bank.compact(segment_bytes=1 if stamp % 2 else 1 << 20)
        between()


def test_threads_that_read_see_whole_operations(bank, folder):
    bank.commit([d for n in range(GROUPS) for d in group(n, 0)], NS)
    done = threading.Event()

    def read():
        return follow(folder, lambda: not done.is_set())

    def read_the_writers_handle():
        while not done.is_set():
            stamps(bank) if not bank.select(NS, {"stamp": {"$lt": 0}}).documents else None
        return 1

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(call) for call in (read, read, read_the_writers_handle)]
        try:
            write(bank, 20)
        finally:
            done.set()
    assert all(moments.result() for moments in reading) and bank.verify().ok


def test_processes_that_read_see_whole_operations(bank, folder):
    bank.commit([d for n in range(GROUPS) for d in group(n, 0)], NS)
    children = [start_child(FOLLOWER, folder) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["open\n"] * 2

    def nudge():
        for child in children:
            child.stdin.write("on\n")
            child.stdin.flush()

    nudge()
    write(bank, 12, nudge)
    for child in children:
        said, _ = child.communicate(timeout=120)
        assert child.returncode == 0 and int(said) >= 1
    assert bank.verify().ok and len([*(folder / "segments").iterdir()]) == bank.stats(NS).segments


FORKED_WRITER = """
import os, sys
from bank_builder import *
parent = open_bank(sys.argv[1])
parent.commit([encoded("a")], NS)
selection = parent.select(NS)
(ready, told), (go, say) = os.pipe(), os.pipe()
if (pid := os.fork()) == 0:
    child = open_bank(sys.argv[1])
    child.commit([encoded("c")], NS)
    os.write(told, b"x")
    os.read(go, 1)
    child.commit([encoded("d")], NS)
    os._exit(0)  # as if killed: nothing is closed
os.read(ready, 1)
assert sorted(parent.iter_ids(NS)) == ["a", "c"]
parent.close()
os.write(say, b"x")
assert os.waitpid(pid, 0)[1] == 0
with open_bank(sys.argv[1]) as again:
    assert sorted(again.iter_ids(NS)) == ["a", "c", "d"] and again.verify().ok
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_what_a_forked_child_commits_outlives_its_parents_handle(folder):
    """SQLite takes the parent's connections for the child's, whose own would then lock nothing."""
    done = run_child(FORKED_WRITER, folder)
    assert done.returncode == 0, done.stderr


FORKING = """
import os, sys, time
from bank_builder import *
bank = open_bank(sys.argv[1])
with bank.writing():
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
    print(pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_no_lock_outlives_a_killed_process_or_lives_on_in_its_forked_child(folder):
    child = start_child(FORKING, folder)
    grandchild = int(child.stdout.readline())
    try:
        with open_bank(folder, lock_timeout=0) as other:
            with pytest.raises(BankLockedError, match=f"process {child.pid} "):
                other.commit([encoded("a")], NS)
            child.kill()
            child.wait()
            other.commit([encoded("a")], NS)
    finally:
        os.kill(grandchild, signal.SIGKILL)
        child.communicate()


FORKED = """
import os, sys
from bank_builder import *
from msa_plugin.errors import BankError
bank = open_bank(sys.argv[1])
bank.commit([encoded("a")], NS)
def refused(call):
    try:
        call()
    except BankError as error:
        return "forked" in str(error)
with bank.writing():
    pid = os.fork()
    if pid == 0:
        calls = [lambda: bank.count(NS), lambda: bank.commit([encoded("b")], NS), bank.refresh, bank.compact]
        ok = all(map(refused, calls))
        bank.close()
        try:
            open_bank(sys.argv[1], lock_timeout=0).commit([encoded("c")], NS)
        except BankError:
            sys.exit(0 if ok else 3)
        sys.exit(4)  # the parent holds the lock
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bank.commit([encoded("d")], NS)
assert sorted(bank.iter_ids(NS)) == ["a", "d"] and bank.verify().ok
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_is_told_to_open_the_bank_itself(folder):
    done = run_child(FORKED, folder)
    assert done.returncode == 0, done.stderr


def test_an_interruption_while_taking_the_lock_leaves_it_free(bank, folder, monkeypatch):
    from filelock import FileLock

    acquire = FileLock.acquire

    def interrupted(self, *args, **kwargs):
        acquire(self, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank.commit([encoded("a")], NS)
    with open_bank(folder, lock_timeout=0) as other:
        other.commit([encoded("b")], NS)
    bank.commit([encoded("c")], NS)
    assert set(picture(bank)) == {"b", "c"}


def test_an_interruption_after_a_change_leaves_a_handle_that_reads(bank, folder, monkeypatch):
    bank.commit([encoded("a")], NS)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Log, "shorten", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank.commit([encoded("b")], NS)
    with open_bank(folder) as other:
        other.delete(["a"], NS)
        other.compact()
    assert set(picture(bank)) == {"b"}, "it looks again rather than mixing two moments"


@pytest.mark.parametrize("patience", [float("inf"), 1e12])
def test_a_writer_may_wait_for_ever(folder, patience):
    with open_bank(folder, lock_timeout=patience) as bank:
        bank.commit([encoded("a")], NS)


def log_bytes(bank, folder, commits, after=lambda: None):
    """The longest that the write-ahead log was after one of `commits` commits of one document, and `after` it."""
    longest = 0
    for n in range(commits):
        bank.commit([encoded(f"d{n % 7}", f"{n} " + "words " * 2000, chunks=1)], NS)
        after()
        longest = max(longest, (folder / "catalog.sqlite-wal").stat().st_size)
    return longest


def test_a_reader_that_always_stands_at_the_logs_end_makes_way_at_once(bank, folder, monkeypatch):
    monkeypatch.setattr(logs, "_TRUNCATE_BYTES", 200_000)
    waited = []
    with open_bank(folder, read_only=True, follow=False) as reader:
        moves = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: waited.append(reader.refresh()))
        monkeypatch.setattr(logs, "time", moves)
        assert log_bytes(bank, folder, 60, after=reader.refresh) < 300_000
    assert len(waited) >= 4, "it does stand in the way"


def test_a_reader_that_stays_is_waited_for_a_few_times_only(bank, folder, monkeypatch):
    monkeypatch.setattr(logs, "_TRUNCATE_BYTES", 100_000)
    monkeypatch.setattr(logs, "_READER_SECONDS", 0.01)
    waited, empty = [], logs.Log.empty
    monkeypatch.setattr(logs.Log, "empty", lambda log, patience=0.01: waited.append(patience) or empty(log, patience))
    with open_bank(folder, read_only=True, follow=False) as reader:
        bank.commit([encoded("a")], NS)
        reader.refresh()
        bank.commit([encoded("b")], NS)
        longest = log_bytes(bank, folder, 60)
        assert longest > 800_000 and 2 <= sum(map(bool, waited)) <= 5 and set(picture(reader)) == {"a"}
    bank.commit([encoded("c")], NS)
    assert (folder / "catalog.sqlite-wal").stat().st_size == 0, "it has left"


def test_moments_are_let_go_when_nobody_reads_from_them(bank):
    bank.commit([encoded("a")], NS)
    held = []
    for n in range(5):
        held.append(bank.select(NS))
        bank.commit([encoded(f"b{n}")], NS)
    assert len(bank._views._past) == 5
    held.clear()
    bank.refresh()
    assert len(bank._views._past) == 0


def test_a_closed_handle_refuses_what_a_selection_still_holds(bank):
    bank.commit([encoded("a")], NS)
    selection = bank.select(NS)
    bank.delete(["a"], NS)
    bank.compact()
    bank.close()
    with pytest.raises(BankError, match="closed"):
        bank.documents(selection.ordinals().tolist())
