"""Files as they lie in folders: which are read, under which ids, through which links, from standard input."""

import io
import os
import sys
import types
from pathlib import Path
from random import Random

import pytest

from ingest_files import about, lines, one, skipped, write
from msa_plugin.errors import IngestError
from msa_plugin.ingest import read_paths
from msa_plugin.types import Document


class TestFiles:
    def test_text_file(self, tmp_path):
        path = write(tmp_path / "notes.TXT", "Hello\r\nthere\n")
        assert one(path) == Document("notes.TXT", "Hello\nthere\n", "notes", about(path))

    def test_a_single_path_is_not_a_list_of_letters(self, tmp_path):
        path = write(tmp_path / "a.txt", "x")
        assert [d.id for d in read_paths(str(path))] == ["a.txt"]

    @pytest.mark.parametrize(
        ("text", "title"),
        [
            ("intro\n\n# The title #\n\n# Second\n", "The title"),
            ("```sh\n# a comment\n```\n# Real\n", "Real"),
            ("~~~\n```\n# no\n~~~\n# Yes", "Yes"),
            ("## only a second level\n", "page"),
            ("#hashtag\n", "page"),
            ("#\n", "page"),
            ("# C#\n", "C#"),
        ],
    )
    def test_markdown_title(self, tmp_path, text, title):
        document = one(write(tmp_path / "page.md", text))
        assert (document.title, document.text) == (title, text)

    def test_folder_order_ids_and_sources(self, tmp_path):
        for name in ("b.txt", "a/z.md", "a/b/c.htm", "a.txt", ".hidden.txt", ".git/x.txt", "LICENSE", "t.csv", "p.py"):
            write(tmp_path / name, "text")
        found = list(read_paths([tmp_path]))
        assert [d.id for d in found] == ["LICENSE", "a.txt", "b.txt", "p.py", "t.csv", "a/z.md", "a/b/c.htm"]
        assert found[5].metadata == about(tmp_path / "a" / "z.md")
        assert [d.title for d in found][:4] == ["LICENSE", "a", "b", "p"]

    def test_what_is_not_text_is_refused_whatever_its_name(self, tmp_path, caplog):
        png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + Random(0).randbytes(3000)
        for name in ("a.png", "b.txt", "c", "d.html", "e.jsonl"):
            write(tmp_path / name, png)
        write(tmp_path / "zip.txt", b"PK\x03\x04\x14\0\0\0\x08\0" + Random(1).randbytes(200))
        write(tmp_path / "zeros.md", bytes(500))
        found, skips = skipped(tmp_path)
        assert found == [] and [Path(path).name for path, _ in skips] == sorted(p.name for p in tmp_path.iterdir())
        assert {reason for _, reason in skips} == {"is not text; convert it to text, Markdown, HTML or PDF"}
        assert caplog.text == ""  # whoever is told of each need not read of them again
        assert list(read_paths([tmp_path])) == []
        summary = "skipped 7 files that are not text (1 .html, 1 .jsonl, 1 .md, 1 .png, 2 .txt, 1 without ext"
        assert summary in caplog.text
        with pytest.raises(IngestError, match=r"a\.png is not text"):
            one(tmp_path / "a.png", strict=True)

    def test_a_title_of_restructured_text(self, tmp_path):
        for text, title in {
            "\nThe title\n=========\n\nmore\n----\n": "The title",
            "=====\nAbove\n=====\n": "Above",
            "no\n==\nshort\n==\n": "no",
            "a\n\n----\n\nb": "page",
            "text only": "page",
        }.items():
            assert one(write(tmp_path / "page.rst", text)).title == title

    def test_folder_without_anything_readable(self, tmp_path):
        skips = []
        assert list(read_paths([tmp_path], on_skip=lambda *skip: skips.append(skip))) == []
        assert skips == [(str(tmp_path), "no file in this folder can be read")]

    def test_empty_files_are_skipped_and_named(self, tmp_path, caplog):
        for name, text in {"a.txt": "", "b.md": " \n\0", "c.html": "<p></p>", "d.jsonl": "\n \n"}.items():
            write(tmp_path / name, text)
        skips = []
        assert list(read_paths([tmp_path], on_skip=lambda *skip: skips.append(skip))) == []
        assert [path for path, _ in skips] == [str(tmp_path / name) for name in ("a.txt", "b.md", "c.html", "d.jsonl")]
        assert list(read_paths([tmp_path])) == []  # logged, where nobody is told
        assert all(name in caplog.text for name in ("a.txt", "b.md", "c.html", "d.jsonl"))

    def test_every_named_path_is_checked_before_anything_is_read(self, tmp_path):
        good = write(tmp_path / "a.txt", "x")
        with pytest.raises(IngestError, match=r"typo\.txt does not exist"):
            read_paths([good, tmp_path / "typo.txt"])
        with pytest.raises(IngestError, match=r"no encoding of text is called 'uft-8'; did you mean 'utf-8'"):
            read_paths([good], encoding="uft-8")
        with pytest.raises(IngestError, match="'text' or 'jsonl', not 'xml'"):
            read_paths([good], stdin_format="xml")

    def test_a_path_that_the_system_refuses(self):
        with pytest.raises(IngestError, match="cannot be read"):
            read_paths(["x" * 5000 + ".txt"])

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
    def test_special_files(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.txt")
        skips = []
        assert list(read_paths([tmp_path], on_skip=lambda *skip: skips.append(skip))) == []
        assert skips[0] == (str(tmp_path / "pipe.txt"), "not a regular file")
        with pytest.raises(IngestError, match="neither a file nor a folder"):
            read_paths([tmp_path / "pipe.txt"])

    def test_unreadable_file(self, tmp_path, monkeypatch):
        bad, good = write(tmp_path / "a.txt", "x"), write(tmp_path / "b.txt", "y")
        real = type(bad).open

        def refuse(self, *args, **kwargs):
            if self.name == "a.txt":
                raise PermissionError(13, "Permission denied", str(self))
            return real(self, *args, **kwargs)

        monkeypatch.setattr(type(bad), "open", refuse)
        with pytest.raises(
            IngestError, match=r"a\.txt cannot be read \(Permission denied\); check the path and its permissions"
        ):
            one(bad, strict=True)
        skips = []
        assert [d.id for d in read_paths([tmp_path], on_skip=lambda *skip: skips.append(skip))] == [good.name]
        assert skips == [(str(bad), "cannot be read (Permission denied); check the path and its permissions")]

    def test_file_names_that_are_not_unicode(self, tmp_path):
        try:
            for raw in (b"/caf\xe9.txt", b"/caf\xff.txt"):
                with open(os.fsencode(tmp_path) + raw, "wb") as stream:  # noqa: PTH123
                    stream.write(b"x")
        except OSError:
            pytest.skip("the file system refuses such names")
        found = list(map(Document.of, read_paths([tmp_path])))
        assert [d.id for d in found] == ["caf\\xe9.txt", "caf\\xff.txt"]
        assert found[0].metadata["msa_file"].endswith("/caf\\xe9.txt")

    def test_reading_is_lazy(self, tmp_path):
        write(tmp_path / "a.txt", "x")
        write(tmp_path / "b.jsonl", "broken")
        documents = read_paths([tmp_path], strict=True)
        assert next(documents).id == "a.txt"
        with pytest.raises(IngestError, match="line 1"):
            next(documents)


class TestIds:
    def test_equal_names_in_two_folders(self, tmp_path):
        for name in ("a/README.md", "b/README.md", "b/only.md", "x/b/README.md"):
            write(tmp_path / name, name)
        found = {d.id: d.text for d in read_paths([tmp_path / "a", tmp_path / "b", tmp_path / "x" / "b"])}
        assert found == {
            "README.md": "a/README.md",
            "b/README.md": "b/README.md",
            "only.md": "b/only.md",
            "x/b/README.md": "x/b/README.md",
        }

    def test_a_file_that_is_given_twice_is_read_once(self, tmp_path, monkeypatch):
        write(tmp_path / "docs" / "sub" / "x.md", "x")
        monkeypatch.chdir(tmp_path)
        given = ["docs", "docs/sub", "./docs/sub/x.md", tmp_path / "docs" / ".." / "docs"]
        assert [d.id for d in read_paths(given)] == ["sub/x.md"]

    def test_lines_without_ids_of_two_files(self, tmp_path):
        for folder in ("a", "b"):
            write(tmp_path / folder / "c.jsonl", lines({"text": "x"}, {"id": folder, "text": "y"}, {"text": "z"}))
        found = [d.id for d in read_paths([tmp_path / "a", tmp_path / "b"])]
        assert found == ["c.jsonl:1", "a", "c.jsonl:3", "b/c.jsonl:1", "b", "b/c.jsonl:3"]

    def test_two_files_that_share_an_id_are_both_named(self, tmp_path):
        write(tmp_path / "a.jsonl", lines({"id": "one", "text": "x"}, {"id": "same", "text": "y"}))
        write(tmp_path / "b.jsonl", lines({"id": "same", "text": "z"}, {"id": "two", "text": "x"}))
        found, skips = skipped(tmp_path)
        assert found == ["one", "same", "two"]
        source = tmp_path / "a.jsonl"
        reason = f"its id 'same' is that of {source}, line 2, too; give one of them another id"
        assert skips == [(f"{tmp_path / 'b.jsonl'}:1", reason)]
        with pytest.raises(IngestError, match=r"b\.jsonl, line 1: its id 'same' is that of .*a\.jsonl, line 2"):
            list(read_paths([tmp_path], strict=True))

    def test_a_record_that_has_a_files_id(self, tmp_path):
        write(tmp_path / "a.jsonl", lines({"id": "b.txt", "text": "record"}))
        write(tmp_path / "b.txt", "file")
        found = {d.id: d.text for d in read_paths([tmp_path])}
        assert found == {"b.txt": "record", f"{tmp_path.name}/b.txt": "file"}


class TestLinks:
    @pytest.fixture
    def folder(self, tmp_path):
        write(tmp_path / "outside" / "secret.txt", "secret")
        write(tmp_path / "in" / "real.txt", "text")
        try:
            (tmp_path / "in" / "zz").symlink_to("real.txt")
        except OSError:
            pytest.skip("needs symbolic links")
        (tmp_path / "in" / "zz").unlink()
        return tmp_path / "in"

    def read(self, folder):
        skips = []
        ids = [d.id for d in read_paths([folder], on_skip=lambda path, _: skips.append(os.path.relpath(path, folder)))]
        return ids, skips

    def test_links_that_lead_outside(self, folder):
        (folder / "file.txt").symlink_to("../outside/secret.txt")
        (folder / "dir").symlink_to("../outside")
        assert self.read(folder) == (["real.txt"], ["dir", "file.txt"])

    def test_loops_and_broken_links(self, folder):
        (folder / "self").symlink_to(".")
        (folder / "loop.txt").symlink_to("loop.txt")
        (folder / "gone.txt").symlink_to("nowhere.txt")
        assert self.read(folder) == (["real.txt"], ["self", "gone.txt", "loop.txt"])

    def test_link_to_a_file_inside(self, folder):
        (folder / "latest.txt").symlink_to("real.txt")
        assert self.read(folder) == (["latest.txt", "real.txt"], [])

    def test_a_link_that_was_named_is_followed(self, folder):
        (folder.parent / "named").symlink_to("in")
        assert [d.id for d in read_paths([folder.parent / "named"])] == ["real.txt"]


class TestStdin:
    @pytest.fixture
    def stdin(self, monkeypatch):
        def give(data):
            monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))

        return give

    def test_text(self, stdin):
        stdin(b'{"text": "x"}\n')
        document = one("-")
        assert (document.text, document.metadata) == ('{"text": "x"}\n', {"source": "-"})
        stdin(b"other")
        assert one("-").id != document.id  # a second pipe does not overwrite the first

    def test_jsonl(self, stdin):
        stdin(lines({"_id": "a", "text": "x"}, {"text": "y", "k": 1}, {"text": ""}).encode())
        first, second = read_paths("-", stdin_format="jsonl")
        assert first.id == "a"
        assert second == Document.of({"text": "y", "metadata": {"source": "-", "k": 1}})

    def test_empty(self, stdin):
        stdin(b"")
        skips = []
        assert list(read_paths(["-"], on_skip=lambda *skip: skips.append(skip))) == []
        assert skips == [("-", "empty: no text in it")]
