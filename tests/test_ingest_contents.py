"""What is in a file: encodings, HTML, JSON lines."""

import gzip
import re
import time
from typing import ClassVar

import pytest

from ingest_files import about, lines, one, skipped, write
from msa_plugin.errors import IngestError
from msa_plugin.ingest import read_paths
from msa_plugin.ingest.markup import html_to_text
from msa_plugin.types import Document


class TestDecoding:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_byte_order_marks(self, tmp_path, encoding, caplog):
        text = "Grüße, 你好 🎈"
        assert one(write(tmp_path / "a.txt", text.encode(encoding))).text == text
        assert one(write(tmp_path / "b.jsonl", lines({"text": text}).encode(encoding))).text == text
        assert not caplog.records

    def test_big_endian_utf_16(self, tmp_path):
        assert one(write(tmp_path / "a.txt", b"\xfe\xff" + "é".encode("utf-16-be"))).text == "é"

    def test_invalid_bytes_are_replaced_and_reported(self, tmp_path, caplog):
        path = write(tmp_path / "a.txt", "real \ufffd ".encode() + b"caf\xe9 and \xff.")
        assert one(path).text == "real \ufffd caf\ufffd and \ufffd."
        assert f"{path}: not valid utf-8 at byte 12; 2 characters of the file were replaced" in caplog.text
        with pytest.raises(IngestError, match="not valid utf-8 at byte 12"):
            one(path, encoding_errors="strict", strict=True)
        [(_, reason)] = skipped(path, encoding_errors="strict")[1]
        assert reason.startswith("is not valid utf-8 at byte 12")

    TEXTS: ClassVar = {
        "cp1252": "Grüße – “schöne” Häuser, 5 €. Über die Straße ging ein Bär.",
        "latin-1": "Les élèves étaient très contents d'être là où ça se passait.",
        "cp1251": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
        "koi8-r": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
        "cp1253": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
        "shift_jis": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
        "gb2312": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
        "utf-16-le": "Grüße, plain text in two bytes per character.",
        "utf-16-be": "Все люди рождаются свободными и равными.",
        "utf-32-le": "four bytes per character, é",
    }

    @pytest.mark.parametrize("encoding", TEXTS)
    def test_encodings_are_found_out(self, tmp_path, encoding, caplog):
        text = self.TEXTS[encoding]
        assert one(write(tmp_path / "a.txt", (text * 3).encode(encoding))).text == text * 3
        assert one(write(tmp_path / "b.jsonl", f'{{"text": "{text}"}}\n'.encode(encoding))).text == text
        plain = "ASCII alone for a while.\n" * 50_000  # more than a block, before the first byte that tells
        if not encoding.startswith("utf"):
            assert one(write(tmp_path / "c.txt", (plain + text).encode(encoding))).text == plain + text
        assert not caplog.records

    def test_an_encoding_that_is_forced(self, tmp_path):
        path = write(tmp_path / "a.txt", "naïve Łódź".encode("iso8859-2", "ignore"))
        assert one(path, encoding="ISO-8859-2").text == "nave Łódź"
        assert one(write(tmp_path / "b.txt", "é".encode()), encoding="latin-1").text == "Ã©"
        assert one(write(tmp_path / "c.txt", "\ufeffé".encode()), encoding="utf8").text == "é"
        assert one(write(tmp_path / "d.txt", "é".encode("utf-16")), encoding="utf-16").text == "é"
        for wrong in ("rot13", "base64", "idna", "no such", ""):
            with pytest.raises(IngestError, match="no encoding of text is called"):
                read_paths([path], encoding=wrong)

    def test_blocks_may_cut_characters_and_line_breaks(self, tmp_path, monkeypatch, caplog):
        text = "añ🎈\r\nb\x0cc"
        for size in range(4, 12):
            monkeypatch.setattr("msa_plugin.ingest.decoding._BLOCK", size)
            for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                assert one(write(tmp_path / "a.txt", text.encode(encoding))).text == "añ🎈\nb\nc"
        assert not caplog.records
        assert one(write(tmp_path / "a.txt", b"0123456789abcd\xe2\x82")).text == "0123456789abcd\ufffd"
        assert "at byte 14; 1 char" in caplog.text

    def test_control_characters_are_removed_and_counted(self, tmp_path, caplog):
        path = write(tmp_path / "a.txt", "a\0b\x1b[0m\tc\x7f\u0085d")
        assert one(path).text == "ab[0m\tc\nd"
        assert f"{path}: 3 control characters or" in caplog.text

    def test_lone_surrogates_from_json_can_be_stored(self, tmp_path, caplog):
        assert one(write(tmp_path / "a.jsonl", '{"text": "a\\ud800b\\u0000"}')).text == "a\ufffdb"
        assert "2 control characters" in caplog.text


