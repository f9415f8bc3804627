"""ViewPool: what a handle, a named snapshot and a compaction each see, here and in another process."""

import pytest
from bank_builder import NS, encoded, open_bank, picture, segment_folders, start_child

from msa_plugin.errors import SnapshotError

SECOND_WRITER = """
import sys
from bank_builder import NS, encoded, open_bank
with open_bank(sys.argv[1], lock_timeout=60) as bank:
    print("open", flush=True)
    sys.stdin.readline()
    for n in range(8):
        bank.commit([encoded(f"child-{n}", chunks=1), encoded("both", f"child's {n}")], NS)
        bank.delete([f"child-{n - 1}"], NS)
"""


def ids(bank):
    return set(picture(bank))


def test_a_handle_that_does_not_follow_keeps_its_moment_until_refreshed(bank, folder):
    bank.commit([encoded("a"), encoded("b")], NS)
    with open_bank(folder, read_only=True, follow=False) as reader:
        before = picture(reader)
        bank.commit([encoded("b", "new"), encoded("c")], NS)
        bank.delete(["a"], NS)
        assert picture(reader) == before and reader.version < bank.version
        bank.compact()
        assert picture(reader) == before, "compaction removed the files, not the reader's maps"
        reader.refresh()
        assert ids(reader) == {"b", "c"} == ids(bank) and reader.version == bank.version


@pytest.mark.slow
def test_two_writing_processes_lose_nothing(bank, folder):
    child = start_child(SECOND_WRITER, folder)
    assert child.stdout.readline() == "open\n"
    child.stdin.write("go\n")
    child.stdin.flush()
    with open_bank(folder, lock_timeout=60) as writer:
        for n in range(8):
            writer.commit([encoded(f"parent-{n}", chunks=1), encoded("both", f"parent's {n}")], NS)
            if n == 4:
                writer.compact()
    child.communicate()
    assert child.returncode == 0
    bank.refresh()
    assert ids(bank) == {"child-7", "both", *(f"parent-{n}" for n in range(8))}
    assert bank.get(["both"], NS)["both"].text in ("child's 7", "parent's 7")
    assert bank.verify().ok


def test_opening_while_segments_are_being_replaced(bank, folder, monkeypatch):
    """A compaction may remove the files between a reader's look at the catalog and its mapping of them."""
    from msa_plugin.bank import view

    bank.commit([encoded("a")], NS)
    bank.commit([encoded("b")], NS)
    original, calls = view.Segment, []

    def slow(record, root):
        calls.append(record.uuid)
        if len(calls) == 1:
            bank.compact()
        return original(record, root)

    with monkeypatch.context() as patch:
        patch.setattr(view, "Segment", slow)
        with open_bank(folder, read_only=True) as reader:
            assert ids(reader) == {"a", "b"}
    assert len(set(calls)) > 1


def test_compaction_frees_what_no_moment_needs(bank, folder):
    bank.commit([encoded("a", "unique words here"), encoded("b")], NS)
    bank.commit([encoded("c")], NS)
    bank.snapshot("s")
    bank.delete(["a"], NS)
    bank.compact()
    assert bank.stats(NS).deleted == 1, "the snapshot needs it"
    bank.drop_snapshot("s")
    bank.commit([encoded("long", "words " * 100_000, content=False)], NS)
    bank.delete(["long"], NS)
    before = bank.stats(NS)
    bank.compact()
    after = bank.stats(NS)
    assert before.bytes_catalog - after.bytes_catalog > 500_000
    assert (after.deleted, after.documents, after.segments) == (0, 2, 1)
    assert after.bytes_keys < before.bytes_keys and after.bytes_content < before.bytes_content
    assert len(segment_folders(folder)) == 1
    bank.close()
    assert b"unique words" not in (folder / "catalog.sqlite").read_bytes(), "the text is gone from the disk"
    with pytest.raises(SnapshotError):
        open_bank(folder, snapshot="s")


