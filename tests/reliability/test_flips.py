"""Damage to every kind of file, sampled: refused, named and repaired, never served. `flips.py` does it byte by byte."""

import shutil
import signal
import sys

import pytest
from bank_builder import run_child
from flips import FAILURES, Damage, build, inflict, read_all, reading, run

from msa_plugin.bank import documents, seal, segment
from msa_plugin.bank.verify import verify_bank


@pytest.mark.parametrize("unclean", [False, True])
def test_damage_is_refused_named_and_repaired(unclean):
    counts, failures = run(every=1999, seed=0, repair_every=6, unclean=unclean)
    assert failures == [] and not any(counts[kind] for kind in FAILURES)
    assert counts["refused"] > 50 and counts["repaired"] > 15, counts


@pytest.fixture
def sound(tmp_path):
    build(tmp_path / "bank")
    shutil.copytree(tmp_path / "bank", tmp_path / "copy")
    return tmp_path / "bank", read_all(tmp_path / "copy")


def some(folder, ending):
    return str(next(path for path in sorted(folder.rglob("*" + ending))).relative_to(folder))


@pytest.mark.parametrize(
    ("ending", "at", "what", "without"),
    [
        ("keys.safetensors", -5, segment.Segment, "check_keys"),
        ("catalog.sqlite", None, seal, "_broken"),
    ],
)
def test_without_its_check_the_damage_would_be_served(sound, monkeypatch, ending, at, what, without):
    """The harness notices: what it counts as refused is silent once the check is taken away."""
    folder, expected = sound
    name = some(folder, ending)
    data = bytearray((folder / name).read_bytes())
    at = data.rindex(b'"n": 3') + 5 if at is None else at
    data[at] ^= 1
    (folder / name).write_bytes(data)
    assert reading(folder, expected) == "refused" and not verify_bank(folder).ok
    monkeypatch.setattr(what, without, lambda *arguments: [])
    monkeypatch.setattr(segment.Segment, "_check_rows", lambda *arguments: None)
    monkeypatch.setattr(documents, "_is_sound", lambda row: True)
    assert reading(folder, expected).startswith("silent")


def test_commits_that_the_log_has_lost_are_missed(tmp_path):
    build(tmp_path / "bank", unclean=True)
    folder = tmp_path / "bank"
    for path in folder.glob("catalog.sqlite-*"):
        path.unlink()
    assert reading(folder, {}) == "refused"
    [problem] = verify_bank(folder).problems
    assert "2 commits are gone" in problem


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_file_that_is_cut_under_an_open_bank_kills_the_reader_and_misleads_nobody(tmp_path):
    """Memory maps end with the file: the operating system stops who reads beyond (SIGBUS)."""
    build(tmp_path / "bank")
    code = """
import sys
from pathlib import Path
from bank_builder import NS, open_bank, picture
with open_bank(sys.argv[1], read_only=True) as bank:
    for path in Path(sys.argv[1]).rglob("keys.safetensors"):
        with path.open("r+b") as file:
            file.truncate(0)
    print("read", picture(bank))
"""
    done = run_child(code, tmp_path / "bank")
    assert done.returncode == -signal.SIGBUS and done.stdout == ""


def test_every_kind_of_damage_changes_something(sound, tmp_path):
    import random

    folder, _ = sound
    for kind in ("flip", "truncate", "zero", "remove", "grow"):
        shutil.copytree(folder, tmp_path / kind)
        assert inflict(Damage(kind, some(folder, "keys.safetensors"), 1), tmp_path / kind, random.Random(0))
