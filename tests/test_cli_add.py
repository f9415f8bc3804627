"""`msa add`: ids of files in one call and in two, files that are gone, and what is left out."""

# ruff: noqa: F811 - fixtures are imported
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli_fixtures import msa, process, saved, where  # noqa: F401 - fixtures
from facade import about
from msa_plugin.bank.bank import MemoryBank
from msa_plugin.bank.catalog import read_fingerprint


def put(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("_", ".")).write_text(text)


def stored(bank="bank"):
    """Texts by id, as they are in the bank."""
    with MemoryBank.open(bank, read_fingerprint(bank), read_only=True) as opened:
        return {i: opened.get([i], "default")[i].text for i in opened.iter_ids("default")}


def added(msa, *arguments):
    code, out, err = msa("add", *arguments, "--json")
    assert code == 0, err
    return {key: value for key, value in json.loads(out).items() if key not in ("seconds", "tokens")}


@pytest.fixture
def two(msa, where):
    """The command, and two folders that both have a README.md."""
    put(where / "a", README_md="# A\n\n" + about("violin"), one_txt=about("glacier"))
    put(where / "b", README_md="# B\n\n" + about("saffron"), two_txt=about("beekeeping"))
    return msa


BOTH = {"README.md", "one.txt", "b/README.md", "two.txt"}


def test_one_call_and_two_store_the_same(two, where):
    report = added(two, "a", "b", "-b", "together")
    assert set(report["added"]) == BOTH
    assert report["renamed"] == [["b/README.md", "b/README.md"]]
    assert set(added(two, "a")["added"]) == {"README.md", "one.txt"}
    assert set(added(two, "b")["added"]) == {"b/README.md", "two.txt"}
    assert stored() == stored("together")
    assert stored()["README.md"].startswith("# A")


def test_a_file_keeps_its_id_however_it_is_given(two, where, monkeypatch):
    added(two, "a", "b")
    for paths in (["a", "b"], ["b", "a"], [where / "b"], ["b/README.md"], ["./a/../b"]):
        report = added(two, *paths)
        assert report["unchanged"] and not report["added"] and not report["updated"], paths
    assert set(stored()) == BOTH
    monkeypatch.chdir(where / "b")
    report = added(two, "README.md", "-b", where / "bank")
    assert report["unchanged"] == ["b/README.md"] and not report["added"]
    put(where / "b", README_md="# B, anew")
    assert added(two, ".", "-b", where / "bank")["updated"] == ["b/README.md"]
    assert stored(where / "bank")["b/README.md"] == "# B, anew"


def test_a_file_of_a_subfolder_that_is_given_by_itself(msa, where):
    put(where / "docs" / "sub", x_md="one")
    assert added(msa, "docs")["added"] == ["sub/x.md"]
    put(where / "docs" / "sub", x_md="two")
    assert added(msa, "docs/sub/x.md")["updated"] == ["sub/x.md"]
    assert stored() == {"sub/x.md": "two"}


def test_a_folder_that_was_moved(two, where):
    added(two, "a")
    shutil.move(where / "a", where / "moved")
    put(where / "moved", three_txt="new")
    report = added(two, "moved")
    assert sorted(report["updated"]) == ["README.md", "one.txt"] and report["added"] == ["three.txt"]
    assert added(two, "moved")["unchanged"]
    shutil.rmtree(where / "moved")
    added(two, "b")  # what had the id is gone, but this is another text: nothing is lost
    assert stored()["README.md"].startswith("# A") and stored()["b/README.md"].startswith("# B")


def test_banks_made_before_files_were_remembered(two, where, monkeypatch):
    documents = [
        {"id": "README.md", "title": "A", "text": (where / "a" / "README.md").read_text()},
        {"id": "one.txt", "title": "one", "text": "as it was before"},
        {"id": "gone.txt", "title": "gone", "text": "its file is gone"},
    ]
    for document in documents:
        document["metadata"] = {"source": f"a/{document['id']}"}
    lines = "\n".join(map(json.dumps, documents)).encode()
    assert two("add", "-", "--stdin-format", "jsonl", stdin=lines)[0] == 0
    report = added(two, "a", "b")
    assert sorted(report["updated"]) == ["README.md", "one.txt"]  # of the first only metadata: nothing is encoded
    assert set(report["added"]) == {"b/README.md", "two.txt"}
    report = added(two, "a", "b", "--prune")
    assert report["forgotten"] == ["gone.txt"] and not report["updated"]


