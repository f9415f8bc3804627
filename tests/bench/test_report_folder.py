"""What a report writes: the folder as a whole, whatever is missing or strange in it, and names that stay text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_rows_toy import SYSTEMS, costs, everything, latency, needles, qa, retrieval, row, saved, scale, score

from msa_plugin.bench import plots, report
from msa_plugin.bench.report import table, write_report
from msa_plugin.bench.report_rows import Saved
from msa_plugin.bench.report_tables import Cell, Table, escaped
from msa_plugin.bench.store import NOTE, SKIPPED
from msa_plugin.errors import ConfigError, MissingExtraError
from msa_plugin.measuring.plot_style import style

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b\n# head",
    "**bold** `code` [x](javascript:1) ![i](http://x)",
    "\x1b[31mred\x07",
    "\u202eright to left\ud800",
    "$\\frac{1}{0}$ \"quoted\" 'single'",
    "../../etc/passwd",
    "x" * 3000,
)


class Page(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.attributes = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.text += data


# The folder


def test_the_report_is_written_whole(tmp_path):
    extra = [
        row("retrieval", "one", "huge", SKIPPED, 0.0, settings={"reason": "does not fit"}),
        row("qa", "two", "dense:x", SKIPPED, 0.0, settings={"reason": "no weights"}),
        row("scale", "one", "", NOTE, 0.0, settings={"reason": "only 60 questions"}),
        row("strange", "one", "msa", "loudness", 3.25, settings={"knob": 11}),
        row("retrieval", "one", "msa", "R@5", 0.77, settings={"prefilter": "faiss:hnsw"}),
    ]
    out = saved(tmp_path / "out", [*everything(), *extra], parts={"retrieval": {"k": 100}})
    page = write_report(out)
    assert page == out / "report.html"
    markdown_text, html = (out / "report.md").read_text("utf-8"), Page(page.read_text("utf-8"))
    for text in (markdown_text.replace("\\", ""), html.text):
        for said in ("2026-01-02", "abc123", "two cores", "msa bench retrieval --out out", "seed 0", "does not fit",
                     "no weights", "dense:x", "one: only 60 questions", "loudness", "3.250", "knob", "11",
                     "faiss:hnsw", "0.770"):  # fmt: skip
            assert said in text, said
    pictures = sorted(p.name for p in (out / "plots").iterdir())
    assert [f"plots/{p}" in markdown_text for p in pictures] == [True] * len(pictures)
    assert html.tags.count("img") == len(pictures) >= 7
    addresses = [v for name, v in html.attributes if name in ("src", "href")]
    assert all(a.startswith(("data:image/png;base64,", "#s")) for a in addresses)
    assert "script" not in html.tags and "link" not in html.tags


def test_runs_that_differ_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "figures", lambda saved: {})
    later = [replace(r, commit="def456", date="2026-01-09T00:00:00Z", seed=3) for r in costs()]
    out = saved(tmp_path / "out", [*retrieval(), *later])
    write_report(out)
    text = (out / "report.md").read_text("utf-8").replace("\\", "")
    assert "These rows come from 2 runs" in text
    assert "2026-01-02 to 2026-01-09" in text
    assert "| 2 | 2026-01-09 | def456 | two cores |" in text
    assert "seed 0 and 3" in text


@pytest.mark.parametrize("part", [retrieval, qa, scale, needles, latency, costs])
def test_parts_that_are_missing_are_absent(tmp_path, monkeypatch, part):
    monkeypatch.setattr(plots, "figures", lambda saved: {})
    out = saved(tmp_path / "out", part())
    write_report(out)
    found = re.findall(r"^## (.+)$", (out / "report.md").read_text("utf-8"), re.M)
    chapters = {"Retrieval", "Answers", "Degradation", "Needles", "Latency", "Cost"}
    assert len(chapters & set(found)) == 1
    assert "Skipped" not in found


def test_nothing_measured_is_still_a_report(tmp_path):
    out = saved(tmp_path / "out", [row("qa", "one", "msa", SKIPPED, 0.0, settings={"reason": "disk full"})])
    write_report(out)
    text = (out / "report.md").read_text("utf-8")
    assert "no finished measurements" in text and "disk full" in text


def test_without_matplotlib_there_are_tables(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"msa-plugin\[bench\]"), style():
        pass
    out = saved(tmp_path / "out", retrieval())
    write_report(out)
    text = (out / "report.md").read_text("utf-8").replace("\\", "")
    assert "No plots: plots need matplotlib" in text and "Retrieval, R@5" in text


def test_folders_without_results_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no results\.jsonl"):
        write_report(tmp_path)


def test_values_that_are_no_numbers_are_counted_and_left_out():
    found = Saved.of([*retrieval(), row("retrieval", "one", "odd", "R@5", float("nan"))])
    assert "1 measurements are not finite numbers" in " ".join(found.notes)
    assert "odd" not in table(found.rows)


# Names are data


def hostile(name):
    rows = [
        replace(r, system=name if r.system == "bm25" else r.system, dataset=name if r.dataset == "one" else r.dataset)
        for r in everything()
    ]
    rows = [replace(r, command=f"msa --out {name}", hardware=name, versions={name: name}) for r in rows]
    rows.append(row("qa", name, name, SKIPPED, 0.0, settings={"reason": name}))
    return [*rows, row(name, name, name, name, 1.0, settings={name: name})]


def written(out, name):
    """The report of such a run, as HTML and as Markdown, without plots."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "figures", lambda saved: {})
        page = write_report(saved(out, hostile(name), parts={name: {name: name}}))
    return Page(page.read_text("utf-8")), (out / "report.md").read_text("utf-8")


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    return written(tmp_path_factory.mktemp("harmless"), "plain")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path, harmless, name):
    (page, text), (expected, plain) = written(tmp_path / "out", name), harmless
    assert Counter(page.tags) == Counter(expected.tags)
    assert {a for a, _ in page.attributes} == {a for a, _ in expected.attributes}
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # the rest is literal
    assert len(re.findall("^#", prose, re.M)) == len(re.findall("^#", plain, re.M))
    assert not re.search(r"<script|(?<!\\)\*\*bold|(?<!\\)`code|\](?<!\\\])\(j", prose)
    assert borders(prose) == borders(plain)
    for printed in (text, page.text, table(hostile(name))):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", printed)


