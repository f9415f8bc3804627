"""The report's numbers are the rows', and its averages and ratios can be recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_rows_toy import CONFIG, SETS, costs, latency, needles, qa, retrieval, row, scale, score

from msa_plugin.bench import report_growth, report_quality
from msa_plugin.bench.report_rows import Saved, spelled
from msa_plugin.bench.report_tables import Table, duration, size, tokens


def lines(found: Table) -> dict[str, list[str]]:
    """Texts of each row by the text of its first cell."""
    return {r[0].text: [c.text for c in r[1:]] for r in found.rows}


def titled(tables: list[Table], title: str) -> Table:
    [found] = [t for t in tables if t.title == title]
    return found


# Numbers


def test_retrieval_tables_hold_the_rows_and_their_averages() -> None:
    for metric in ("nDCG@10", "R@5", "R@10"):
        found = titled(report_quality.retrieval(Saved.of(retrieval(), CONFIG)), f"Retrieval, {metric}")
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


def test_hops_come_from_the_configuration() -> None:
    assert Saved.of(retrieval()).hops() == {}
    config = {"datasets": {"one": {"hops": {"1": 30, "2": 10}}, "two": {"hops": {"2": 3, "4": 1}}, "three": {}}}
    assert Saved.of(retrieval(), config).hops() == {"one": 1.25, "two": 2.5}


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