def test_prune_forgets_what_is_gone_and_nothing_else(two, where):
    (where / "a" / "c.jsonl").write_text('{"id": "r1", "text": "x"}\n{"id": "r2", "text": "y"}\n{"text": "z"}\n')
    two("add", "-", stdin=b"from a pipe")
    added(two, "a", "b")
    assert not added(two, "a", "b", "--prune")["forgotten"]
    (where / "a" / "one.txt").unlink()
    (where / "b" / "two.txt").unlink()
    (where / "a" / "c.jsonl").write_text('{"id": "r2", "text": "y"}\n')
    code, out, _ = two("add", "a", "--prune")
    assert code == 0 and "3 forgotten" in out and "forgotten, for their files are gone: c.jsonl:3, one.txt, r1" in out
    assert {"two.txt", "r2", "README.md", "b/README.md"} < set(stored())
    # A file that cannot be read is not gone, and neither are the lines of one that is not whole.
    (where / "a" / "README.md").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\r\xff\xfe\xfd")
    (where / "a" / "c.jsonl").write_text("{broken\n")
    put(where / "a", good_txt="good")
    assert added(two, "a", "--prune")["forgotten"] == []
    shutil.rmtree(where / "b")
    (where / "b").mkdir()
    code, out, _ = two("add", "a", "b", "--prune")
    assert code == 0 and "it is empty, and may only be unmounted" in out and "two.txt" in stored()


@pytest.mark.slow
def test_a_folder_with_bad_files(msa, where):
    put(where / "docs", good_md="fine", empty_txt=" ", bad_jsonl='{"text": "x"}\n{oops\n{"text": "y"}\n')
    (where / "docs" / "latin.txt").write_bytes("Les élèves étaient là.".encode("latin-1"))
    (where / "docs" / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe\xfd\xfc" * 9)
    (where / "docs" / "locked.pdf").write_bytes(b"%PDF-1.4 no")
    code, out, _ = msa("add", "docs")
    assert code == 0
    assert out.startswith("4 added, 0 updated, 0 unchanged, 4 left out; ")
    assert f"left out {Path('docs', 'bad.jsonl')}:2: not valid JSON" in out
    assert "photo.png: is not text; convert it" in out and "locked.pdf: cannot be read as PDF" in out
    assert "encodings that are a guess: 1 as cp1252" in out
    assert stored()["latin.txt"] == "Les élèves étaient là."
    assert msa("add", "docs", "--strict")[0] == 1
    assert msa("add", "docs/good.md", "--strict")[0] == 0
    assert msa("add", "docs/photo.png")[0] == 1  # nothing went in
    code, out, _ = msa("add", "docs/latin.txt", "--encoding", "cp1251", "--json")
    assert json.loads(out)["updated"] == ["latin.txt"] and "йlиves" in stored()["latin.txt"]


def test_many_files_with_one_reason_take_one_line(msa, where):
    (where / "docs").mkdir()
    for number in range(30):
        (where / "docs" / f"{number:02}.txt").write_text("")
    code, out, _ = msa("add", "docs")
    assert code == 1 and "left out 30: empty: no text in it: docs/00.txt, docs/01.txt" in out and "and 10 more" in out
    assert len(out.splitlines()) == 2


@pytest.mark.slow
def test_a_line_every_few_seconds_where_there_is_no_terminal(msa, where, monkeypatch):
    monkeypatch.setattr("msa_plugin.cli.add._EVERY", 0.05)
    put(where / "docs", **{f"n{number}_txt": about("violin") * 40 for number in range(40)})
    code, _, err = msa("add", "docs")
    lines = [line for line in err.splitlines() if line.startswith("encoding: ")]
    assert code == 0 and lines and "\x1b" not in err
    assert any("of 40 files" in line and "tokens/s" in line and "of about" in line for line in lines), lines


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process")
def test_a_killed_command_keeps_what_it_committed_and_goes_on(msa, where, monkeypatch):
    put(where / "docs", **{f"n{number:03}_txt": about("violin") * 60 + str(number) for number in range(120)})
    code = (
        "import sys; from msa_plugin import config; from msa_plugin.cli import main\n"
        "config.MemoryConfig.model_fields['commit_seconds'].default = 0.001\n"
        "config.MemoryConfig.model_rebuild(force=True)\n"
        "sys.argv = ['msa', 'add', 'docs', '--json']; main()"
    )
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while running.poll() is None and time.monotonic() < deadline:
        if (where / "bank" / "catalog.sqlite").exists() and len(
            list(where.glob("bank/segments/*/keys.safetensors"))
        ) > 1:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    there = len(stored())
    assert 0 < there < 120
    report = added(msa, "docs")
    assert len(report["unchanged"]) == there and len(report["added"]) == 120 - there