def borders(text):
    """How many cell borders each line of a table has."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]


def test_hostile_names_do_not_leave_the_folder(tmp_path):
    write_report(saved(tmp_path / "out", [r for name in HOSTILE[-3:] for r in [*scale(name), *costs()]]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out" / "plots").iterdir()) == [f"degradation-{i}.png" for i in (1, 2, 3)]


def test_markdown_tables_have_as_many_cells_as_columns():
    found = Table("t", ("a|b", "c"), ((Cell("x|y\nz"), Cell("1", small="0|2", best=True)),))
    assert borders(found.markdown()) == [3] * 3


@pytest.mark.parametrize(
    ("given", "made"),
    [("1. x", "1\\. x"), ("- x", "\\- x"), ("1.25", "1.25"), ("https://a.b", "https\\://a.b"), ("a_b<", "a\\_b&lt;")],
)
def test_markdown_that_would_be_markup_is_escaped(given, made):
    assert escaped(given) == made


def test_the_terminal_table_shows_what_is_not_folded():
    text = table(everything())
    assert "Retrieval, nDCG@10" in text and "Retrieval, AP" not in text
    line = next(x for x in text.splitlines() if x.startswith("one "))
    best = max(SYSTEMS, key=lambda s: score("one", s, "nDCG@10"))
    assert f"{score('one', best, 'nDCG@10'):.3f}" in line and line.count("*") == 1
    assert max(map(len, text.splitlines())) < 200
    assert table([]) == "There are no results."
    assert report.TITLE not in text
