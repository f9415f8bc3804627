"""Damage: every file missing, truncated, lengthened or altered is found, and never served where sizes show it."""

import sqlite3

import pytest
from bank_builder import NS, encoded, flip, open_bank, picture

from msa_plugin.bank.verify import verify_bank
from msa_plugin.errors import BankCorruptError, BankError

FILES = ("keys.safetensors", "content.safetensors")


@pytest.fixture
def built(folder):
    with open_bank(folder) as bank:
        bank.commit([encoded("a", lang="en"), encoded("b")], NS)
        bank.commit([encoded("c", title="T")], "other")
    return folder


def segment_of(folder, name):
    """Folder of the segment that holds document `name`."""
    with open_bank(folder, read_only=True) as bank:
        [found] = [s for s in bank.segments() if s.record.namespace == ("other" if name == "c" else NS)]
        return folder / "segments" / found.record.uuid


def test_a_sound_bank_verifies(built):
    for deep in (True, False):
        report = verify_bank(built, deep=deep)
        assert report.ok and report.problems == () and report.files == 7
        files = [p for p in built.rglob("*") if p.suffix in (".safetensors", ".sqlite")]
        assert report.bytes >= sum(p.stat().st_size for p in files)
    with open_bank(built) as bank:
        assert bank.verify().ok


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "longer", "missing"])
def test_wrong_sizes_are_refused_at_opening_and_located_by_verify(built, file, damage):
    path = segment_of(built, "a") / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[:-1], "emptied": b"", "longer": data + b"\0"}[damage])
    with pytest.raises(BankCorruptError, match=str(path)):
        open_bank(built)
    for deep in (True, False):
        report = verify_bank(built, deep=deep)
        assert not report.ok and str(path) in report.problems[0] and report.documents == ("a", "b")


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_flipped_byte_is_found(built, file):
    path = segment_of(built, "c") / file
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        flip(path, position, 1 << position % 8)
        report = verify_bank(built)
        assert any(str(path) in problem for problem in report.problems), position
        assert report.documents == ("c",)
        path.write_bytes(sound)
    assert verify_bank(built).ok


@pytest.mark.slow
@pytest.mark.parametrize(("file", "numbers"), [(FILES[0], 2 + 3 + 2), (FILES[1], 3 + 2)])
def test_flipped_header_or_offsets_never_return_another_documents_rows(built, file, numbers):
    """Sizes are right, so the file opens; what is then read is refused or is exactly right."""
    path = segment_of(built, "a") / file
    sound = path.read_bytes()
    with open_bank(built, read_only=True) as bank:
        expected = picture(bank)
    structure = 8 + int.from_bytes(sound[:8], "little") + 8 * numbers  # header, then ordinals and offsets
    outcomes = set()
    for position in range(structure):
        flip(path, position, 2)
        try:
            with open_bank(built, read_only=True) as bank:
                outcomes.add(picture(bank) == expected)
        except BankError:
            outcomes.add("refused")
        path.write_bytes(sound)
    assert outcomes == {"refused"}


@pytest.mark.parametrize("keep", [0, 10, 100, 4096, 10000, -1])
def test_a_truncated_catalog_is_found(built, keep):
    path = built / "catalog.sqlite"
    path.write_bytes(path.read_bytes()[:keep])
    report = verify_bank(built)
    assert not report.ok and "catalog.sqlite" in report.problems[0]


@pytest.mark.parametrize(
    ("sql", "message", "documents"),
    [
        ("UPDATE documents SET segment = 99 WHERE id = 'b'", "dangling", ("a",)),
        ("UPDATE documents SET position = 5 WHERE id = 'b'", "positions", ("a", "b")),
        ("UPDATE documents SET chunks = 3 WHERE id = 'b'", "checksum", ("b", "a")),
        ("UPDATE documents SET metadata = '{}' WHERE id = 'a'", "checksum", ("a",)),
        ("UPDATE documents SET id = 'z' WHERE id = 'a'", "checksum", ("z",)),
        ("DELETE FROM texts WHERE ordinal = 1", "checksum", ("a",)),
        ("UPDATE segments SET chunks = chunks + 1 WHERE number = 1", "number of chunks", ("a", "b")),
        ("UPDATE segments SET first_ordinal = 2 WHERE number = 1", "ordinals", ("a", "b")),
        ("DELETE FROM meta WHERE key = 'fingerprint'", "fingerprint", ()),
    ],
)
def test_a_catalog_that_contradicts_itself_or_the_segments(built, sql, message, documents):
    with sqlite3.connect(built / "catalog.sqlite") as db:
        db.execute(sql)
    db.close()
    report = verify_bank(built)
    assert any(message in problem for problem in report.problems), report.problems
    assert report.documents == documents


def test_verify_of_nothing(tmp_path):
    report = verify_bank(tmp_path / "absent")
    assert not report.ok and "no memory bank" in report.problems[0]


def test_verify_during_a_compaction_raises_no_false_alarm(folder, monkeypatch):
    from msa_plugin.bank import verify

    with open_bank(folder) as bank:
        bank.commit([encoded("a")], NS)
        bank.commit([encoded("b")], NS)
        original = verify.Check._catalog

        def compacting(check, catalog):
            original(check, catalog)
            bank.compact()

        monkeypatch.setattr(verify.Check, "_catalog", compacting)
        assert verify_bank(folder).ok
        assert bank.stats(NS).segments == 1
