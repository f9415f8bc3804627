"""PDF files into documents."""

import io
import logging
import sys

import pytest

from ingest_files import about, one, skipped, write
from msa_plugin.errors import IngestError, MissingExtraError
from msa_plugin.ingest import read_paths
from msa_plugin.types import Document


def pdf(*pages):
    """A minimal PDF with one line of text per page."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects += [
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    out, offsets = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}" + trailer).encode()


class TestPdf:
    @pytest.fixture
    def pypdf(self):
        return pytest.importorskip("pypdf")

    def test_text_and_pages(self, tmp_path, pypdf):
        path = write(tmp_path / "paper.pdf", pdf("First page", "Second page"))
        assert one(path) == Document("paper.pdf", "First page\n\nSecond page", "paper", about(path, pages=2))

    def test_missing_extra(self, tmp_path, monkeypatch):
        path = write(tmp_path / "a.pdf", pdf("x"))
        write(tmp_path / "b.txt", "fine")
        monkeypatch.setitem(sys.modules, "pypdf", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'msa-plugin\[pdf\]'"):
            one(path, strict=True)
        reason = "is a PDF, which needs pypdf; pip install 'msa-plugin[pdf]'"
        assert skipped(tmp_path) == (["b.txt"], [(str(path), reason)])

    def encrypted(self, pypdf, password, algorithm="RC4-128"):
        writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("secret")))
        writer.encrypt(password, "owner", algorithm=algorithm)
        out = io.BytesIO()
        writer.write(out)
        return out.getvalue()

    def test_refusals(self, tmp_path, pypdf):
        for name, data, message in [
            ("encrypted.pdf", self.encrypted(pypdf, "key"), "is encrypted; save a copy"),
            ("scan.pdf", pdf(""), "has no text layer .* OCR"),
            ("junk.pdf", b"%PDF-1.4 junk", "cannot be read as PDF"),
        ]:
            with pytest.raises(IngestError, match=message):
                one(write(tmp_path / name, data), strict=True)
        write(tmp_path / "z.txt", "fine")
        skips = []
        assert [d.id for d in read_paths([tmp_path], on_skip=lambda *skip: skips.append(skip))] == ["z.txt"]
        assert [reason.split(" ")[0] for _, reason in skips] == ["is", "cannot", "has"]

    @pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
    def test_restrictions_alone_are_no_lock(self, tmp_path, pypdf, algorithm):
        if algorithm != "RC4-128":
            pytest.importorskip("cryptography")
        assert one(write(tmp_path / "a.pdf", self.encrypted(pypdf, "", algorithm))).text == "secret"
        reason = skipped(write(tmp_path / "b.pdf", self.encrypted(pypdf, "key", algorithm)))[1][0][1]
        assert reason.startswith("is encrypted; save a copy")

    def test_a_missing_cipher_is_not_damage(self, tmp_path, pypdf, monkeypatch):
        def fails(*args, **kwargs):
            raise pypdf.errors.DependencyError("cryptography>=3.1 is required for AES algorithm")

        path = write(tmp_path / "a.pdf", pdf("x"))
        monkeypatch.setattr(pypdf, "PdfReader", fails)
        reason = "is an encrypted PDF, which needs cryptography; pip install 'msa-plugin[pdf]'"
        assert skipped(path) == ([], [(str(path), reason)])

    def test_what_pypdf_complains_about_is_told_in_our_words(self, tmp_path, pypdf, caplog):
        sound = pdf("First page")
        at = sound.index(b"startxref") + 10
        path = write(tmp_path / "a.pdf", sound[:at] + b"7\n%%EOF\n")
        with caplog.at_level(logging.WARNING):
            assert one(path).text == "First page"
        assert [record.name for record in caplog.records] == ["msa_plugin.ingest"]
        assert f"{path}: the PDF is not quite in order (" in caplog.text
