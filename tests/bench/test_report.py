"""The report's numbers are the rows', its averages and ratios can be recomputed, and names in it are only text."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_rows_toy import SETS, SYSTEMS, costs, everything, latency, needles, qa, retrieval, row, scale, score

from msa_plugin.bench import plots, report, report_growth, report_quality
from msa_plugin.bench.base import Row
from msa_plugin.bench.plot_style import style
from msa_plugin.bench.report import table, write_report
from msa_plugin.bench.report_rows import Saved, spelled
from msa_plugin.bench.report_tables import Cell, Column, Table, duration, escaped, markdown, size, tokens
from msa_plugin.bench.store import NOTE, SKIPPED
from msa_plugin.errors import ConfigError, MissingExtraError

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


def saved(out: Path, rows: list[Row], **config: Any) -> Path:
    out.mkdir(exist_ok=True)
    lines = "".join(json.dumps(r.to_dict()) + "\n" for r in rows)
    (out / "results.jsonl").write_text(lines, encoding="utf-8")
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def lines(found: Table) -> dict[str, list[str]]:
    """Texts of each row by the text of its first cell."""
    return {r[0].text: [c.text for c in r[1:]] for r in found.rows}


def titled(tables: list[Table], title: str) -> Table:
    [found] = [t for t in tables if t.title == title]
    return found


class Page(HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


# Numbers


def test_retrieval_tables_hold_the_rows_and_their_averages() -> None:
    for metric in ("nDCG@10", "R@5", "R@10"):
        found = titled(report_quality.retrieval(Saved.of(retrieval())), f"Retrieval, {metric}")
        assert [c.label for c in found.columns] == ["data set", "questions", "msa", "bm25", "dense"]
        shown = lines(found)
        order = ("msa", "bm25", "dense")
        for dataset in SETS:
            assert shown[dataset] == ["40", *(f"{score(dataset, s, metric):.3f}" for s in order)]
        every = {s: sum(score(d, s, metric) for d in SETS) / 3 for s in order}
        some = {s: sum(score(d, s, metric) for d in ("two", "three")) / 2 for s in order}
        assert shown["average (3)"][1:] == [f"{every[s]:.3f}" for s in order]
        assert shown["multi-hop average (2)"][1:] == [f"{some[s]:.3f}" for s in order]
        assert shown["ratio to msa"][1:] == [f"{every[s] / every['msa']:.2f}\u00d7" for s in order]
        first = found.rows[0]
        best = max(order, key=lambda s: score("one", s, metric))
        assert [c.best for c in first[2:]] == [s == best for s in order]
        assert (
            first[2].small == f"{score('one', 'msa', metric) - 0.05:.3f}\u2013{score('one', 'msa', metric) + 0.05:.3f}"
        )


def test_significance_marks_follow_the_p_values() -> None:
    found = titled(report_quality.retrieval(Saved.of(retrieval())), "Retrieval, nDCG@10")
    assert {r[0].text: r[3].mark for r in found.rows[:3]} == {"one": "‡", "two": "†", "three": ""}
    assert not any(c.mark for r in found.rows for i, c in enumerate(r) if i != 3)
    other = titled(report_quality.retrieval(Saved.of(retrieval())), "Retrieval, R@5")
    assert not any(c.mark for r in other.rows for c in r)


def test_an_average_needs_all_data_sets() -> None:
    rows = [r for r in retrieval() if (r.dataset, r.system) != ("three", "dense")]
    shown = lines(titled(report_quality.retrieval(Saved.of(rows)), "Retrieval, R@5"))
    assert shown["three"][-1] == shown["average (3)"][-1] == shown["ratio to msa"][-1] == "\u2013"


def test_hops_come_from_the_configuration_or_from_the_rows() -> None:
    plain = [replace(r, settings={}) for r in retrieval() if not r.metric.startswith("p:")]
    assert Saved.of(plain).hops() == {}
    config = {"datasets": {"one": {"hops": {"1": 30, "2": 10}}, "two": {"hops": {"2": 3, "4": 1}}, "three": {}}}
    assert Saved.of(plain, config).hops() == {"one": 1.25, "two": 2.5}
    sliced = [row("retrieval", "s", "msa", "R@5", 0.5, settings={"hops": h}) for h in (1, 2)]
    assert Saved.of(sliced).hops() == {}


def test_ratios_stay_within_a_run() -> None:
    def ratios(**changes: str) -> list[str]:
        rows = [replace(r, **changes) if r.system == "bm25" else r for r in retrieval()]
        return lines(titled(report_quality.retrieval(Saved.of(rows)), "Retrieval, R@5"))["ratio to msa"][1:]

    assert "\u2013" not in ratios()
    assert [r == "\u2013" for r in ratios(commit="def456")] == [False, True, False]
    assert "\u2013" not in ratios(command="msa bench retrieval --systems bm25")  # quality does not depend on it
    slower = [replace(r, command="later") if r.system == "dense" else r for r in costs()]
    [found] = report_growth.cost(Saved.of(slower))
    assert not any(c.small for r in found.rows for c in r)
    assert "No ratios" in " ".join(found.notes) or "no ratios" in " ".join(found.notes)


def test_fewer_tokens_are_the_better_ones() -> None:
    asked = [replace(r, metric="input_tokens") for r in qa(("one",)) if r.metric == "seconds"]
    rows = [replace(r, value=50.0) if r.system == "closed-book" else r for r in asked]
    found = titled(report_quality.qa(Saved.of(rows)), "Answers, input_tokens (one)")
    assert found.columns[-1].label == "least ÷ msa"
    assert [r[0].text for r in found.rows if any(c.best for c in r)] != ["closed-book"]
    cheap = [replace(r, value=0.1) if r.system == "closed-book" else r for r in asked]
    found = titled(report_quality.qa(Saved.of(cheap)), "Answers, input_tokens (one)")
    assert [r[0].text for r in found.rows if any(c.best for c in r)] == ["closed-book"]


def test_the_peak_says_whose_it_is() -> None:
    rows = [row("cost", "one", "msa", "peak_rss_bytes", 1e9)]
    [shared] = report_growth.cost(Saved.of(rows))
    [alone] = report_growth.cost(Saved.of([replace(r, settings={"memory_tokens": 1000}) for r in rows]))
    assert "earlier systems" in " ".join(shared.notes)
    assert "earlier systems" not in " ".join(alone.notes)


def test_answers_stand_by_passages_read() -> None:
    tables = report_quality.qa(Saved.of(qa()))
    found = titled(tables, "Answers, F1 (average of 2 data sets)")
    assert [c.label for c in found.columns] == ["system", "R@1", "R@5", "R@10", "own", "adaptive", "best ÷ msa"]
    mean = {
        s: sum(score(d, s, "F1") for d in ("one", "two")) / 2
        for s in ("msaadaptive", "bm251", "bm255", "bm2510", "closed-bookNone")
    }
    shown = lines(found)
    reads = [mean["bm251"], mean["bm255"], mean["bm2510"]]
    assert shown["bm25"] == [
        *(f"{v:.3f}" for v in reads),
        *"\u2013\u2013",
        f"{max(reads) / mean['msaadaptive']:.2f}\u00d7",
    ]
    assert shown["msa"][4:] == [f"{mean['msaadaptive']:.3f}", "1.00\u00d7"]
    assert shown["closed-book"][3] == f"{mean['closed-bookNone']:.3f}"
    each = titled(tables, "Answers, F1, by data set")
    assert [c.label for c in each.columns][2:] == ["msa adaptive", "bm25 R@1", "bm25 R@5", "bm25 R@10", "closed-book"]
    assert lines(each)["two"][3] == f"{score('two', 'bm255', 'F1'):.3f}"
    assert titled(tables, "Answers, seconds (average of 2 data sets)").folded


def test_one_data_set_needs_no_average() -> None:
    tables = report_quality.qa(Saved.of(qa(("one",))))
    assert lines(titled(tables, "Answers, EM (one)"))["bm25"][1] == f"{score('one', 'bm255', 'EM'):.3f}"
    assert not any("by data set" in t.title for t in tables)


def test_degradation_tells_loss_and_growth() -> None:
    tables = report_growth.scale(Saved.of(scale()))
    quality = titled(tables, "Degradation, R@10, one")
    assert [c.name for c in quality.columns] == ["system", "16K", "64K", "1M*", "lost, first to last"]
    assert lines(quality) == {
        "msa": ["0.800", "0.720", "0.648", "19.0 %"],
        "bm25": ["0.800", "0.640", "0.512", "36.0 %"],
    }
    time = titled(tables, "Degradation, seconds in all, median, one")
    assert lines(time)["bm25"] == ["20.0 ms", "40.0 ms", "60.0 ms", "3.00\u00d7"]
    assert [c.small for c in time.rows[1]][1:-1] == ["2.00\u00d7"] * 3
    assert titled(tables, "Degradation, seconds to route, median, one").folded


def test_no_two_metrics_are_spelled_alike() -> None:
    stages = ("", "search_", "encode_", "route_", "answer_")
    metrics = [f"{stage}seconds_{p}" for stage in stages for p in ("p50", "p95")]
    names = [spelled(metric) for metric in (*metrics, "seconds", "R@10", "prefilter_recall@10")]
    assert len(set(names)) == len(names)
    assert names[:3] == ["seconds in all, median", "seconds in all, 95th percentile", "seconds to search, median"]


def test_a_loss_that_was_measured_is_shown_as_it_was() -> None:
    of = {"of": "R@10", "from": 16_384, "to": 65_536}
    loss = row("scale", "one", "bm25", "relative_loss", 0.123, low=0.1, high=0.2, settings=of)
    found = titled(report_growth.scale(Saved.of([*scale(), loss])), "Degradation, R@10, one")
    last = found.rows[1][-1]
    assert (last.text, last.small) == ("12.3 %", "10.0\u201320.0 %, 16K to 64K")


def test_needle_tables_are_means_of_their_cells() -> None:
    tables = report_growth.needle(Saved.of(needles()))
    assert lines(titled(tables, "Needles, recall, by task")) == {
        "multivalue": ["12", "0.500", "0.250"],
        "single-1": ["12", "0.500", "0.250"],
        "all": ["24", "0.500", "0.250"],
    }
    heat = titled(tables, "Needles, answered, msa: depth against tokens")
    assert lines(heat) == {"0 %": ["0.500"] * 2, "50 %": ["0.250"] * 2, "100 %": ["0.000"] * 2}


def test_a_mean_over_other_cells_is_none() -> None:
    lost = [r for r in needles() if (r.system, *r.settings.values()) != ("bm25", "single-1", 4096, 1.0)]
    tables = report_growth.needle(Saved.of(lost))
    by_task = lines(titled(tables, "Needles, recall, by task"))
    assert by_task["multivalue"][1:] == ["0.500", "0.250"]
    assert by_task["single-1"][1:] == by_task["all"][1:] == ["0.500", "\u2013"]
    heat = lines(titled(tables, "Needles, recall, bm25: depth against tokens"))
    assert heat["100 %"] == ["\u2013", "0.000"]


def test_latency_stands_by_hop_and_stage() -> None:
    tables = report_growth.latency(Saved.of(latency()))
    whole = titled(tables, "Latency of a whole question, one")
    assert lines(whole) == {"16K": ["600 ms", "1.80 s"], "1M": ["600 ms", "1.80 s"]}
    assert whole.rows[0][2].small == "p95 3.60 s, 3.00\u00d7"
    stages = titled(tables, "Latency by hop and stage, one, 1M tokens in memory")
    assert [r[0].text for r in stages.rows] == [
        "1, encode", "1, route", "1, decode", "2, encode", "2, route", "2, decode", "total",
    ]  # fmt: skip
    assert not stages.folded
    assert titled(tables, "Latency by hop and stage, one, 16K tokens in memory").folded


def test_costs_have_units_and_ratios() -> None:
    [found] = report_growth.cost(Saved.of(costs()))
    assert lines(found) == {"msa": ["200 ms", "27.0 B", "3.00 GiB"], "dense": ["800 ms", "108 B", "12.0 GiB"]}
    assert [c.small for c in found.rows[1][1:]] == ["4.00\u00d7"] * 3
    assert [c.best for c in found.rows[0][1:]] == [True] * 3
    sizes = [replace(r, settings={"memory_tokens": s}) for s in (16_384, 65_536) for r in costs()]
    assert [(t.title, t.folded) for t in report_growth.cost(Saved.of(sizes))] == [
        ("Cost, one, memory tokens 64K", False),
        ("Cost, one, memory tokens 16K", True),
    ]


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (duration(0.0123), "12.3 ms"),
        (duration(2.0), "2.00 s"),
        (duration(4e-5), "40.0 µs"),
        (size(27.0), "27.0 B"),
        (size(1536.0), "1.50 KiB"),
        (tokens(16_384), "16K"),
        (tokens(16_000), "16K"),
        (tokens(10_485_760), "10M"),
        (tokens(123_456), "123K"),
    ],
)
def test_units(made: str, shown: str) -> None:
    assert made == shown


# The folder


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    extra = [
        row("retrieval", "one", "huge", SKIPPED, 0.0, settings={"reason": "does not fit"}),
        row("scale", "one", "", NOTE, 0.0, settings={"reason": "only 60 questions"}),
        row("strange", "one", "msa", "loudness", 3.25, settings={"knob": 11}),
        row("retrieval", "one", "msa", "R@5", 0.77, settings={"prefilter": "faiss:hnsw"}),
    ]
    out = saved(tmp_path / "out", [*everything(), *extra], parts={"retrieval": {"k": 100}})
    skip = {"part": "qa", "dataset": "two", "system": "dense:x", "reason": "no weights"}
    (out / "skipped.jsonl").write_text(json.dumps(skip) + "\n", encoding="utf-8")
    page = write_report(out)
    assert page == out / "report.html"
    markdown_text, html = (out / "report.md").read_text("utf-8"), Page(page.read_text("utf-8"))
    for text in (markdown_text.replace("\\", ""), html.text):
        for said in ("2026-01-02", "abc123", "two cores", "msa bench retrieval --out out", "seed 0", "does not fit",
                     "no weights", "dense:x", "one: only 60 questions", "loudness", "3.250", "knob 11",
                     "prefilter faiss:hnsw", "0.770"):  # fmt: skip
            assert said in text, said
    pictures = sorted(p.name for p in (out / "plots").iterdir())
    assert [f"plots/{p}" in markdown_text for p in pictures] == [True] * len(pictures)
    assert html.tags.count("img") == len(pictures) >= 7
    addresses = [v for name, v in html.attributes if name in ("src", "href")]
    assert all(a.startswith(("data:image/png;base64,", "#s")) for a in addresses)
    assert "script" not in html.tags and "link" not in html.tags


def test_runs_that_differ_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_parts_that_are_missing_are_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Any) -> None:
    monkeypatch.setattr(plots, "figures", lambda saved: {})
    out = saved(tmp_path / "out", part())
    write_report(out)
    found = re.findall(r"^## (.+)$", (out / "report.md").read_text("utf-8"), re.M)
    chapters = {"Retrieval", "Answers", "Degradation", "Needles in a haystack", "Latency", "Cost"}
    assert len(chapters & set(found)) == 1
    assert "Skipped" not in found


def test_nothing_measured_is_still_a_report(tmp_path: Path) -> None:
    out = saved(tmp_path / "out", [row("qa", "one", "msa", SKIPPED, 0.0, settings={"reason": "disk full"})])
    write_report(out)
    text = (out / "report.md").read_text("utf-8")
    assert "no finished measurements" in text and "disk full" in text


def test_without_matplotlib_there_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"msa-plugin\[bench\]"), style():
        pass
    out = saved(tmp_path / "out", retrieval())
    write_report(out)
    text = (out / "report.md").read_text("utf-8").replace("\\", "")
    assert "No plots: plots need matplotlib" in text and "Retrieval, R@5" in text


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no results\.jsonl"):
        write_report(tmp_path)
    out = saved(tmp_path / "out", retrieval())
    (out / "skipped.jsonl").write_text("{}\nnot json\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"skipped\.jsonl, line 2"):
        write_report(out)


def test_values_that_are_no_numbers_are_counted_and_left_out() -> None:
    found = Saved.of([*retrieval(), row("retrieval", "one", "odd", "R@5", float("nan"))])
    assert "1 measurements are not finite numbers" in " ".join(found.notes)
    assert "odd" not in table(found.rows)


# Names are data


def hostile(name: str) -> list[Row]:
    rows = [
        replace(r, system=name if r.system == "bm25" else r.system, dataset=name if r.dataset == "one" else r.dataset)
        for r in everything()
    ]
    rows = [replace(r, command=f"msa --out {name}", hardware=name, versions={name: name}) for r in rows]
    rows.append(row("qa", name, name, SKIPPED, 0.0, settings={"reason": name}))
    return [*rows, row(name, name, name, name, 1.0, settings={name: name})]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(plots, "figures", lambda saved: {})
    out = saved(tmp_path / "out", hostile(name), parts={name: {name: name}})
    page = Page(write_report(out).read_text("utf-8"))
    harmless = Page(write_report(saved(tmp_path / "plain", hostile("plain"), parts={"plain": {}})).read_text("utf-8"))
    assert Counter(page.tags) == Counter(harmless.tags)
    assert {a for a, _ in page.attributes} == {a for a, _ in harmless.attributes}
    text = (out / "report.md").read_text("utf-8")
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))  # the rest is literal
    plain = (tmp_path / "plain" / "report.md").read_text("utf-8")
    assert len(re.findall("^#", prose, re.M)) == len(re.findall("^#", plain, re.M))
    assert not re.search(r"<script|(?<!\\)\*\*bold|(?<!\\)`code|\](?<!\\\])\(j", prose)
    assert borders(prose) == borders(plain)
    for printed in (text, page.text, table(hostile(name))):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800]", printed)


def borders(text: str) -> list[int]:
    """How many cell borders each line of a table has."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")]