def test_compaction_bounds_segments_and_is_idempotent(bank, folder):
    for n in range(12):
        bank.commit([encoded(f"d{n}", chunks=1 + n % 3)], NS)
    before, size = picture(bank), encoded("x", chunks=3)
    limit = 3 * sum(t.numel() * t.element_size() for t in (*size.keys.values(), *size.content.values()))
    bank.compact(segment_bytes=limit)
    assert picture(bank) == before
    records = [segment.record for segment in bank.segments()]
    assert 2 < len(records) < 12
    ends = [end for r in records for end in (r.first_ordinal, r.last_ordinal)]
    assert ends == sorted(ends) and [r.documents for r in records] != [1] * 12
    folders, version = segment_folders(folder), bank.version
    bank.compact(segment_bytes=limit)
    assert segment_folders(folder) == folders and bank.version == version, "nothing left to do"
    bank.delete(["d0"], NS)
    bank.compact(segment_bytes=limit)
    assert len(set(segment_folders(folder)) & set(folders)) >= len(folders) - 2, "full segments are left alone"


def test_adding_one_by_one_does_not_pile_up_segments(bank, folder, monkeypatch):
    monkeypatch.setattr("msa_plugin.bank.compaction.TAIL_SEGMENTS", 4)
    bank.commit([encoded("first"), encoded("dead")], NS)
    bank.delete(["dead"], NS)
    for n in range(20):
        bank.commit([encoded(f"d{n}", chunks=1)], NS)
        assert len(segment_folders(folder)) == bank.stats(NS).segments <= 4
    assert ids(bank) == {"first", *(f"d{n}" for n in range(20))} and bank.verify().ok


def test_merging_small_segments_leaves_the_others_and_their_dead_alone(bank, folder, monkeypatch):
    from msa_plugin.bank import compaction

    bank.commit([encoded("large", chunks=8), encoded("dead", chunks=8)], NS)
    [large] = segment_folders(folder)
    monkeypatch.setattr(compaction, "TAIL_SEGMENTS", 3)
    monkeypatch.setattr(compaction, "TAIL_BYTES", bank.segments()[0].latent_bytes)
    bank.delete(["dead"], NS)
    for name in ("x", "y", "z"):
        bank.commit([encoded(name, chunks=1)], NS)
    assert large in segment_folders(folder) and bank.stats(NS).segments == 2
    assert ids(bank) == {"large", "x", "y", "z"} and bank.verify().ok


def test_a_failed_merge_does_not_deny_the_commit(bank, monkeypatch):
    from msa_plugin.bank import compaction
    from msa_plugin.errors import BankCorruptError

    def damaged(*_):
        raise BankCorruptError("an older segment is damaged")

    monkeypatch.setattr(compaction, "TAIL_SEGMENTS", 1)
    monkeypatch.setattr(compaction, "compact", damaged)
    assert bank.commit([encoded("a")], NS) == [1] and ids(bank) == {"a"}


def test_segments_never_overlap_even_around_one_that_stays(bank):
    bank.commit([encoded("a")], NS)
    bank.commit([encoded("large", chunks=32)], NS)
    bank.commit([encoded("z")], NS)
    large = bank.segments()[1]
    bank.delete(["a"], NS)
    bank.commit([encoded("zz")], NS)
    bank.compact(segment_bytes=large.latent_bytes)
    ranges = [(s.record.first_ordinal, s.record.last_ordinal) for s in bank.segments()]
    assert ranges == [(2, 2), (3, 4)] and bank.segments()[0] is large
    bank.commit([encoded("large", chunks=32, note="new")], NS)
    bank.commit([encoded("end")], NS)
    bank.compact(segment_bytes=large.latent_bytes)
    ranges = [(s.record.first_ordinal, s.record.last_ordinal) for s in bank.segments()]
    assert ranges == [(3, 4), (5, 5), (6, 6)], "what lies on either side of a full segment is not merged across it"


def test_compaction_keeps_different_shapes_apart(bank):
    bank.commit([encoded("a")], NS)
    bank.commit([encoded("b", content=False)], NS)
    bank.commit([encoded("c", content=False)], NS)
    before = picture(bank)
    bank.compact()
    assert picture(bank) == before and bank.stats(NS).segments == 2
    bank.delete(["a", "b", "c"], NS)
    bank.compact()
    assert bank.stats(NS).segments == 0 and picture(bank) == {} and bank.verify().ok