class TestHtml:
    def test_page(self, tmp_path):
        page = (
            "<!DOCTYPE html><html><head><title> A &amp;\n B </title><style>p{}</style><script>evil('<p>')</script>"
            "</head><body><h1>Head</h1><p>One <b>bo</b>ld\n line&nbsp;&eacute;&#x1F388;</p><script>x</script>"
            "<ul><li>a<li>b</ul><table><tr><td>1<td>2</tr></table><pre>if x:\n    y\n</pre>tail<!-- no --></body>"
        )
        document = one(write(tmp_path / "p.html", page))
        assert document.title == "A & B"
        assert document.text == "Head\nOne bold line é🎈\na\nb\n1 2\nif x:\n    y\ntail"

    def test_title_falls_back_to_h1_then_stem(self, tmp_path):
        assert one(write(tmp_path / "p.html", "<h1>The <i>first</i></h1><h1>no</h1>")).title == "The first"
        assert one(write(tmp_path / "p.html", "<p>text")).title == "p"

    @pytest.mark.parametrize(
        ("html", "text"),
        [
            ("<head><title>t</title><p>left open", "left open"),
            ("<![foo bar]>x", "x"),
            ("<!--[if IE]>no<![endif]-->yes", "yes"),
            ("a < b && c", "a < b && c"),
            ("x<script>never closed", "x"),
            ("</b></pre></p>x", "x"),
            ("a <!-- b", "a <!-- b"),
            ("a <b c='", "a <b c='"),
            ("<svg/><br/>x<br>y", "x\ny"),
            ("&lt;script&gt;", "<script>"),
        ],
    )
    def test_sloppy_markup(self, html, text):
        assert html_to_text(html)[1] == text

    @pytest.mark.parametrize("piece", ["<a ", "<!--", "<a b='", "</", "<![", "<script>", "<p>"])
    def test_hostile_markup_takes_linear_time(self, piece):
        begin = time.monotonic()
        html_to_text(piece * 40_000)
        assert time.monotonic() - begin < 10  # quadratic time would be minutes

    def test_control_characters_from_entities(self, tmp_path):
        text = one(write(tmp_path / "p.html", "a&#1;b&#x7f;c&#0;")).text
        assert "".join(c for c in text if c.isprintable()) == text

    @pytest.mark.parametrize(
        ("declared", "codec", "text"),
        [
            ("windows-1251", "cp1251", "Привет, мир"),
            ("gb2312", "gbk", "你好，世界镕"),
            ("Shift_JIS", "cp932", "こんにちは①"),
            ("iso-8859-1", "cp1252", "café – 5 €"),
            ("euc-kr", "cp949", "안녕하세요"),
            ("utf-8", "utf-8", "Grüße"),
        ],
    )
    def test_a_page_that_declares_its_encoding(self, tmp_path, declared, codec, text, caplog):
        for head in (
            f'<meta charset="{declared}">',
            f"<META http-equiv=Content-Type content='text/html; charset={declared}'>",
            f'<?xml version="1.0" encoding="{declared}"?>',
            f'<!-- <meta charset="utf-7"> --><meta charset={declared} />',
        ):
            page = f"{head}<title>{text}</title><p>{text}</p>".encode(codec)
            document = one(write(tmp_path / "p.html", page))
            assert (document.title, document.text) == (text, text)
        assert not caplog.records

    def test_a_page_in_another_encoding_than_it_says(self, tmp_path):
        said = '<meta charset="{}"><p>{}</p>'
        text = "Grüße aus Köln"
        assert one(write(tmp_path / "a.html", said.format("utf-8", text).encode("cp1252"))).text == text
        assert one(write(tmp_path / "b.html", said.format("ascii", text).encode())).text != text  # as in browsers
        assert one(write(tmp_path / "c.html", said.format("iso-8859-7", "ñandú®").encode())).text == "ñandú®"
        assert one(write(tmp_path / "d.html", said.format("martian", text).encode())).text == text
        assert one(write(tmp_path / "e.html", said.format("utf-16", text).encode())).text == text
        marked = b"\xef\xbb\xbf" + said.format("cp1251", text).encode()
        assert one(write(tmp_path / "f.html", marked)).text == text  # a mark counts more than a declaration
        forced = said.format("utf-8", "жук").encode("koi8-r")
        assert one(write(tmp_path / "g.html", forced), encoding="koi8-r").text == "жук"