def test_hostile_names_do_not_leave_the_folder(tmp_path: Path) -> None:
    write_report(saved(tmp_path / "out", [r for name in HOSTILE[-3:] for r in [*scale(name), *costs()]]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert sorted(p.name for p in (tmp_path / "out" / "plots").iterdir()) == [f"degradation-{i}.png" for i in (1, 2, 3)]


def test_markdown_tables_have_as_many_cells_as_columns() -> None:
    columns = (Column("a|b", number=False), Column("c"))
    text = markdown(Table("t", columns, ((Cell("x|y\nz"), Cell("1", small="0|2", best=True)),)))
    assert borders(text) == [3] * 3


@pytest.mark.parametrize(
    ("given", "made"),
    [("1. x", "1\\. x"), ("- x", "\\- x"), ("1.25", "1.25"), ("https://a.b", "https\\://a.b"), ("a_b<", "a\\_b&lt;")],
)
def test_markdown_that_would_be_markup_is_escaped(given: str, made: str) -> None:
    assert escaped(given) == made


def test_the_terminal_table_shows_what_is_not_folded() -> None:
    text = table(everything())
    assert "Retrieval, nDCG@10" in text and "Retrieval, AP" not in text
    line = next(x for x in text.splitlines() if x.startswith("one "))
    best = max(SYSTEMS, key=lambda s: score("one", s, "nDCG@10"))
    assert f"{score('one', best, 'nDCG@10'):.3f}" in line and line.count("*") == 1
    assert max(map(len, text.splitlines())) < 200
    assert table([]) == "There are no results."
    assert report.TITLE not in text
