"""The report's numbers are the rows', and its averages and ratios can be recomputed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report_rows_toy import CONFIG, SETS, costs, latency, needles, qa, retrieval, row, scale, score

from msa_plugin.bench.report_parts import tables
from msa_plugin.bench.report_rows import Saved, spelled
from msa_plugin.bench.units import bounds, duration, size, times, tokens

DASH = "\u2013"


def table(part, rows, title, config=None):
    [found] = [t for t in tables(Saved.of(rows, config), part) if t.title == title]
    return found


def cells(found):
    """Cells of the systems in each line, by what the line is called."""
    return {" ".join(c.text for c in r[: found.words] if c.text): list(r[found.words + 1 :]) for r in found.rows}


def lines(found):
    """Their texts."""
    return {name: [c.text for c in line] for name, line in cells(found).items()}


def test_retrieval_tables_hold_the_rows_and_their_averages():
    order = ("msa", "bm25", "dense")
    for metric in ("nDCG@10", "R@5", "R@10"):
        found = table("retrieval", retrieval(), f"Retrieval, {metric}", CONFIG)
        assert found.heads == ("data set", "n", *order)
        assert [r[1].text for r in found.rows] == ["40", "40", "40", "", "", ""]
        shown = lines(found)
        for dataset in SETS:
            assert shown[dataset] == [f"{score(dataset, s, metric):.3f}" for s in order]
        every = {s: sum(score(d, s, metric) for d in SETS) / 3 for s in order}
        some = {s: sum(score(d, s, metric) for d in ("two", "three")) / 2 for s in order}
        assert shown["average (3)"] == [f"{every[s]:.3f}" for s in order]
        assert shown["multi-hop average (2)"] == [f"{some[s]:.3f}" for s in order]
        assert shown["ratio to msa"] == [f"{every[s] / every['msa']:.2f}\u00d7" for s in order]
        best = max(order, key=lambda s: score("one", s, metric))
        assert [c.best for c in cells(found)["one"]] == [s == best for s in order]
        low, high = (score("one", "msa", metric) + change for change in (-0.05, 0.05))
        assert cells(found)["one"][0].small == f"{low:.3f}{DASH}{high:.3f}"


def test_significance_marks_follow_the_p_values():
    found = cells(table("retrieval", retrieval(), "Retrieval, nDCG@10"))
    assert [[c.mark for c in found[name]] for name in SETS] == [["", "‡", ""], ["", "†", ""], ["", "", ""]]
    other = table("retrieval", retrieval(), "Retrieval, R@5")
    assert not any(c.mark for r in other.rows for c in r)


def test_an_average_needs_all_data_sets():
    rows = [r for r in retrieval() if (r.dataset, r.system) != ("three", "dense")]
    shown = lines(table("retrieval", rows, "Retrieval, R@5"))
    assert shown["three"][-1] == shown["average (3)"][-1] == shown["ratio to msa"][-1] == DASH


def test_hops_come_from_the_configuration():
    assert Saved.of(retrieval()).hops() == {}
    config = {"datasets": {"one": {"hops": {"1": 30, "2": 10}}, "two": {"hops": {"2": 3, "4": 1}}, "three": {}}}
    assert Saved.of(retrieval(), config).hops() == {"one": 1.25, "two": 2.5}


def test_ratios_stay_within_a_run():
    def ratios(**changes):
        rows = [replace(r, **changes) if r.system == "bm25" else r for r in retrieval()]
        return lines(table("retrieval", rows, "Retrieval, R@5"))["ratio to msa"]

    assert DASH not in ratios()
    assert [r == DASH for r in ratios(commit="def456")] == [False, True, False]
    assert DASH not in ratios(command="msa bench retrieval --systems bm25")  # quality does not depend on it
    slower = [replace(r, command="later") if r.system == "dense" else r for r in costs()]
    assert not any(c.small for r in table("cost", slower, "Cost, disk, per token").rows for c in r)


@pytest.mark.parametrize(("value", "best"), [(50.0, "bm25"), (0.1, "closed-book")])
def test_fewer_tokens_are_the_better_ones(value, best):
    asked = [r for r in qa(("one",)) if r.metric == "seconds" and r.settings.get("passages") in (None, 1)]
    rows = [
        replace(r, metric="input_tokens", value=value if r.system == "closed-book" else 1.0, settings={}) for r in asked
    ]
    found = table("qa", rows, "Answers, input_tokens")
    assert [h for h, c in zip(found.heads[2:], cells(found)["one"], strict=True) if c.best] == [best]


def test_answers_stand_by_passages_read():
    found = table("qa", qa(), "Answers, F1")
    assert found.heads == ("data set", "passages", "n", "msa", "bm25", "closed-book")
    shown = lines(found)
    assert shown["two R@5"] == [DASH, f"{score('two', 'bm255', 'F1'):.3f}", DASH]
    assert [name for name in shown if name.startswith("one")] == [
        "one R@1",
        "one R@5",
        "one R@10",
        "one",
        "one adaptive",
    ]
    mean = {s: sum(score(d, s, "F1") for d in ("one", "two")) / 2 for s in ("msaadaptive", "bm251", "bm255", "bm2510")}
    assert shown["average (2) R@10"] == [DASH, f"{mean['bm2510']:.3f}", DASH]
    assert shown["average (2) adaptive"] == [f"{mean['msaadaptive']:.3f}", DASH, DASH]
    best = max(mean[s] for s in ("bm251", "bm255", "bm2510"))
    assert shown["ratio to msa"][:2] == ["1.00\u00d7", f"{best / mean['msaadaptive']:.2f}\u00d7"]
    assert table("qa", qa(), "Answers, seconds").folded and not found.folded
    assert not any("average" in name for name in lines(table("qa", qa(("one",)), "Answers, EM")))


def test_degradation_stands_by_size():
    found = table("scale", scale(), "Degradation, R@10")
    assert found.heads == ("data set", "memory tokens", "synthetic", "n", "msa", "bm25")
    assert lines(found) == {
        "one 16K": ["0.800", "0.800"],
        "one 64K": ["0.720", "0.640"],
        "one 1M True": ["0.648", "0.512"],
    }
    time = cells(table("scale", scale(), "Degradation, seconds, median"))
    assert [line[1].text for line in time.values()] == ["20.0 ms", "40.0 ms", "60.0 ms"]
    assert [line[1].small for line in time.values()] == ["2.00\u00d7"] * 3
    assert table("scale", scale(), "Degradation, seconds to route, median").folded


def test_a_loss_is_shown_as_it_was_measured_and_the_least_is_the_best():
    of = {"of": "R@10", "from": 16_384, "to": 65_536}
    losses = [
        row("scale", "one", name, "relative_loss", value, low=0.1, high=0.3, settings=of)
        for name, value in (("msa", 0.123), ("bm25", 0.2))
    ]
    found = table("scale", [*scale(), *losses], f"Degradation, {spelled('relative_loss')}")
    [(name, line)] = cells(found).items()
    assert (name, [c.text for c in line], line[0].small) == (
        "one R@10 16K 64K",
        ["0.123", "0.200"],
        f"0.100{DASH}0.300",
    )
    assert [c.best for c in line] == [True, False]


def test_what_was_read_stands_beside_the_system_where_memories_grow():
    rows = [replace(r, settings={**r.settings, "passages": 5}) if r.system == "bm25" else r for r in scale()]
    assert table("scale", rows, "Degradation, R@10").heads[-2:] == ("msa", "bm25 R@5")


def test_no_two_metrics_are_spelled_alike():
    stages = ("", "search_", "encode_", "route_", "answer_")
    metrics = [f"{stage}seconds_{p}" for stage in stages for p in ("p50", "p95")]
    names = [spelled(metric) for metric in (*metrics, "seconds", "R@10", "prefilter_recall@10")]
    assert len(set(names)) == len(names)
    assert names[:3] == ["seconds, median", "seconds, 95th percentile", "seconds to search, median"]


def test_needle_tables_are_means_of_their_cells():
    found = table("needle", needles(), "Needles, recall, by task")
    assert lines(found) == {
        "needle multivalue": ["0.500", "0.250"],
        "needle single-1": ["0.500", "0.250"],
        "all": ["0.500", "0.250"],
    }
    assert [r[2].text for r in found.rows] == ["12", "12", ""]
    heat = lines(table("needle", needles(), "Needles, answered, by length and depth"))
    assert heat["needle 4K 0 %"] == ["0.500", "0.250"] and heat["needle 16K 100 %"] == ["0.000", "0.000"]


def test_a_mean_over_other_cells_is_none():
    lost = [r for r in needles() if (r.system, *r.settings.values()) != ("bm25", "single-1", 4096, 1.0)]
    by_task = lines(table("needle", lost, "Needles, recall, by task"))
    assert by_task["needle multivalue"] == ["0.500", "0.250"]
    assert by_task["needle single-1"] == by_task["all"] == ["0.500", DASH]
    heat = lines(table("needle", lost, "Needles, recall, by length and depth"))
    assert heat["needle 4K 100 %"] == ["0.000", DASH] and heat["needle 16K 100 %"] == ["0.000", "0.000"]


def test_systems_that_share_no_task_have_no_mean_over_tasks():
    apart = [r for r in needles() if (r.system == "msa") == (r.settings["task"] == "single-1")]
    assert lines(table("needle", apart, "Needles, recall, by task"))["needle single-1"] == ["0.500", DASH]
    assert set(map(tuple, lines(table("needle", apart, "Needles, recall, by length")).values())) == {(DASH, DASH)}


def test_latency_stands_by_hop_and_stage():
    found = table("latency", latency(), "Latency, seconds, median")
    assert found.heads == ("data set", "memory tokens", "hop", "stage", "n", "msa", "iterative")
    assert [" ".join(c.text for c in r[2:4]).strip() for r in found.rows if r[1].text == "1M"] == [
        "1 encode", "1 route", "1 decode", "2 encode", "2 route", "2 decode", "total",
    ]  # fmt: skip
    whole = cells(found)["one 16K total"]
    assert [(c.text, c.small) for c in whole] == [("600 ms", ""), ("1.80 s", "3.00\u00d7")]
    slow = table("latency", latency(), "Latency, seconds, 95th percentile")
    assert slow.folded and lines(slow)["one 16K total"] == ["1.20 s", "3.60 s"]


def test_costs_have_units_and_ratios():
    found = {t.title: cells(t)["one"] for t in tables(Saved.of(costs()), "cost")}
    assert {title: [c.text for c in line] for title, line in found.items()} == {
        "Cost, indexing, per 1,000 tokens": ["200 ms", "800 ms"],
        "Cost, disk, per token": ["27.0 B", "108 B"],
        "Cost, peak resident memory": ["3.00 GiB", "12.0 GiB"],
    }
    assert {line[1].small for line in found.values()} == {"4.00\u00d7"}
    assert all(line[0].best for line in found.values())
    sizes = [replace(r, settings={"memory_tokens": s}) for s in (65_536, 16_384) for r in costs()]
    assert list(lines(table("cost", sizes, "Cost, disk, per token"))) == ["one 16K", "one 64K"]


def test_what_no_part_knows_is_folded():
    found = table(
        "strange", [row("strange", "one", "msa", "loudness", 3.25, settings={"knob": 11})], "strange, loudness"
    )
    assert found.folded and found.heads == ("data set", "knob", "n", "msa")
    assert lines(found) == {"one 11": ["3.250"]}
    odd = table("scale", [replace(r, settings={"memory_tokens": "much"}) for r in scale()], "Degradation, R@10")
    assert list(lines(odd)) == ["one much"]


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
        (times(1234.5), "1,234\u00d7"),
        (bounds(0.0012, 0.0034, "seconds"), f"1.20{DASH}3.40 ms"),
        (bounds(0.0004, 0.0034, "seconds"), f"400 µs{DASH}3.40 ms"),
        (bounds(None, 1.0), ""),
    ],
)
def test_units(made, shown):
    assert made == shown
