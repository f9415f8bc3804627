"""Following: what other processes change is there at a handle's next call, and a question keeps its moment."""

import gc
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from bank_builder import NS, encoded, open_bank, picture, start_child

from msa_plugin.errors import BankError, SnapshotError

CHILD = """
import json, sys
from bank_builder import NS, encoded, open_bank
bank = None
def opened(folder):
    global bank
    if bank is not None:
        bank.close()
    bank = open_bank(folder, lock_timeout=60)
can = {
    "open": opened,
    "commit": lambda *documents: bank.commit([encoded(*d) for d in documents], NS) and None,
    "delete": lambda *ids: bank.delete(list(ids), NS) and None,
    "compact": lambda: bank.compact() and None,
    "snapshot": lambda name: bank.snapshot(name) and None,
    "drop_snapshot": lambda name: bank.drop_snapshot(name) and None,

}
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(can[name](*arguments)), flush=True)
bank.close()
"""


@pytest.fixture(scope="module")
def process():
    child = start_child(CHILD)
    yield child
    child.communicate()
    assert child.returncode == 0


@pytest.fixture
def other(folder, process):
    """Another process with a handle on the same bank, that does as it is told."""

    def tell(name, *arguments):
        process.stdin.write(json.dumps([name, *arguments]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    tell("open", str(folder))
    return tell


def texts(bank):
    return sorted((i, p[1]) for i, p in picture(bank).items())


@pytest.mark.parametrize("read_only", [False, True])
def test_what_another_process_changes_is_there_at_the_next_call(folder, other, read_only):
    with open_bank(folder, read_only=read_only) as bank:
        assert texts(bank) == []
        other("commit", ["a"], ["b"])
        assert texts(bank) == [("a", "text of a"), ("b", "text of b")]
        other("commit", ["a", "new"])
        assert bank.get(["a"], NS)["a"].text == "new" and bank.count(NS) == 2
        other("delete", "b")
        assert texts(bank) == [("a", "new")] and "b" not in bank.lookup(["a", "b"], NS)
        other("compact")
        assert texts(bank) == [("a", "new")] and bank.stats(NS).deleted == 0
        other("snapshot", "s")
        assert [s.name for s in bank.snapshots()] == ["s"]


def test_a_question_keeps_its_moment_while_another_process_changes_everything(folder, other):
    other("commit", ["a"], ["b"])
    with open_bank(folder, read_only=True) as bank:
        question = bank.select(NS)
        ordinals = question.ordinals().tolist()
        keys = bank.key_rows(ordinals, "3")
        other("commit", ["a", "new"], ["c"])
        other("delete", "b")
        other("compact")
        assert texts(bank) == [("a", "new"), ("c", "text of c")], "a later question sees what is there"
        assert [d.text for d in bank.documents(ordinals)] == ["text of a", "text of b"]
        assert all(map(lambda x, y: x.equal(y), bank.key_rows(ordinals, "3"), keys))
        del question
        gc.collect()
        with pytest.raises(BankError, match="repeat the query"):
            bank.documents(ordinals)


def test_within_one_moment_nothing_moves(folder, other):
    with open_bank(folder) as bank:
        with bank.one_moment():
            assert bank.count(NS) == 0
            other("commit", ["a"])
            assert bank.count(NS) == 0 and bank.lookup(["a"], NS) == {} and texts(bank) == []
        assert bank.count(NS) == 1


def test_ids_are_of_the_moment_in_which_they_were_asked_for(folder, other, monkeypatch):
    monkeypatch.setattr("msa_plugin.bank.bank._PAGE", 1)
    other("commit", ["a"], ["b"])
    with open_bank(folder) as bank:
        found = bank.iter_ids(NS)
        assert next(found) == "a"
        other("delete", "b")
        other("compact")
        assert list(found) == ["b"] and list(bank.iter_ids(NS)) == ["a"]


def test_a_named_snapshot_stays_whatever_others_do(folder, other):
    other("commit", ["a"], ["b"])
    other("snapshot", "s")
    with open_bank(folder, snapshot="s") as old:
        before = picture(old)
        other("delete", "a")
        other("commit", ["b", "new"])
        assert picture(old) == before
        other("compact")
        assert picture(old) == before, "its documents lie in other segments now"
        other("drop_snapshot", "s")
        with pytest.raises(SnapshotError, match="no snapshot named 's'"):
            picture(old)


def test_a_handle_at_rest_holds_no_transaction(bank, folder):
    bank.commit([encoded("a")], NS)
    with open_bank(folder, read_only=True) as reader:
        connection = reader._views.shown.catalog
        assert not connection.holds_snapshot
        selection = reader.select(NS)
        assert connection.holds_snapshot, "while somebody has a selection, its documents stay readable"
        reader.count(NS)
        assert connection.holds_snapshot
        del selection
        assert not connection.holds_snapshot
        with pytest.raises(BankError):
            reader.documents([99])
        assert not connection.holds_snapshot


@pytest.mark.slow
def test_selections_that_other_threads_drop_are_let_go(bank, folder):
    """Whoever drops a moment ends its transaction, or leaves that to whoever is at work: it never stays open."""
    bank.commit([encoded(f"d{n}") for n in range(8)], NS)
    with open_bank(folder, read_only=True) as reader:

        def ask():
            for _ in range(60):
                assert len(reader.documents(reader.select(NS).ordinals().tolist())) >= 8

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(4) as pool:
                asking = [pool.submit(ask) for _ in range(4)]
                for n in range(6):
                    bank.commit([encoded(f"more{n}")], NS)
        finally:
            sys.setswitchinterval(before)
        for done in asking:
            done.result()
        assert not reader._views.shown.catalog.holds_snapshot and not reader._views._past


@pytest.mark.slow
def test_the_log_stays_short_beside_an_idle_reader_and_is_emptied_once_another_has_left(folder, monkeypatch):
    from msa_plugin.bank import log

    monkeypatch.setattr(log, "_CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(log, "_TRUNCATE_BYTES", 400_000)
    monkeypatch.setattr(log, "_READER_SECONDS", 0.01)
    size = (folder / "catalog.sqlite-wal").stat
    with open_bank(folder) as bank:

        def update(times):
            for n in range(times):
                bank.commit([encoded(f"d{i}", f"{n} " + "words " * 400, chunks=1) for i in range(5)], NS)

        with open_bank(folder, read_only=True) as idle:
            idle.documents(idle.select(NS).ordinals().tolist())
            update(60)
            assert size().st_size < 500_000
        with open_bank(folder, read_only=True, follow=False):
            update(60)
            assert size().st_size > 500_000, "it keeps its moment, and says so where it is asked for"
        update(1)
        assert size().st_size < 100_000
