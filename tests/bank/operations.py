"""What can be done to a bank, and its state before and after, for tests that interrupt it midway."""

import shutil

from bank_builder import NS, encoded, flip, open_bank, picture

from msa_plugin.bank import compaction


def commit(bank):
    bank.commit([encoded("b", "new", chunks=3), encoded("c")], NS)


def commit_text(bank):
    """A text so long that the write-ahead log is moved into the catalog afterwards."""
    bank.commit([encoded("long", "words " * 800_000)], NS)


def commit_and_merge(bank):
    """A commit that finds enough small segments before it to merge them."""
    usual, compaction.TAIL_SEGMENTS = compaction.TAIL_SEGMENTS, 3
    try:
        commit(bank)
    finally:
        compaction.TAIL_SEGMENTS = usual


def delete(bank):
    bank.delete(["a"], NS)


def compact(bank):
    bank.compact()


def snapshot(bank):
    bank.snapshot("s")


def drop_snapshot(bank):
    bank.drop_snapshot("old")


OPERATIONS = {
    operation.__name__: operation
    for operation in (commit, commit_text, commit_and_merge, delete, compact, snapshot, drop_snapshot)
}


def make_seed(folder):
    """A bank with something to update, to delete and to compact, and a snapshot to drop."""
    with open_bank(folder) as bank:
        bank.commit([encoded("a"), encoded("b")], NS)
        bank.snapshot("old")
        bank.commit([encoded("gone"), encoded("d")], NS)
        bank.delete(["gone"], NS)
    return folder


def fresh(seed, folder):
    """A copy of the bank `seed` in `folder`, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, folder)
    return folder


def state(bank):
    """What readers see, version counts aside."""
    return picture(bank), [s.name for s in bank.snapshots()]


def outcome(operation, seed, folder):
    """The states before and after an operation that nothing disturbs."""
    with open_bank(fresh(seed, folder)) as bank:
        before = state(bank)
        operation(bank)
        return before, state(bank)


def damage(folder):
    """What repair has every step to do for: latents, words, a text, pages of the catalog that SQLite finds broken."""
    with open_bank(folder) as bank:
        bank.commit([encoded(f"page {n}", f"{n} " * 3000) for n in range(8)], NS)
        bank.commit([encoded("other")], "other")
        bank.compact()
        bank.commit([encoded("hit")], NS)
        latents = folder / "segments" / bank.segments()[-1].record.uuid / "keys.safetensors"
        [words] = (folder / "segments" / bank.segments()[0].record.uuid).glob("words-*")
    flip(latents, -1)
    flip(words, -1)
    path = folder / "catalog.sqlite"
    data = bytearray(path.read_bytes())
    at = data.index(b"3 3 3 3 ") // 4096 * 4096  # a page of one text
    data[at : at + 4096] = bytes(4096)
    path.write_bytes(data)
