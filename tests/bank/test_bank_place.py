"""A path is no identity: what lies at it may be another bank, or none, while a handle is open."""

import shutil

import pytest
from bank_builder import NS, encoded, open_bank, picture, segment_folders

from msa_plugin.bank.repair import repair_bank
from msa_plugin.errors import BankError, BankMovedError

CHANGES = {
    "add": lambda bank: bank.commit([encoded("new")], NS),
    "add again": lambda bank: bank.commit([encoded("old")], NS),
    "delete nothing": lambda bank: bank.delete(["nobody"], NS),
    "delete": lambda bank: bank.delete(["old"], NS),
    "snapshot": lambda bank: bank.snapshot("s"),
    "drop a snapshot": lambda bank: bank.drop_snapshot("kept"),
    "compact": lambda bank: bank.compact(),
    "write": lambda bank: bank.writing().__enter__(),
    "read": lambda bank: bank.count(NS),
    "select": lambda bank: bank.select(NS),
    "refresh": lambda bank: bank.refresh(),
    "verify": lambda bank: bank.verify(),
}


def everything(folder):
    """Names, bytes and times of all files, but SQLite's own: what says whether anything was touched."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith("-shm")]
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def fill(folder, *names):
    with open_bank(folder) as bank:
        bank.commit([encoded(name) for name in names], NS)


def rebuilt(folder, aside):
    folder.rename(aside)
    fill(folder, "x", "y")


def restored(folder, aside):
    """As from a backup: the same bank, an earlier one, under new files."""
    shutil.rmtree(folder)
    shutil.copytree(aside, folder)


def in_place(folder, aside):
    """The folder stays, and what is in it is another bank's."""
    shutil.rmtree(folder / "segments")
    for file in folder.iterdir():
        file.unlink()
    shutil.copytree(aside, folder, dirs_exist_ok=True)


def linked(folder, aside):
    """A link to another bank is where the folder was."""
    folder.rename(folder.with_name("renamed"))
    folder.symlink_to(aside)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("replace", [rebuilt, restored, in_place, linked])
def test_a_replaced_bank_is_neither_read_nor_touched(folder, tmp_path, replace, name):
    aside = tmp_path / "aside"
    if replace is not rebuilt:
        fill(aside, "x", "y")
    with open_bank(folder) as old:
        old.commit([encoded("old"), encoded("other")], NS)
        old.snapshot("kept")
        old.delete(["other"], NS)
        old.commit([encoded("last")], NS)
        replace(folder, aside)
        before = everything(folder)
        with pytest.raises(BankMovedError, match="replaced by another bank"):
            CHANGES[name](old)
    assert everything(folder) == before, "not even when the old handle is closed"
    with open_bank(folder) as new:
        assert set(picture(new)) == {"x", "y"} and new.verify().ok


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_bank_that_is_gone_is_not_begun_again(folder, tmp_path, name, how):
    with open_bank(folder) as old:
        old.commit([encoded("old"), encoded("other")], NS)
        if how == "removed":
            shutil.rmtree(folder)
        else:
            folder.rename(tmp_path / "elsewhere")
        with pytest.raises(BankMovedError, match="moved or removed"):
            CHANGES[name](old)
        assert not folder.exists()
    assert not folder.exists()
    if how == "renamed":
        with open_bank(tmp_path / "elsewhere") as there:
            assert set(picture(there)) == {"old", "other"} and there.verify().ok


def test_a_question_that_runs_when_the_bank_is_replaced_ends_with_what_it_found(folder, tmp_path):
    with open_bank(folder) as old:
        old.commit([encoded("old")], NS)
        question = old.select(NS)
        rebuilt(folder, tmp_path / "aside")
        assert [d.id for d in old.documents(question.ordinals().tolist())] == ["old"]


@pytest.mark.parametrize("point", ["segment.durable", "commit.replaced", "transaction.ready", "transaction.committed"])
def test_a_bank_that_is_replaced_amid_a_change_is_whole(folder, tmp_path, point):
    from msa_plugin.bank.faults import injected

    aside, done = tmp_path / "aside", []

    def replace(reached):
        if reached == point and not done:
            done.append(point)
            rebuilt(folder, aside)

    with open_bank(folder) as old:
        old.commit([encoded("old")], NS)
        with injected(replace), pytest.raises(BankMovedError):
            old.commit([encoded("new")], NS)
    assert done
    with open_bank(folder) as new:
        assert set(picture(new)) == {"x", "y"} and new.verify().ok
        assert len(segment_folders(folder)) == 1, "a segment that went astray is swept"
    with open_bank(aside) as there:
        assert {"old"} <= set(picture(there))


def test_a_lock_that_was_waited_for_may_be_another_banks(folder, tmp_path):
    with open_bank(folder) as old, open_bank(folder) as other:
        old.commit([encoded("old")], NS)
        aside = tmp_path / "aside"
        folder.rename(aside)
        fill(folder, "x")
        with pytest.raises(BankMovedError), other.writing():
            pass
    with open_bank(folder) as new, open_bank(aside) as there:
        assert set(picture(new)) == {"x"} and set(picture(there)) == {"old"}


def test_a_working_directory_that_changes_changes_nothing(tmp_path, monkeypatch):
    a, b = tmp_path / "a", tmp_path / "b"
    for place in (a, b):
        place.mkdir()
    fill(b / "bank", "b's")
    monkeypatch.chdir(a)
    with open_bank("bank") as bank, open_bank("bank", read_only=True) as reader:
        bank.commit([encoded("one")], NS)
        monkeypatch.chdir(b)
        bank.commit([encoded("two")], NS)
        bank.delete(["one"], NS)
        bank.compact()
        assert set(picture(reader)) == {"two"} and reader.stats(NS).documents == 1
        assert reader.verify().ok and bank.verify().ok and bank.path == a / "bank"
    with open_bank(a / "bank") as bank, open_bank(b / "bank") as other:
        assert set(picture(bank)) == {"two"} and bank.verify().ok
        assert set(picture(other)) == {"b's"} and other.verify().ok


def test_two_names_of_one_file_count_as_one(folder, tmp_path):
    """Repair copies the catalog, and that would take the locks of a handle that has it open by another name."""
    from msa_plugin.errors import BankLockedError

    fill(folder, "a", "b")
    link = tmp_path / "link"
    with open_bank(folder) as bank:
        bank.commit([encoded("c")], NS)
        aside = tmp_path / "aside"
        folder.rename(aside)
        link.symlink_to(aside)
        [segment, *_] = (aside / "segments").iterdir()
        (segment / "keys.safetensors").unlink()
        with pytest.raises(BankLockedError, match="open in this process"):
            repair_bank(link)
        with pytest.raises(BankError):
            bank.count(NS)