class TestJsonl:
    def test_beir_records(self, tmp_path):
        path = write(
            tmp_path / "c.jsonl",
            lines(
                {"_id": "d1", "title": "T", "text": "one", "metadata": {"topic": "x"}, "lang": "en"},
                {"id": 7, "text": "two"},
            )
            + "\n \n"
            + lines({"text": "three", "source": "web", "title": None, "metadata": None}),
        )
        first, second, third = map(Document.of, read_paths([path]))
        assert first == Document("d1", "one", "T", about(path, lang="en", topic="x"))
        assert (second.id, third.id, third.metadata) == ("7", "c.jsonl:5", about(path, source="web"))

    def test_fields_that_clash_are_reported(self, tmp_path, caplog):
        document = one(write(tmp_path / "c.jsonl", lines({"text": "x", "a": 1, "metadata": {"a": 2}})))
        assert document.metadata["a"] == 2
        assert "line 1: fields ['a'] give way" in caplog.text

    def test_gzip_in_a_folder(self, tmp_path):
        write(tmp_path / "sub" / "c.jsonl.gz", gzip.compress(lines({"text": "x"}).encode()))
        assert one(tmp_path).id == "sub/c.jsonl.gz:1"

    @pytest.mark.parametrize(
        "data", [b"\x1f\x8bjunk", b"not gzip", gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-12]]
    )
    def test_damaged_gzip(self, tmp_path, data):
        path = write(tmp_path / "c.jsonl.gz", data)
        [(named, reason)] = skipped(path)[1]
        assert named == str(path) and reason.startswith("is damaged or could not be read to its end")
        with pytest.raises(IngestError, match="damaged"):
            list(read_paths([path], strict=True))

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "not valid JSON"),
            ("[1]", "not a JSON object"),
            ('{"title": "x"}', "needs a 'text'"),
            ('{"text": 1}', "needs a 'text'"),
            ('{"text": "x", "metadata": []}', "'metadata' an object"),
            ('{"text": "x", "_id": true}', "the id must be"),
            ('{"text": "x", "_id": ""}', "the id must be"),
            ('{"text": "x", "n": NaN}', "NaN is not valid JSON"),
            ('{"text": "x", "n": "\\u0000"}', "metadata holds a NUL"),
            ('{"text": "x", "id": "\\ud800"}', "id holds invalid Unicode"),
            ('{"text": ' + "[" * 100_000, "nested too deeply|not valid JSON"),
            ('{"text": "x", "n": ' + "9" * 10_000 + "}", "limit|digits"),
        ],
    )
    def test_malformed_lines_name_file_and_line(self, tmp_path, line, message):
        write(tmp_path / "c.jsonl", lines({"text": "fine"}) + line + "\n" + lines({"text": "the rest"}))
        found, [(path, reason)] = skipped(tmp_path)
        assert found == ["c.jsonl:1", "c.jsonl:3"]
        assert path == f"{tmp_path / 'c.jsonl'}:2" and re.search(message, reason)
        documents = read_paths([tmp_path], strict=True)
        assert next(documents).text == "fine"
        with pytest.raises(IngestError, match=rf"c\.jsonl, line 2: .*({message})"):
            next(documents)

    def test_records_without_text_are_skipped(self, tmp_path):
        skips = []
        path = write(tmp_path / "c.jsonl", lines({"text": " "}, {"text": "x"}))
        assert one(path, on_skip=lambda *skip: skips.append(skip)).id == "c.jsonl:2"
        assert skips == [(f"{path}:1", "empty: no text in this record")]

    def test_only_newlines_end_lines(self, tmp_path):
        assert one(write(tmp_path / "c.jsonl", '{"text": "a\u2028b"}\r\n')).text == "a\u2028b"

    def test_a_line_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("msa_plugin.ingest.decoding._MAX_LINE", 100)
        monkeypatch.setattr("msa_plugin.ingest.decoding._BLOCK", 64)
        path = write(tmp_path / "c.jsonl", lines({"text": "x"}) + "y" * 300)
        with pytest.raises(IngestError, match=r"c\.jsonl, line 2 is over 100 characters"):
            list(read_paths([path], strict=True))
        assert skipped(path) == (["c.jsonl:1"], [(str(path), "line 2 is over 100 characters; use shorter lines")])

    def test_a_large_file_is_read_in_constant_memory(self, tmp_path, monkeypatch):
        path = tmp_path / "big.jsonl"
        with path.open("w") as stream:
            for i in range(2000):
                stream.write(lines({"_id": str(i), "text": "word " * 200}))
        import tracemalloc

        monkeypatch.setattr("msa_plugin.ingest.decoding._BLOCK", 1 << 14)
        tracemalloc.start()
        assert sum(1 for _ in read_paths([path])) == 2000
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < path.stat().st_size / 4
